# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Generated samples on disk: a Parquet file for each batch while a run lasts, shards in the end.

It does not matter who generates which batch, or when: a batch that has its file is never made again.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Image, Value

from ..jobs.files import atomic_file
from ..jobs.parts import PARTS


NUMBERS = {"uncertainty": Value("float32"), "seed": Value("int64"), "index": Value("int64")}
FEATURES = Features({"image": Image(), "mask": Image(), **NUMBERS})
# Of a batch: the columns of the dataset, and the number of pixels of each class.
PART_SCHEMA = FEATURES.arrow_schema.append(pa.field("pixels", pa.list_(pa.int64())))
PROMPT = pa.field("prompt", pa.string())  # a further column, of images that were made from prompts
SHARD_FILES = "data/train-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].parquet"  # a pattern
PART_FILES = f"{PARTS}/[0-9]*.parquet"  # a pattern
ROWS_PER_GROUP = 512  # what is held at once while shards are written


def part_path(folder: Path, batch: int) -> Path:
    """The file of a batch."""
    return folder / PARTS / f"{batch:07d}.parquet"


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file atomically."""
    with atomic_file(path) as partial:
        pq.write_table(table, partial)


class Samples:
    """The first `num_samples` of a run's finished batches, by index; only small numbers of all are held in memory."""

    def __init__(self, folder: Path, num_samples: int, batch_size: int):
        self.folder, self.num_samples, self.batch_size = folder, num_samples, batch_size
        groups = [self.rows(g, ["uncertainty", "pixels"]) for g in self.groups(np.arange(num_samples))]
        self.uncertainty = np.concatenate([g["uncertainty"].to_numpy() for g in groups])  # [N]
        self.pixels = np.concatenate([np.array(g["pixels"].to_pylist()) for g in groups])  # [N,C]

    def rows(self, indices: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """The samples at these ascending indices."""
        batches = indices // self.batch_size
        tables = []
        for batch in np.unique(batches):
            table = pq.read_table(part_path(self.folder, batch), columns=list(columns))
            tables.append(table.take(pa.array(indices[batches == batch] - batch * self.batch_size)))
        return pa.concat_tables(tables)

    def images(self, indices: np.ndarray, column: str = "image") -> list[PIL.Image.Image]:
        """The images, or with `column="mask"` the masks, at these ascending indices."""
        cells = self.rows(indices, [column])[column].to_pylist()
        return [PIL.Image.open(io.BytesIO(cell["bytes"])) for cell in cells]

    @property
    def features(self) -> Features:
        """The columns of the dataset."""
        has_prompts = PROMPT.name in pq.read_schema(part_path(self.folder, 0)).names
        return Features({**FEATURES, **({PROMPT.name: Value("string")} if has_prompts else {})})

    @property
    def image_mode(self) -> str:
        """ "L" or "RGB", as Pillow calls it."""
        return self.images(np.array([0]))[0].mode

    def encoded_sizes(self) -> np.ndarray:
        """How many bytes the image and the mask of each sample take together, `[N]`."""
        sizes: list[int] = []
        for group in self.groups(np.arange(self.num_samples)):
            rows = self.rows(group, ["image", "mask"]).to_pylist()
            sizes += [len(row["image"]["bytes"]) + len(row["mask"]["bytes"]) for row in rows]
        return np.array(sizes)

    @staticmethod
    def groups(indices: np.ndarray) -> list[np.ndarray]:
        """The indices in parts that are small enough to be held at once."""
        return [indices[i : i + ROWS_PER_GROUP] for i in range(0, len(indices), ROWS_PER_GROUP)]


def write_shards(folder: Path, samples: Samples, kept: np.ndarray, shard_bytes: int) -> list[dict]:
    """Writes the samples at the ascending indices `kept` to `data/train-*.parquet`; shards that are there already stay.

    A shard ends with the sample that makes its images and masks as large as `shard_bytes`.

    Returns:
        `list[dict]`: `file`, `rows`, `bytes` and `sha256` of each shard.

    Raises:
        OSError: A shard could not be written, as on a full disk; the others are kept.
    """
    features = samples.features
    shard_of = np.cumsum(samples.encoded_sizes()[kept]) // shard_bytes  # [n]
    parts = [kept[shard_of == shard] for shard in np.unique(shard_of)]
    shards = []
    for number, indices in enumerate(parts):
        path = folder / "data" / f"train-{number:05d}-of-{len(parts):05d}.parquet"
        if not path.is_file():
            with atomic_file(path) as partial, pq.ParquetWriter(partial, features.arrow_schema) as writer:
                for group in samples.groups(indices):
                    writer.write_table(samples.rows(group, list(features)).cast(features.arrow_schema))
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        size = path.stat().st_size
        shards.append({"file": f"data/{path.name}", "rows": len(indices), "bytes": size, "sha256": digest.hexdigest()})
    return shards
