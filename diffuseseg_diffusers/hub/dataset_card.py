# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The card of a dataset."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Image
from diffusers.utils import make_image_grid
from huggingface_hub import DatasetCard

from ..datasets.columns import IMAGE_COLUMNS, MASK_COLUMNS, decode_cell
from ..datasets.label_names import read_label_file
from ..datasets.parquet import open_streams
from ..figures.pages import samples_page
from ..images.formats.base import Window
from ..images.formats.cells import needs_raster, open_cell
from ..images.image_files import encode_image
from ..images.image_processor import default_palette, mask_to_pil, to_eight_bit, unnamed_classes
from ..jobs.errors import UserError
from ..jobs.files import shown_name
from ..jobs.hardware import short_name
from ..pipelines.identity import weights_digest
from .cards import SAMPLES, figure_image, hex_color, render


GENERATION = "generation.json"  # how a synthetic dataset was made
LABELS = "id2label.json"
NUM_SHOWN = 8  # images on the page
NUM_MASKS = 1000  # on which the shares of the classes are counted, at most
NUM_SIZES = 100  # images whose sizes are read, at most


@dataclass
class DatasetSplit:
    """A split of a configuration, as far as the card describes it."""

    config: str
    split: str
    columns: list[str] = field(default_factory=list)
    num_images: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)  # (width, height) of the first images
    shown: list[PIL.Image.Image] = field(default_factory=list)  # the first images
    masks: list[np.ndarray] = field(default_factory=list)  # of the first images

    @property
    def size(self) -> str:
        """Width × height, in words."""
        sides = [sorted({min(values), max(values)}) for values in zip(*self.sizes)]
        return " × ".join(" to ".join(map(str, ends)) for ends in sides)

    @property
    def is_labeled(self) -> bool:
        """Whether the masks hold class ids."""
        return bool(self.masks) and all(m.ndim == 2 and m.dtype == np.uint8 for m in self.masks)

    def cell(self, row: Mapping[str, Any], usual: Sequence[str]) -> Mapping[str, Any] | None:
        """The first column with one of the usual names, if it holds an encoded image, or the path of one; class labels
        and paths in tables are none."""
        value = next((row[name] for name in usual if name in self.columns), None)
        return value if isinstance(value, Mapping) and {"bytes", "path"} <= value.keys() else None

    def show(self, row: Mapping[str, Any], masks: bool) -> None:
        """Takes image and, if `masks`, mask of a row, as long as they are among the first."""
        where = f"row {self.num_images} of {self.split}"
        if self.num_images < NUM_SIZES and (cell := self.cell(row, IMAGE_COLUMNS)):
            image = decode_cell(cell, where)[0]
            self.sizes.add(image.size)
            self.shown += [image] * (len(self.shown) < NUM_SHOWN)
        if self.num_images < NUM_MASKS and masks and (cell := self.cell(row, MASK_COLUMNS)):
            where = f"the mask of {where}"
            if needs_raster(cell):
                with open_cell(cell, where) as raster:
                    ids = raster.read_ids(0, Window(0, 0, raster.height, raster.width))
                    self.masks.append(ids[0] if len(ids) == 1 else ids)
            else:
                self.masks.append(np.asarray(decode_cell(cell, where)[0]))


def dataset_card(
    folder: Path, files: dict[str, Path | bytes], parts: Sequence[DatasetSplit], repo_id: str, **given: Any
) -> DatasetCard:
    """The card of a dataset: what is in it, with a page of images, which is added to `files`.

    Args:
        folder (`Path`): What is described.
        files (`dict`): What goes with it, see [`dataset_files`]; gets the page of images.
        parts (sequence of [`DatasetSplit`]): What [`read_parts`] found in the folder.
        repo_id, **given: `license` and `own` too, of [`render`].
    """
    labeled = next((part for part in parts if part.is_labeled), None)
    classes, shares_of, samples = [], None, samples_name(files)
    if labeled:
        names, classes, shares_of = _classes(folder, labeled)
        palette = default_palette(len(names))
        ids = [np.where(m < len(names), m, 0).astype(np.uint8) for m in labeled.masks[:NUM_SHOWN]]
        masks = [mask_to_pil(mask, palette) for mask in ids]
        if labeled.shown:  # masks alone have no page
            files[samples] = encode_image(figure_image(samples_page(labeled.shown, masks, names, palette)))
    elif shown := next((part.shown for part in parts if part.shown), None):
        images = [to_eight_bit(image).convert("RGB").resize(shown[0].size) for image in shown]
        files[samples] = encode_image(make_image_grid(images, rows=1, cols=len(images)))
    # It is bytes: local paths were taken out.
    made = json.loads(files[GENERATION]) if GENERATION in files else {}  # type: ignore[arg-type]
    data = {
        "pretty_name": repo_id.split("/")[-1],
        "tags": ["diffuseseg", *(["semantic-segmentation"] if labeled else []), *(["synthetic"] if made else [])],
        "task_categories": ["image-segmentation" if labeled else "unconditional-image-generation"],
        "size_categories": [_size_category(sum(part.num_images for part in parts))],
    }
    return render(
        DatasetCard,
        "dataset_card.md",
        data,
        repo_id,
        samples=samples if samples in files else None,
        parts=parts,
        classes=classes,
        shares_of=shares_of,
        labeled_part=labeled,
        facts=_generation_facts(**made) if made.get("result") else {},
        uncertainty="uncertainty.png" if "uncertainty.png" in files else None,
        **given,
    )


def read_parts(folder: Path) -> list[DatasetSplit]:
    """Reads all that `datasets` finds in a folder, once.

    Raises:
        UserError: There are no images among it, or something cannot be read.
    """
    parts: list[DatasetSplit] = []
    is_images = False
    try:
        for config, split, rows in open_streams(folder):
            part = DatasetSplit(config, split)
            for row in rows:
                if part.num_images == 0:
                    part.columns = list(row)
                    is_images |= any(isinstance(feature, Image) for feature in (rows.features or {}).values())
                    is_images |= (cell := part.cell(row, IMAGE_COLUMNS)) is not None and cell["bytes"] is not None
                if is_images:
                    part.show(row, masks=not any(p.is_labeled for p in parts))
                part.num_images += 1
            parts += [part] * (part.num_images > 0)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(f"The dataset in {folder} cannot be read: {error}") from error
    if not is_images:
        raise UserError(f"The folder {folder} holds no images that `datasets` reads.")
    return parts


def samples_name(files: Iterable[str]) -> str:
    """Where the page of images goes: `datasets` must not take it for data, as it does beside files of images."""
    shards = re.compile(r"data/\w+-\d{5}-of-\d{5}\S*\.parquet")
    data = [name for name in files if not name.endswith((".json", ".png")) or "/" in name]
    return SAMPLES if any(shards.fullmatch(name) for name in data) else f".{SAMPLES}"


def _classes(folder: Path, part: DatasetSplit) -> tuple[list[str], list[tuple[str, str, float]], str]:
    """Names of the classes; name, colour and share of the pixels of each; and what the shares were counted on."""
    counts = np.sum([np.bincount(m.ravel(), minlength=256) for m in part.masks], axis=0)[:255]
    number = int(np.flatnonzero(counts).max(initial=0)) + 1
    path = folder / LABELS
    names = read_label_file(path) if path.is_file() else unnamed_classes(number)
    shares, counted = counts[: len(names)] / max(1, counts.sum()), len(part.masks)
    whole = part.num_images == counted
    shares_of = f"split `{part.split}`" if whole else f"the first {counted} images of `{part.split}`"
    return names, list(zip(names, map(hex_color, default_palette(len(names))), shares)), shares_of


def describe_generation(config: Any, pipe: Any, prompts: list[str]) -> dict:
    """The settings that `generation.json` states, without names of local folders, since it may go to the Hub: of a
    `GenerateConfig`, the pipeline that generates, and the prompts."""
    names = ("num_samples", "batch_size", "num_inference_steps", "masks_while_sampling", "seed", "image_format")
    names += ("drop_uncertain", "drop_common", "min_distance", "shard_mb", "train_dataset_config_name", "train_split")
    names += ("negative_prompt", "guidance_scale", "resolution")
    return {
        "weights": weights_digest(pipe.denoiser, pipe.segmentation_head),
        "decisions": pipe.segmentation_head.config.decisions,
        "scheduler": type(pipe.scheduler).__name__,
        "dtype": short_name(pipe.denoiser.dtype),
        "prompts": prompts or None,
        "train_dataset_name": shown_name(config.train_dataset_name) if config.train_dataset_name else None,
        **{name: getattr(config, name) for name in names},
    }


def _generation_facts(settings: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, str | None]:
    """Rows of the table of how a synthetic dataset was made."""
    model, seconds = result["model"], result["seconds_per_image"]
    linked = f"[{model['name']}](https://huggingface.co/{model['name']})"
    near = result["nearest_neighbours"].items()
    return {
        "model": linked if model["on_hub"] else model["name"],
        "sampler": f"{settings['scheduler']}, {settings['num_inference_steps']} steps, {settings['dtype']}",
        "masks": "from the denoising steps" if settings["masks_while_sampling"] else "from the finished images",
        "seed": str(settings["seed"]),
        "generated": f"{settings['num_samples']:,} images, of which {result['num_kept']:,} are kept",
        "most uncertain left out": f"{settings['drop_uncertain']:.0%}",
        "least of rare classes left out": f"{settings['drop_common']:.0%}" if settings["drop_common"] else None,
        "nearer than this left out": str(settings["min_distance"]) if settings["min_distance"] else None,
        **{f"distance to the nearest, {k}": f"median {d['median']:.3f}, least {d['least']:.3f}" for k, d in near},
        "time": f"{seconds:.3f} s an image and process" if seconds else None,
        "hardware": f"{result['hardware']}, {result['num_processes']} processes",
    }


def _size_category(count: int) -> str:
    """The Hub's name for a number of rows."""
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    return next((name for bound, name in bounds if count < bound), "n>10M")
