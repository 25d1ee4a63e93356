# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fits a [`PixelClassifierEnsemble`] on a few labelled images, all members at once.

The procedure is that of DatasetGAN (Zhang et al., CVPR 2021), adopted by Baranchuk et al. (ICLR 2022), section 4: each
member is an MLP on single pixels that sees all labelled pixels in a random order of its own.
"""

import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.utils import logging
from tqdm.auto import tqdm

from .augmentation import IGNORED, augment
from .data import LabeledImages
from .features import (
    PAPER_BLOCKS,
    PAPER_TIMESTEPS,
    DecoderFeatureExtractor,
    FeatureInfo,
    num_decoder_blocks,
    up_block_outputs,
)
from .image_processor import DiffuseSegImageProcessor, default_palette
from .pipeline_diffuseseg import DiffuseSegPipeline
from .segmentation_head import PixelClassifierEnsemble, StackedLinear


logger = logging.get_logger(__name__)

PLANNED_STEPS = 32

# Names of classes that change when a picture is mirrored: "left eye", "l_brow".
SIDES = re.compile(r"(?i)(?<![a-z])(left|right|[lr])(?![a-z])")


@dataclass(frozen=True)
class Recipe:
    """How the members are trained.

    Args:
        batch_size (`int`): Pixels in a step of one member.
        learning_rate (`float`): Adam's learning rate; the highest one with `one_cycle`.
        max_epochs (`int`): Passes over the labelled pixels, at most.
        max_steps (`int`, *optional*): Steps, at most.
        patience (`int`, *optional*):
            A member stops once its loss has not improved for this many steps, counted from `patience_from_epoch`.
        patience_from_epoch (`int`): First epoch, counted from 0, in which losses count.
        one_cycle (`bool`): Learning rate warmed up and annealed to zero over all steps (Smith and Topin, 2019).
        standardize (`bool`):
            Whether features get zero mean and unit variance; the map becomes part of the first layer afterwards.
        augmented_images (`int`):
            Images to learn from, about: the labelled ones, and as many copies of each, turned, scaled and lit anew, as
            make up that number, but one at least. Their features are extracted once. 0 for no copies.
        balance (`float`):
            How much a pixel of a rare class weighs more: the weight is its class's share of all pixels to the power of
            minus this, 1 on average. 0 for equal weights.
        flip (`bool`):
            Whether left and right may be exchanged: in the copies, and in use, where the members see the mirror image
            of every picture too.
        voting (`str`): How the members decide, see [`PixelClassifierEnsemble`].
        timesteps (sequence of `int`): Of the features, if none are given; of a schedule of 1,000 steps.
        blocks (sequence of `int`, *optional*):
            Likewise; of a U-Net with 18 decoder blocks as the paper's, of others those at the same relative depth. If
            not given, the paper's, or the outputs of all up-blocks where there are not 18.
    """

    batch_size: int
    learning_rate: float
    max_epochs: int
    max_steps: int | None = None
    patience: int | None = None
    patience_from_epoch: int = 4
    one_cycle: bool = False
    standardize: bool = False
    augmented_images: int = 0
    balance: float = 0.0
    flip: bool = False
    voting: str = "hard"
    timesteps: Sequence[int] = PAPER_TIMESTEPS
    blocks: Sequence[int] | None = None


RECIPES = {
    # Every choice in it was made by cross-validation: see docs/label_efficiency.md.
    "default": Recipe(
        batch_size=1024,
        learning_rate=4e-3,
        max_epochs=100,
        max_steps=1000,
        one_cycle=True,
        standardize=True,
        augmented_images=160,
        balance=0.125,
        flip=True,
        voting="soft",
        timesteps=(10, 600),
        blocks=(6, 7, 12, 15),
    ),
    # As published: `train_interpreter.py` of yandex-research/ddpm-segmentation.
    "paper": Recipe(batch_size=64, learning_rate=1e-3, max_epochs=100, patience=50),
    # Large batches on a schedule reach at least the same accuracy in a ninth of the steps: see benchmarks/README.md.
    "fast": Recipe(batch_size=256, learning_rate=8e-3, max_epochs=100, max_steps=600, one_cycle=True, standardize=True),
}


class ActivationTable:
    """Activations of all training images at their own resolutions, and the labels of their pixels.

    One table of pixels × channels for each resolution, in half precision, so that a labelled pixel's features are the
    blend of four rows: the full-size feature map is never built.

    Args:
        info (sequence of [`FeatureInfo`]): What an image's activations are, in the order of concatenation.
        num_images (`int`): Number of images.
        size (two `int`): Height and width of the label maps.
        dtype (`torch.dtype`, defaults to `torch.float16`): `torch.bfloat16` where the U-Net runs in it.
        folder (path, *optional*): Where to keep the tables in memory-mapped files instead of in memory.
    """

    def __init__(
        self,
        info: Sequence[FeatureInfo],
        num_images: int,
        size: tuple[int, int],
        dtype: torch.dtype = torch.float16,
        folder: str | os.PathLike | None = None,
    ):
        self.size = tuple(size)
        self.info = list(info)
        self.labels = torch.empty(num_images, *self.size, dtype=torch.uint8)  # [N,H,W]
        self.entries: dict[tuple[int, int], list[int]] = {}
        for i, f in enumerate(self.info):
            self.entries.setdefault((f.height, f.width), []).append(i)
        self.tables = {}
        for (h, w), entries in self.entries.items():
            shape = (num_images * h * w, sum(self.info[i].channels for i in entries))
            self.tables[h, w] = _allocate(shape, dtype, folder)  # [N*h*w,c]
        self.axes = {r: [_bilinear(m, n, dtype) for m, n in zip(r, self.size)] for r in self.tables}
        # Channels stand table after table here; this is where each comes from in the order of concatenation.
        starts = np.cumsum([0] + [f.channels for f in self.info])
        order = [np.arange(starts[i], starts[i + 1]) for e in self.entries.values() for i in e]
        self.channel_order = torch.from_numpy(np.concatenate(order))  # [D]
        self.mean = torch.zeros(len(self.channel_order))  # [D], as taken away by `standardize`
        self.scale = torch.ones(len(self.channel_order))  # [D]

    def put(self, image: int, activations: Sequence[torch.Tensor], labels: torch.Tensor) -> None:
        """Stores an image's activations, `[channels, h, w]` each, and labels, `[H, W]`.

        Raises:
            FloatingPointError: An activation is beyond the range of half precision; names its block and timestep.
        """
        for (h, w), entries in self.entries.items():
            start = 0
            rows = self.tables[h, w][image * h * w : (image + 1) * h * w]  # [h*w,c]
            for i in entries:
                f = self.info[i]
                if activations[i].abs().max() > torch.finfo(rows.dtype).max:
                    raise FloatingPointError(
                        f"Activations of block {f.block} at timestep {f.timestep} are too large for half precision; "
                        f"load the pipeline in bfloat16."
                    )
                rows[:, start : start + f.channels] = activations[i].flatten(1).T
                start += f.channels
        self.labels[image] = labels

    def select(self, entries: Sequence[int]) -> "ActivationTable":
        """A table of some of the activations, positions in `info`, for the same images and labels; a copy."""
        height, width = self.size
        chosen = ActivationTable([self.info[i] for i in entries], len(self.labels), (height, width), self.dtype)
        for (h, w), own in chosen.entries.items():
            columns = torch.cat([self._columns(entries[i]) for i in own])
            torch.index_select(self.tables[h, w], 1, columns, out=chosen.tables[h, w])
        chosen.labels = self.labels
        return chosen

    def image(self, image: int, entries: Sequence[int]) -> list[torch.Tensor]:
        """Some activations of an image, `[1, channels, h, w]` each; in float32, if they are not in bfloat16."""
        activations = []
        for i in entries:
            h, w = self.info[i].height, self.info[i].width
            rows = self.tables[h, w][image * h * w : (image + 1) * h * w]  # [h*w,c]
            activation = rows[:, self._columns(i)].T.unflatten(1, (h, w))[None]
            activations.append(activation if self.dtype == torch.bfloat16 else activation.float())
        return activations

    def _columns(self, entry: int) -> torch.Tensor:
        """Where an activation's channels stand in the table of its resolution."""
        f = self.info[entry]
        start = sum(self.info[i].channels for i in self.entries[f.height, f.width] if i < entry)
        return torch.arange(start, start + f.channels)

    def standardize(self) -> None:
        """Gives every channel zero mean and unit variance (or 0, if it is constant) over all images, in place."""
        start = 0
        for table in self.tables.values():
            # Small pieces stay in the cache; the first estimate of the mean keeps the sum of squares exact.
            pieces = table.split(2**12)
            origin = pieces[0].float().mean(0)
            total = torch.zeros(2, table.shape[1], dtype=torch.float64)
            for piece in pieces:
                centered = piece.float() - origin
                total += torch.stack([centered.sum(0), centered.square_().sum(0)]).cpu()
            offset, square = total / len(table)  # [c] each
            scale = (square - offset.square()).clamp(min=0).sqrt()
            # A channel that never varies teaches nothing; were it to vary later, its random weights must not count.
            scale[scale < 1e-6] = torch.inf
            mean, scale = origin + offset.to(origin), scale.to(origin)
            for piece in pieces:
                piece.copy_((piece.float() - mean) / scale)
            stop = start + table.shape[1]
            self.mean[start:stop], self.scale[start:stop] = mean.cpu(), scale.cpu()
            start = stop

    @property
    def dtype(self) -> torch.dtype:
        return next(iter(self.tables.values())).dtype

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def to(self, device: torch.device) -> "ActivationTable":
        """Moves everything to a device, in place, if it takes no more than half of the memory that is free there."""
        if device.type == "cuda":
            size = sum(t.numel() * t.element_size() for t in self.tables.values())
            if size > torch.cuda.mem_get_info(device)[0] / 2:
                return self
        self.tables = {k: t.to(device) for k, t in self.tables.items()}
        self.axes = {k: [(rows.to(device), weights.to(device)) for rows, weights in a] for k, a in self.axes.items()}
        self.labels = self.labels.to(device)
        return self

    def locate(self, pixels: torch.Tensor) -> list[list[tuple[torch.Tensor, torch.Tensor | None]]]:
        """Where the features of pixels come from: four rows of each table and their bilinear weights.

        Args:
            pixels (`torch.Tensor`): `[S, P]` int64, indices into the flattened label maps, for `S` steps.

        Returns:
            For each step, for each table: `([P, 4] int64, [P, 4])`, or `([P], None)` for a table at full size.
        """
        height, width = self.size
        image, y, x = pixels // (height * width), pixels // width % height, pixels % width  # [S,P]
        tables = []
        for h, w in self.tables:
            if (h, w) == (height, width):
                tables.append([(p, None) for p in pixels])
                continue
            (rows, row_weights), (columns, column_weights) = self.axes[h, w]
            at = (rows[y] * w).unsqueeze(3) + columns[x].unsqueeze(2) + (image * (h * w))[..., None, None]  # [S,P,2,2]
            weights = row_weights[y].unsqueeze(3) * column_weights[x].unsqueeze(2)  # [S,P,2,2]
            tables.append(list(zip(at.flatten(2), weights.flatten(2))))
        return [list(step) for step in zip(*tables)]

    def gather(self, located: Sequence[tuple[torch.Tensor, torch.Tensor | None]], out: torch.Tensor) -> torch.Tensor:
        """Writes the features of a step's pixels, as [`~ActivationTable.locate`] found them, to `out` `[P, D]`."""
        start = 0
        for table, (rows, weights) in zip(self.tables.values(), located):
            if weights is None:
                part = table.index_select(0, rows)
            else:  # a weighted sum of rows in one kernel
                part = F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")
            out[:, start : start + table.shape[1]] = part
            start += table.shape[1]
        return out


def _allocate(shape: tuple[int, int], dtype: torch.dtype, folder: str | os.PathLike | None) -> torch.Tensor:
    if folder is None:
        return torch.empty(shape, dtype=dtype)
    os.makedirs(folder, exist_ok=True)
    # The file has no name once it is open, so it is gone with the process, however that ends.
    with tempfile.TemporaryFile(dir=folder) as file:
        return torch.from_numpy(np.memmap(file, dtype=np.int16, mode="w+", shape=shape)).view(dtype)


def _bilinear(source: int, target: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Bilinear interpolation (`align_corners=False`) along an axis: `[target, 2]` source positions and weights."""
    at = ((torch.arange(target) + 0.5) * (source / target) - 0.5).clamp(min=0)
    low = at.long().clamp(max=source - 1)
    fraction = at - low
    return torch.stack([low, (low + 1).clamp(max=source - 1)], 1), torch.stack([1 - fraction, fraction], 1).to(dtype)


def default_blocks(unet, recipe: Recipe) -> tuple[int, ...]:
    """The decoder blocks that a recipe reads of a U-Net."""
    total = num_decoder_blocks(unet)
    if recipe.blocks is not None:
        return tuple(sorted({round(block * total / 18) for block in recipe.blocks}))
    if total == 18:
        return PAPER_BLOCKS
    return up_block_outputs(unet, range(len(unet.config.block_out_channels)))


def default_timesteps(scheduler, recipe: Recipe) -> tuple[int, ...]:
    """The recipe's timesteps in the scheduler's own schedule."""
    steps = scheduler.config.num_train_timesteps
    return tuple(dict.fromkeys(t * steps // 1000 for t in recipe.timesteps))


def fit_segmentation_head(
    pipe: DiffuseSegPipeline,
    dataset,
    blocks: Sequence[int] | None = None,
    timesteps: Sequence[int] | None = None,
    up_blocks: Sequence[int] | None = None,
    num_members: int = 10,
    recipe: str | Recipe = "default",
    label_names: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    min_label_fraction: float = 20 / 256**2,
    share_noise: bool = True,
    flip: bool | None = None,
    seed: int = 0,
    batch_size: int = 4,
    cache_dir: str | os.PathLike | None = None,
    accelerator: Accelerator | None = None,
) -> PixelClassifierEnsemble:
    """Fits a segmentation head for a pipeline's U-Net on a few labelled images (paper, section 4).

    Args:
        pipe ([`DiffuseSegPipeline`] or [`BackbonePipeline`]):
            The frozen diffusion model, or another representation; set `pipe.segmentation_head` to the result.
        dataset ([`LabeledImages`] or `datasets.Dataset`): Images with masks; a dataset is wrapped with its defaults.
        blocks (sequence of `int`, *optional*):
            Decoder blocks in the paper's numbering; as the recipe says if not given. Of a backbone: hidden states; the
            other choices of features do not apply to it.
        timesteps (sequence of `int`, *optional*): Diffusion timesteps; as the recipe says if not given.
        up_blocks (sequence of `int`, *optional*): Outputs of whole up-blocks, in place of `blocks`.
        num_members (`int`, defaults to 10): Members of the ensemble.
        recipe (`str` or [`Recipe`], defaults to `"default"`):
            `"default"`; `"paper"`, as published; `"fast"`, the paper's features trained in less time; or your own.
        label_names (sequence of `str`, *optional*): Names of the classes; the dataset's own if not given.
        palette (sequence of `[red, green, blue]`, *optional*): Colours of the classes, 0 to 255.
        min_label_fraction (`float`, defaults to 20 / 256²):
            A class that covers a smaller part of an image's area is ignored there; 0 to keep all.
        share_noise (`bool`, defaults to `True`): One fixed noise for all images and timesteps, or fresh noise.
        flip (`bool`, *optional*):
            Whether left and right may be exchanged; if not given, as the recipe says, but not if names of classes tell
            left from right.
        seed (`int`, defaults to 0):
            Of the noise, the members' initial weights and the order of their pixels. The same seed gives the same bits
            on the same number of processes and threads. A member depends on the seed and its number alone, whoever
            trains beside it, but for rounding; that grows in training, and masks agree on more than 99 % of pixels
            rather than on all.
        batch_size (`int`, defaults to 4): Images that go through the U-Net at once, each at every timestep.
        cache_dir (path, *optional*): Keep activations in a temporary file in this folder instead of in memory.
        accelerator (`Accelerator`, *optional*): Deals the members out to its processes.

    Returns:
        [`PixelClassifierEnsemble`] in float32, on the U-Net's device, in evaluation mode.

    Raises:
        ValueError: The masks do not fit the classes or images, or an option is out of range.
        FloatingPointError: Activations are not finite.
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise ValueError(f"There is no recipe {recipe!r}; there are {', '.join(map(repr, RECIPES))}.")
        recipe = RECIPES[recipe]
    if blocks is not None and up_blocks is not None:
        raise ValueError("Give `blocks` or `up_blocks`, not both.")
    if not isinstance(dataset, LabeledImages):
        dataset = LabeledImages(dataset, label_names=label_names)
    label_names = label_names or dataset.label_names
    if flip is None:
        flip = recipe.flip and not any(SIDES.search(name) for name in label_names or ())
    if hasattr(pipe, "backbone"):
        extractor = pipe.feature_extractor(blocks)
    else:
        if up_blocks is None and blocks is None:
            blocks = default_blocks(pipe.unet, recipe)
        if timesteps is None:
            timesteps = default_timesteps(pipe.scheduler, recipe)
        extractor = DecoderFeatureExtractor(pipe.unet, pipe.scheduler, blocks, timesteps, up_blocks, share_noise, seed)
    info = extractor.feature_info()
    show = accelerator is None or accelerator.is_local_main_process

    # 1. Activations and labels of all images.
    copies = max(1, recipe.augmented_images // len(dataset) - 1) if recipe.augmented_images else 0
    table = extract_activations(extractor, dataset, min_label_fraction, seed, batch_size, cache_dir, show, copies, flip)
    _warn_of_missing_classes(table.labels, dataset)

    # 2. The head, its members trained side by side (a share of them on each process).
    head = PixelClassifierEnsemble(
        num_classes=dataset.num_classes,
        block_channels=[i.channels for i in info[: len(extractor.blocks)]],
        blocks=list(extractor.blocks),
        timesteps=list(extractor.timesteps),
        num_members=num_members,
        image_size=list(extractor.size),
        in_channels=extractor.in_channels,
        share_noise=share_noise,
        noise_seed=seed,
        label_names=list(label_names) if label_names else None,
        palette=[list(c) for c in palette or dataset.palette or default_palette(dataset.num_classes)],
        ignore_index=dataset.ignore_index,
        flip=flip,
        voting=recipe.voting,
    )
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    members = list(range(rank, num_members, world))
    if members:
        fit_members(head, table.to(extractor.device), recipe, seed, members, extractor.device, show)
    if world > 1:
        mine = {name: tensor[members] for name, tensor in head.state_dict().items()}
        for theirs, state in gather_object([(members, mine)]):
            for name, tensor in head.state_dict().items():
                tensor[theirs] = state[name]
    return head.to(extractor.device).eval()


def extract_activations(
    extractor: DecoderFeatureExtractor,
    dataset: LabeledImages,
    min_label_fraction: float = 0.0,
    seed: int = 0,
    batch_size: int = 4,
    cache_dir: str | os.PathLike | None = None,
    show_progress: bool = True,
    copies: int = 0,
    flip: bool = False,
) -> ActivationTable:
    """Runs labelled images through the U-Net and keeps what training needs of them.

    Args:
        extractor ([`DecoderFeatureExtractor`]), dataset ([`LabeledImages`]): What to extract from what.
        min_label_fraction (`float`): Classes with a smaller share of an image's area are ignored there.
        seed (`int`): Of fresh noise, if the extractor does not share one, and of augmentation.
        batch_size (`int`): Images in a pass.
        cache_dir (path, *optional*): See [`ActivationTable`].
        show_progress (`bool`): Whether to show a progress bar.
        copies (`int`, defaults to 0): Augmented copies of each image, which follow it in the table.
        flip (`bool`, defaults to `False`): Whether copies may be mirrored.

    Returns:
        [`ActivationTable`] of `len(dataset) * (1 + copies)` images.
    """
    size = extractor.size
    total = len(dataset) * (1 + copies)
    dtype = torch.bfloat16 if extractor.dtype == torch.bfloat16 else torch.float16
    table = ActivationTable(extractor.feature_info(), total, size, dtype, cache_dir)
    generator = torch.Generator().manual_seed(seed)
    examples = _examples(dataset, extractor, min_label_fraction, seed, copies, flip)
    with tqdm(total=total, desc="Extracting features", unit="image", disable=not show_progress) as bar:
        for start in range(0, total, batch_size):
            pixels, labels = zip(*islice(examples, batch_size))
            activations = extractor(torch.stack(pixels), generator=generator).activations
            for j, own in enumerate(labels):
                table.put(start + j, [a[j] for a in activations], own)
            bar.update(len(labels))
    return table


def _examples(
    dataset: LabeledImages,
    extractor: DecoderFeatureExtractor,
    min_label_fraction: float,
    seed: int,
    copies: int,
    flip: bool,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every image, `[C, H, W]` in [-1, 1], with its labels, `[H, W]` uint8, and after it its copies."""
    processor = DiffuseSegImageProcessor(extractor.in_channels)
    for i in range(len(dataset)):
        example = dataset[i]
        pixels = processor.preprocess(processor.load([example.image]), *extractor.size)  # [1,C,H,W]
        labels = resize_mask(example.mask, extractor.size)  # [H,W]
        ids, counts = np.unique(labels, return_counts=True)
        labels[np.isin(labels, ids[counts < min_label_fraction * labels.size])] = dataset.ignore_index
        labels = torch.from_numpy(labels)
        yield pixels[0], labels
        if copies:
            ids = labels.long()
            ids[labels == dataset.ignore_index] = IGNORED
            own = torch.Generator().manual_seed(int(np.random.SeedSequence([seed, i]).generate_state(1)[0]))
            many = pixels.expand(copies, -1, -1, -1) / 2 + 0.5
            # Half of the changes each: all at once cost a little on images like the labelled ones.
            lit, moved = augment(many, ids.expand(copies, -1, -1), own, flip, p=0.5)
            moved[moved == IGNORED] = dataset.ignore_index
            yield from zip(lit * 2 - 1, moved.to(torch.uint8))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resize of class ids, `[h, w]` to `[H, W]` uint8; pixel centres are aligned."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, mask.shape))
    return mask[rows[:, None], columns]


def fit_members(
    head: PixelClassifierEnsemble,
    table: ActivationTable,
    recipe: Recipe,
    seed: int = 0,
    members: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
    show_progress: bool = True,
    images: Sequence[Sequence[int]] | None = None,
) -> None:
    """Trains members of a head on labelled pixels, all at once, each stopping on its own; writes them to the head.

    Args:
        head ([`PixelClassifierEnsemble`]): On the CPU, in float32; the members' weights are initialised here.
        table ([`ActivationTable`]): Labelled pixels; standardised in place if the recipe wants it.
        recipe ([`Recipe`]): How to train.
        seed (`int`): With a member's number, determines its weights and the order of its pixels.
        members (sequence of `int`, *optional*): Which members to train; all if not given.
        device: Where to train.
        show_progress (`bool`): Whether to show a progress bar.
        images (sequence of sequences of `int`, *optional*):
            For each of `members`, the images that it learns from; all of them for every member if not given. An epoch
            is then as long as the smallest share.

    Raises:
        ValueError: There are fewer than two labelled pixels.
        FloatingPointError: Training diverged.
    """
    members = list(range(head.config.num_members) if members is None else members)
    labels = table.labels.view(-1)
    pool = (labels != head.config.ignore_index).nonzero().view(-1).to("cpu", torch.int32)  # [P]
    of_image = pool // (table.size[0] * table.size[1])  # [P]
    pools = [pool if images is None else pool[torch.isin(of_image, torch.tensor(i))] for i in images or members]
    smallest = min(map(len, pools))
    if smallest < 2:
        raise ValueError("The masks have no labelled pixels: all are ignored or belong to classes that are too small.")
    if recipe.standardize:
        table.standardize()
    batch_size = min(recipe.batch_size, smallest)
    epoch_steps = smallest // batch_size
    total = min(epoch_steps * recipe.max_epochs, recipe.max_steps or math.inf)
    training = _MemberTraining(head, members, table, recipe, total, seed, device)
    buffer = torch.empty(len(members) * batch_size, len(table.channel_order), dtype=training.dtype, device=table.device)
    best = torch.full((len(members),), math.inf, device=device)
    stale = torch.zeros(len(members), dtype=torch.long, device=device)

    # With early stopping, how long it takes is not known; the bar counts to the earliest end, then along.
    earliest = recipe.patience_from_epoch * epoch_steps + recipe.patience if recipe.patience else total
    with tqdm(
        total=min(total, earliest), desc="Fitting members", unit="step", disable=not show_progress, mininterval=0.5
    ) as bar:
        for step in range(total):
            epoch, i = divmod(step, epoch_steps)
            if i == 0:  # every member passes over all labelled pixels in an order of its own, the odd ones left over
                count = min(epoch_steps, total) * batch_size
                chosen = [torch.randperm(len(p), generator=g)[:count] for p, g in zip(pools, training.generators)]
                order = torch.stack([p[c] for p, c in zip(pools, chosen)])
                order = order.unflatten(1, (-1, batch_size)).to(table.device)  # [K,S,B]
                plan = []
            if not plan:  # many small operations, done for several steps at once
                ahead = order[:, i : i + PLANNED_STEPS].transpose(0, 1).flatten(1).long()  # [S,K*B]
                plan = list(zip(labels[ahead].long(), table.locate(ahead)))[::-1]
            y, located = plan.pop()
            x = table.gather(located, buffer[: len(y)]).to(device).unflatten(0, (-1, batch_size))  # [K,B,D]
            y = y.to(device).unflatten(0, (-1, batch_size))  # [K,B]
            loss = training.step(x, y)  # [K]
            bar.total = max(bar.total, step + 1)
            bar.update()
            if step % 50 == 0:
                bar.set_postfix(loss=f"{loss.mean().item():.3f}", members=len(loss), refresh=False)
            if recipe.patience and epoch >= recipe.patience_from_epoch:
                stale = torch.where(loss < best, 0, stale + 1)
                best = torch.minimum(best, loss)
                if (stale > recipe.patience).any():
                    going = stale <= recipe.patience  # [K]
                    training.finish(~going)
                    pools = [p for p, goes in zip(pools, going.tolist()) if goes]
                    best, stale, order, plan = best[going], stale[going], order[going.to(order.device)], []
                    if not len(best):
                        break
    training.finish(torch.ones_like(best, dtype=torch.bool))


class _MemberTraining:
    """The members still in training: their stacked layers and Adam's state, which shrink as members finish."""

    def __init__(self, head, members, table, recipe, total_steps, seed, device):
        self.head, self.table = head, table
        self.members = torch.tensor(members)  # [K]
        self.generators = [
            torch.Generator().manual_seed(int(np.random.SeedSequence([seed, k]).generate_state(1)[0])) for k in members
        ]
        # bfloat16 activations are multiplied in bfloat16; weights, sums over pixels and all other layers stay float32.
        self.dtype = torch.bfloat16 if table.dtype == torch.bfloat16 else torch.float32
        fresh = PixelClassifierEnsemble.from_config(head.config, num_members=len(members))
        layers = fresh.layers.to(device)
        for layer in layers:
            if isinstance(layer, StackedLinear):  # N(0, 0.02), as published; biases and batch norms are fresh
                for weight, generator in zip(layer.weight.data, self.generators):
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.02)
        layers[0].weight.data = layers[0].weight.data[:, :, table.channel_order].contiguous()
        self.layers = layers.train()
        self.optimizer = torch.optim.Adam(layers.parameters(), lr=recipe.learning_rate, fused=True)
        self.schedule = None
        if recipe.one_cycle:
            self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, recipe.learning_rate, total_steps)
        self.class_weights = None
        if recipe.balance:
            counts = torch.bincount(table.labels.view(-1), minlength=256)[: head.config.num_classes].float()
            share = counts / counts.sum()
            weights = share.clamp(min=1e-6) ** -recipe.balance  # a class without a pixel is never asked for
            self.class_weights = (weights / (weights * share).sum()).to(device)  # [C]
        self._allocate()

    def _allocate(self) -> None:
        # The largest tensors have buffers that stay: fresh ones every step would cost more in page faults than the
        # products that fill them.
        weight = self.layers[0].weight
        weight.grad = torch.empty_like(weight)
        same = self.dtype == torch.float32
        self.weight = weight.data if same else torch.empty_like(weight, dtype=self.dtype)
        self.gradient = weight.grad if same else torch.empty_like(weight, dtype=self.dtype)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """One step of every member on `[K, B, D]` features and `[K, B]` classes; returns the losses `[K]`."""
        first, rest = self.layers[0], self.layers[1:]
        with torch.no_grad():
            if self.weight.dtype != first.weight.dtype:
                self.weight.copy_(first.weight)
            hidden = torch.bmm(self.weight, x.mT).float() + first.bias.unsqueeze(-1)  # [K,hidden,B]
        hidden.requires_grad_()
        logits = rest(hidden)  # [K,C,B]
        loss = F.cross_entropy(logits, y, self.class_weights, reduction="none").mean(1)  # [K]
        for parameter in rest.parameters():
            parameter.grad = None
        loss.sum().backward()
        # The first layer by hand: features need no gradient, and the members' losses are independent.
        torch.bmm(hidden.grad.to(self.dtype), x, out=self.gradient)
        if self.gradient.dtype != first.weight.dtype:
            first.weight.grad.copy_(self.gradient)
        first.bias.grad = hidden.grad.sum(-1)
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        return loss.detach()

    def finish(self, done: torch.Tensor) -> None:
        """Writes members to the head, `done` a boolean `[K]`, and goes on with the others."""
        done = done.cpu()
        target = self.head.layers.state_dict()
        members = self.members[done]
        for name, tensor in self.layers.state_dict().items():
            target[name][members] = tensor[done.to(tensor.device)].cpu()
        if not all(tensor[members].isfinite().all() for tensor in target.values()):
            raise FloatingPointError("Training diverged to values that are not finite; lower the learning rate.")
        # The first layer takes raw features, in the order of concatenation: w·(x - mean)/scale + b.
        weight = torch.empty_like(target["0.weight"][members])
        weight[:, :, self.table.channel_order] = target["0.weight"][members] / self.table.scale
        target["0.weight"][members] = weight
        mean = torch.empty_like(self.table.mean)
        mean[self.table.channel_order] = self.table.mean
        target["0.bias"][members] -= weight @ mean

        going = ~done
        self.members = self.members[going]
        self.generators = [g for g, goes in zip(self.generators, going.tolist()) if goes]
        for parameter in self.layers.parameters():
            kept = going.to(parameter.device)
            parameter.data = parameter.data[kept]
            state = self.optimizer.state[parameter]
            state["exp_avg"], state["exp_avg_sq"] = state["exp_avg"][kept], state["exp_avg_sq"][kept]
        for buffer in self.layers.buffers():
            buffer.data = buffer.data[going.to(buffer.device)]
        self._allocate()


def _warn_of_missing_classes(labels: torch.Tensor, dataset: LabeledImages) -> None:
    present = set(labels.unique().tolist())
    names = dataset.label_names or [f"class {c}" for c in range(dataset.num_classes)]
    missing = [f'{c} ("{names[c]}")' for c in range(dataset.num_classes) if c not in present | {dataset.ignore_index}]
    if missing:
        logger.warning(
            f"No labelled pixel was found for class {', '.join(missing)} at the U-Net's resolution; the head will "
            f"never predict it."
        )
