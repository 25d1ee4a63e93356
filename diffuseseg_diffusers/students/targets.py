# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Soft targets: a teacher's class probabilities for images without labels, computed once and kept compactly.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015). Of every pixel the likeliest classes
are kept, a byte for each class and a byte for its share, whatever the number of classes; the file also keeps the image
at the student's size, so that training decodes nothing.
"""

import bisect
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import PIL.Image
import torch
import torch.nn.functional as F
from datasets import Dataset as HubDataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from ..datasets.augmentation import IGNORED
from ..datasets.columns import decode_cell
from ..datasets.crops import Pictures, RandomCrops
from ..datasets.unlabeled import to_pixels
from ..images.channels import InputChannels
from ..images.image_processor import to_eight_bit
from ..jobs.errors import UserError
from ..jobs.files import atomic_file, check_writable, read_json, write_json
from ..jobs.parts import Part, finish_parts
from ..jobs.seeds import mixed_seed
from ..pipelines.segmenter import Segmenter
from .student import Student


SETTINGS = "settings.json"  # in a folder of targets that several runs use
TARGETS = "targets"  # folder below an output folder
CLASSES_KEPT = 4  # of a pixel, the likeliest
IMAGES_IN_A_FILE = 64  # what a kill can cost, and the step of the progress bar
TARGETS_FILE = "targets-[0-9]*-of-[0-9]*.safetensors"  # pattern of their names
IN_TARGETS = (TARGETS_FILE, f".{TARGETS_FILE}.lock")  # the second of a process that was killed
ANEW = "remove it, and it is computed anew"


def soft_targets(probabilities: torch.Tensor) -> torch.Tensor:
    """The likeliest classes of each pixel and their shares, of probabilities `[N, num_classes, H, W]`.

    Returns:
        `torch.Tensor` `[N, 2 * CLASSES_KEPT, H, W]` uint8: ids of classes, then shares in 255ths; `IGNORED` with a
        share of 0 where there are fewer classes.
    """
    kept = min(CLASSES_KEPT, probabilities.shape[1])
    shares, ids = probabilities.topk(kept, dim=1)  # [N,k,H,W]
    shares = (shares / shares.sum(1, keepdim=True) * 255).round()
    pad = (0, 0, 0, 0, 0, CLASSES_KEPT - kept)
    return torch.cat([F.pad(ids, pad, value=IGNORED), F.pad(shares, pad)], 1).to(torch.uint8)


def hard_targets(mask: torch.Tensor) -> torch.Tensor:
    """A mask in the form of [`soft_targets`]: `[H, W]` class ids to `[2 * CLASSES_KEPT, H, W]` uint8."""
    targets = torch.zeros(2 * CLASSES_KEPT, *mask.shape, dtype=torch.uint8)
    targets[:CLASSES_KEPT] = IGNORED
    targets[0] = mask
    targets[CLASSES_KEPT] = torch.where(mask == IGNORED, 0, 255)
    return targets


def distillation_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of logits `[N, C, h, w]`, upsampled, with [`soft_targets`] `[N, 2 * CLASSES_KEPT, H, W]`.

    On hard ones it is that of class ids; a class id of `IGNORED` does not count.
    """
    logits = logits.float()
    if logits.shape[-2:] != targets.shape[-2:]:
        logits = F.interpolate(logits, size=targets.shape[-2:], mode="bilinear", align_corners=False)
    ids, shares = targets.long().chunk(2, dim=1)  # [N,k,H,W]
    shares = torch.where(ids == IGNORED, 0, shares).float()
    log_p = logits.log_softmax(1).gather(1, torch.where(ids == IGNORED, 0, ids))  # [N,k,H,W]
    total = shares.sum(1)  # [N,H,W]
    losses = -(shares * log_p).sum(1) / total.clamp(min=1)
    return losses.sum() / (total > 0).sum().clamp(min=1)


class SoftTargets(Dataset):
    """Images `[C, H, W]` uint8 with their targets `[2 * CLASSES_KEPT, H, W]` uint8, read from files when asked for.

    Raises:
        UserError: A file is damaged, or of something else.
    """

    def __init__(self, paths: Sequence[Path]):
        self.paths, self.starts = list(paths), [0]
        for path in self.paths:
            try:
                with safe_open(path, "pt") as file:
                    images, targets = (file.get_slice(name).get_shape() for name in ("images", "targets"))
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path} is no whole file of targets ({error}); {ANEW}.") from error
            if len(images) != 4 or targets != [images[0], 2 * CLASSES_KEPT, *images[2:]]:
                raise UserError(f"{path} holds images {images} with targets {targets}, which is no pair; {ANEW}.")
            self.starts.append(self.starts[-1] + images[0])

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        part = bisect.bisect_right(self.starts, index) - 1
        row = index - self.starts[part]
        with safe_open(self.paths[part], "pt") as file:  # mapped into memory: one image is read, not the file
            image, targets = (file.get_slice(name)[row : row + 1][0] for name in ("images", "targets"))
        return image, targets


@dataclass(frozen=True)
class WholeImages:
    """Images of a dataset without labels (`dataset`, `column` from [`load_unlabeled`]), with their pixels
    `[in_channels, *size]` uint8."""

    dataset: HubDataset
    column: str
    size: tuple[int, int]
    in_channels: int  # 1 or 3

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> tuple[PIL.Image.Image, torch.Tensor]:
        image, where = decode_cell(self.dataset[row][self.column], f"row {row}")
        try:
            whole = to_eight_bit(image).resize(self.size[::-1], PIL.Image.Resampling.LANCZOS)
            return image, to_pixels(whole, self.size, self.in_channels)
        except (OSError, UserError) as error:
            raise UserError(f"The image in {where} cannot be read ({error}); repair or remove it.") from error


def crops_as_read(student: Student, dataset: HubDataset, column: str, seed: int = 0) -> RandomCrops:
    """Random crops of images without labels, at the scale of a student's tiles."""
    tiles = student.fitted_tiles
    given = (student.image_size, student.in_channels, InputChannels(), seed, tiles["scale"], tiles["pixel_size"])
    return RandomCrops(Pictures(dataset, column), *given)


def claim_targets(folder: Path, settings: dict) -> None:
    """Begins a folder of targets that several runs use, or checks that it is of the same teacher and images, as
    `settings` state them.

    Raises:
        UserError: The folder holds targets of something else, or other files.
    """
    path = check_writable(folder, "--targets_dir") / SETTINGS
    if not path.is_file():
        if folder.exists() and (not folder.is_dir() or any(not p.name.startswith(".") for p in folder.iterdir())):
            if not path.is_file():  # another run may have begun it this moment
                raise UserError(f"{folder} holds something else than targets; give another --targets_dir.")
        else:
            _write_first(path, settings)
    there, now = read_json(path), json.loads(json.dumps(settings))
    if not isinstance(there, dict):
        raise UserError(f"{path} says nothing of targets; give another --targets_dir.")
    if other := [name for name in now if there.get(name) != now[name]]:
        what = ", ".join(f"{name} {there.get(name)} (now {now[name]})" for name in other)
        raise UserError(
            f"{folder} holds targets of another teacher or other images: {what}; give another --targets_dir."
        )


def _write_first(path: Path, settings: dict) -> None:
    """Writes the settings, unless another run has done so by now; whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".settings-", dir=path.parent) as folder:
        whole = Path(folder, path.name)
        write_json(whole, settings)
        try:
            os.link(whole, path)
        except FileExistsError:  # the other one's
            pass
        except OSError:  # a file system without links
            write_json(path, settings)


def compute_targets(
    teacher: Segmenter,
    images: "WholeImages | RandomCrops",
    folder: Path,
    batch_size: int = 8,
    show_progress: bool = True,
) -> SoftTargets:
    """The teacher's probabilities for images without labels; what is in the folder already is kept.

    Any number of processes may be at it together, with the same arguments: what the files are of is not asked.

    Args:
        teacher ([`Segmenter`]): A pipeline with a head, or a student.
        images ([`WholeImages`] or [`RandomCrops`]): Images of the student's size and channels; the teacher sees crops
            as the student does.
        folder (`Path`): For the files.
        batch_size (`int`, defaults to 8): Images that go through the teacher at once.
        show_progress (`bool`, defaults to `True`): Whether to show a progress bar.

    Raises:
        UserError: An image cannot be read; says which.
    """

    def make(path: Path, rows: range) -> None:
        shown, targets = [], []
        for start in range(0, len(rows), batch_size):
            batch: list[PIL.Image.Image] = []
            for row in rows[start : start + batch_size]:
                if isinstance(images, WholeImages):
                    image, pixels = images[row]
                else:
                    pixels = images[row][0]
                    image = PIL.Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())  # a crop of one channel: L
                shown.append(pixels)
                batch.append(image)
            # Heads that were fitted with fresh noise get that of the row, whoever makes the file.
            noise = [torch.Generator().manual_seed(mixed_seed(0, row)) for row in rows[start : start + batch_size]]
            given = dict(generator=noise, output_type="pt", return_probabilities=True, return_images=False)
            found = teacher.segment(batch, batch_size, mask_size=size, **given)
            targets.append(soft_targets(torch.stack(found.probabilities)))
        with atomic_file(path) as partial_path:
            try:
                save_file({"images": torch.stack(shown), "targets": torch.cat(targets)}, partial_path)
            except SafetensorError as error:  # says nothing of the file
                raise UserError(f"{path} could not be written ({error}); the same command line resumes.") from error

    size, in_channels, count = images.size, images.in_channels, len(images)
    number = -(-count // IMAGES_IN_A_FILE)
    parts = []
    for i in range(number):
        path = folder / f"targets-{i:05d}-of-{number:05d}.safetensors"
        rows = range(i * IMAGES_IN_A_FILE, min((i + 1) * IMAGES_IN_A_FILE, count))
        parts.append(Part(path, partial(make, path, rows), len(rows)))
    with tqdm(total=count, desc="Computing soft targets", unit="image", disable=not show_progress) as bar:
        finish_parts(parts, bar)
    found = SoftTargets([part.path for part in parts])
    for part, start, end in zip(parts, found.starts, found.starts[1:]):
        if end - start != part.size:
            raise UserError(f"{part.path} holds {end - start} images, not {part.size}; {ANEW}.")
    image = found[0][0]
    if tuple(image.shape) != (in_channels, *size):
        raise UserError(f"{folder} holds images {tuple(image.shape)}, not {(in_channels, *size)}; {ANEW}.")
    return found
