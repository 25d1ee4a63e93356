# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The card of a dataset."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Image
from diffusers.utils import make_image_grid
from huggingface_hub import DatasetCard, DatasetCardData

from ..datasets.columns import IMAGE_COLUMNS, MASK_COLUMNS, decode_cell
from ..datasets.label_names import read_label_file
from ..datasets.parquet import open_streams
from ..figures.pages import samples_page
from ..images.image_processor import default_palette, mask_to_pil, to_eight_bit, unnamed_classes
from ..jobs.errors import UserError
from ..jobs.files import shown_name
from ..jobs.hardware import short_name
from ..pipelines.identity import weights_digest
from .cards import SAMPLES, figure_image, hex_color, png, render, with_own


GENERATION = "generation.json"  # how a synthetic dataset was made
LABELS = "id2label.json"
NUM_SHOWN = 8  # images on the page
NUM_MASKS = 1000  # on which the shares of the classes are counted, at most
NUM_SIZES = 100  # images whose sizes are read, at most


@dataclass
class DatasetSplit:
    """A split of a configuration, as far as the card describes it.

    Args:
        config (`str`), split (`str`): Their names.
        columns (`list[str]`): Names of the columns.
        num_images (`int`): Number of rows.
        sizes (set of `(width, height)`): Of the first images.
        shown (`list[PIL.Image.Image]`): The first images.
        masks (`list[np.ndarray]`): Masks of the first images.
    """

    config: str
    split: str
    columns: list[str] = field(default_factory=list)
    num_images: int = 0
    sizes: set[tuple[int, int]] = field(default_factory=set)
    shown: list[PIL.Image.Image] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)

    @property
    def size(self) -> str:
        """Width × height, in words."""
        return " × ".join(_range(values) for values in zip(*self.sizes))

    @property
    def is_labeled(self) -> bool:
        """Whether the masks hold class ids."""
        return bool(self.masks) and all(m.ndim == 2 and m.dtype == np.uint8 for m in self.masks)


def dataset_card(
    folder: Path,
    repo_id: str,
    files: dict[str, Path | bytes],
    parts: Sequence[DatasetSplit],
    license: str | None = None,
    own: DatasetCard | None = None,
) -> DatasetCard:
    """The card of a dataset: what is in it, with a page of images, which is added to `files`.

    Args:
        folder (`Path`), repo_id (`str`): What is described, and where it will be.
        files (`dict`): What goes with it, see [`dataset_files`]; gets the page of images.
        parts (sequence of [`DatasetSplit`]): What [`read_parts`] found in the folder.
        license (`str`, *optional*): The Hub's identifier of its licence.
        own (`DatasetCard`, *optional*): What the user wrote; its metadata wins, and its text stands at the top.
    """
    labeled = next((part for part in parts if part.is_labeled), None)
    names, classes, shares_of = [], [], None
    samples = samples_name(files)
    if labeled:
        names, classes, shares_of = _classes(folder, labeled)
        palette = default_palette(len(names))
        ids = [np.where(m < len(names), m, 0).astype(np.uint8) for m in labeled.masks[:NUM_SHOWN]]
        masks = [mask_to_pil(mask, palette) for mask in ids]
        if labeled.shown:  # masks alone have no page
            files[samples] = png(figure_image(samples_page(labeled.shown, masks, names, palette)))
    elif shown := next((part.shown for part in parts if part.shown), None):
        images = [to_eight_bit(image).convert("RGB").resize(shown[0].size) for image in shown]
        files[samples] = png(make_image_grid(images, rows=1, cols=len(images)))
    # It is bytes: local paths were taken out.
    made = json.loads(files[GENERATION]) if GENERATION in files else {}  # type: ignore[arg-type]
    data = {
        "license": "unknown",
        "pretty_name": repo_id.split("/")[-1],
        "tags": ["diffuseseg", *(["semantic-segmentation"] if labeled else []), *(["synthetic"] if made else [])],
        "task_categories": ["image-segmentation" if labeled else "unconditional-image-generation"],
        "size_categories": [_size_category(sum(part.num_images for part in parts))],
    }
    return render(
        DatasetCard,
        "dataset_card.md",
        DatasetCardData(**with_own(data, own, license)),
        repo_id,
        own,
        samples=samples if samples in files else None,
        parts=parts,
        classes=classes,
        shares_of=shares_of,
        labeled_part=labeled,
        made=made.get("result"),
        facts=list(_generation_facts(**made)) if made.get("result") else [],
        uncertainty="uncertainty.png" if "uncertainty.png" in files else None,
    )


def read_parts(folder: Path) -> list[DatasetSplit]:
    """Reads all that `datasets` finds in a folder, once.

    Raises:
        UserError: There are no images among it, or something cannot be read.
    """
    parts, is_images = [], False
    for config, split, rows in open_streams(folder):
        part = DatasetSplit(config, split)
        features = rows.features or {}
        for row in _rows(rows, folder):
            part.num_images, part.columns = part.num_images + 1, part.columns or list(row)
            image, mask = (_column(part.columns, usual) for usual in (IMAGE_COLUMNS, MASK_COLUMNS))
            where = f"row {part.num_images - 1} of {split}"
            if part.num_images == 1:
                is_images |= any(isinstance(feature, Image) for feature in features.values())
                is_images |= image is not None and _is_image(row[image]) and row[image]["bytes"] is not None
            if image and is_images and _is_image(row[image]) and part.num_images <= NUM_SIZES:
                decoded = decode_cell(row[image], where)[0]
                part.sizes.add(decoded.size)
                part.shown += [decoded] * (len(part.shown) < NUM_SHOWN)
            first = part.num_images <= NUM_MASKS and not any(p.is_labeled for p in parts)
            if mask and is_images and first and _is_image(row[mask]):
                part.masks.append(np.asarray(decode_cell(row[mask], f"the mask of {where}")[0]))
        parts += [part] * (part.num_images > 0)
    if not is_images:
        raise UserError(f"The folder {folder} holds no images that `datasets` reads.")
    return parts


def samples_name(files: Iterable[str]) -> str:
    """Where the page of images goes: `datasets` must not take it for data, as it does beside files of images."""
    shards = re.compile(r"data/\w+-\d{5}-of-\d{5}\S*\.parquet")
    data = [name for name in files if not name.endswith((".json", ".png")) or "/" in name]
    return SAMPLES if any(shards.fullmatch(name) for name in data) else f".{SAMPLES}"


def _rows(rows: Iterable[dict], folder: Path) -> Iterator[dict]:
    """The rows; what `datasets` cannot read becomes a [`UserError`]."""
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except (ValueError, OSError) as error:
            raise UserError(f"The dataset in {folder} cannot be read: {error}") from error
        yield row


def _is_image(value: Any) -> bool:
    """Whether a cell holds an encoded image, or the path of one; class labels and paths in tables are none."""
    return isinstance(value, Mapping) and {"bytes", "path"} <= value.keys()


def _classes(folder: Path, part: DatasetSplit) -> tuple[list[str], list[tuple[str, str, float]], str]:
    """Names of the classes; name, colour and share of the pixels of each; and what the shares were counted on."""
    counts = np.sum([np.bincount(m.ravel(), minlength=256) for m in part.masks], axis=0)[:255]
    number = int(np.flatnonzero(counts).max(initial=0)) + 1
    path = folder / LABELS
    names = read_label_file(path) if path.is_file() else unnamed_classes(number)
    shares = counts[: len(names)] / max(1, counts.sum())
    counted = len(part.masks)
    whole = part.num_images == counted
    shares_of = f"split `{part.split}`" if whole else f"the first {counted} images of `{part.split}`"
    return names, list(zip(names, map(hex_color, default_palette(len(names))), shares)), shares_of


def describe_generation(config: Any, pipe: Any, prompts: list[str]) -> dict:
    """The settings that `generation.json` states, without names of local folders, since it may go to the Hub.

    Args:
        config (`Config`): With the fields of `tasks.generate.GenerateConfig`.
        pipe: Generates the images.
        prompts (`list[str]`): Of the images.
    """
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


def _generation_facts(settings: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Rows of the table of how a synthetic dataset was made."""
    model = result["model"]
    yield "model", f"[{model['name']}](https://huggingface.co/{model['name']})" if model["on_hub"] else model["name"]
    yield "sampler", f"{settings['scheduler']}, {settings['num_inference_steps']} steps, {settings['dtype']}"
    from_steps = settings["masks_while_sampling"]
    yield "masks", "from the denoising steps" if from_steps else "from the finished images, noised again"
    yield "seed", str(settings["seed"])
    yield "generated", f"{settings['num_samples']:,} images, of which {result['num_kept']:,} are kept"
    yield "most uncertain left out", f"{settings['drop_uncertain']:.0%}"
    if settings["drop_common"]:
        yield "least of rare classes left out", f"{settings['drop_common']:.0%}"
    if settings["min_distance"]:
        yield "nearer than this left out", str(settings["min_distance"])
    for name, d in result["nearest_neighbours"].items():
        yield f"distance to the nearest, {name}", f"median {d['median']:.3f}, least {d['least']:.3f}"
    if result["seconds_per_image"]:
        yield "time", f"{result['seconds_per_image']:.3f} s an image and process"
    yield "hardware", f"{result['hardware']}, {result['num_processes']} processes"


def _column(columns: Sequence[str], usual: Sequence[str]) -> str | None:
    """The first of the usual names that there is."""
    return next((name for name in usual if name in columns), None)


def _range(values: Sequence[int]) -> str:
    """The least and the greatest of them, or the one that all are."""
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _size_category(count: int) -> str:
    """The Hub's name for a number of rows."""
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    return next((name for bound, name in bounds if count < bound), "n>10M")
