# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Segments files of any size and format into a folder: small ones in batches, large ones block by block.

Batches and blocks are parts (see `jobs/parts.py`): any number of processes share them, and a run that was cut off makes
what is missing. What a mask is depends on none of this.
"""

import json
import os
import shutil
import sys
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from ..heads.decisions import image_uncertainty
from ..images.channels import InputChannels
from ..images.formats.base import Raster, Window
from ..images.formats.opening import is_raster, lost_here, open_raster
from ..images.formats.pictures import PictureRaster
from ..images.image_processor import mask_to_pil, open_image, overlay
from ..jobs.errors import UserError
from ..jobs.files import atomic_file, exact_pattern, naming, to_json, write_text
from ..jobs.parts import PARTS, Part
from ..pipelines.segmenter import Segmenter
from .blocks import BlockFiles, reduced_overlay
from .exports import check_packages, check_planes, object_files, write_objects
from .objects import counted_classes
from .options import Reading
from .tiles import (
    Tiling,
    choose_tiling,
    histogram_score,
    is_large,
    plan_blocks,
    segment_block,
    segment_tiled,
    segment_whole,
    uncertainty_histogram,
)


LINES, UNREADABLE = "segments.jsonl", "unreadable.jsonl"
LONGEST = 200  # bytes of a file's name before what is added to it; file systems take 255, temporary names included
OPEN = 4  # pictures that are held open


def channels_of(pipe: Segmenter, reading: Reading) -> InputChannels:
    """What a model reads of an image."""
    return InputChannels(reading.input_channels or pipe.channels.names, pipe.channels.windows)


def tiling_of(pipe: Segmenter, reading: Reading, raster: Raster) -> Tiling | None:
    """How an image is cut; `None` if it is seen whole, as it is where the size of masks is given."""
    if reading.mask_size:
        return None
    how = (reading.tile, reading.tile_overlap, reading.blend, reading.scale, reading.pixel_size)
    return choose_tiling(pipe, raster, *how)


@dataclass
class _Large:
    """A picture that is segmented block by block, and the files of its own."""

    number: int
    image: str
    name: str
    planes: int
    blocks: list[Window]
    tiling: Tiling | None
    files: list[tuple[str, bool]]  # names, and whether they are folders; the first two are mask and overlay


class FileRun:
    """A run over files: which parts it has, and how each is made.

    Args:
        pipe ([`Segmenter`]): The model.
        images (sequence of `str`): Files, folders that are pictures, and addresses.
        folder (`Path`): Where the results go.
        reading ([`Reading`]): How pictures are read.
    """

    def __init__(self, pipe: Segmenter, images: Sequence[str], folder: Path, reading: Reading):
        self.pipe, self.images, self.folder, self.reading = pipe, list(images), folder, reading
        self.parts_folder = folder / PARTS
        self.names = free_names([stem(image) for image in self.images])
        self.notes: list[str] = []  # what has to be said before the work
        self._told: Counter[str] = Counter()  # sizes of pictures whose tiles were told
        self._open: OrderedDict[str, Raster] = OrderedDict()
        lost = [f"{image} {why}" for image in self.images if (why := lost_here(image))]
        if lost:
            self.notes.append(f"{lost[0]} (so it is with {len(lost)} pictures).")
        if reading.instances:
            check_packages(reading)
            counted_classes(reading, pipe.label_names)
        self.small, self.large, self.unopened = self._sort()

    def _sort(self) -> tuple[list[int], dict[int, _Large], dict[int, str]]:
        """Which pictures go through the model in batches, which block by block, and which cannot be opened."""
        by_blocks = self.reading.tile is not None or self.reading.instances is not None
        chosen = channels_of(self.pipe, self.reading).names is not None or self.pipe.in_channels not in (1, 3)
        small, large, unopened = [], {}, {}
        for i, image in enumerate(self.images):
            if not (is_raster(image) or by_blocks or chosen):
                small.append(i)
                continue
            try:
                large[i] = self._plan(i)
            except UserError as error:
                unopened[i] = str(error)
        if large and self.reading.mask_size:
            raise UserError(
                f"The mask of {self.images[next(iter(large))]} has its size and geometry; --mask_size is for pictures "
                f"that are shown whole and written as PNG."
            )
        return small, large, unopened

    def _plan(self, i: int) -> _Large:
        raster = self._raster(self.images[i])
        tiling = tiling_of(self.pipe, self.reading, raster)
        channels_of(self.pipe, self.reading).indices(raster.channels, raster.name)
        if tiling is None:
            blocks = [Window(0, 0, raster.height, raster.width)]
        else:
            blocks = plan_blocks(self.pipe, raster, tiling, self.reading.max_memory)
        self._note(raster, tiling)
        name, is_folder = self.names[i], raster.mask_is_folder
        files = [(f"{name}_mask{raster.mask_suffix}", is_folder), (f"{name}_overlay.png", False)]
        if self.reading.instances:
            check_planes(self.reading, raster)
            files += object_files(self.reading, name, raster.mask_suffix, is_folder)
        return _Large(i, self.images[i], name, raster.planes, blocks, tiling, files)

    def _note(self, raster: Raster, tiling: Tiling | None) -> None:
        """Keeps what has to be said of a large picture: how it is cut, what is left out, what costs memory."""
        size = f"{raster.width} × {raster.height}" + (f" × {raster.planes} planes" if raster.planes > 1 else "")
        if self.reading.tile is None:
            self.notes += self._tell(raster, tiling, size)
        self.notes += raster.notes
        if raster.whole and raster.height * raster.width > 2**26:
            self.notes.append(f"{raster.name} is decoded whole into memory; a tiled TIFF would not be.")

    def _tell(self, raster: Raster, tiling: Tiling | None, size: str) -> list[str]:
        """How a picture is cut, in full for the first of a size, and in a word for the second."""
        lines = describe_tiling(self.pipe, raster, tiling, size)
        self._told[size] += bool(lines)
        if self._told[size] <= 1:
            return lines
        return [f"So are others of {size} pixels."] if lines and self._told[size] == 2 else []

    @property
    def files(self) -> list[str]:
        """Patterns of the files that the run writes, for its record."""
        small = [f"{self.names[i]}_{kind}.png" for i in self.small for kind in ("mask", "overlay")]
        large = [
            exact_pattern(name) + ("/*" if folder else "") for one in self.large.values() for name, folder in one.files
        ]
        return [LINES, UNREADABLE, f"{PARTS}/*", *map(exact_pattern, small), *large]

    def parts(self) -> list[Part]:
        """All parts, the last of which is the list of results."""
        size, last = self.reading.batch_size, self.folder / LINES
        parts: list[Part] = []
        found: list[Path] = []
        for start in range(0, len(self.small), size):
            own = self.small[start : start + size]
            path = self.parts_folder / f"pictures-{start // size:07d}.jsonl"
            parts.append(Part(path, partial(self._make_pictures, path, own), len(own), until=(last,)))
            found.append(path)
        for i, one in self.large.items():
            path = self.parts_folder / f"large-{i:07d}.jsonl"
            blocks = self._block_paths(one)
            for (plane, block), file in blocks.items():
                make = partial(self._make_block, one, plane, block, file, path)
                parts.append(Part(file, make, until=(path, last)))
            parts.append(Part(path, partial(self._assemble, one, path), 1, list(blocks.values()), (last,)))
            found.append(path)
        return [*parts, Part(last, partial(self._list, found, last), len(self.unopened), found)]

    # The small ones.

    def _make_pictures(self, path: Path, own: Sequence[int]) -> None:
        lines: list[dict] = []
        batch: list[tuple[int, PIL.Image.Image]] = []
        for i in own:
            try:
                image = open_image(self.images[i])
                tiling = self._tiling_of(image, self.images[i])
                if tiling is None:
                    batch.append((i, image))
                else:
                    lines.append(self._tile_picture(i, image, tiling))
            except UserError as error:  # the others shall not wait for this one
                lines.append(self._say_unreadable(i, error))
        lines += self._segmented(batch)
        lines.sort(key=lambda line: line["number"])
        write_text(path, "".join(to_json(line) + "\n" for line in lines))

    def _tiling_of(self, image: PIL.Image.Image, name: str) -> Tiling | None:
        """How a picture is cut that is large enough, or `None`."""
        raster = PictureRaster(image, name)
        tiling = tiling_of(self.pipe, self.reading, raster)
        for line in self._tell(raster, tiling, f"{image.width} × {image.height}"):
            tqdm.write(line)
        return tiling

    def _tile_picture(self, i: int, image: PIL.Image.Image, tiling: Tiling) -> dict:
        raster = PictureRaster(image, self.images[i])
        channels, reading = channels_of(self.pipe, self.reading), self.reading
        found = segment_tiled(self.pipe, raster, tiling, 0, channels, reading.batch_size, reading.max_memory)
        return self._write_picture(i, image, found.labels, found.uncertainty) | _describe_tiling(tiling)

    def _segmented(self, batch: Sequence[tuple[int, PIL.Image.Image]]) -> list[dict]:
        """Lines of images that go through the model at once; each alone if values of one are out of range."""
        if not batch:
            return []
        try:
            return segment_pictures(self, batch)
        except UserError as error:
            if len(batch) == 1:
                return [self._say_unreadable(batch[0][0], error)]
        return [line for one in batch for line in self._segmented([one])]

    def _say_unreadable(self, i: int, error: object) -> dict:
        text = str(error) if self.images[i] in str(error) else f"{self.images[i]}: {error}"
        tqdm.write(f"error: {text}", file=sys.stderr)
        return {"number": i, "image": self.images[i], "error": text}

    def _write_picture(self, i: int, image: PIL.Image.Image, mask: np.ndarray, uncertainty: np.ndarray | None) -> dict:
        """Writes mask and overlay of a picture; returns its line of JSON."""
        pipe, shown = self.pipe, image if image.size == mask.shape[::-1] else image.resize(mask.shape[::-1])
        mask_file, overlay_file = (f"{self.names[i]}_{kind}.png" for kind in ("mask", "overlay"))
        for name, made in (
            (mask_file, mask_to_pil(mask, pipe.palette)),
            (overlay_file, overlay(shown, mask, pipe.palette, self.reading.alpha)),
        ):
            with atomic_file(self.folder / name) as partial_file:
                made.save(partial_file, "png")
        counts = np.bincount(mask.ravel(), minlength=len(pipe.label_names))
        score = None if uncertainty is None else image_uncertainty(torch.from_numpy(uncertainty)).item()
        line = {"number": i, "image": self.images[i], "mask": mask_file, "overlay": overlay_file}
        return line | {"height": mask.shape[0], "width": mask.shape[1], **self._results(counts, score)}

    def _results(self, counts: np.ndarray, score: float | None) -> dict:
        """Class fractions and uncertainty of a picture, from its pixels of each class."""
        names = self.pipe.label_names
        share = counts[: len(names)] / max(1, counts.sum())
        return {
            "class_fractions": {n: round(float(f), 6) for n, f in zip(names, share)},
            "uncertainty": None if score is None else round(score, 6),  # tiles without blending have none
        }

    # The large ones.

    def _raster(self, image: str) -> Raster:
        """An open picture; the last few stay open."""
        if image not in self._open:
            self._open[image] = open_raster(image, self.reading.axes, self.reading.slice_axis)
            if len(self._open) > OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(image)
        return self._open[image]

    def _block_paths(self, one: _Large) -> dict[tuple[int, Window], Path]:
        folder = self.parts_folder / f"large-{one.number:07d}"
        return {
            (plane, block): folder / f"{plane:05d}-{number:05d}.npz"
            for plane in range(one.planes)
            for number, block in enumerate(one.blocks)
        }

    def _make_block(self, one: _Large, plane: int, block: Window, path: Path, line: Path) -> None:
        try:
            raster, channels = self._raster(one.image), channels_of(self.pipe, self.reading)
            if one.tiling is None:
                found = segment_whole(self.pipe, raster, plane, channels)
            else:
                size = self.reading.batch_size
                found = segment_block(self.pipe, raster, plane, block, one.tiling, channels, size)
        except UserError as error:
            write_text(line, to_json(self._say_unreadable(one.number, error)) + "\n")
            return
        kept: dict[str, np.ndarray] = {"labels": found.labels}
        if found.uncertainty is not None:
            kept["histogram"] = uncertainty_histogram(found.uncertainty, found.labels, self.pipe.ignore_index)
            if self.reading.instances:
                kept["uncertainty"] = found.uncertainty.astype(np.float16)
        with atomic_file(path) as partial_file, open(partial_file, "wb") as file:
            np.savez_compressed(file, **kept)  # type: ignore[arg-type]

    def _assemble(self, one: _Large, path: Path) -> None:
        """Mask, overlay and objects of a picture of which all blocks are there; its line comes last."""
        if path.exists():  # it was found broken
            return
        raster, folder = self._raster(one.image), self.parts_folder / f"large-{one.number:07d}"
        blocks = BlockFiles(self._block_paths(one))
        (mask_name, _), (overlay_name, _) = one.files[:2]
        made = folder / "made"
        _remove(made)
        made.mkdir()
        palette = self.pipe.palette
        with naming(self.folder / mask_name):
            raster.write_labels(made / mask_name, blocks.labels, np.dtype(np.uint8), palette)
        plane = one.planes // 2
        channels = channels_of(self.pipe, self.reading)
        reduced_overlay(raster, plane, channels, self.pipe, blocks, self.reading.alpha).save(made / overlay_name)
        line = {"number": one.number, "image": one.image, "mask": mask_name, "overlay": overlay_name}
        line |= {"height": raster.height, "width": raster.width}
        line |= {"planes": one.planes} if one.planes > 1 else {}
        counts, histogram = blocks.totals(len(self.pipe.label_names), self.pipe.ignore_index)
        line |= self._results(counts, None if histogram is None else histogram_score(histogram))
        line |= _describe_tiling(one.tiling)
        if self.reading.instances:
            classes = (self.pipe.label_names, palette, self.pipe.ignore_index)
            line["objects"] = write_objects(self.reading, raster, blocks, made, one.name, *classes)
        for file in made.iterdir():
            _remove(self.folder / file.name)  # of a run that was killed between this and its line
            file.rename(self.folder / file.name)
        write_text(path, to_json(line) + "\n")
        shutil.rmtree(folder, ignore_errors=True)

    # The end.

    def _list(self, found: Sequence[Path], path: Path) -> None:
        lines = [json.loads(text) for file in found for text in file.read_text(encoding="utf-8").split("\n") if text]
        lines += [{"number": i, "image": self.images[i], "error": error} for i, error in self.unopened.items()]
        lines.sort(key=lambda line: line.pop("number"))
        broken = [line for line in lines if "error" in line]
        if broken:
            write_text(self.folder / UNREADABLE, "".join(to_json(line) + "\n" for line in broken))
        write_text(path, "".join(to_json(line) + "\n" for line in lines if "error" not in line))


def segment_pictures(run: FileRun, batch: Sequence[tuple[int, PIL.Image.Image]]) -> list[dict]:
    """Segments pictures that the model sees whole, and writes mask and overlay of each; returns their lines."""
    images, reading = [image for _, image in batch], run.reading
    output = run.pipe.segment(images, reading.batch_size, reading.mask_size, output_type="np", return_images=False)
    uncertainty = output.uncertainty or [None] * len(batch)
    return [
        run._write_picture(i, image, mask, doubt) for (i, image), mask, doubt in zip(batch, output.masks, uncertainty)
    ]


def describe_tiling(pipe: Segmenter, raster: Raster, tiling: Tiling | None, size: str) -> list[str]:
    """A line on how a large picture is shown to the model, if nobody said it; none of others."""
    if tiling is not None:
        tile = " × ".join(map(str, tiling.tile[::-1]))
        return [
            f"{raster.name}, {size} pixels, is segmented by tiles of {tile} pixels at a scale of {tiling.scale:.3g}; "
            f"--whole shows it to the model at once, resized."
        ]
    if not pipe.fitted_tiles and is_large(pipe, raster):
        own = " × ".join(map(str, pipe.image_size[::-1]))
        return [
            f"{raster.name}, {size} pixels, is shown to the model at once, resized to {own}: at which scale it was "
            f"fitted is not known; --tile segments it by tiles."
        ]
    return []


def _describe_tiling(tiling: Tiling | None) -> dict:
    """What a line of JSON says of it; nothing of pictures that were seen whole."""
    if tiling is None:
        return {}
    said = {"height": tiling.tile[0], "width": tiling.tile[1], "scale": round(tiling.scale, 6)}
    return {"tiles": said | {"overlap": tiling.overlap, "blend": tiling.blend}}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def stem(image: str) -> str:
    """What the files of an image are named after: its name without suffix."""
    is_url = image.startswith(("http://", "https://"))
    path = unquote(urlsplit(image).path) if is_url else image
    parts = Path(path).parts
    outer = next((i for i, part in enumerate(parts[:-1]) if part.lower().endswith(".zarr")), None)
    # A field of a plate is named after the plate too.
    name = Path(path).stem if outer is None else "_".join([stem(parts[outer]), *parts[outer + 1 :]])
    name = name or "image"
    for suffix in (".ome", ".nii"):  # of two
        name = name.removesuffix(suffix) or name
    return os.fsencode(name)[:LONGEST].decode("utf-8", "ignore") if len(os.fsencode(name)) > LONGEST else name


def free_names(stems: Sequence[str]) -> list[str]:
    """The stems, numbered where images of several folders share one."""
    names: dict[str, None] = {}
    last: dict[str, int] = {}
    for name in stems:
        free, i = name, last.get(name, 1)
        while free in names:
            i += 1
            free = f"{name}-{i}"
        names[free] = None
        last[name] = i
    return list(names)
