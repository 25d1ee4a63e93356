# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Synthetic datasets: images with masks in batches that stand for themselves, filtered, and written as Parquet shards.

DatasetGAN (Zhang et al., CVPR 2021), and DatasetDDPM of Baranchuk et al. (ICLR 2022), section 4.2. Every image starts
from noise that the run's seed and the image's index determine, and every batch lies in a file of its own until all are
there, so that it does not matter who generates which, or when.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Features, Image, Value
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, SchedulerMixin
from matplotlib.figure import Figure

from .commands import write_json
from .image_processor import mask_to_pil
from .pipeline_diffuseseg import DiffuseSegPipeline
from .segmentation_head import image_uncertainty
from .unlabeled_data import mixed_seed


SCHEDULERS = {"ddpm": None, "ddim": DDIMScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
IMAGE_FORMATS = ("png", "jpeg")
FEATURES = Features(
    {
        "image": Image(),
        "mask": Image(),
        "uncertainty": Value("float32"),
        "seed": Value("int64"),
        "index": Value("int64"),
    }
)
PARTS = ".parts"
ROWS_PER_GROUP = 512  # what is held at once while shards are written
DISTANCE_SIDE = 16  # images are compared at this size


def scheduler_for(name: str, scheduler: SchedulerMixin) -> SchedulerMixin:
    """The sampler of that name with the noise schedule of the given one: a key of `SCHEDULERS`."""
    if SCHEDULERS[name] is None:
        return scheduler
    options = {"algorithm_type": "dpmsolver++", "solver_order": 2} if name == "dpmsolver++" else {}
    return SCHEDULERS[name].from_config(scheduler.config, **options)


def fingerprint(*modules: torch.nn.Module) -> str:
    """The first digits of a SHA-256 over all weights."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def check_settings(folder: Path, settings: dict) -> dict | None:
    """Writes what a run is made with into its folder, or compares it with what is there.

    Returns:
        `dict`: What the run resulted in, if it is complete.

    Raises:
        ValueError: The folder holds another run; says what differs.
    """
    path = folder / "generation.json"
    if path.is_file():
        run = json.loads(path.read_text(encoding="utf-8"))
        there = run["settings"]
        other = [k for k in settings if there.get(k) != settings[k]]
        if other:
            what = ", ".join(f"{k} {there.get(k)} (now {settings[k]})" for k in other)
            raise ValueError(f"{folder} holds another run: {what}. Choose another --output_dir, or pass --overwrite.")
        return run.get("result")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"settings": settings})
    return None


def part_path(folder: Path, batch: int) -> Path:
    return folder / PARTS / f"{batch:07d}.parquet"


def generate_batch(
    pipe: DiffuseSegPipeline,
    batch: int,
    batch_size: int,
    seed: int,
    num_inference_steps: int,
    masks_while_sampling: bool = False,
    image_format: str = "png",
) -> pa.Table:
    """One batch of the dataset, a function of its number, the seed and the settings alone.

    Returns:
        `pyarrow.Table`: The columns of `FEATURES`, and `pixels`, the number of pixels of each class.
    """
    indices = range(batch * batch_size, (batch + 1) * batch_size)
    seeds = [mixed_seed(seed, i) for i in indices]
    output = pipe(
        batch_size,
        num_inference_steps,
        generator=[torch.Generator().manual_seed(s) for s in seeds],
        masks_while_sampling=masks_while_sampling,
        output_type="np",
    )
    images = pipe.numpy_to_pil(output.images)
    num_classes = pipe.segmentation_head.config.num_classes
    scores = image_uncertainty(torch.from_numpy(output.uncertainty)).tolist()
    masks = [mask_to_pil(mask, pipe.palette) for mask in output.masks]
    columns = {
        "image": [{"bytes": _encode(image, image_format), "path": None} for image in images],
        "mask": [{"bytes": _encode(mask, "png"), "path": None} for mask in masks],
        "uncertainty": scores,
        "seed": seeds,
        "index": list(indices),
        "pixels": [np.bincount(mask.ravel(), minlength=num_classes).tolist() for mask in output.masks],
    }
    return pa.table(columns, schema=FEATURES.arrow_schema.append(pa.field("pixels", pa.list_(pa.int64()))))


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """Gives a temporary name, and renames what was written to it once the block ends well.

    Raises:
        OSError: It could not be written, as on a full disk; the other files stay.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise OSError(
            f"{path.name} could not be written: {error}. The other files are kept; when there is room, the same "
            f"command line goes on."
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file that is whole or not there."""
    with whole_or_nothing(path) as partial:
        pq.write_table(table, partial)


class Samples:
    """The samples of a finished set of batches, by index; of all of them, only small numbers are held in memory.

    Args:
        folder (`Path`): Of the run.
        num_samples (`int`): How many there are; the last batch may hold more.
        batch_size (`int`): How many are in a batch.
    """

    def __init__(self, folder: Path, num_samples: int, batch_size: int):
        self.folder, self.num_samples, self.batch_size = folder, num_samples, batch_size
        groups = [self.rows(g, ["uncertainty", "pixels"]) for g in self._groups(np.arange(num_samples))]
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

    @property
    def image_mode(self) -> str:
        """ "L" or "RGB", as Pillow calls it."""
        return self._pictures(np.array([0]))[0].mode

    def thumbnails(self, indices: np.ndarray) -> np.ndarray:
        """The images at these ascending indices for [`distances`], `[n, D]`."""
        return np.stack([thumbnail(p, p.mode) for g in self._groups(indices) for p in self._pictures(g)])

    def picture_bytes(self) -> np.ndarray:
        """How many bytes the image and the mask of each sample take together, `[N]`."""
        sizes = []
        for group in self._groups(np.arange(self.num_samples)):
            table = self.rows(group, ["image", "mask"])
            cells = zip(table["image"].to_pylist(), table["mask"].to_pylist())
            sizes += [len(image["bytes"]) + len(mask["bytes"]) for image, mask in cells]
        return np.array(sizes)

    def _pictures(self, indices: np.ndarray) -> list[PIL.Image.Image]:
        cells = self.rows(indices, ["image"])["image"].to_pylist()
        return [PIL.Image.open(io.BytesIO(cell["bytes"])) for cell in cells]

    @staticmethod
    def _groups(indices: np.ndarray) -> list[np.ndarray]:
        return [indices[i : i + ROWS_PER_GROUP] for i in range(0, len(indices), ROWS_PER_GROUP)]


def thumbnail(image: PIL.Image.Image, mode: str) -> np.ndarray:
    """An image as `[16 * 16 * C]` float32 in [0, 1], for [`distances`]; `mode` is "L" or "RGB"."""
    small = image.convert(mode).resize((DISTANCE_SIDE,) * 2, PIL.Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel() / 255


def distances(queries: np.ndarray, references: np.ndarray, skip_self: bool = False) -> np.ndarray:
    """Distance of each query to its nearest reference or to the mirror image of one: root mean squared difference.

    Args:
        queries (`np.ndarray`): `[N, D]` of [`thumbnail`].
        references (`np.ndarray`): `[M, D]`.
        skip_self (`bool`, defaults to `False`): The two are the same set, and an image is not its own neighbour.

    Returns:
        `np.ndarray`: `[N]`, 0 (the same) to 1, at 16 × 16 pixels.
    """
    side = DISTANCE_SIDE
    mirrored = references.reshape(len(references), side, side, -1)[:, :, ::-1].reshape(references.shape)
    nearest = np.full(len(queries), np.inf)
    for others in (references, mirrored):
        squares = (others**2).sum(1)
        for start in range(0, len(queries), 1024):
            block = queries[start : start + 1024]
            d = (block**2).sum(1)[:, None] + squares - 2 * block @ others.T  # [n,M]
            if skip_self:
                d[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf
            nearest[start : start + len(block)] = np.minimum(nearest[start : start + len(block)], d.min(1))
    return np.sqrt(nearest.clip(min=0) / queries.shape[1])


def keep_certain(samples: Samples, kept: np.ndarray, fraction: float) -> np.ndarray:
    """Leaves out the most uncertain fraction (the paper's 0.1), the later of equals first; `kept` is `[n]` indices."""
    count = len(kept) - round(fraction * len(kept))
    order = np.argsort(samples.uncertainty[kept], kind="stable")[:count]
    return np.sort(kept[order])


def keep_balanced(samples: Samples, kept: np.ndarray, fraction: float) -> np.ndarray:
    """Leaves out the fraction that shows the least of rare classes: class shares over the mean share, summed."""
    shares = samples.pixels[kept] / samples.pixels[kept].sum(1, keepdims=True)  # [n,C]
    mean = shares.mean(0)
    rarity = shares[:, mean > 0] @ (1 / mean[mean > 0])
    count = len(kept) - round(fraction * len(kept))
    return np.sort(kept[np.argsort(-rarity, kind="stable")[:count]])


def keep_distinct(
    thumbnails: np.ndarray, kept: np.ndarray, least: float, references: np.ndarray | None = None
) -> np.ndarray:
    """Leaves out images that are nearer than `least` to a reference, or to one that is kept and comes before.

    Args:
        thumbnails (`np.ndarray`): `[N, D]`, of all samples.
        kept (`np.ndarray`): `[n]` indices.
        least (`float`): See [`distances`].
        references (`np.ndarray`, *optional*): `[M, D]`, of training images.
    """
    if references is not None:
        kept = kept[distances(thumbnails[kept], references) >= least]
    distinct: list[int] = []
    for i in kept:
        if not distinct or distances(thumbnails[i : i + 1], thumbnails[distinct])[0] >= least:
            distinct.append(i)
    return np.array(distinct, dtype=int)


def write_shards(folder: Path, samples: Samples, kept: np.ndarray, shard_bytes: int) -> list[dict]:
    """Writes the samples that are kept, in order, to `data/train-*.parquet`; shards that are there already stay.

    Args:
        folder (`Path`): Of the run.
        samples ([`Samples`]): All there are.
        kept (`np.ndarray`): `[n]` indices, ascending.
        shard_bytes (`int`): A shard ends with the sample that makes its pictures as large as this.

    Returns:
        `list[dict]`: `file`, `rows`, `bytes` and `sha256` of each shard.
    """
    shard_of = np.cumsum(samples.picture_bytes()[kept]) // shard_bytes  # [n]
    parts = [kept[shard_of == shard] for shard in np.unique(shard_of)]
    shards = []
    for number, indices in enumerate(parts):
        path = folder / "data" / f"train-{number:05d}-of-{len(parts):05d}.parquet"
        if not path.is_file():
            with whole_or_nothing(path) as partial, pq.ParquetWriter(partial, FEATURES.arrow_schema) as writer:
                for start in range(0, len(indices), ROWS_PER_GROUP):
                    group = samples.rows(indices[start : start + ROWS_PER_GROUP], list(FEATURES))
                    writer.write_table(group.cast(FEATURES.arrow_schema))
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        size = path.stat().st_size
        shards.append({"file": f"data/{path.name}", "rows": len(indices), "bytes": size, "sha256": digest.hexdigest()})
    return shards


def uncertainty_histogram(scores: np.ndarray, kept: np.ndarray) -> Figure:
    """How uncertain the images are, those that were kept and those that were not."""
    figure = Figure(figsize=(6, 3), dpi=150, layout="constrained")
    axis = figure.subplots()
    bins = np.linspace(0, max(scores.max(), 1e-6), 41)
    chosen = np.zeros(len(scores), bool)
    chosen[kept] = True
    axis.hist([scores[chosen], scores[~chosen]], bins, stacked=True, color=["#0072B2", "#D55E00"])
    axis.legend([f"kept ({chosen.sum():,})", f"left out ({(~chosen).sum():,})"], frameon=False, fontsize=8)
    axis.set(xlabel="uncertainty of the image (nats)", ylabel="images")
    return figure


def _encode(image: PIL.Image.Image, image_format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **({"quality": 95} if image_format == "jpeg" else {}))
    return buffer.getvalue()
