# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Configuration of `diffuseseg generate`; the task itself is `training/generate_dataset.py`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..jobs.config import exclusive, option
from ..jobs.errors import UserError
from .options import CachesDownloads, NamesModel, PushesDataset, SetsSize, SharesWork, WritesFolder


SCHEDULERS = ("ddpm", "ddim", "dpmsolver++")
IMAGE_FORMATS = ("png", "jpeg")
_generation, _prompts, _selection = (partial(option, group=name) for name in ("generation", "prompts", "selection"))


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(NamesModel, SetsSize, CachesDownloads, WritesFolder, SharesWork, PushesDataset):
    """Generate a dataset of images with masks."""

    num_samples: int = _generation(help="Number of images to generate, before any are left out.", minimum=1)
    batch_size: int = _generation(16, "Images per forward pass.", minimum=1)
    scheduler: str | None = _generation(
        None,
        "Sampler; ddpm: the model's own (default: ddim for U-Nets on pixels, else the model's own).",
        choices=SCHEDULERS,
    )
    num_inference_steps: int = _generation(50, "Number of denoising steps.", minimum=1)
    masks_while_sampling: bool = _generation(
        False, "Take masks from the denoising steps, without a further pass of the model."
    )
    seed: int = _generation(0, "Seed of all images.")
    prompt: str | None = _prompts(None, "Prompt of all images.")
    prompts_file: Path | None = _prompts(
        None, "File with a prompt on each line, which images take in turn.", reads=True
    )
    negative_prompt: str | None = _prompts(None, "Negative prompt of all images.")
    guidance_scale: float | None = _prompts(None, "Guidance scale (default: the pipeline's own).")
    drop_uncertain: float = _selection(0.1, "Most uncertain fraction of images to leave out.")
    drop_common: float = _selection(0.0, "Fraction of images to leave out that show the least of rare classes.")
    min_distance: float = _selection(
        0.0,
        "Minimum distance of an image to earlier ones and to training images, root mean squared difference at 16 × 16 "
        "pixels; nearer ones are left out.",
        maximum=1,
    )
    train_dataset_name: str | None = _selection(
        None,
        "Images that the model was trained on, to compare with: a local folder or a name on the Hub.",
        aliases=("--train_data_dir",),
        reads=True,
    )
    train_dataset_config_name: str | None = _selection(None, "Configuration of that dataset.")
    train_split: str = _selection("train", "Part of that dataset.")
    image_format: str = option("png", "Format of the images.", group="output", choices=IMAGE_FORMATS)
    shard_mb: float = option(500.0, "Size of a Parquet file in MB.", group="output", above=0)

    def check(self) -> None:
        super().check()
        exclusive(self, "prompt", "prompts_file")
        for name in ("drop_uncertain", "drop_common"):
            if getattr(self, name) >= 1:
                raise UserError(f"--{name} must be a fraction from 0 to below 1, got {getattr(self, name)}.")

    def prompts(self) -> list[str]:
        """The prompts that are given; empty if there are none.

        Raises:
            UserError: The file cannot be read, or is empty.
        """
        if self.prompts_file is None:
            return [self.prompt] if self.prompt is not None else []
        try:
            lines = self.prompts_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"The prompts in {self.prompts_file} cannot be read: {error}") from error
        prompts = [line.strip() for line in lines if line.strip()]
        if not prompts:
            raise UserError(f"There are no prompts in {self.prompts_file}; write one on each line.")
        return prompts
