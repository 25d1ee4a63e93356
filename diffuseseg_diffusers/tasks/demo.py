# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The whole idea on drawn faces, without a download: `diffuseseg demo`.

A small diffusion model comes with the package; with `--train` it is trained first, by the same command that made it.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..jobs.config import option
from ..jobs.contents import contents_of
from ..jobs.files import check_output_folder, output_folder, write_json
from ..jobs.run import check_run, open_run
from . import run_task
from .options import WritesFolder
from .train_ddpm import TrainDDPMConfig


COMMAND = "demo"
METRICS = "metrics.json"  # written last
SHEET = "contact_sheet.png"


@dataclass(frozen=True, kw_only=True)
class DemoConfig(WritesFolder):
    """Show the whole idea on drawn faces."""

    train: bool = option(False, "Train the diffusion model first.")
    train_minutes: float = option(56, "Minutes of that training.")
    num_faces: int | None = option(
        None, "Number of unlabelled faces to train on, 1 to 8000 (default: 8000).", minimum=1, maximum=8000
    )
    num_labeled: int = option(5, "Number of labelled images to fit on.", minimum=1, maximum=20)
    num_test: int = option(100, "Number of images to measure on.", minimum=1, maximum=100)
    num_generated: int = option(16, "Number of images to generate.", minimum=1)
    num_inference_steps: int = option(100, "Number of denoising steps, 1 to 1000.", minimum=1, maximum=1000)
    seed: int = option(0, "Seed of fitting and generating.")


def demo(config: DemoConfig) -> dict:
    """Fits a head on a few drawn faces, measures it on others, and generates images with masks.

    Returns:
        `dict`: What `metrics.json` holds: mean IoU and more, and the seconds of each stage.

    Raises:
        UserError: The folder cannot be used.

    Examples:
        >>> from diffuseseg_diffusers import DemoConfig, demo
        >>> metrics = demo(DemoConfig(output_dir="out/demo"))
    """
    import torch

    from ..datasets.drawn_faces import LABEL_NAMES, SHIPPED_MODEL, drawn_faces
    from ..datasets.labeled import LabeledImages
    from ..evaluation.evaluate import evaluate_segmentation, format_metrics
    from ..heads.fit import fit_segmentation_head
    from ..jobs.hardware import default_device
    from ..pipelines.loading import load_pipeline

    # 1. The inputs, and only then the folder.
    labeled = LabeledImages(drawn_faces("train", config.num_labeled), label_names=LABEL_NAMES)
    unseen = LabeledImages(drawn_faces("test", config.num_test), label_names=LABEL_NAMES)
    check_run(config, COMMAND)
    if (config.output_dir / METRICS).exists():
        check_output_folder(config.output_dir, config.overwrite)
    open_run(config, COMMAND, {"model": contents_of([SHIPPED_MODEL])[SHIPPED_MODEL]}, own_files(config))
    if config.train:
        train(config)
    model = str(config.output_dir / "ddpm") if config.train else SHIPPED_MODEL

    # 2. Fitting, measuring and generating, each with its time.
    seconds, began = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        seconds[name], began = round(now - began, 1), now

    pipe: Any = load_pipeline(model, device=default_device())
    lap("load")
    pipe.segmentation_head = fit_segmentation_head(pipe, labeled, seed=config.seed)
    lap("fit")
    metrics, examples = evaluate_segmentation(pipe, unseen, num_examples=config.num_generated)
    lap("evaluate")
    # With DDPM, which adds noise: with DDIM, faces of this model stay pale, and their eyes and mouths dissolve.
    generator = torch.Generator().manual_seed(config.seed)
    generated = pipe(config.num_generated, generator, config.num_inference_steps)
    lap("generate")

    # 3. What is left behind.
    write(config.output_dir, pipe, labeled, examples, list(zip(generated.images, generated.masks)))
    metrics = {**metrics, "seconds": seconds}
    write_json(config.output_dir / METRICS, metrics)
    print(format_metrics(metrics))
    print(f"Fitted on {len(labeled)} labelled images. Seconds: {', '.join(f'{k} {v}' for k, v in seconds.items())}.")
    print(f"Contact sheet: {config.output_dir / SHEET}")
    print(f"Images with masks: {config.output_dir / 'generated'}")
    print(f"Pipeline, for `diffuseseg segment`: {config.output_dir / 'model'}")
    return metrics


def own_files(config: DemoConfig) -> list[str]:
    """What the record lists; the folders of data, training and model have records of their own."""
    generated = [f"generated/{i:02d}{kind}.png" for i in range(config.num_generated) for kind in ("", "_mask")]
    return ["drawn-faces/*", "ddpm/*", "model/*", *generated, SHEET, METRICS]


def write(folder: Path, pipe: Any, labeled: Any, examples: list, generated: list[tuple]) -> None:
    """Writes the pipeline, the generated images with their masks, and the contact sheet of all."""
    from ..figures.pages import contact_sheet

    with output_folder(folder / "model", overwrite=True, command=COMMAND) as partial:
        pipe.save_pretrained(partial)
    (folder / "generated").mkdir(exist_ok=True)
    for i, (image, mask) in enumerate(generated):
        image.save(folder / "generated" / f"{i:02d}.png")
        mask.save(folder / "generated" / f"{i:02d}_mask.png")
    shown = [(labeled[i].picture, labeled[i].mask) for i in range(len(labeled))]
    contact_sheet(shown, examples, generated, pipe.label_names, pipe.palette).savefig(folder / SHEET)


def train(config: DemoConfig) -> None:
    """Trains the diffusion model on drawn faces as the shipped one was, or resumes its training."""
    import torch

    from ..datasets.drawn_faces import SHIPPED_MODEL, write_drawn_faces
    from ..jobs.hardware import default_device, default_dtype

    data = config.output_dir / "drawn-faces"
    if not data.exists():
        with output_folder(data, overwrite=False, command=COMMAND) as partial:
            write_drawn_faces(partial, config.num_faces)
    training = TrainDDPMConfig(
        dataset_name=str(data),
        dataset_config_name="unlabeled",
        model_config=SHIPPED_MODEL,
        random_flip=True,
        train_batch_size=16,
        learning_rate=4e-4,
        lr_scheduler="cosine",
        max_train_minutes=config.train_minutes,
        use_ema=True,
        mixed_precision="bf16" if default_dtype(default_device()) == torch.bfloat16 else "no",
        seed=0,
        num_samples=config.num_generated,
        num_inference_steps=config.num_inference_steps,
        output_dir=config.output_dir / "ddpm",
    )
    run_task(training)
