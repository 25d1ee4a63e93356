# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Training a student on images with masks and on soft targets, epoch by epoch, with checkpoints to resume from.

DatasetGAN (Zhang et al., CVPR 2021) and DatasetDDPM of Baranchuk et al. (ICLR 2022), section 4.2, train a network on
generated pairs; it then segments in one fast pass what takes the diffusion model several slow ones. Soft targets carry
over what a teacher knows of images without labels, see `targets.py`.
"""

import pickle
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
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from safetensors import SafetensorError
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from ..datasets.augmentation import IGNORED, augment
from ..datasets.labeled import LabeledImages
from ..datasets.unlabeled import to_pixels
from ..jobs.errors import NotFiniteError, UserError
from ..jobs.files import flush_to_disk, read_json, remove_matching, write_json
from ..jobs.seeds import mixed_seed
from .student import Student
from .targets import SoftTargets, distillation_loss, hard_targets


BEST = "best"  # in a checkpoint: the student as it segmented the held-out images best
STATE_FILE = "run.json"
IN_CHECKPOINTS = (  # patterns of files
    *("model*.safetensors", "model.safetensors.index.json", "optimizer*.bin", "scaler.pt", "random_states_[0-9]*.pkl"),
    *(STATE_FILE, f"{BEST}/*"),
)
CHECKPOINT_FILES = (*(f"checkpoint-{'[0-9]' * 6}/{name}" for name in IN_CHECKPOINTS), ".checkpoint-*.partial/*")


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
        unlabeled_fraction (`float`): Share of the images with soft targets, if there are any.
        labels_last (`float`): Share of the epochs, the last, that show images with masks alone.
        layer_decay (`float`):
            Learning rate of a stage of a U-Net as a share of that of the stage behind it; 1 for one rate.
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
    unlabeled_fraction: float = 0.5
    labels_last: float = 0.0
    layer_decay: float = 1.0
    augmentation: bool = True
    flip: bool = True
    num_workers: int = 2
    seed: int = 0

    def __post_init__(self):
        for name in ("num_epochs", "images_per_epoch", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("real_fraction", "unlabeled_fraction", "labels_last"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"`{name}` lies in 0 to 1, got {getattr(self, name)}.")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"`layer_decay` lies above 0 and up to 1, got {self.layer_decay}.")


class Pairs(Dataset):
    """Images `[in_channels, H, W]` uint8 and masks of several datasets, decoded when asked for.

    Args:
        datasets (sequence of [`LabeledImages`]): Where from.
        size (two `int`): Height and width.
        in_channels (`int`, defaults to 3): Of the images, 1 or 3.
        soft (`bool`, defaults to `False`): Whether masks are [`hard_targets`], to go with soft ones, in place of
            `[H, W]` int64.
    """

    def __init__(
        self, datasets: Sequence[LabeledImages], size: tuple[int, int], in_channels: int = 3, soft: bool = False
    ):
        self.rows = [(d, i) for d in datasets for i in range(len(d))]
        self.size, self.in_channels, self.soft = size, in_channels, soft

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
        pixels = to_pixels(row.image.resize(self.size[::-1]), self.size, self.in_channels)
        return pixels, hard_targets(mask) if self.soft else mask


class StudentTraining:
    """The training of a student, an epoch at a time.

    Everything random is a function of seed, epoch and process, so that a run resumes as if it had not stopped.

    Args:
        accelerator (`Accelerator`): Places the model, and says which process this is.
        segmenter ([`Student`]): The student; its model is trained in place.
        train ([`LabeledImages`], *optional*): What it learns from.
        real ([`LabeledImages`], *optional*): More, mixed in at `real_fraction`.
        options ([`TrainingOptions`]): How.
        unlabeled ([`SoftTargets`], *optional*): What a teacher thinks of images without labels, mixed in at
            `unlabeled_fraction`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        segmenter: Student,
        train: LabeledImages | None,
        real: LabeledImages | None,
        options: TrainingOptions,
        unlabeled: SoftTargets | None = None,
    ):
        self.accelerator, self.segmenter, self.options = accelerator, segmenter, options
        labeled = [data for data in (train, real) if data is not None]
        self.soft = unlabeled is not None
        self.pairs: Dataset = Pairs(labeled, segmenter.image_size, segmenter.in_channels, self.soft)
        if unlabeled is not None:
            self.pairs = ConcatDataset([self.pairs, unlabeled])
        self.sizes = [len(data) if data is not None else 0 for data in (train, real, unlabeled)]
        self.batch_size = options.batch_size * accelerator.num_processes
        self.steps = max(1, options.images_per_epoch // self.batch_size)  # in an epoch
        groups = parameter_groups(segmenter.model, options.layer_decay)
        optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
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
                group["lr"] = options.learning_rate * self.rate_at(step) * group["share"]
            images, masks = images.to(accelerator.device).float() / 255, masks.to(accelerator.device)
            if options.augmentation:
                images, masks = augment(images, masks, generator, flip=options.flip)
            with accelerator.autocast():
                logits = self.segmenter.logits(images, self.model)
            loss = distillation_loss(logits, masks) if self.soft else segmentation_loss(logits, masks)
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
        order = epoch_order(self.sizes, self._shares(epoch), count, mixed_seed(options.seed, epoch))
        mine = order.reshape(self.steps, accelerator.num_processes, -1)[:, accelerator.process_index].ravel()
        return DataLoader(Subset(self.pairs, mine.tolist()), options.batch_size, num_workers=options.num_workers)

    def _shares(self, epoch: int) -> list[float]:
        """Shares of the main dataset, of the second one and of the images with soft targets in an epoch."""
        options = self.options
        main, real, unlabeled = (size > 0 for size in self.sizes)
        last = epoch >= round((1 - options.labels_last) * options.num_epochs) and (main or real)
        soft = options.unlabeled_fraction if unlabeled and not last else 0.0
        soft = soft if main or real else 1.0
        second = options.real_fraction * (1 - soft) if real else 0.0
        if main or soft == 1:
            return [1 - soft - second, second, soft]
        return [0.0, 1 - soft, soft]

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
                remove_matching(old, IN_CHECKPOINTS)
        accelerator.wait_for_everyone()

    def load_checkpoint(self, output_dir: Path) -> dict | None:
        """Brings the training back to its newest checkpoint; returns the `state` of that, `None` if there is none.

        Raises:
            UserError: It is damaged.
        """
        found = checkpoints(output_dir)
        if not found:
            return None
        state = read_json(found[-1] / STATE_FILE)
        try:
            self.accelerator.load_state(str(found[-1]))
        except torch.OutOfMemoryError:
            raise
        except (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError, EOFError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"The checkpoint {found[-1]} cannot be read ({reason}). If its files are damaged, move that folder "
                f"away, and the same command line begins anew."
            ) from error
        return state


def checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, the newest last; folders of that name that hold something else are none."""
    named = [p for p in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{6}", p.name)]
    return sorted(p for p in named if (p / STATE_FILE).is_file())


def segmentation_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of `[N, C, h, w]` logits, upsampled to `[N, H, W]` class ids; `IGNORED` does not count."""
    upsampled = F.interpolate(logits.float(), size=masks.shape[-2:], mode="bilinear", align_corners=False)
    # A batch may hold no labelled pixel at all; the mean over none would not be a number.
    losses = F.cross_entropy(upsampled, masks, ignore_index=IGNORED, reduction="sum")
    return losses / (masks != IGNORED).sum().clamp(min=1)


def parameter_groups(model: torch.nn.Module, decay: float) -> list[dict]:
    """The parameters for an optimiser, each group with the `share` of the learning rate that it gets.

    Args:
        model (`torch.nn.Module`): A `UNet2DModel`, or any network if `decay` is 1.
        decay (`float`): Share of a stage (an up-block, the middle, a down-block) of the rate of the stage behind it.

    Raises:
        UserError: The network has no stages.
    """
    if decay == 1:
        return [{"params": list(model.parameters()), "share": 1.0}]
    if not isinstance(model, UNet2DModel):
        raise UserError("--layer_decay is for U-Nets of diffusers; leave it out for other networks.")
    up, down = len(model.up_blocks), len(model.down_blocks)
    groups: dict[int, list] = {}
    for name, parameter in model.named_parameters():
        kind, _, rest = name.partition(".")
        if kind == "up_blocks":
            depth = up - int(rest.split(".")[0])
        elif kind == "mid_block":
            depth = up + 1
        elif kind == "down_blocks":
            depth = up + 1 + down - int(rest.split(".")[0])
        else:
            depth = 0 if kind.startswith("conv_") and kind != "conv_in" else up + down + 2
        groups.setdefault(depth, []).append(parameter)
    return [{"params": own, "share": decay**depth} for depth, own in sorted(groups.items())]


def epoch_order(sizes: Sequence[int], shares: Sequence[float], count: int, seed: int) -> np.ndarray:
    """Which images an epoch shows, as indices into all datasets one after the other.

    Args:
        sizes (sequence of `int`): Of the datasets.
        shares (sequence of `float`): Of the epoch, for each dataset; the first that is not empty takes what the others
            leave, of those with a share if there are any.
        count (`int`): Images in an epoch; a dataset is gone through as a whole before any of it comes again.
        seed (`int`): Another one for every epoch.

    Returns:
        `np.ndarray`: `[count]`.
    """
    rng = np.random.default_rng(seed)
    numbers = [round(share * count) if size else 0 for size, share in zip(sizes, shares)]
    there = [i for i, size in enumerate(sizes) if size]
    first = next((i for i in there if shares[i] > 0), there[0])
    numbers[first] = 0
    numbers[first] = count - sum(numbers)

    def draw(size: int, of: int) -> np.ndarray:
        whole = [rng.permutation(of) for _ in range(-(-size // of))] if size else []
        return np.concatenate(whole)[:size] if whole else np.empty(0, int)

    starts = np.cumsum([0, *sizes[:-1]])
    order = np.concatenate([start + draw(n, size) for start, n, size in zip(starts, numbers, sizes)])
    return rng.permutation(order).astype(int)
