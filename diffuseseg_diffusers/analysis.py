# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which features matter: the studies of Baranchuk et al. (ICLR 2022), sections 3 and 4, on anyone's labelled images.

Every activation is computed once, into an [`ActivationTable`] of all blocks and timesteps; a cell of a study trains
small classifiers on some of its columns. Classifiers of several folds, or of several draws of labelled images, are the
members of one ensemble and train side by side.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import evaluate
import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from .data import LabeledImage, LabeledImages
from .features import PAPER_TIMESTEPS, DecoderFeatureExtractor, DecoderFeatures, num_decoder_blocks
from .head_training import RECIPES, ActivationTable, Recipe, default_blocks, extract_activations, fit_members
from .image_processor import to_eight_bit
from .metrics import MEAN_IOU
from .pipeline_diffuseseg import DiffuseSegPipeline
from .segmentation_head import PixelClassifierEnsemble


# Half the steps of the default recipe: rankings of features settle before the last tenth of a point does.
STUDY_RECIPE = Recipe(
    batch_size=256, learning_rate=8e-3, max_epochs=100, max_steps=300, one_cycle=True, standardize=True
)


@dataclass(frozen=True)
class Classes:
    """What is told apart: the number of classes, their names, and the id that stands for no label."""

    number: int
    names: tuple[str, ...]
    ignore_index: int = 255


class Cells:
    """Results of a study, a line of JSON each, so that a study that was cut off goes on where it was.

    Args:
        path (`Path`): File to read and append to.
        settings (`dict`): What the results depend on.

    Raises:
        ValueError: The file holds results of other settings; says which differ.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.results = path, {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines:
            there = json.loads(lines[0])["settings"]
            other = [k for k in settings if there.get(k) != settings[k]]
            if other:
                what = ", ".join(f"{k} {there.get(k)} (now {settings[k]})" for k in other)
                raise ValueError(f"{path} holds another study: {what}. Choose another --output_dir or --overwrite.")
            for line in lines[1:]:
                try:
                    cell = json.loads(line)
                except json.JSONDecodeError:  # cut off while it was written; it is computed again
                    continue
                self.results[cell["key"]] = cell["result"]
        path.parent.mkdir(parents=True, exist_ok=True)
        known = [{"settings": settings}, *({"key": key, "result": result} for key, result in self.results.items())]
        partial = path.with_name(path.name + ".partial")
        partial.write_text("".join(map(self._line, known)), encoding="utf-8")
        partial.replace(path)

    def get(self, key: str, compute: Callable[[], dict]) -> dict:
        """The result of that key: the one that is there, or a new one."""
        if key not in self.results:
            self.results[key] = compute()
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self._line({"key": key, "result": self.results[key]}))
        return self.results[key]

    @staticmethod
    def _line(content: dict) -> str:
        return json.dumps(content, ensure_ascii=False) + "\n"


def folds_of(num_images: int, num_folds: int, seed: int = 0) -> list[list[int]]:
    """The images that each fold of a cross-validation holds out, of sizes that differ by one at most.

    Raises:
        ValueError: There are fewer images than folds, or fewer than two folds.
    """
    if not 2 <= num_folds <= num_images:
        raise ValueError(
            f"Cross-validation needs 2 folds at least and an image for each, got {num_folds} folds for {num_images} "
            f"images; lower --folds or label more."
        )
    shuffled = np.random.default_rng(seed).permutation(num_images)
    return [sorted(part.tolist()) for part in np.array_split(shuffled, num_folds)]


def others(folds: Sequence[Sequence[int]]) -> list[list[int]]:
    """The images that each fold trains on: those of all other folds."""
    return [[i for other in folds if other is not fold for i in other] for fold in folds]


def missing_classes(labels: torch.Tensor, images: Sequence[Sequence[int]], classes: Classes) -> list[str]:
    """Says, a sentence each, which classes the images of a fold do not show; a classifier cannot learn those."""
    said = []
    for number, own in enumerate(images):
        present = set(labels[list(own)].unique().tolist())
        missing = [classes.names[c] for c in range(classes.number) if c not in present]
        if missing:
            said.append(
                f"Mind that fold {number + 1} of {len(images)} has no training pixel of {', '.join(missing)}: "
                f"counted as not found there."
            )
    return said


def entries_of(table: ActivationTable, blocks: Sequence[int], timesteps: Sequence[int]) -> list[int]:
    """Positions in `table.info` of blocks × timesteps, in the order in which a head takes them."""
    position = {(f.timestep, f.block): i for i, f in enumerate(table.info)}
    return [position[t, b] for t in timesteps for b in sorted(blocks)]


def fit_groups(
    table: ActivationTable,
    blocks: Sequence[int],
    timesteps: Sequence[int],
    classes: Classes,
    images: Sequence[Sequence[int]],
    num_members: int = 1,
    recipe: Recipe = STUDY_RECIPE,
    seed: int = 0,
) -> list[PixelClassifierEnsemble]:
    """Heads on some of the activations of a table, one for each group of images, all trained at once.

    Args:
        table ([`ActivationTable`]): Of raw activations; stays as it is.
        blocks (sequence of `int`), timesteps (sequence of `int`): What the heads read.
        classes ([`Classes`]): What they tell apart.
        images (sequence of sequences of `int`): What each of them learns from.
        num_members (`int`, defaults to 1): Members of each.
        recipe ([`Recipe`]): How they are trained. If it standardises, then by all images of the table, held out or not.
        seed (`int`): Of weights and order.

    Returns:
        `list[PixelClassifierEnsemble]`, of raw activations.
    """
    blocks = sorted(blocks)
    chosen = table.select(entries_of(table, blocks, timesteps))
    config = dict(
        num_classes=classes.number,
        block_channels=[f.channels for f in chosen.info[: len(blocks)]],
        blocks=blocks,
        timesteps=list(timesteps),
        image_size=list(table.size),
        ignore_index=classes.ignore_index,
    )
    together = PixelClassifierEnsemble(num_members=len(images) * num_members, **config)
    shares = [own for own in images for _ in range(num_members)]
    fit_members(together, chosen, recipe, seed, device=table.device, show_progress=False, images=shares)
    heads = []
    for group in range(len(images)):
        head = PixelClassifierEnsemble(num_members=num_members, **config)
        own = slice(group * num_members, (group + 1) * num_members)
        head.load_state_dict({name: tensor[own] for name, tensor in together.state_dict().items()})
        heads.append(head.to(table.device).eval())
    return heads


def score(
    heads: Sequence[PixelClassifierEnsemble],
    table: ActivationTable,
    images: Sequence[Sequence[int]],
    classes: Classes,
) -> dict:
    """Mean IoU over all images together, each segmented by the head of its group.

    Args:
        heads (sequence of [`PixelClassifierEnsemble`]), images (sequence of sequences of `int`): Groups.
        table ([`ActivationTable`]): With the activations and labels of those images.
        classes ([`Classes`]): What is told apart.

    Returns:
        `dict`: `mean_iou` (0 to 1) and `per_class_iou` (list of 0 to 1, or `None` for an absent class).
    """
    metric = evaluate.load(MEAN_IOU)
    for head, own in zip(heads, images):
        chosen = entries_of(table, head.config.blocks, head.config.timesteps)
        for image in own:
            predicted = head.predict(table.image(image, chosen)).labels[0]
            metric.add(prediction=predicted.cpu().numpy(), reference=table.labels[image].cpu().numpy())
    result = metric.compute(num_labels=classes.number, ignore_index=classes.ignore_index)
    return {
        "mean_iou": result["mean_iou"],
        "per_class_iou": [None if np.isnan(x) else float(x) for x in result["per_category_iou"]],
    }


def cross_validated(
    table: ActivationTable,
    blocks: Sequence[int],
    timesteps: Sequence[int],
    classes: Classes,
    folds: Sequence[Sequence[int]],
    recipe: Recipe = STUDY_RECIPE,
    seed: int = 0,
) -> dict:
    """Mean IoU of one classifier a fold on the images that the fold holds out; as [`score`] returns it."""
    heads = fit_groups(table, blocks, timesteps, classes, others(folds), 1, recipe, seed)
    return score(heads, table, folds, classes)


def class_sizes(labels: torch.Tensor, classes: Classes) -> tuple[list[float], list[bool]]:
    """Mean share of the labelled area of each class, and whether it is small: below the median (paper, section 3).

    Args:
        labels (`torch.Tensor`): `[N, H, W]` uint8.
        classes ([`Classes`]): What is told apart.
    """
    counts = torch.bincount(labels.flatten().long(), minlength=256)[: classes.number].double()
    shares = counts / counts.sum()
    return shares.tolist(), (shares < shares.quantile(0.5)).tolist()


# Which blocks and timesteps


@dataclass(frozen=True)
class Budget:
    """What features may cost, at most; `None` is no limit.

    Args:
        dimensions (`int`, *optional*): Length of a pixel's feature vector.
        bytes (`int`, *optional*): Of an image's activations in half precision.
        milliseconds (`float`, *optional*): Of the U-Net's passes for an image, estimated as timesteps × a pass to the
            last block.
    """

    dimensions: int | None = None
    bytes: int | None = None
    milliseconds: float | None = None

    def allows(self, cost: dict) -> bool:
        limits = {name: limit for name, limit in asdict(self).items() if limit is not None}
        return all(cost[name] <= limit for name, limit in limits.items())


def cost_of(
    table: ActivationTable, blocks: Sequence[int], timesteps: Sequence[int], pass_milliseconds: dict[int, float]
) -> dict:
    """What blocks × timesteps cost, with the keys of [`Budget`].

    Args:
        table ([`ActivationTable`]): Describes the activations.
        blocks (sequence of `int`), timesteps (sequence of `int`): The choice.
        pass_milliseconds (`dict`): Of one pass that ends after a block, by block; see [`time_passes`].
    """
    info = [table.info[i] for i in entries_of(table, blocks, timesteps)]
    return {
        "dimensions": sum(f.channels for f in info),
        "bytes": sum(2 * f.channels * f.height * f.width for f in info),
        "milliseconds": len(timesteps) * pass_milliseconds[max(blocks)],
    }


def time_passes(extractor: DecoderFeatureExtractor, image: torch.Tensor, repeats: int = 3) -> dict[int, float]:
    """Milliseconds an image and timestep that a pass takes to each block of an extractor; medians.

    Args:
        extractor ([`DecoderFeatureExtractor`]): Says which blocks.
        image (`torch.Tensor`): `[1, C, H, W]` in [-1, 1].
        repeats (`int`, defaults to 3): How often each is timed, after a warm-up.
    """
    milliseconds = {}
    for block in extractor.blocks:
        one = DecoderFeatureExtractor(extractor.unet, extractor.scheduler, [block], extractor.timesteps[:3])
        seconds = []
        for _ in range(repeats + 1):
            if image.is_cuda:
                torch.cuda.synchronize()
            began = time.perf_counter()
            one(image).activations[0].flatten()[0].item()  # waits for a GPU
            seconds.append((time.perf_counter() - began) / len(one.timesteps))
        milliseconds[block] = 1000 * float(np.median(seconds[1:]))
    return milliseconds


def select_features(
    scored: Callable[[Sequence[int], Sequence[int]], float],
    cost: Callable[[Sequence[int], Sequence[int]], dict],
    blocks: Sequence[int],
    timesteps: Sequence[int],
    budget: Budget,
    rival: tuple[Sequence[int], Sequence[int]] | None = None,
    choose: Sequence[str] = ("blocks", "timesteps"),
) -> list[dict]:
    """Greedy forward selection: the best single cell, then one block or timestep more as long as that helps.

    Args:
        scored (`Callable`): Cross-validated mean IoU of blocks × timesteps.
        cost (`Callable`): See [`cost_of`].
        blocks (sequence of `int`), timesteps (sequence of `int`): What there is to choose from.
        budget ([`Budget`]): What may not be exceeded.
        rival (two sequences of `int`, *optional*): A choice that competes with what is found, if the budget allows it.
        choose (sequence of `str`): Without `"blocks"` or `"timesteps"`, all of those are taken.

    Returns:
        `list[dict]`: Every choice that was scored, the best first: `blocks`, `timesteps`, `mean_iou`, `step` (1 for
        single cells, 0 for the rival) and the cost.

    Raises:
        ValueError: The budget allows not even the smallest choice.
    """
    tried: dict[tuple, dict] = {}

    def attempt(b: Sequence[int], t: Sequence[int], step: int) -> None:
        key = (tuple(sorted(b)), tuple(sorted(t)))
        price = cost(*key)
        if key not in tried and budget.allows(price):
            tried[key] = {"blocks": key[0], "timesteps": key[1], "mean_iou": scored(*key), "step": step, **price}

    def best() -> dict:
        return max(tried.values(), key=lambda c: c["mean_iou"])

    for b in [[b] for b in blocks] if "blocks" in choose else [blocks]:
        for t in [[t] for t in timesteps] if "timesteps" in choose else [timesteps]:
            attempt(b, t, 1)
    if not tried:
        raise ValueError(
            f"Not even the smallest choice of features stays within the budget {asdict(budget)}; raise it."
        )
    now, step = None, 1
    while now is not best():
        now, step = best(), step + 1
        for b in sorted(set(blocks) - set(now["blocks"])):
            attempt([*now["blocks"], b], now["timesteps"], step)
        for t in sorted(set(timesteps) - set(now["timesteps"])):
            attempt(now["blocks"], [*now["timesteps"], t], step)
    if rival is not None:
        attempt(*rival, 0)
    return sorted(tried.values(), key=lambda c: -c["mean_iou"])


def choose_features(
    pipe: DiffuseSegPipeline,
    dataset: LabeledImages,
    blocks: Sequence[int] | None = None,
    timesteps: Sequence[int] | None = None,
    budget: Budget | None = None,
    folds: int = 5,
    seed: int = 0,
    batch_size: int = 4,
    cache_dir: str | os.PathLike | None = None,
    show_progress: bool = True,
) -> list[dict]:
    """Chooses decoder blocks and timesteps by cross-validation on the labelled images.

    Args:
        pipe ([`DiffuseSegPipeline`]), dataset ([`LabeledImages`]): The U-Net, and the images to fit on.
        blocks (sequence of `int`, *optional*), timesteps (sequence of `int`, *optional*):
            Taken as they are if given, else chosen.
        budget ([`Budget`], *optional*): As many dimensions as the default choice has, if not given.
        folds (`int`, defaults to 5): As many as there are images, at most.
        seed (`int`): Of noise, folds and classifiers.
        batch_size (`int`): Images in a pass.
        cache_dir (path, *optional*): See [`ActivationTable`].
        show_progress (`bool`): Whether to show progress bars.

    Returns:
        `list[dict]`: As [`select_features`]; the first is the choice.

    Raises:
        ValueError: There is one image only, or the budget is too small.
    """
    unet, steps = pipe.unet, pipe.scheduler.config.num_train_timesteps
    usual = (
        tuple(blocks or default_blocks(unet, RECIPES["paper"])),
        tuple(timesteps or [t for t in PAPER_TIMESTEPS if t < steps] or [steps // 10]),
    )
    choose = [name for name, given in (("blocks", blocks), ("timesteps", timesteps)) if given is None]
    candidates = (
        sorted({*(blocks or range(num_decoder_blocks(unet)))}),
        sorted({*(timesteps or [*study_timesteps(steps), *usual[1]])}),
    )
    held_out = folds_of(len(dataset), min(folds, len(dataset)), seed)
    extractor = DecoderFeatureExtractor(unet, pipe.scheduler, *candidates, noise_seed=seed)
    table = extract_activations(
        extractor, dataset, seed=seed, batch_size=batch_size, cache_dir=cache_dir, show_progress=show_progress
    ).to(unet.device)
    height, width = table.size
    passes = time_passes(extractor, torch.zeros(1, unet.config.in_channels, height, width, device=unet.device))
    budget = budget or Budget(dimensions=cost_of(table, *usual, passes)["dimensions"])
    classes = classes_of(dataset)
    for what in missing_classes(table.labels, others(held_out), classes):
        tqdm.write(what)
    with tqdm(desc="Choosing features", unit="choice", disable=not show_progress) as bar:

        def scored(b: Sequence[int], t: Sequence[int]) -> float:
            bar.update()
            return cross_validated(table, b, t, classes, held_out, seed=seed)["mean_iou"]

        return select_features(scored, lambda b, t: cost_of(table, b, t, passes), *candidates, budget, usual, choose)


def classes_of(dataset: LabeledImages) -> Classes:
    """The classes of labelled images; numbered where they have no names."""
    names = dataset.label_names or [f"class {c}" for c in range(dataset.num_classes)]
    return Classes(dataset.num_classes, tuple(names), dataset.ignore_index)


def study_timesteps(num_train_timesteps: int) -> list[int]:
    """Ten timesteps, denser where images are less noisy, as the informative ones are."""
    parts = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8)
    return sorted({int(p * num_train_timesteps) for p in parts})


# Clusters


def cluster_maps(activations: Sequence[torch.Tensor], num_clusters: int = 5, seed: int = 0) -> list[np.ndarray]:
    """k-means clusters of the pixels of several images for one block and timestep (paper, figure 4).

    Args:
        activations (sequence of `torch.Tensor`): `[channels, h, w]` of each image.
        num_clusters (`int`, defaults to 5): k.
        seed (`int`): Of the initial centres.

    Returns:
        `list[np.ndarray]`: `[h, w]` uint8 of each image, cluster ids.

    Raises:
        ValueError: There are fewer pixels than clusters.
    """
    from sklearn.cluster import KMeans  # of the extra `analysis`, which choosing features does without

    pixels = np.concatenate([a.flatten(1).T.float().cpu().numpy() for a in activations])  # [n*h*w,c]
    if len(pixels) < num_clusters:
        raise ValueError(f"{num_clusters} clusters need as many pixels, but there are {len(pixels)}.")
    labels = KMeans(num_clusters, n_init=3, random_state=seed).fit_predict(pixels)
    height, width = activations[0].shape[1:]
    return list(labels.reshape(len(activations), height, width).astype(np.uint8))


def matched(maps: Sequence[np.ndarray], neighbours: Sequence[np.ndarray], num_clusters: int) -> list[np.ndarray]:
    """Renames clusters so that they overlap most with those of a neighbouring panel (Hungarian assignment).

    Args:
        maps (sequence of `np.ndarray`), neighbours (sequence of `np.ndarray`):
            Cluster ids of the same images, `[h, w]`; resolutions may differ.
        num_clusters (`int`): Of both.
    """
    from scipy.optimize import linear_sum_assignment

    overlap = np.zeros((num_clusters, num_clusters), dtype=np.int64)
    for a, b in zip(maps, neighbours):
        size = tuple(max(x, y) for x, y in zip(a.shape, b.shape))
        np.add.at(overlap, (resized(a, size), resized(b, size)), 1)
    mine, theirs = linear_sum_assignment(-overlap)
    names = np.empty(num_clusters, np.uint8)
    names[mine] = theirs
    return [names[a] for a in maps]


def resized(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest neighbour, `[h, w]` to `size`."""
    return np.asarray(PIL.Image.fromarray(ids).resize(size[::-1], PIL.Image.Resampling.NEAREST))


# Noise


NOISES = ("one", "per timestep", "fresh", "averaged")


class NoiseVariant(DecoderFeatureExtractor):
    """Feature extraction with another choice of noise (paper, section 4, "stochastic feature extraction").

    Args:
        noise (`str`): `"one"` for all images and timesteps, as [`DecoderFeatureExtractor`] does by default;
            `"per timestep"`: one for each timestep, the same for all images; `"fresh"` for every image and timestep;
            `"averaged"`: activations averaged over several fresh ones.
        draws (`int`, defaults to 5): How many, for `"averaged"`.
        **kwargs: As in [`DecoderFeatureExtractor`].
    """

    def __init__(self, *args, noise: str, draws: int = 5, **kwargs):
        super().__init__(*args, **kwargs, share_noise=noise in ("one", "per timestep"))
        self.noise, self.draws = noise, draws if noise == "averaged" else 1

    def _noise(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        if self.noise != "per timestep":
            return super()._noise(images, generator)
        n, *shape = images.shape
        seeded = torch.Generator().manual_seed(self.noise_seed)
        noise = torch.randn(len(self.timesteps), *shape, generator=seeded)
        return noise.repeat_interleave(n, dim=0).to(images.device)  # [T*N,C,H,W]

    def __call__(self, images: torch.Tensor, *args, **kwargs) -> DecoderFeatures:
        output = super().__call__(images, *args, **kwargs)
        for _ in range(self.draws - 1):
            more = super().__call__(images, *args, **kwargs)
            output.activations = [a + b for a, b in zip(output.activations, more.activations)]
        output.activations = [a / self.draws for a in output.activations]
        return output


# Numbers of labels


def label_draws(num_images: int, count: int, draws: int, seed: int = 0) -> list[list[int]]:
    """Which images several draws of `count` labelled ones hold."""
    rng = np.random.default_rng([seed, count])
    return [sorted(rng.permutation(num_images)[:count].tolist()) for _ in range(draws)]


def label_efficiency(
    train: ActivationTable,
    test: ActivationTable,
    blocks: Sequence[int],
    timesteps: Sequence[int],
    classes: Classes,
    count: int,
    draws: int = 5,
    num_members: int = 10,
    seed: int = 0,
) -> dict:
    """Mean IoU on test images with a number of labelled images, drawn several times.

    Args:
        train ([`ActivationTable`]), test ([`ActivationTable`]): Activations and labels of the two splits.
        blocks (sequence of `int`), timesteps (sequence of `int`): What the heads read.
        classes ([`Classes`]): What they tell apart.
        count (`int`): Labelled images of a draw.
        draws (`int`, defaults to 5): How many draws.
        num_members (`int`, defaults to 10): Members of a head.
        seed (`int`): Of the draws and the heads.

    Returns:
        `dict`: `mean_iou`, a list with that of each draw; `images`, what was drawn.
    """
    images = label_draws(len(train.labels), count, draws, seed)
    heads = fit_groups(train, blocks, timesteps, classes, images, num_members, RECIPES["fast"], seed)
    everything = [range(len(test.labels))]
    return {"mean_iou": [score([h], test, everything, classes)["mean_iou"] for h in heads], "images": images}


# Corruptions


class Corrupted(LabeledImages):
    """Labelled images, corrupted as in Hendrycks and Dietterich (ICLR 2019) by `imagecorruptions`.

    Args:
        dataset ([`LabeledImages`]): Clean images.
        corruption (`str`): One of [`corruption_names`].
        severity (`int`): 1 to 5.
    """

    def __init__(self, dataset: LabeledImages, corruption: str, severity: int):
        self.__dict__.update(dataset.__dict__)
        self.corruption, self.severity = corruption, severity

    def __getitem__(self, index: int) -> LabeledImage:
        from imagecorruptions import corrupt

        row = super().__getitem__(index)
        picture = to_eight_bit(row.image)
        state = np.random.get_state()
        np.random.seed(index)  # the library draws from numpy's global generator
        try:
            rgb = np.asarray(picture.convert("RGB"))
            pixels = corrupt(rgb, severity=self.severity, corruption_name=self.corruption)
        finally:
            np.random.set_state(state)
        return replace(row, image=PIL.Image.fromarray(pixels.astype(np.uint8)).convert(picture.mode))


def corruption_names() -> list[str]:
    """The fifteen common corruptions.

    Raises:
        ImportError: `imagecorruptions` is not installed, or a library that it needs.
    """
    from imagecorruptions import get_corruption_names

    return get_corruption_names("common")
