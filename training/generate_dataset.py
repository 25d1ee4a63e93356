# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Generates a dataset of images with masks: `diffuseseg generate`.

    accelerate launch training/generate_dataset.py --model MODEL --num_samples 10000 --output_dir OUT

Several processes share the batches: those of `accelerate launch`, those of `--tasks`, or the same command line started
several times. Image `i` depends on the seed and `i`; the same batch size,
precision and number of threads give the same bytes, on any number of processes. The same command line resumes a run
that was cut off.
"""

import argparse
import shutil
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from diffuseseg_diffusers import DiffuseSegPipeline
from diffuseseg_diffusers.arguments import (
    add_cache_argument,
    add_model_arguments,
    add_output_arguments,
    height_and_width,
    inputs_of,
    run_script,
)
from diffuseseg_diffusers.datasets.columns import describe_dataset
from diffuseseg_diffusers.datasets.unlabeled import load_unlabeled
from diffuseseg_diffusers.factory.sampling import (
    IMAGE_FORMATS,
    SCHEDULERS,
    call_arguments,
    check_generates_masks,
    generate_batch,
    scheduler_for,
)
from diffuseseg_diffusers.factory.selection import Selection, nearest_neighbours, reference_thumbnails
from diffuseseg_diffusers.factory.shards import PART_FILES, SHARD_FILES, Samples, part_path, write_shards, write_table
from diffuseseg_diffusers.figures.curves import uncertainty_histogram
from diffuseseg_diffusers.figures.pages import samples_page
from diffuseseg_diffusers.hub.dataset_card import GENERATION
from diffuseseg_diffusers.hub.push import add_hub_arguments, finish_push, prepare_push
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.executors import add_executor_arguments, check_executor, is_worker, share_work
from diffuseseg_diffusers.jobs.files import atomic_file, check_output_folder, write_json
from diffuseseg_diffusers.jobs.hardware import find_device, hardware, report_processes, short_name
from diffuseseg_diffusers.jobs.parts import PARTS, Part, finish_parts
from diffuseseg_diffusers.jobs.run import fingerprint, may_resume, open_run
from diffuseseg_diffusers.pipelines.loading import load_pipeline


COMMAND = "generate"
SECONDS: list[float] = []  # an image, of the batches that this process made
OWNED = (f"{PARTS}/*", PART_FILES, SHARD_FILES, GENERATION, "id2label.json", "samples.png", "uncertainty.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_cache_argument(parser)
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--num_samples", type=int, required=True, help="Number of images to generate, before any are left out."
    )
    group.add_argument("--batch_size", type=int, default=16, help="Number of images at once (default: 16).")
    group.add_argument(
        "--scheduler",
        choices=list(SCHEDULERS),
        help="Sampler; ddpm: the model's own (default: ddim for U-Nets on pixels, else the model's own).",
    )
    group.add_argument("--num_inference_steps", type=int, default=50, help="Number of denoising steps (default: 50).")
    group.add_argument(
        "--masks_while_sampling",
        action="store_true",
        help="Masks from the denoising steps themselves, without a further pass of the U-Net.",
    )
    group.add_argument("--seed", type=int, default=0, help="Seed of all images (default: 0).")
    group = parser.add_argument_group("prompts, of models that take them")
    which = group.add_mutually_exclusive_group()
    which.add_argument("--prompt", help="Text of all images.")
    which.add_argument("--prompts_file", type=Path, help="File with a prompt on each line, which images take in turn.")
    group.add_argument("--negative_prompt", help="Text that guidance leads away from.")
    group.add_argument("--guidance_scale", type=float, help="Strength of guidance (default: the pipeline's own).")
    group.add_argument(
        "--resolution",
        type=int,
        nargs="+",
        help="Side, or height and width, in pixels of the images (default: the pipeline's own).",
    )
    group = parser.add_argument_group("what is left out")
    group.add_argument(
        "--drop_uncertain", type=float, default=0.1, help="Most uncertain fraction (default: 0.1; 0: none)."
    )
    group.add_argument(
        "--drop_common", type=float, default=0.0, help="Fraction that shows the least of rare classes (default: 0)."
    )
    group.add_argument(
        "--min_distance",
        type=float,
        default=0.0,
        help="Images nearer than this to an earlier one, or to a training image, are left out: root mean squared "
        "difference at 16 × 16 pixels, 0 to 1 (default: 0, none).",
    )
    group.add_argument(
        "--train_dataset_name",
        "--train_data_dir",
        help="Images that the model was trained on, to look for duplicates: a local folder or a Hub name.",
    )
    group.add_argument("--train_dataset_config_name", help="Configuration of that dataset.")
    group.add_argument("--train_split", default="train", help="Split of that dataset (default: train).")
    group = add_output_arguments(parser, "the dataset")
    group.add_argument("--image_format", choices=IMAGE_FORMATS, default="png", help="File format (default: png).")
    group.add_argument("--shard_mb", type=float, default=500, help="Size of a Parquet file in MB (default: 500).")
    add_executor_arguments(parser)
    add_hub_arguments(parser, "dataset")


def main(args: argparse.Namespace) -> None:
    # 1. The inputs, and only then the folder.
    selection = check_arguments(args)
    device = find_device(args.device)
    accelerator = Accelerator(cpu=device.type == "cpu")
    report_processes(accelerator)
    if accelerator.is_main_process and not (is_worker() or may_resume(args.output_dir, COMMAND)):
        check_output_folder(args.output_dir, args.overwrite)
    where = (args.device or accelerator.device, args.dtype, args.cache_dir)
    pipe: Any = load_pipeline(args.model, args.revision, *where, args.base_model)
    check_generates_masks(pipe, args.model)
    pipe.scheduler = scheduler_for(args.scheduler or default_scheduler(pipe), pipe.scheduler)
    prompts, resolution = read_prompts(args), height_and_width(args.resolution)
    arguments = call_arguments(pipe, prompts, args.guidance_scale, resolution, args.negative_prompt)
    limit = pipe.scheduler.config.num_train_timesteps
    if args.num_inference_steps > limit:
        raise UserError(f"--num_inference_steps must be at most the model's {limit}, got {args.num_inference_steps}.")
    pipe.set_progress_bar_config(disable=True)
    references = None
    if args.train_dataset_name:
        name, config_name = args.train_dataset_name, args.train_dataset_config_name
        references = load_unlabeled(name, config_name, args.train_split, cache_dir=args.cache_dir)
    settings = settings_of(args, pipe, prompts)
    if accelerator.is_main_process:
        prepare_push(args)
        overwrite = args.overwrite and not is_worker()
        open_run(args.output_dir, COMMAND, settings, OWNED, overwrite, inputs_of(args), together=True)
    accelerator.wait_for_everyone()
    complete = args.output_dir / GENERATION
    if complete.is_file():
        accelerator.print(f"{args.output_dir} is complete.")
    else:
        # 2. Batch after batch, each in a file of its own, together with whoever else is at it; then the dataset.
        options = (args.num_inference_steps, args.masks_while_sampling, args.image_format, arguments)
        paths = [part_path(args.output_dir, batch) for batch in range(-(-args.num_samples // args.batch_size))]
        makes = [partial(make_batch, args, pipe, batch, options) for batch in range(len(paths))]
        parts = [Part(path, make, args.batch_size, until=(complete,)) for path, make in zip(paths, makes)]
        if references is not None:  # the name of a local folder alone, because this file may be published
            settings["train_dataset_name"] = describe_dataset(args.train_dataset_name, None, None)["name"]
        finish = partial(write_dataset, args, pipe, selection, references, settings, accelerator.num_processes)
        parts.append(Part(complete, finish, needs=paths))

        def work() -> None:
            show = {"desc": "Generating", "unit": "image", "disable": not accelerator.is_main_process}
            with tqdm(total=sum(part.size for part in parts), **show) as bar:
                finish_parts(parts, bar)

        if not share_work(args, getattr(args, "argv", ()), args.output_dir, work):
            print(f"The job is submitted; {args.output_dir} is complete when it has a {GENERATION}.")
            return
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not is_worker():
        shutil.rmtree(args.output_dir / PARTS, ignore_errors=True)
        finish_push(args)


def make_batch(args: argparse.Namespace, pipe: Any, batch: int, options: tuple) -> None:
    """Generates a batch into the file of its own."""
    began = time.perf_counter()
    write_table(part_path(args.output_dir, batch), generate_batch(pipe, batch, args.batch_size, args.seed, *options))
    SECONDS.append((time.perf_counter() - began) / args.batch_size)


def check_arguments(args: argparse.Namespace) -> Selection:
    """Refuses numbers out of range; returns what is to be left out."""
    for name in ("num_samples", "batch_size", "num_inference_steps"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}.")
    if args.tasks < 1:
        raise UserError(f"--tasks must be at least 1, got {args.tasks}.")
    check_executor(args.executor, args.executor_options)
    if args.shard_mb <= 0:
        raise UserError(f"--shard_mb must be above 0, got {args.shard_mb}.")
    if args.min_distance > 1:
        raise UserError(f"--min_distance must lie in 0 to 1, got {args.min_distance}.")
    return Selection(args.drop_uncertain, args.drop_common, args.min_distance)


def default_scheduler(pipe: Any) -> str:
    """DDIM for U-Nets on pixels, whose own sampler takes a thousand steps; for others their own, here called ddpm."""
    return "ddim" if isinstance(pipe, DiffuseSegPipeline) else "ddpm"


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts that were given; none if none were.

    Raises:
        UserError: The file cannot be read, or is empty.
    """
    if args.prompts_file is None:
        return [args.prompt] if args.prompt is not None else []
    try:
        lines = args.prompts_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The prompts in {args.prompts_file} cannot be read: {error}") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"There are no prompts in {args.prompts_file}; write one on each line.")
    return prompts


def settings_of(args: argparse.Namespace, pipe: Any, prompts: list[str]) -> dict:
    """What the dataset depends on."""
    names = ("num_samples", "batch_size", "num_inference_steps", "masks_while_sampling", "seed", "image_format")
    names += ("drop_uncertain", "drop_common", "min_distance", "shard_mb")
    names += ("train_dataset_name", "train_dataset_config_name", "train_split")
    names += ("negative_prompt", "guidance_scale", "resolution")
    return {
        "weights": fingerprint(pipe.denoiser, pipe.segmentation_head),
        "decisions": pipe.segmentation_head.config.decisions if pipe.segmentation_head else None,
        "scheduler": type(pipe.scheduler).__name__,
        "dtype": short_name(pipe.denoiser.dtype),
        "prompts": prompts or None,
        **{name: getattr(args, name) for name in names},
    }


def write_dataset(
    args: argparse.Namespace,
    pipe: Any,
    selection: Selection,
    references: tuple | None,
    settings: dict,
    num_processes: int,
) -> None:
    """Writes shards, class names and figures of the batches that are there, and last what came of it."""
    folder, samples = args.output_dir, Samples(args.output_dir, args.num_samples, args.batch_size)
    if references is not None:
        references = reference_thumbnails(*references, samples.image_mode)
    kept = selection.apply(samples, references)
    nearest = nearest_neighbours(samples, kept, references)
    shards = write_shards(folder, samples, kept, int(args.shard_mb * 1e6))
    write_json(folder / "id2label.json", dict(enumerate(pipe.label_names)))
    shown = [samples.images(kept[:8], column) for column in ("image", "mask")]
    pages = {"samples": samples_page(*shown, pipe.label_names, pipe.palette)}
    pages["uncertainty"] = uncertainty_histogram(samples.uncertainty, kept)
    for name, page in pages.items():
        with atomic_file(folder / f"{name}.png") as partial:
            page.savefig(partial, format="png")
    print(f"{len(kept)} of {args.num_samples} images are in {folder}, {len(shards)} files.")
    for name, quantiles in nearest.items():
        print(f"Distance to the nearest, {name}: median {quantiles['median']:.3f}, least {quantiles['least']:.3f}.")
    model = describe_dataset(args.model, None, None)
    result = {
        "model": {"name": model["name"], "on_hub": model["on_hub"]},
        "num_kept": len(kept),
        "mean_uncertainty": float(samples.uncertainty[kept].mean()),
        "nearest_neighbours": nearest,
        "shards": shards,
    }
    result["seconds_per_image"] = statistics.median(SECONDS) if SECONDS else None  # of this process, in this run
    result |= {"hardware": hardware(pipe.device), "num_processes": num_processes}
    write_json(folder / GENERATION, {"settings": settings, "result": result})


if __name__ == "__main__":
    run_script(__doc__, add_arguments, main)
