# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the arguments of `train_ddpm` make: the model, the batches, the learning rate."""

import argparse
from collections.abc import Callable

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from diffusers.optimization import get_scheduler

from ..datasets.crops import Pictures, RandomCrops
from ..datasets.unlabeled import UnlabeledImages
from ..images.channels import InputChannels
from ..jobs.errors import UserError
from ..jobs.seeds import mixed_seed, mixed_seed_32
from ..pipelines.pixel import DiffuseSegPipeline
from .batches import ShuffledBatches, StreamedBatches
from .latents import latent_shape
from .transformers import make_transformer, transformer_config
from .unets import BETA_SCHEDULES, check_trainable, make_unet, preset_config, read_model_config


SCHEDULE_STEPS = 1_000_000  # resolution of the learning-rate schedule when it runs on time
VALIDATION_IMAGES = 128


def make_model(
    args: argparse.Namespace,
    pretrained: object | None,
    vae: AutoencoderKL | None,
    count_channels: Callable[[], int],
) -> tuple[UNet2DModel | DiTTransformer2DModel, DDPMScheduler]:
    """The denoiser, fresh or pretrained, whose config says size and channels of what it denoises, and its scheduler.

    Args:
        args (`argparse.Namespace`): The arguments of `train_ddpm`.
        pretrained ([`DiffuseSegPipeline`], *optional*): What `--pretrained` names.
        vae (`AutoencoderKL`, *optional*): What `--vae` names.
        count_channels (`Callable`): Says how many channels the images have, where nothing else does.

    Raises:
        UserError: The pipeline has no U-Net for such images, or the config makes none.
    """
    size = tuple(args.resolution * 2 if len(args.resolution) == 1 else args.resolution) if args.resolution else None
    if pretrained is not None:
        if not isinstance(pretrained, DiffuseSegPipeline):
            raise UserError(f"{args.pretrained} has no U-Net on pixels, which is what is trained here.")
        unet, scheduler = pretrained.unet, DDPMScheduler.from_config(pretrained.scheduler.config)
        if args.channels not in (None, unet.config.in_channels):
            raise UserError(f"{args.pretrained} has {unet.config.in_channels} channels, not {args.channels}.")
        if size:
            unet.register_to_config(sample_size=size[0] if size[0] == size[1] else list(size))
        check_trainable(unet)
        for module in unet.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = args.dropout
        return unet, scheduler
    scheduler = DDPMScheduler(
        beta_schedule=BETA_SCHEDULES[args.beta_schedule or "linear"],
        prediction_type=args.prediction_type or "epsilon",
        clip_sample=vae is None,  # images have a range, latents have none
    )
    if vae is not None:
        size = size or (64, 64)
        shape = latent_shape(vae, size)
        try:
            return make_latent_denoiser(args, shape), scheduler
        except UserError as error:
            images, latents = (" × ".join(map(str, s)) for s in (size, shape[1:]))
            raise UserError(f"Images of {images} have latents of {latents}, and: {error}") from error
    if args.denoiser != "unet":
        raise UserError("A transformer denoises latents; give --vae, which `train-autoencoder` makes.")
    if args.model_config:
        config = read_model_config(args.model_config)
        size = size or config.get("sample_size") or 64
        size = (size, size) if isinstance(size, int) else tuple(size)
        channels = args.channels or config.get("in_channels") or count_channels()
        config |= {"in_channels": channels, "out_channels": channels}
    else:
        size = size or (64, 64)
        config = preset_config(size, args.channels or count_channels(), args.base_channels)
    config |= {"sample_size": size[0] if size[0] == size[1] else list(size), "dropout": args.dropout}
    return make_unet(config), scheduler


def make_latent_denoiser(args: argparse.Namespace, shape: tuple[int, int, int]) -> UNet2DModel | DiTTransformer2DModel:
    """A denoiser of latents `[C, h, w]` with fresh weights, by `--denoiser`, `--model_config` and `--base_channels`."""
    channels, *size = shape
    given = read_model_config(args.model_config) if args.model_config else {}
    if "num_layers" in given and args.denoiser == "unet":
        raise UserError(f"{args.model_config} holds the arguments of a transformer; add --denoiser dit.")
    if args.denoiser == "dit":
        return make_transformer({**transformer_config((size[0], size[1]), args.base_channels), **given}, shape)
    config = given or preset_config((size[0], size[1]), channels, args.base_channels)
    config |= {"in_channels": channels, "out_channels": channels, "dropout": args.dropout}
    return make_unet({**config, "sample_size": size[0] if size[0] == size[1] else size})


def make_batches(
    args: argparse.Namespace,
    dataset: Dataset | IterableDataset,
    column: str,
    shape: tuple[int, int, int],
    input_channels: InputChannels | None = None,
) -> tuple[ShuffledBatches | StreamedBatches, torch.Tensor, torch.Tensor]:
    """Training batches; and of the validation images, and of as many training images, the share of this process."""
    state = PartialState()
    channels, size = shape[0], shape[1:]
    options = dict(resize_mode=args.resize_mode, skip_unreadable=args.skip_unreadable)
    wanted = args.num_validation_images
    if args.streaming:
        first = list(dataset.take(2 * (VALIDATION_IMAGES if wanted is None else wanted)))
        looked_at = UnlabeledImages(Dataset.from_list(first), column, size, channels, **options)
        held_out = len(first) // 2
        batches = StreamedBatches(
            dataset,
            column,
            size,
            channels,
            args.train_batch_size,
            args.seed,
            held_out=[cells[column] for cells in first[:held_out]],
            buffer_size=args.shuffle_buffer_size,
            num_threads=args.dataloader_num_workers,
            **options,
        )
        pixels, order = looked_at, torch.arange(len(first))
    else:
        chosen = input_channels or InputChannels()
        images: UnlabeledImages | RandomCrops
        if args.crop:
            pictures = Pictures(dataset, column, args.axes, args.slice_axis)
            where = (args.scale, args.pixel_size, args.skip_unreadable)
            images = RandomCrops(pictures, size, channels, chosen, mixed_seed_32(args.seed, 5), *where)
        else:
            images = UnlabeledImages(dataset, column, size, channels, **options, input_channels=chosen)
        in_memory = images.fits_in_memory(args.image_cache_gb)
        pixels, unreadable = images.load() if in_memory else (images, 0)
        held_out = min(VALIDATION_IMAGES, len(pixels) // 10) if wanted is None else wanted
        if held_out >= len(pixels):
            raise UserError(f"Of {len(pixels)} images, {held_out} cannot be held out (--num_validation_images).")
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(mixed_seed(args.seed, 4)))
        rest = order[held_out:]
        batches = ShuffledBatches(
            pixels[rest] if in_memory else pixels.select(rest.tolist()),
            args.train_batch_size,
            args.seed,
            num_workers=args.dataloader_num_workers,
        )
        batches.unreadable = unreadable
    mine = slice(state.process_index, None, state.num_processes)

    def decoded(rows: torch.Tensor) -> torch.Tensor:
        if isinstance(pixels, torch.Tensor):
            return pixels[rows]
        items = [pixels[i][0] for i in rows.tolist()]
        return torch.stack(items) if items else torch.zeros(0, *shape, dtype=torch.uint8)

    return batches, decoded(order[:held_out][mine]), decoded(order[held_out : 2 * held_out][mine])


def describe_batches(batches: ShuffledBatches | StreamedBatches) -> str:
    """How many images there are and where they are decoded, in a clause."""
    if isinstance(batches, StreamedBatches):
        return "streamed"
    if isinstance(batches.images, RandomCrops):
        return f"{len(batches.images)} crops an epoch, of {len(batches.images.pictures)} pictures"
    where = "in memory" if isinstance(batches.images, torch.Tensor) else f"decoded by {batches.num_workers} workers"
    return f"{len(batches.images)} to train on, {where}"


def learning_rate_schedule(args: argparse.Namespace, optimizer: torch.optim.Optimizer) -> Callable[[int, float], float]:
    """Learning rate at a step and second: warm-up by steps, then the schedule over the run's steps or minutes."""
    scheduler = get_scheduler(args.lr_scheduler, optimizer, num_warmup_steps=0, num_training_steps=SCHEDULE_STEPS)
    factor = scheduler.lr_lambdas[0]

    def rate(step: int, seconds: float) -> float:
        by_steps = step / args.max_train_steps if args.max_train_steps else 0
        by_time = seconds / 60 / args.max_train_minutes if args.max_train_minutes else 0
        warm_up = min(1.0, (step + 1) / args.lr_warmup_steps) if args.lr_warmup_steps else 1.0
        return args.learning_rate * warm_up * factor(int(min(1.0, max(by_steps, by_time)) * SCHEDULE_STEPS))

    return rate
