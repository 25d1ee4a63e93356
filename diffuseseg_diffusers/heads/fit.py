# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Fits a segmentation head on a few labelled images, or on a table of their activations.

The procedure is that of DatasetGAN (Zhang et al., CVPR 2021), adopted by Baranchuk et al. (ICLR 2022), section 4.
"""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.utils import logging

from ..datasets.labeled import LabeledImages
from ..features.base import Block, FeatureExtractor
from ..features.filters import SIGMAS
from ..images.image_processor import default_palette
from ..jobs.errors import UserError
from .classes import Classes
from .ensemble import DECIDING_FORMAT, PixelClassifierEnsemble
from .extraction import extract_activations, labeled_examples
from .inputs import READS, inputs_config
from .optimize import fit_members
from .recipes import Recipe, find_recipe
from .sparse import pseudo_labels, with_strokes
from .table import ActivationTable
from .views import tiling_of


logger = logging.get_logger(__name__)

STROKES = 0.2  # share of labelled pixels below which masks look like strokes


def fit_segmentation_head(
    pipe: Any,
    dataset: Any,
    blocks: Sequence[Block] | None = None,
    timesteps: Sequence[int] | None = None,
    up_blocks: Sequence[int] | None = None,
    num_members: int | None = None,
    recipe: str | Recipe = "default",
    label_names: Sequence[str] | None = None,
    palette: Sequence[Sequence[int]] | None = None,
    min_label_fraction: float = 20 / 256**2,
    share_noise: bool = True,
    flip: bool | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    accelerator: Accelerator | None = None,
    *,
    noise_levels: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
    prompt: str | None = None,
    sparse_labels: bool = False,
    clean: bool | None = None,
) -> PixelClassifierEnsemble:
    """Fits a segmentation head for a pipeline on a few labelled images (paper, section 4).

    Args:
        pipe ([`DiffuseSegPipeline`] or [`BackbonePipeline`]): The frozen model; it is not changed.
        dataset ([`LabeledImages`] or `datasets.Dataset`): Images with masks; a dataset is wrapped with its defaults.
        blocks (sequence of `int` or `str`, *optional*): Blocks to read, in the paper's numbering, or names of modules;
            the recipe's if not given.
        timesteps (sequence of `int`, *optional*): Diffusion timesteps; as the recipe says if not given. Those that suit
            the models of the package are in the recipe `suited_recipe("default", "general")` of `pipelines/general.py`.
        up_blocks (sequence of `int`, *optional*): Of a U-Net, outputs of whole up-blocks, in place of `blocks`.
        num_members (`int`, *optional*): Members of the ensemble; as many as the recipe says if not given.
        recipe (`str` or [`Recipe`], defaults to `"default"`): `"paper"`, as published; `"fast"`; or your own.
        label_names (sequence of `str`, *optional*): Names of the classes; the dataset's own if not given.
        palette (sequence of `[red, green, blue]`, *optional*): Colours of the classes, 0 to 255.
        min_label_fraction (`float`): A class that covers a smaller part of an image is ignored there; 0 to keep all.
        share_noise (`bool`, defaults to `True`): One fixed noise for all images and timesteps, or fresh noise, where
            images are read with noise.
        flip (`bool`, *optional*): Whether left and right may be exchanged; if not given, as the recipe says, but not if
            names of classes tell left from right.
        seed (`int`, defaults to 0): Of noise, augmented views, the members' weights and the order of their pixels. The
            same seed gives the same bits on one machine, for the same number of processes and threads.
        batch_size (`int`, *optional*): Images that go through the model at once, each at every timestep; as many as
            [`images_per_pass`] says if not given.
        cache_dir (path, *optional*): Keep activations in a temporary file in this folder instead of in memory.
        accelerator (`Accelerator`, *optional*): Deals the members out to its processes.
        noise_levels (sequence of `float`, *optional*): Noise-to-signal ratios above 0, in place of `timesteps`.
        size (two `int`, *optional*): Height and width at which images are read; the model's own if not given.
        prompt (`str`, *optional*): What conditions the model, in fitting and in use; its null prompt if not given.
        sparse_labels (`bool`, defaults to `False`): Masks are strokes, and all else in them is `ignore_index`: learns
            from unlabelled pixels too, see `heads/sparse.py`. `min_label_fraction` is then 0. Fits twice.
        clean (`bool`, *optional*): Whether images are read without noise; as the recipe says if not given, and not with
            fresh noise or `noise_levels`.

    Returns:
        [`PixelClassifierEnsemble`] in float32, on the model's device, in evaluation mode; for `pipe.segmentation_head`.

    Raises:
        UserError: The masks do not fit the classes or images, or an option is out of range.
        NotFiniteError: Activations are not finite, or training diverged.

    Examples:
        >>> from diffuseseg_diffusers import DiffuseSegPipeline, fit_segmentation_head, load_labeled_images
        >>> pipe = DiffuseSegPipeline.from_pretrained("MODEL")
        >>> pipe.segmentation_head = fit_segmentation_head(pipe, load_labeled_images("my/labelled/images"))
    """
    recipe = find_recipe(recipe)
    if not isinstance(dataset, LabeledImages):
        dataset = LabeledImages(dataset, label_names=label_names)
    classes = Classes(
        dataset.num_classes, label_names or dataset.label_names, dataset.ignore_index, palette or dataset.palette
    )
    flip = (recipe.flip and not classes.tell_sides) if flip is None else flip
    choice = dict(share_noise=share_noise, noise_seed=seed, clean=clean, size=size, prompt=prompt)
    extractor = recipe_extractor(pipe, recipe, blocks, timesteps, up_blocks, noise_levels, **choice)
    views, show = recipe.num_views(len(dataset)), accelerator is None or accelerator.is_local_main_process
    labels, rare = (with_strokes(dataset, extractor.size), 0.0) if sparse_labels else (dataset, min_label_fraction)
    reading = (seed, batch_size, cache_dir, show)
    table = extract_activations(extractor, labels, rare, *reading, augmented_views=views, flip=flip)
    mirror = flip and recipe.mirror
    fit = partial(fit_head, table, extractor, classes, recipe, num_members, mirror, seed, accelerator=accelerator)
    if sparse_labels:
        mirrored = extract_activations(extractor, labels, rare, *reading, mirror=True) if mirror else None
        sure = pseudo_labels(fit(), table, mirrored, labels, recipe)
        table.labels = torch.stack([m for _, m in labeled_examples(sure, extractor, rare, seed, views, flip)])
    elif (share := float((table.labels != dataset.ignore_index).float().mean())) < STROKES:
        logger.warning(f"{share:.0%} of the pixels have a label; `sparse_labels` learns from the others too.")
    head, channels = fit(in_place=True), dataset.channels.config
    version = max(head.config.format_version, 0 if channels is None else DECIDING_FORMAT)
    tiling = tiling_of(dataset, extractor.size)
    head.register_to_config(channels=channels, tiling=tiling, format_version=version)
    return head


def recipe_extractor(
    pipe: Any,
    recipe: str | Recipe = "default",
    blocks: Sequence[Block] | None = None,
    timesteps: Sequence[int] | None = None,
    up_blocks: Sequence[int] | None = None,
    noise_levels: Sequence[float] | None = None,
    **choice: Any,
) -> FeatureExtractor:
    """The features of a pipeline that a recipe reads; explicit arguments override the recipe.

    Args:
        pipe, recipe, blocks, timesteps, up_blocks, noise_levels: As in [`fit_segmentation_head`].
        **choice: `share_noise`, `noise_seed`, `clean`, `size`, `prompt`, as in [`~HeadSegmenter.features`]; without
            `clean`, as the recipe says, and not with fresh noise or `noise_levels`.

    Raises:
        UserError: Two of them exclude each other, or the model knows no noise.

    Examples:
        >>> from diffuseseg_diffusers import DiffuseSegPipeline, recipe_extractor
        >>> extractor = recipe_extractor(DiffuseSegPipeline.from_pretrained("MODEL"), "paper")
        >>> [(info.block, info.timestep, info.channels) for info in extractor.feature_info()]
    """
    recipe = find_recipe(recipe)
    if blocks is not None and up_blocks is not None:
        raise UserError("Give `blocks` or `up_blocks`, not both.")
    if timesteps is not None and noise_levels is not None:
        raise UserError("Give `timesteps` or `noise_levels`, not both.")
    if choice.get("clean") is None:
        choice["clean"] = recipe.clean and choice.get("share_noise", True) and noise_levels is None
    extractor = pipe.features(**choice)
    if noise_levels is not None:
        if not extractor.sees_noise:
            raise UserError("This model sees no noise; leave `noise_levels` out.")
        timesteps = [extractor.schedule.timestep(level) for level in noise_levels]
    if set(recipe.inputs) == {"filters"}:
        return extractor.with_filters(SIGMAS, alone=True)
    filters = None if set(recipe.inputs) == {"activations"} else SIGMAS
    usual = recipe.noisy_timesteps if recipe.clean and not choice["clean"] else recipe.timesteps
    timesteps = extractor.default_timesteps(usual or recipe.timesteps) if timesteps is None else timesteps
    if up_blocks is not None:
        return extractor.choose(timesteps=timesteps, up_blocks=up_blocks, filters=filters)
    blocks = extractor.default_blocks(recipe.blocks) if blocks is None else blocks
    return extractor.choose(blocks, timesteps, filters=filters)


def fit_head(
    table: ActivationTable,
    extractor: FeatureExtractor,
    classes: Classes,
    recipe: str | Recipe = "default",
    num_members: int | None = None,
    flip: bool = False,
    seed: int = 0,
    in_place: bool = False,
    accelerator: Accelerator | None = None,
) -> PixelClassifierEnsemble:
    """Fits a segmentation head on a table of activations: again with other labels, or after more images.

    Args:
        table ([`ActivationTable`]): Activations and labels; see [`extract_activations`].
        extractor ([`FeatureExtractor`]): What the activations were extracted with.
        classes ([`Classes`]): What the labels tell apart.
        recipe (`str` or [`Recipe`], defaults to `"default"`): How the members are trained, and which of activations
            and filters they read; its choice of features and of augmented views was made when the table was filled.
        num_members (`int`, *optional*): Members of the ensemble; as many as the recipe says if not given.
        flip (`bool`, defaults to `False`): Whether half of the members see the mirror image when they are used.
        seed (`int`, defaults to 0): Of the members' weights and the order of their pixels.
        in_place (`bool`, defaults to `False`): Whether the table may be changed, which saves a copy of it.
        accelerator (`Accelerator`, *optional*): Deals the members out to its processes.

    Returns:
        [`PixelClassifierEnsemble`] in float32, on the extractor's device, in evaluation mode.

    Raises:
        UserError: The table has no labelled pixels, labels that are no classes, or not what the members read.
        NotFiniteError: Training diverged.

    Examples:
        >>> from diffuseseg_diffusers import Classes, DiffuseSegPipeline, extract_activations, fit_head
        >>> from diffuseseg_diffusers import load_labeled_images, recipe_extractor
        >>> dataset = load_labeled_images("my/labelled/images")
        >>> extractor = recipe_extractor(DiffuseSegPipeline.from_pretrained("MODEL"))
        >>> head = fit_head(extract_activations(extractor, dataset), extractor, Classes(dataset.num_classes))
    """
    recipe = find_recipe(recipe)
    num_members = recipe.num_members if num_members is None else num_members
    _check_labels(table, classes)
    head = PixelClassifierEnsemble(
        num_classes=classes.number,
        **inputs_config(
            recipe.inputs,
            num_members,
            [i.channels for i in table.info[: len(extractor.blocks)]],
            extractor.blocks,
            extractor.timesteps,
            extractor.filters,
        ),
        num_members=num_members,
        image_size=list(table.size),
        in_channels=extractor.in_channels,
        share_noise=extractor.share_noise,
        noise_seed=extractor.noise_seed,
        clean=extractor.clean and bool(extractor.blocks),
        label_names=list(classes.label_names) if classes.label_names else None,
        palette=[list(c) for c in classes.palette or default_palette(classes.number)],
        ignore_index=classes.ignore_index,
        flip=flip,
        voting=recipe.voting,
        prompt=extractor.prompt,
    )
    # The members are trained side by side, a share of them on each process.
    rank, world = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    show = accelerator is None or accelerator.is_local_main_process
    members = list(range(rank, num_members, world))
    if members:
        if len(head.channels) < len(table.info):
            table = table.select(range(len(table.info))[READS[recipe.inputs[0]]])
        elif not in_place and (
            (recipe.standardize and head.config.member_inputs is None) or table.device != extractor.device
        ):  # members that differ in what they read have copies of their parts
            table = table.copy()
        fit_members(head, table.to(extractor.device), recipe, seed, members, extractor.device, show)
    if world > 1:
        mine = {name: tensor[members] for name, tensor in head.state_dict().items()}
        for theirs, state in gather_object([(members, mine)]):
            for name, tensor in head.state_dict().items():
                tensor[theirs] = state[name]
    return head.to(extractor.device).eval()


def _check_labels(table: ActivationTable, classes: Classes) -> None:
    """Warns of classes without a pixel; refuses ids that are no classes."""
    present = set(table.labels.unique().tolist()) | {classes.ignore_index}
    wrong = sorted(present - {*range(classes.number), classes.ignore_index})
    if wrong:
        raise UserError(f"The table has labels {wrong}, but the classes are 0 to {classes.number - 1}.")
    missing = [f'{c} ("{name}")' for c, name in enumerate(classes.names) if c not in present]
    if missing:
        logger.warning(
            f"No labelled pixel was found for class {', '.join(missing)} at the model's resolution; the head will "
            f"never predict it."
        )
