# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training a student on images with masks, epoch by epoch, with checkpoints to resume from.

DatasetGAN (Zhang et al., CVPR 2021) and DatasetDDPM of Baranchuk et al. (ICLR 2022), section 4.2, train a network on
generated pairs; it then segments in one fast pass what takes the diffusion model several slow ones.
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from safetensors import SafetensorError
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..data.augmentation import IGNORED, augment
from ..data.labeled import LabeledImages
from ..data.unlabeled import to_pixels
from ..runs.errors import NotFiniteError, UserError
from ..runs.files import flush_to_disk, read_json, write_json
from ..runs.seeds import mixed_seed
from .segmenter import StudentSegmenter


BEST = "best"  # in a checkpoint: the student as it segmented the held-out images best
STATE_FILE = "run.json"
CHECKPOINT_FILES = ("checkpoint-[0-9][0-9][0-9][0-9][0-9][0-9]/*", ".checkpoint-*.partial/*")  # patterns


@dataclass(frozen=True)
class TrainingOptions:
    """How a student is trained.

    Args:
        num_epochs (`int`): Epochs.
        images_per_epoch (`int`): Images shown in each, over all processes.
        batch_size (`int`): Images per process and step.
        learning_rate (`float`), weight_decay (`float`), max_grad_norm (`float`): Of AdamW; the rate warms up over a
            twentieth of the steps and falls as a cosine.
        real_fraction (`float`): Share of the second dataset, if there is one.
        augmentation (`bool`): Whether images are shown as augmented views.
        flip (`bool`): Whether those may be mirrored.
        num_workers (`int`): Processes that decode ahead.
        seed (`int`): Of order, augmentation and dropout.

    Raises:
        UserError: An option is out of range.
    """

    num_epochs: int = 20
    images_per_epoch: int = 1000
    batch_size: int = 16
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    real_fraction: float = 0.2
    augmentation: bool = True
    flip: bool = True
    num_workers: int = 2
    seed: int = 0

    def __post_init__(self):
        for name in ("num_epochs", "images_per_epoch", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.real_fraction <= 1:
            raise UserError(f"`real_fraction` lies in 0 to 1, got {self.real_fraction}.")


class Pairs(Dataset):
    """Images `[3, H, W]` uint8 and masks `[H, W]` int64 of several datasets, decoded when asked for."""

    def __init__(self, datasets: Sequence[LabeledImages], size: tuple[int, int]):
        self.rows = [(d, i) for d in datasets for i in range(len(d))]
        self.size = size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        dataset, i = self.rows[index]
        row = dataset[i]
        mask = torch.from_numpy(row.mask).long()
        mask[mask == dataset.ignore_index] = IGNORED
        mask = F.interpolate(mask[None, None].float(), self.size, mode="nearest-exact")[0, 0].long()
        if not isinstance(row.image, PIL.Image.Image):
            raise UserError(f"Students take pictures of 1 or 3 channels of eight bits, and {row.name} is none.")
        return to_pixels(row.image.resize(self.size[::-1]), self.size, 3), mask


class StudentTraining:
    """The training of a student, an epoch at a time.

    Everything random is a function of seed, epoch and process, so that a run resumes as if it had not stopped.

    Args:
        accelerator (`Accelerator`): Places the model, and says which process this is.
        segmenter ([`StudentSegmenter`]): The student; its model is trained in place.
        train ([`LabeledImages`]): What it learns from.
        real ([`LabeledImages`], *optional*): More, mixed in at `real_fraction`.
        options ([`TrainingOptions`]): How.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        segmenter: StudentSegmenter,
        train: LabeledImages,
        real: LabeledImages | None,
        options: TrainingOptions,
    ):
        self.accelerator, self.segmenter, self.options = accelerator, segmenter, options
        self.counts = (len(train), len(real or ()))
        self.pairs = Pairs([train, *([real] if real else [])], segmenter.image_size)
        self.batch_size = options.batch_size * accelerator.num_processes
        self.steps = max(1, options.images_per_epoch // self.batch_size)  # in an epoch
        parameters = segmenter.model.parameters()
        optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
        total = self.steps * options.num_epochs
        schedule = get_scheduler("cosine", optimizer, num_warmup_steps=total // 20, num_training_steps=total)
        self.rate_at = schedule.lr_lambdas[0]  # a function of the step alone
        self.model, self.optimizer = accelerator.prepare(segmenter.model, optimizer)

    def run_epoch(self, epoch: int) -> float:
        """Trains for an epoch, counted from 0; returns its mean loss.

        Raises:
            NotFiniteError: The loss is not finite.
        """
        options, accelerator = self.options, self.accelerator
        generator = torch.Generator().manual_seed(mixed_seed(options.seed, epoch, accelerator.process_index))
        torch.manual_seed(generator.initial_seed())  # dropout
        self.model.train()
        losses = torch.zeros((), device=accelerator.device)
        show = {"desc": f"Epoch {epoch + 1} of {options.num_epochs}", "unit": "step", "leave": False}
        bar = tqdm(self._batches(epoch), disable=not accelerator.is_main_process, **show)
        for step, (images, masks) in enumerate(bar, epoch * self.steps):
            for group in self.optimizer.param_groups:
                group["lr"] = options.learning_rate * self.rate_at(step)
            images, masks = images.to(accelerator.device).float() / 255, masks.to(accelerator.device)
            if options.augmentation:
                images, masks = augment(images, masks, generator, flip=options.flip)
            with accelerator.autocast():
                logits = self.model(self.segmenter.normalize(images)).logits
            loss = segmentation_loss(logits, masks)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(self.model.parameters(), options.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses += loss.detach()
        loss = float(losses) / self.steps
        if not loss < float("inf"):
            raise NotFiniteError(
                f"The loss is {loss} in epoch {epoch + 1}; the checkpoint of the last epoch is kept. Try a lower "
                f"--learning_rate, or --mixed_precision bf16 or no."
            )
        return loss

    def _batches(self, epoch: int) -> DataLoader:
        """This process's share of an epoch's images."""
        options, accelerator = self.options, self.accelerator
        count = self.steps * self.batch_size
        order = epoch_order(*self.counts, options.real_fraction, count, mixed_seed(options.seed, epoch))
        mine = order.reshape(self.steps, accelerator.num_processes, -1)[:, accelerator.process_index].ravel()
        return DataLoader(Subset(self.pairs, mine.tolist()), options.batch_size, num_workers=options.num_workers)

    def save_checkpoint(self, output_dir: Path, state: dict, is_best: bool) -> None:
        """Writes a checkpoint atomically, then removes those before it.

        Args:
            output_dir (`Path`): Of the run.
            state (`dict`): For `run.json`; its `epoch` names the folder.
            is_best (`bool`): Whether the student is better than that of the checkpoint before.

        Raises:
            UserError: It cannot be written, as on a full disk; the one before is kept.
        """
        accelerator, before = self.accelerator, checkpoints(output_dir)
        folder = output_dir / f"checkpoint-{state['epoch']:06d}"
        partial = output_dir / f".{folder.name}.partial"
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was cut off
        accelerator.wait_for_everyone()
        try:
            accelerator.save_state(str(partial))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                if is_best:
                    self.segmenter.save_pretrained(partial / BEST)
                else:
                    shutil.copytree(before[-1] / BEST, partial / BEST)
                write_json(partial / STATE_FILE, state)
                flush_to_disk(partial)
                partial.rename(folder)
        except (OSError, RuntimeError, SafetensorError) as error:
            last = f"{before[-1]} is kept" if before else "there is none yet"
            raise UserError(
                f"The checkpoint of epoch {state['epoch']} cannot be saved ({error}); {last}. The same command line "
                f"resumes."
            ) from error
        if accelerator.is_main_process:
            for old in before:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def load_checkpoint(self, output_dir: Path) -> dict | None:
        """Brings the training back to its newest checkpoint; returns the `state` of that, `None` if there is none."""
        found = checkpoints(output_dir)
        if not found:
            return None
        self.accelerator.load_state(str(found[-1]))
        return read_json(found[-1] / STATE_FILE)


def checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, the newest last."""
    return sorted(p for p in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{6}", p.name))


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `[N, C, h, w]` logits, upsampled to `[N, H, W]` class ids; `IGNORED` does not count."""
    upsampled = F.interpolate(logits.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    # A batch may hold no labelled pixel at all; the mean over none would not be a number.
    losses = F.cross_entropy(upsampled, masks, ignore_index=IGNORED, reduction="sum")
    return losses / (masks != IGNORED).sum().clamp(min=1)


def epoch_order(num_main: int, num_real: int, real_fraction: float, count: int, seed: int) -> np.ndarray:
    """Which images an epoch shows: indices below `num_main` are of the main dataset, those from there on real ones.

    Args:
        num_main (`int`), num_real (`int`): Sizes of the two.
        real_fraction (`float`): Share of the epoch that is real.
        count (`int`): Images in an epoch; a dataset is gone through as a whole before any of it comes again.
        seed (`int`): Another one for every epoch.

    Returns:
        `np.ndarray`: `[count]`.
    """
    rng = np.random.default_rng(seed)
    real = round(real_fraction * count) if num_real else 0

    def draw(size: int, of: int) -> np.ndarray:
        whole = [rng.permutation(of) for _ in range(-(-size // of))] if size else []
        return np.concatenate(whole)[:size] if whole else np.empty(0, int)

    order = np.concatenate([draw(count - real, num_main), num_main + draw(real, num_real)])
    return rng.permutation(order).astype(int)
