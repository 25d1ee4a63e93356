# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Generates a dataset of images with masks: `diffuseseg generate`.

accelerate launch training/generate_dataset.py --model MODEL --num_samples 10000 --output_dir OUT
"""

import shutil
import statistics
import time
from functools import partial
from typing import Any

from accelerate import Accelerator
from tqdm.auto import tqdm

from diffuseseg_diffusers.datasets.columns import dataset_contents, describe_dataset
from diffuseseg_diffusers.datasets.unlabeled import load_unlabeled
from diffuseseg_diffusers.factory.sampling import (
    call_arguments,
    check_generates_masks,
    doubt_samples,
    generate_batch,
    sampler_for,
)
from diffuseseg_diffusers.factory.selection import nearest_neighbours, reference_thumbnails, select
from diffuseseg_diffusers.factory.shards import PART_FILES, SHARD_FILES, Samples, part_path, write_shards, write_table
from diffuseseg_diffusers.figures.curves import uncertainty_histogram
from diffuseseg_diffusers.figures.pages import samples_page
from diffuseseg_diffusers.hub.dataset_card import GENERATION, describe_generation
from diffuseseg_diffusers.hub.push import finish_push, prepare_push
from diffuseseg_diffusers.jobs.command_line import run_script
from diffuseseg_diffusers.jobs.executors import is_worker, load_executor, share_work
from diffuseseg_diffusers.jobs.files import atomic_file, read_json, write_json
from diffuseseg_diffusers.jobs.hardware import find_device, hardware, report_processes
from diffuseseg_diffusers.jobs.parts import PARTS, Part, finish_parts
from diffuseseg_diffusers.jobs.run import check_run, open_run
from diffuseseg_diffusers.pipelines.identity import describe_pipeline
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.tasks.generate import GenerateConfig


OWNED = (f"{PARTS}/*", PART_FILES, SHARD_FILES, GENERATION, "id2label.json", "samples.png", "uncertainty.png")


def generate(config: GenerateConfig) -> dict | None:
    """Generates images with masks, leaves out uncertain ones and duplicates, and writes the rest as Parquet shards.

    The same seed, batch size, precision and number of threads give the same bytes, on any number of processes.

    Returns:
        `dict`: The `result` of `generation.json`, such as `num_kept`; `None` if the work is submitted to a cluster.

    Raises:
        UserError: The model generates no masks, an input cannot be read, or the folder holds another run.

    Examples:
        >>> from diffuseseg_diffusers import GenerateConfig, generate
        >>> generate(GenerateConfig(model="out/model", num_samples=20, output_dir="out/synthetic"))["num_kept"]
    """
    # 1. The model with its head and its sampler; all inputs are checked before the folder is touched.
    if config.executor != "local":
        load_executor(config.executor)
    accelerator = Accelerator(cpu=find_device(config.device).type == "cpu")
    report_processes(accelerator)
    if accelerator.is_main_process:
        check_run(config, "generate")
    pipe: Any = load_pipeline(config.model, **config.loading(device=config.device or accelerator.device))
    check_generates_masks(pipe, config.model, config.masks_while_sampling)
    pipe.set_progress_bar_config(disable=True)
    if doubt := doubt_samples(config.model):
        accelerator.print(f"warning: {doubt}")
    pipe.scheduler = sampler_for(pipe, config.scheduler, config.num_inference_steps)
    prompts, size = config.prompts(), config.size
    arguments = call_arguments(pipe, prompts, config.guidance_scale, size, config.negative_prompt)
    trained_on = (config.train_dataset_name, config.train_dataset_config_name, config.train_split)
    references = load_unlabeled(*trained_on, cache_dir=config.cache_dir) if config.train_dataset_name else None
    reads = {"model": describe_pipeline(pipe), "prompts_file": prompts}
    reads["train_dataset_name"] = dataset_contents(*references) if references else None
    if accelerator.is_main_process:
        prepare_push(config)
        open_run(config, "generate", reads, OWNED, together=True)
    accelerator.wait_for_everyone()
    complete = config.output_dir / GENERATION
    if complete.is_file():
        accelerator.print(f"{config.output_dir} is complete.")

    # 2. Images and masks, batch by batch; each is a file, made by whichever process takes it first.
    seconds: list[float] = []  # per image, of the batches that this process made

    def make_batch(batch: int) -> None:
        began = time.perf_counter()
        how = (config.num_inference_steps, config.masks_while_sampling, config.image_format, arguments)
        write_table(paths[batch], generate_batch(pipe, batch, config.batch_size, config.seed, *how))
        seconds.append((time.perf_counter() - began) / config.batch_size)

    # 3. The best of them as shards, once all batches are there.
    def make_dataset() -> None:
        result = write_dataset(config, pipe, references)
        result |= {"seconds_per_image": statistics.median(seconds) if seconds else None}
        result |= {"hardware": hardware(pipe.device), "num_processes": accelerator.num_processes}
        write_json(complete, {"settings": describe_generation(config, pipe, prompts), "result": result})

    paths = [part_path(config.output_dir, batch) for batch in range(-(-config.num_samples // config.batch_size))]
    parts = [Part(path, partial(make_batch, i), config.batch_size, until=(complete,)) for i, path in enumerate(paths)]
    parts.append(Part(complete, make_dataset, needs=paths))

    def work() -> None:
        show = {"desc": "Generating", "unit": "image", "disable": not accelerator.is_main_process}
        with tqdm(total=sum(part.size for part in parts), **show) as bar:
            finish_parts(parts, bar)

    if not complete.is_file() and not share_work(config, "generate", work):
        print(f"The job is submitted; {config.output_dir} is complete when it has a {GENERATION}.")
        return None
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not is_worker():
        shutil.rmtree(config.output_dir / PARTS, ignore_errors=True)
        finish_push(config)
    return read_json(complete)["result"]


def write_dataset(config: GenerateConfig, pipe: Any, references: tuple | None) -> dict:
    """Writes shards, class names and figures of the batches that are there; returns what came of it."""
    folder, samples = config.output_dir, Samples(config.output_dir, config.num_samples, config.batch_size)
    if references is not None:
        references = reference_thumbnails(*references, samples.image_mode)
    kept = select(samples, config.drop_uncertain, config.drop_common, config.min_distance, references)
    nearest = nearest_neighbours(samples, kept, references)
    shards = write_shards(folder, samples, kept, int(config.shard_mb * 1e6))
    write_json(folder / "id2label.json", dict(enumerate(pipe.label_names)))
    shown = [samples.images(kept[:8], column) for column in ("image", "mask")]
    pages = {"samples": samples_page(*shown, pipe.label_names, pipe.palette)}
    pages["uncertainty"] = uncertainty_histogram(samples.uncertainty, kept)
    for name, page in pages.items():
        with atomic_file(folder / f"{name}.png") as partial_file:
            page.savefig(partial_file, format="png")
    tqdm.write(f"{len(kept)} of {config.num_samples} images are in {folder}, in Parquet files: {len(shards)}.")
    for name, quantiles in nearest.items():
        tqdm.write(
            f"Distance to the nearest, {name}: median {quantiles['median']:.3f}, least {quantiles['least']:.3f}."
        )
    model, uncertainty = describe_dataset(config.model, None, None), float(samples.uncertainty[kept].mean())
    result = {"model": {"name": model["name"], "on_hub": model["on_hub"]}, "num_kept": len(kept)}
    return result | {"mean_uncertainty": uncertainty, "nearest_neighbours": nearest, "shards": shards}


if __name__ == "__main__":
    run_script(GenerateConfig, generate)
