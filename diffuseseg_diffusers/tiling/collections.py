# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Segments datasets of any size, streamed or not, into Parquet files that `load_dataset` reads.

A file is a part (see `jobs/parts.py`): any number of processes share them, each row is in one file, and what a file
holds does not depend on who wrote it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, Image, IterableDataset, List, Value
from tqdm.auto import tqdm

from ..datasets.columns import decode_cell
from ..heads.decisions import image_uncertainty
from ..images.formats.base import Raster
from ..images.formats.cells import needs_raster, open_cell, raster_picture
from ..images.image_files import encode_image
from ..images.image_processor import mask_to_pil
from ..jobs.errors import UserError
from ..jobs.files import atomic_file, to_json, write_json, write_text
from ..jobs.parts import PARTS, Part
from ..pipelines.segmenter import Segmenter
from .files import UNREADABLE, channels_of, tiling_of
from .options import Reading
from .tiles import segment_tiled, segment_whole


SUMMARY, DATA = "segmentation.json", "data"
COLLECTION_FILES = (f"{DATA}/train-*.parquet", f"{PARTS}/*", SUMMARY, UNREADABLE, "id2label.json")


class CollectionRun:
    """A run over the images of a dataset: which parts it has, and how each is made.

    Columns of the Parquet files: `index`, the row of the image in the dataset, from 0; of a streamed dataset the row
    in its shard, whose number is in `shard`; `path`, the image's file or address; `image`, with `copy_images`; `mask`,
    class ids as PNG; `height` and `width` of the mask; `class_fractions`, the share of its pixels of each class;
    `uncertainty`, the score of [`image_uncertainty`] in nats.

    Args:
        pipe ([`Segmenter`]): The model.
        dataset (`datasets.Dataset` or `datasets.IterableDataset`), column (`str`): Images, not decoded, as from
            [`load_unlabeled`].
        folder (`Path`): Where the results go.
        reading ([`Reading`]): How images are read.
        rows_per_file (`int`, defaults to 512): Images in a Parquet file.
        copy_images (`bool`, defaults to `False`): Whether the files hold the images too, and not references alone.
        described (mapping, *optional*): What the summary says of model and dataset.
    """

    def __init__(
        self,
        pipe: Segmenter,
        dataset: Dataset | IterableDataset,
        column: str,
        folder: Path,
        reading: Reading,
        rows_per_file: int = 512,
        copy_images: bool = False,
        described: Mapping[str, Any] | None = None,
    ):
        self.pipe, self.dataset, self.column, self.folder, self.reading = pipe, dataset, column, folder, reading
        self.rows_per_file, self.copy_images, self.described = rows_per_file, copy_images, dict(described or {})
        self.features = Features(
            {
                **({} if isinstance(dataset, Dataset) else {"shard": Value("int32")}),
                "index": Value("int64"),
                "path": Value("string"),
                **({"image": Image()} if copy_images else {}),
                "mask": Image(),
                "height": Value("int32"),
                "width": Value("int32"),
                "class_fractions": List(Value("float32")),
                "uncertainty": Value("float32"),
            }
        )

    def __len__(self) -> int:
        """Images, or shards of a stream."""
        return len(self.dataset) if isinstance(self.dataset, Dataset) else self.dataset.num_shards

    def parts(self) -> list[Part]:
        """All parts, the last of which is the summary."""
        last, parts = self.folder / SUMMARY, []
        if isinstance(self.dataset, Dataset):
            for number, start in enumerate(range(0, len(self.dataset), self.rows_per_file)):
                rows = range(start, min(start + self.rows_per_file, len(self.dataset)))
                path = self._file(f"{number:07d}")
                parts.append(Part(path, partial(self._make_file, path, rows), len(rows), until=(last,)))
        else:
            for shard in range(self.dataset.num_shards):
                path = self.folder / PARTS / f"shard-{shard:05d}"
                parts.append(Part(path, partial(self._make_shard, path, shard), 1, until=(last,)))
        needs = [part.path for part in parts]
        return [*parts, Part(last, partial(self._summarise, last), needs=needs)]

    def _file(self, number: str) -> Path:
        return self.folder / DATA / f"train-{number}.parquet"

    def _errors(self, file: Path) -> Path:
        return self.folder / PARTS / f"{file.stem}.jsonl"

    def _make_file(self, path: Path, rows: range) -> None:
        self._write(path, [({"index": i}, self.dataset[i][self.column]) for i in rows])

    def _make_shard(self, path: Path, shard: int) -> None:
        """All files of a shard of a stream; those that are there are passed over, their rows are only read."""
        stream: Any = self.dataset
        rows = iter(stream.shard(num_shards=stream.num_shards, index=shard))
        number = 0
        while chunk := list(islice(rows, self.rows_per_file)):
            file = self._file(f"{shard:05d}-{number:07d}")
            if not file.exists():
                places = ({"shard": shard, "index": number * self.rows_per_file + i} for i in range(len(chunk)))
                self._write(file, [(place, row[self.column]) for place, row in zip(places, chunk)])
            number += 1
        write_text(path, f"{number}\n")

    def _write(self, path: Path, cells: Sequence[tuple[dict, Any]]) -> None:
        """Writes a Parquet file, and beside the parts the rows that could not be read, if any."""
        found: list[dict] = []
        broken: list[dict] = []
        for chunk in _chunks(cells, self.reading.batch_size):
            batch = []
            for place, cell in chunk:
                try:
                    batch.append((place, cell, self._opened(cell, _where(place))))
                except UserError as error:
                    broken.append(self._say(place, cell, error))
            for own in (batch,) if len(batch) < 2 else self._together(batch):
                found += self._segmented(own, broken)
        found.sort(key=lambda row: row["index"])
        broken.sort(key=lambda row: row["index"])
        if broken:
            write_text(self._errors(path), "".join(to_json(line) + "\n" for line in broken))
        else:
            self._errors(path).unlink(missing_ok=True)
        table = pa.Table.from_pylist(found, schema=self.features.arrow_schema)
        with atomic_file(path) as partial_file:
            pq.write_table(table, partial_file)

    def _segmented(self, batch: Sequence[tuple[dict, Any, Any]], broken: list[dict]) -> list[dict]:
        """Rows of some images; one by one where one of them cannot be segmented, which goes to `broken`."""
        if not batch:
            return []
        try:
            return self._segment(batch)
        except UserError as error:
            if len(batch) == 1:
                broken.append(self._say(batch[0][0], batch[0][1], error))
                return []
        return [row for one in batch for row in self._segmented([one], broken)]

    def _opened(self, cell: Any, where: str) -> PIL.Image.Image | Raster:
        """An image that the model sees whole, or what is cut into tiles or has other channels."""
        channels = channels_of(self.pipe, self.reading)
        special = channels.config is not None or self.pipe.in_channels not in (1, 3)
        if special or needs_raster(cell):
            raster = open_cell(cell, where, self.reading.axes, self.reading.slice_axis)
            if special or raster.has_gaps or raster.dtype != np.uint8 or tiling_of(self.pipe, self.reading, raster):
                return raster
            return raster_picture(raster) or raster
        image = decode_cell(cell, where)[0]
        raster = open_cell(image, where)
        return image if tiling_of(self.pipe, self.reading, raster) is None else raster

    @staticmethod
    def _together(batch: list[tuple]) -> Iterator[list[tuple]]:
        """Images that go through the model at once; rasters go alone."""
        whole = [one for one in batch if not isinstance(one[2], Raster)]
        if whole:
            yield whole
        yield from ([one] for one in batch if isinstance(one[2], Raster))

    def _segment(self, batch: Sequence[tuple[dict, Any, Any]]) -> list[dict]:
        """Rows of images that go through the model at once."""
        reading, first = self.reading, batch[0][2]
        if isinstance(first, Raster):
            channels, tiling = channels_of(self.pipe, reading), tiling_of(self.pipe, reading, first)
            if first.planes > 1:
                raise UserError(f"{first.name} has {first.planes} planes; segment such files one by one.")
            if reading.mask_size:
                raise UserError(f"The mask of {first.name} has its size; --mask_size is for 1 or 3 channels.")
            if tiling is None:
                found = segment_whole(self.pipe, first, 0, channels)
            else:
                size = (reading.batch_size, reading.max_memory)
                found = segment_tiled(self.pipe, first, tiling, 0, channels, *size)
            masks, uncertainty = [found.labels], [found.uncertainty]
        else:
            images = [image for _, _, image in batch]
            output = self.pipe.segment(
                images, reading.batch_size, reading.mask_size, output_type="np", return_images=False
            )
            masks, uncertainty = output.masks, output.uncertainty or [None] * len(batch)
        return [self._row(*one, mask, doubt) for one, mask, doubt in zip(batch, masks, uncertainty)]

    def _row(self, place: dict, cell: Any, image: Any, mask: np.ndarray, uncertainty: np.ndarray | None) -> dict:
        stored = encode_image(mask_to_pil(mask, self.pipe.palette))
        counts = np.bincount(mask.ravel(), minlength=256)[: len(self.pipe.label_names)]
        score = None if uncertainty is None else image_uncertainty(torch.from_numpy(uncertainty)).item()
        row = {**place, "path": _path(cell), "mask": {"bytes": stored, "path": None}}
        row |= {"height": mask.shape[0], "width": mask.shape[1], "uncertainty": score}
        row["class_fractions"] = (counts / max(1, counts.sum())).tolist()
        if self.copy_images:
            row["image"] = {"bytes": _bytes(cell, image), "path": None}
        return row

    def _say(self, place: dict, cell: Any, error: object) -> dict:
        tqdm.write(f"error: {error}")
        return {**place, "path": _path(cell), "error": str(error)}

    def _summarise(self, path: Path) -> None:
        files = sorted((self.folder / DATA).glob("train-*.parquet"))
        broken = [json.loads(line) for file in files for line in self._error_lines(file)]
        if broken:
            write_text(self.folder / UNREADABLE, "".join(to_json(line) + "\n" for line in broken))
        write_json(self.folder / "id2label.json", dict(enumerate(self.pipe.label_names)))
        rows = sum(pq.read_metadata(file).num_rows for file in files)
        counted = {"rows": rows, "unreadable": len(broken), "files": len(files)}
        write_json(path, {**self.described, **counted, "label_names": self.pipe.label_names})

    def _error_lines(self, file: Path) -> list[str]:
        path = self._errors(file)
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line] if path.is_file() else []


def _where(place: dict) -> str:
    """The name of a row in messages."""
    return f"row {place['index']}" + (f" of shard {place['shard']}" if "shard" in place else "")


def _chunks(cells: Sequence[tuple[dict, Any]], size: int) -> Iterator[Sequence[tuple[dict, Any]]]:
    for start in range(0, len(cells), size):
        yield cells[start : start + size]


def _path(cell: Any) -> str | None:
    """The name of an image's file, or its address, if it has one."""
    return cell.get("path") if isinstance(cell, Mapping) else cell if isinstance(cell, str) else None


def _bytes(cell: Any, image: Any) -> bytes:
    """The file of an image, as it is."""
    if isinstance(cell, Mapping) and cell.get("bytes"):
        return cell["bytes"]
    path = _path(cell)
    if path and Path(path).is_file():
        return Path(path).read_bytes()
    return encode_image(image)
