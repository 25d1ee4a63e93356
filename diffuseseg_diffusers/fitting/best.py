# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The recipe `best`: several ways to segment, cross-validated on the labelled pictures within a time, the best kept."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..datasets.crops import pictures_of
from ..datasets.labeled import LabeledImages
from ..datasets.unlabeled import evenly_spread
from ..features.filters import SIGMAS
from ..features.noise import sees_no_noise
from ..heads.classes import Classes
from ..heads.cross_validation import WITHIN, Folds, LabeledActivations, missing_classes, others
from ..heads.ensemble import FILTERING_FORMAT, PixelClassifierEnsemble
from ..heads.fit import STROKES, fit_head, recipe_extractor
from ..heads.guided import choose_guided
from ..heads.recipes import RECIPES, Recipe
from ..heads.views import shapes_of
from ..jobs.errors import UserError
from ..pipelines.averaged import AveragedSegmenter
from ..pipelines.pixel import DiffuseSegPipeline
from ..pipelines.segmenter import Segmenter
from ..students.unets import UNetStudent, plain_unet
from .candidates import KINDS, PIXELS, UNET, Candidate, Labelled, trained, unet_probabilities
from .choice import FEW, Estimate, HeldOut, choose_votes, estimate, mean_iou, sample_pixels, vote
from .pieces import TIMESTEPS, View, in_pieces, piece_size, views_of


MAX_MINUTES = 2.0
FOLDS = 3
MOST_PIXELS = 64 * 256**2  # that the model reads of all pieces together: activations and filters take 4 to 8 GB
ENOUGH = 48 * 160**2  # pixels of pieces that heads learn from: more teach them little, and take the U-Net's time
SAMPLED = 400_000  # held-out pixels that candidates are compared on
FINAL = 0.12  # share of the time that is kept for the final heads
UNLIKE = 1.5  # ratio of a side to the median from which pictures are told to be of other sizes
LEAST = 0.3  # share of the time that has to be left behind the first heads for a U-Net
FOLD, WHOLE = 0.3, 0.35  # shares of what is left that the U-Net is trained for on each half of the pieces, and on all
PASSES = 0.15  # share of the time that labelled pieces and their augmented views may each take at the first scale


@dataclass
class Choice:
    """What `fit_best` tried and took.

    Args:
        candidates (list of `dict`): `name`, `mean_iou` alone (0 to 1), `votes` and `seconds` of each.
        steps (`int`): Of the U-Net on all pieces; 0 if it has no vote. A faster machine does more of them in the same
            time, and tries more candidates, so that choices may differ between machines and runs.
        mean_iou (`float`): Of the choice on the held-out pixels that it was made on, 0 to 1.
        estimate ([`Estimate`]): What it is expected to be worth on other pictures.
        guided (two `float`, *optional*): Widths of guided masks.
        within (`bool`): Whether pieces of one picture were in several folds.
        num_pieces (`int`), piece (two `int`): How many pieces there were, and their height and width in pixels.
        seconds (`float`): Of all of it.
    """

    candidates: list[dict]
    steps: int
    mean_iou: float
    estimate: Estimate
    guided: tuple[float, float] | None
    within: bool
    num_pieces: int
    piece: tuple[int, int]
    seconds: float


def fit_best(
    pipe: Any,
    dataset: LabeledImages,
    max_minutes: float = MAX_MINUTES,
    flip: bool | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    min_label_fraction: float = 20 / 256**2,
    show_progress: bool = True,
    size: tuple[int, int] | None = None,
    timesteps: Sequence[int] = TIMESTEPS[0],
) -> tuple[Segmenter, Choice]:
    """Fits the best of several ways to segment, by cross-validation on the labelled pictures.

    Heads on the activations of the frozen denoiser, on a bank of filters and on both, at several scales, and a U-Net
    trained from scratch are cross-validated; those vote that raise the mean IoU of held-out pictures.

    Args:
        pipe ([`DiffuseSegPipeline`]): The denoiser.
        dataset ([`LabeledImages`]): At least two pictures, or one that is cut into at least two tiles; large ones are
            cut here, see [`in_pieces`].
        max_minutes (`float`): Time for all of it; what does not fit into it is left out, with a line.
        flip (`bool`, *optional*), seed, batch_size, min_label_fraction: As in [`fit_segmentation_head`].
        show_progress (`bool`): Whether to say what is left out.
        size (two `int`, *optional*): Height and width at which the model reads pieces; their own if not given. A half,
            a quarter and twice of it are tried too.
        timesteps (sequence of `int`): Those to read first, of a schedule of 1,000; others are tried too.

    Returns:
        A [`Segmenter`], the pipeline with a head or an [`AveragedSegmenter`], and the [`Choice`].

    Raises:
        UserError: There is a single piece, or no pixel is labelled.

    Examples:
        >>> from diffuseseg_diffusers import fit_best, load_labeled_images, load_pipeline
        >>> segmenter, choice = fit_best(load_pipeline("general"), load_labeled_images("LABELS"), timesteps=(200,))
        >>> segmenter.segment("photo.jpg").masks[0].save("mask.png")
    """
    if not 0 < max_minutes < math.inf:
        raise UserError(f"The time for `best` is above 0 minutes, got {max_minutes}; give a longer one.")
    clock = Clock(60 * max_minutes)
    say = tqdm.write if show_progress else lambda text: None

    # 1. Pieces, folds and views.
    pieces = with_labels(in_pieces(dataset, seed=seed), say)
    piece = piece_size(pieces)
    say_sizes(pieces, piece, say)
    if len(pieces) < 2:
        raise UserError(
            f"There is one labelled picture of {piece[1]} × {piece[0]}, and nothing to compare on; label another, or "
            f"use --recipe default."
        )
    views = views_of(piece, max(tap.stride for tap in pipe.features().taps), size, timesteps)
    if sees_no_noise(pipe.scheduler):  # and knows one timestep
        views = [view for view in views if view.timesteps == views[0].timesteps]
    timely = max(1, passes_within(pipe, views[0], PASSES * clock.left()))
    every, kept = pieces, affordable(len(pieces), piece, views[0], timely, say)
    pieces, pictures = every.select(kept), pictures_of(every)[kept]
    flip = not Classes.of(dataset).tell_sides if flip is None else flip
    folds = Folds.of(pictures, FOLDS, seed)
    recipe = timed_recipe(len(pieces), piece, timely, say)
    labelled = Labelled(pieces, every, piece, folds, recipe, flip, seed, batch_size, min_label_fraction)
    for sentence in missing_classes(
        torch.from_numpy(np.stack(labelled.masks)), others(folds.held_out), labelled.classes
    ):
        say(sentence)

    # 2. Heads on the frozen denoiser as it usually reads, a U-Net, and heads of other views as far as time allows.
    tables: dict[View, Table] = {}
    candidates = try_heads(labelled, pipe, views[:1], tables, clock, 0, say)
    unet, reserved, left = None, FINAL * clock.seconds, clock.left() - FINAL * clock.seconds
    if pieces.channels.config is not None:
        say("The U-Net is left out: students read pictures of eight bits.")
    elif left < LEAST * clock.seconds:
        say(f"The U-Net is left out: {max(0, left):.0f} s are left; raise --max_minutes.")
    else:
        candidate, unet = try_unet(labelled, pipe.unet, views[0], kept, FOLD * left)
        candidates.append(candidate)
        held = held_out_pixels(candidates, labelled, pictures, seed)
        reserved += WHOLE * left if choose_votes(held.labels, held.probabilities)[-1] else 0
    candidates += try_heads(labelled, pipe, views[1:], tables, clock, reserved, say)

    # 3. Who votes, and what that is worth.
    held = held_out_pixels(candidates, labelled, pictures, seed)
    votes = choose_votes(held.labels, held.probabilities)
    chosen = [(c, int(n)) for c, n in zip(candidates, votes) if n]
    means = [sum(n * c.probabilities[i].float() for c, n in chosen) / int(votes.sum()) for i in range(len(pieces))]
    guided = choose_guided(
        means, labelled.pictures(pipe.unet.config.in_channels), labelled.masks, labelled.classes.ignore_index
    )
    tried = [
        {
            "name": c.name,
            "mean_iou": mean_iou(held.labels, p),
            "votes": int(n),
            "seconds": round(c.seconds, 1),
            "steps": c.steps or None,
        }
        for c, n, p in zip(candidates, votes, held.probabilities)
    ]
    own, expected = mean_iou(held.labels, vote(held.probabilities, votes)), estimate(held, seed=seed)

    # 4. The same on all pieces.
    members, steps = fit_chosen(labelled, pipe, chosen, tables, unet, clock)
    model: Any = next(iter(members.values()))[0]
    if len(members) > 1 or (guided and UNET in members):  # a student alone keeps no guided masks
        weights = [share for _, share in members.values()]
        model = AveragedSegmenter({name: one for name, (one, _) in members.items()}, weights)
    model.guided = guided
    used = round(clock.used(), 1)
    if used > 1.02 * clock.seconds:
        say(f"It took {used:.0f} s, more than the {clock.seconds:.0f} s of --max_minutes.")
    return model, Choice(tried, steps, own, expected, guided, folds.within, len(pieces), piece, used)


def passes_within(pipe: Any, view: View, seconds: float) -> int:
    """How many pictures pass through the denoiser in a time."""
    extractor = recipe_extractor(pipe, replace(RECIPES["default"], timesteps=view.timesteps), size=view.size)
    image = torch.zeros(1, extractor.in_channels, *view.size)
    extractor(image)  # the first pass sets up kernels
    began = time.monotonic()
    extractor(image)
    return int(seconds / (time.monotonic() - began))


def timed_recipe(number: int, piece: tuple[int, int], timely: int, say: Callable[[str], Any]) -> Recipe:
    """The recipe of heads on so many pieces, with as many augmented views as are read in time and are worth it."""
    # Several heads take turns: each is trained for less time than one alone is.
    recipe = replace(RECIPES["default"], batch_size=512, max_steps=700)
    fitting = PIXELS // math.prod(piece)  # many or large pieces show enough as they are
    augmented = min(recipe.augmented_images, fitting) if fitting >= 2 * number else 0
    timed = replace(recipe, augmented_images=min(timely, augmented))
    if timely < augmented:
        read, every = (number * one.num_views(number) for one in (timed, replace(recipe, augmented_images=augmented)))
        say(f"{read} of {every} augmented views are read in the time; raise --max_minutes for more.")
    return timed


def affordable(number: int, piece: tuple[int, int], view: View, timely: int, say: Callable[[str], Any]) -> list[int]:
    """Which of so many pieces heads learn from: as many as pass through the denoiser in time, fit in memory and are
    enough, at least four, evenly spread."""
    fitting, enough = MOST_PIXELS // math.prod(view.size), math.ceil(ENOUGH / math.prod(piece))
    kept = max(4, min(timely, fitting, enough))
    if kept >= number:
        return list(range(number))
    if timely < min(fitting, enough):
        why = "in the time; raise --max_minutes for more"
    else:
        why = "as activations of more take much memory" if fitting < enough else "as more teach them little"
    say(f"Heads learn from {kept} of {number} labelled pieces {why}.")
    return evenly_spread(number, kept)


def with_labels(pieces: LabeledImages, say: Callable[[str], Any]) -> LabeledImages:
    """Those pieces that have a labelled pixel: nothing could be learned from a fold of others."""
    known = (pieces[i].mask != pieces.ignore_index for i in range(len(pieces)))
    shares = [share_of_labels(own, pieces.tiling is not None) for own in known]
    kept = [i for i, share in enumerate(shares) if share]
    if not kept:
        raise UserError("The masks have no labelled pixels: all are ignored; label some.")
    if len(kept) < len(pieces):
        say(f"{len(pieces) - len(kept)} of {len(pieces)} pictures or tiles have no labelled pixel and are left out.")
    if (share := float(np.mean(shares))) < STROKES:
        say(f"{share:.1%} of the pixels have a label; --sparse_labels learns from the others too.")
    return pieces.select(kept) if len(kept) < len(pieces) else pieces


def share_of_labels(known: np.ndarray, tile: bool) -> float:
    """Share of the pixels `[H, W]` bool that have a label; of a tile within the box of its labels, as it may be padded
    and has labels that another tile has too."""
    if not tile or not known.any():
        return float(known.mean())
    rows, columns = (np.flatnonzero(known.any(axis)) for axis in (1, 0))
    return float(known[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean())


def say_sizes(pieces: LabeledImages, piece: tuple[int, int], say: Callable[[str], Any]) -> None:
    """Says what is distorted: all pieces are read at one size."""
    ratios = np.array(shapes_of(pieces)) / np.array(piece)  # [N,2]
    odd = int((np.abs(np.log(ratios)) > math.log(UNLIKE)).any(1).sum())
    if odd:
        say(
            f"{odd} of {len(pieces)} pictures have other sizes than most; all are read at {piece[1]} × {piece[0]} "
            f"pixels, which distorts those; --tile reads pictures in tiles."
        )


@dataclass
class Table:
    """What a view gives of all pieces: for the final head, and to estimate other views.

    Args:
        extractor, activations: As [`Labelled.activations`] returns them.
        seconds (`float`): That it took for each pixel and timestep of a piece, with one cross-validation.
    """

    extractor: Any
    activations: LabeledActivations
    seconds: float


class Clock:
    """Seconds of a budget that are used and left."""

    def __init__(self, seconds: float):
        self.seconds, self.began = seconds, time.monotonic()

    def used(self) -> float:
        return time.monotonic() - self.began

    def left(self) -> float:
        return self.seconds - self.used()


def try_heads(
    labelled: Labelled,
    pipe: Any,
    views: Sequence[View],
    tables: dict[View, Table],
    clock: Clock,
    kept: float,
    say: Callable[[str], Any],
) -> list[Candidate]:
    """Cross-validates heads, view after view, as far as they fit into the time but for the seconds that are kept.

    The first of all views always runs. `tables` gets the extractor and the activations of each, for the final head.
    """
    candidates: list[Candidate] = []
    quick = labelled.recipe.for_studies()
    for view in views:
        expected, left = max((t.seconds for t in tables.values()), default=0.0) * view.area, clock.left() - kept
        if tables and expected > left:
            what = f"it would take about {expected:.0f} s, and {max(0, left):.0f} s are left for it"
            say(f"{Candidate(view, KINDS[0], [], 0).name.capitalize()}: left out, as {what}.")
            continue
        start = time.monotonic()
        kinds = KINDS[:1] if tables else KINDS
        extractor, activations = labelled.activations(pipe, view, () if tables else SIGMAS)
        extracting = time.monotonic() - start  # of which all kinds of heads learn
        found = labelled.cross_validate(extractor, activations, kinds, quick)
        seconds = time.monotonic() - start
        each = (extracting + (seconds - extracting) / len(kinds)) / view.area
        tables[view] = Table(extractor, activations, each)
        candidates += [Candidate(view, kind, found[kind], seconds / len(kinds)) for kind in kinds]
    return candidates


def try_unet(
    labelled: Labelled, denoiser: Any, view: View, kept: Sequence[int], seconds: float
) -> tuple[Candidate, UNetStudent]:
    """Cross-validates a U-Net in two folds, and returns the second of them, too.

    Each is trained for a time on the pieces of other pictures, or on other pieces where those are too few: on all such
    pieces, while heads learn from those that were `kept`.
    """
    start, steps, pictures = time.monotonic(), [], pictures_of(labelled.every)
    names, palette = labelled.classes.names, labelled.classes.palette
    probabilities: list[Any] = [None] * len(kept)
    folds = Folds.of(pictures[kept], 2, labelled.seed)
    units = np.arange(len(pictures)) if folds.within else pictures
    for own in folds.held_out:
        rest = np.flatnonzero(~np.isin(units, units[kept][own])).tolist()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(labelled.seed)
            student = plain_unet(names, view.size, denoiser.config.in_channels, palette, mirror=labelled.flip)
        student, done = trained(labelled, student.to(denoiser.device), rest, seconds)
        steps.append(done)
        for i, found in zip(own, unet_probabilities(student, labelled, own)):
            probabilities[i] = found
    return Candidate(view, UNET, probabilities, time.monotonic() - start, min(steps)), student


def fit_chosen(
    labelled: Labelled,
    pipe: Any,
    chosen: Sequence[tuple[Candidate, int]],
    tables: Mapping[View, Table],
    unet: UNetStudent | None,
    clock: Clock,
) -> tuple[dict[str, tuple[Segmenter, float]], int]:
    """The candidates with votes, fitted on all pieces: name to model and share of the votes.

    The U-Net has been trained on half of the pieces already, and is trained further for the time that is left. Returns
    its further steps, too.
    """
    total, steps = sum(n for _, n in chosen), 0
    members: dict[str, tuple[Segmenter, float]] = {}
    for view, table in tables.items():
        kinds = {c.kind: n for c, n in chosen if c.view == view and c.kind != UNET}
        if kinds:
            head = final_head(labelled, table, view, kinds)
            own = DiffuseSegPipeline(pipe.unet, pipe.scheduler, head, pipe.config.get("channels"))
            members[f"heads {len(members)}"] = own, sum(kinds.values()) / total
    for candidate, n in chosen:
        if candidate.kind == UNET and unet is not None:
            unet, steps = trained(labelled, unet, None, max(0.1 * clock.seconds, clock.left()))
            unet.fitted_tiles = tiling_of(labelled, candidate.view)
            members[UNET] = unet, n / total
    return members, steps


def held_out_pixels(candidates: Sequence[Candidate], labelled: Labelled, pictures: np.ndarray, seed: int) -> HeldOut:
    """What all candidates say of a sample of the labelled pixels."""
    places = sample_pixels(labelled.masks, labelled.classes.ignore_index, SAMPLED, seed)
    fold_of = {i: fold for fold, own in enumerate(labelled.folds.held_out) for i in own}
    units = np.arange(len(pictures)) if labelled.folds.within else pictures
    return HeldOut(
        np.stack(
            [
                np.concatenate([p.flatten(1)[:, at].T.float().numpy() for p, at in zip(c.probabilities, places)])
                for c in candidates
            ]
        ),
        np.concatenate([mask.ravel()[at] for mask, at in zip(labelled.masks, places)]).astype(np.int64),
        np.repeat(units, [len(at) for at in places]),
        np.repeat([fold_of[i] for i in range(len(places))], [len(at) for at in places]),
    )


def final_head(labelled: Labelled, table: Table, view: View, kinds: dict[str, int]) -> PixelClassifierEnsemble:
    """A head of all pieces whose members read what won votes, with those as weights."""
    # Each half of the members has all kinds.
    of_each = labelled.recipe.num_members // 2
    inputs = tuple(kind for kind in kinds for _ in range(of_each)) * 2
    weights = [kinds[kind] / of_each for kind in inputs]
    recipe: Recipe = replace(labelled.recipe, inputs=inputs)
    how = (recipe, len(inputs), labelled.flip and recipe.mirror, labelled.seed)
    head = fit_head(table.activations.table, table.extractor, labelled.classes, *how, in_place=True)
    head.register_to_config(
        member_weights=[w / sum(weights) for w in weights],
        channels=labelled.dataset.channels.config,
        tiling=tiling_of(labelled, view),
        format_version=max(head.config.format_version, FILTERING_FORMAT),
    )
    return head


def tiling_of(labelled: Labelled, view: View) -> dict:
    """How the pictures are to be read for a view."""
    return {"tiles": labelled.dataset.tiling is not None, "scale": view.scale, "pixel_size": None}


def describe(choice: Choice, names: Sequence[str]) -> str:
    """The table of candidates and the estimate, as `fit` prints them."""
    lines = [f"{'mean IoU':>8}  {'votes':>5}  {'s':>5}  candidate"]
    for c in choice.candidates:
        lines.append(f"{100 * c['mean_iou']:>8.1f}  {c['votes'] or '':>5}  {c['seconds']:>5.0f}  {c['name']}")
    lines.append(f"{100 * choice.mean_iou:>8.1f}  {'':>5}  {choice.seconds:>5.0f}  the votes together")
    e = choice.estimate
    unit = "pieces of pictures" if choice.within else "pictures"
    lines.append(
        f"Expected on other pictures: mean IoU {100 * e.mean_iou:.1f} (95 % interval {100 * e.low:.1f} to "
        f"{100 * e.high:.1f}), by nested cross-validation on {e.units} {unit}."
    )
    each = (f"{name} {'–' if x is None else format(100 * x, '.1f')}" for name, x in zip(names, e.per_class_iou))
    lines.append(f"Of each class: {', '.join(each)}.")
    if absent := [name for name, x in zip(names, e.per_class_iou) if x is None]:
        lines.append(f"No labelled pixel shows {', '.join(absent)}: the estimate leaves out what it does not know.")
    if e.units < FEW and not choice.within:
        lines.append(f"Of {e.units} pictures, the interval is about their range, and too narrow: label more to know.")
    if choice.within:
        lines.append(WITHIN)
    return "\n".join(lines)
