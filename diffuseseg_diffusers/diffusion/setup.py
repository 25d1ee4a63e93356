# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The model and the images of a training on unlabelled images, from its configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, DiTTransformer2DModel, UNet2DModel

from ..datasets.crops import Pictures, RandomCrops, read_channels
from ..datasets.overview import overview
from ..datasets.unlabeled import UnlabeledImages, count_channels, load_unlabeled
from ..features.latents import latent_stride
from ..features.noise import sees_no_noise
from ..features.pixel_unet import image_size
from ..images.channels import InputChannels
from ..jobs.errors import UserError
from ..jobs.hardware import default_device
from ..jobs.seeds import mixed_seed, mixed_seed_32
from ..pipelines.general import comes_with_package
from ..pipelines.loading import load_pipeline
from ..pipelines.pixel import DiffuseSegPipeline
from ..trainer.batches import ShuffledBatches, StreamedBatches
from .latents import as_pipeline, encode_images, latent_shape, load_autoencoder
from .transformers import make_transformer, transformer_config
from .unets import BETA_SCHEDULES, check_trainable, make_unet, preset_config, read_model_config, side_or_sides


VALIDATION_IMAGES = 128
CPU_WIDTH = 32  # channels of the finest level


@dataclass
class Denoiser:
    """A denoiser before its training, and what belongs to it."""

    model: Any  # UNet2DModel or DiTTransformer2DModel, on the CPU
    scheduler: DDPMScheduler
    vae: AutoencoderKL | None  # decodes what it denoises, on the device that computes
    channels: InputChannels  # of the images

    def pipeline(self, model: Any) -> DiffusionPipeline:
        """The pipeline with a trained model."""
        return as_pipeline(model, self.scheduler, self.vae, self.channels)


def make_denoiser(config: Any, dataset: Dataset | IterableDataset, column: str, device: torch.device) -> Denoiser:
    """The denoiser of a configuration; channels and intensities are looked up in the images of [`load_images`].

    Latents are encoded on `device`.
    """
    pretrained: Any = None
    if config.pretrained:
        pretrained = load_pipeline(config.pretrained, device="cpu", dtype="float32", cache_dir=config.cache_dir)
    vae = load_autoencoder(config.vae, config.cache_dir).to(device) if config.vae else None
    channels = InputChannels() if pretrained is None else pretrained.channels
    if not config.streaming:
        pictures = partial(Pictures, dataset, column, config.axes, config.slice_axis)
        channels = read_channels(config, pictures, channels)
    torch.manual_seed(config.seed)
    count = len(channels.names) if channels.names else None
    model, scheduler = make_model(config, pretrained, vae, lambda: count or count_channels(dataset, column))
    return Denoiser(model, scheduler, vae, channels)


def make_denoiser_images(
    config: Any, dataset: Dataset | IterableDataset, column: str, denoiser: Denoiser
) -> "TrainingImages":
    """The images that a denoiser is trained on, or their latents; see [`make_images`]."""
    vae, size = denoiser.vae, image_size(denoiser.model)
    if vae is None:
        return make_images(config, dataset, column, (denoiser.model.config.in_channels, *size), denoiser.channels)
    stride = latent_stride(vae)
    images = make_images(config, dataset, column, (vae.config.in_channels, stride * size[0], stride * size[1]))
    return encode_training_images(vae, images, config.random_flip)


def make_model(
    config: Any, pretrained: object | None, vae: AutoencoderKL | None, count_channels: Callable[[], int]
) -> tuple[UNet2DModel | DiTTransformer2DModel, DDPMScheduler]:
    """The denoiser, fresh or pretrained, whose config states size and channels of its input, and its noise schedule.

    `pretrained` and `vae` are what the options name; `count_channels` is called where nothing else states channels.

    Raises:
        UserError: The pipeline has no U-Net for such images, or the config makes none.
    """
    size = config.size
    if pretrained is not None:
        return _pretrained_model(config, pretrained, size)
    scheduler = DDPMScheduler(
        beta_schedule=BETA_SCHEDULES[config.beta_schedule or "linear"],
        prediction_type=config.prediction_type or "epsilon",
        clip_sample=vae is None,  # images have a range, latents have none
    )
    if vae is not None:
        size = size or (64, 64)
        shape = latent_shape(vae, size)
        try:
            return _latent_model(config, shape), scheduler
        except UserError as error:
            images, latents = (" × ".join(map(str, s)) for s in (size, shape[1:]))
            raise UserError(f"Images of {images} have latents of {latents}, and: {error}") from error
    if config.denoiser != "unet":
        raise UserError("A transformer denoises latents; give --vae, which `train-autoencoder` makes.")
    if config.model_config:
        given = read_model_config(config.model_config)
        own = size or given.get("sample_size") or 64
        size = (own, own) if isinstance(own, int) else (own[0], own[1])
        channels = config.channels or given.get("in_channels") or count_channels()
        given |= {"in_channels": channels, "out_channels": channels}
    else:
        size = size or (64, 64)
        given = preset_config(size, config.channels or count_channels(), config.base_channels or _default_width())
    return make_unet({**given, "sample_size": side_or_sides(size), "dropout": config.dropout}), scheduler


def _default_width() -> int | None:
    """The width of the preset where none is asked for: on a CPU one that it can train, else the preset's."""
    if default_device().type != "cpu":
        return None
    PartialState().print(
        f"On a CPU the U-Net of the preset has {CPU_WIDTH} channels at its finest level; --base_channels sets another "
        f"width, and --pretrained general starts from a trained one."
    )
    return CPU_WIDTH


def _pretrained_model(
    config: Any, pretrained: object, size: tuple[int, int] | None
) -> tuple[UNet2DModel, DDPMScheduler]:
    if not isinstance(pretrained, DiffuseSegPipeline):
        raise UserError(f"{config.pretrained} has no U-Net on pixels, which is what is trained here.")
    if sees_no_noise(pretrained.scheduler):
        raise UserError(f"{config.pretrained} was distilled to see clean images; start from its original.")
    unet, scheduler = pretrained.unet, DDPMScheduler.from_config(pretrained.scheduler.config)
    if config.channels is None and comes_with_package(config.pretrained):
        PartialState().print(f"The {config.pretrained} model is of RGB pictures: grey ones are read as RGB.")
    if config.channels not in (None, unet.config.in_channels):
        raise UserError(f"{config.pretrained} has {unet.config.in_channels} channels, not {config.channels}.")
    if size:
        unet.register_to_config(sample_size=side_or_sides(size))
    check_trainable(unet)
    for module in unet.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = config.dropout
    return unet, scheduler


def _latent_model(config: Any, shape: tuple[int, int, int]) -> UNet2DModel | DiTTransformer2DModel:
    """A denoiser of latents `[C, h, w]` with fresh weights."""
    channels, size = shape[0], (shape[1], shape[2])
    given = read_model_config(config.model_config) if config.model_config else {}
    if "num_layers" in given and config.denoiser == "unet":
        raise UserError(f"{config.model_config} holds the arguments of a transformer; add --denoiser dit.")
    if config.denoiser == "dit":
        return make_transformer({**transformer_config(size, config.base_channels), **given}, shape)
    given = given or preset_config(size, channels, config.base_channels)
    given |= {"in_channels": channels, "out_channels": channels, "dropout": config.dropout}
    return make_unet({**given, "sample_size": side_or_sides(size)})


@dataclass
class TrainingImages:
    """Images of a training: `[N, C, H, W]` uint8, or their latents in float32."""

    batches: ShuffledBatches | StreamedBatches
    validation: torch.Tensor  # this process's share of the images that are held out
    train_sample: torch.Tensor  # and of as many training images
    shape: tuple[int, int, int]  # channels, height and width of what the model sees

    def describe(self) -> str:
        """How many images there are and where they are decoded, in a clause."""
        if isinstance(self.batches, StreamedBatches):
            return "streamed"
        images = self.batches.images
        if isinstance(images, RandomCrops):
            return f"{len(images)} crops an epoch, of {len(images.pictures)} pictures"
        where = "in memory" if torch.is_tensor(images) else f"decoded by {self.batches.num_workers} workers"
        return f"{len(images)} to train on, {where}"


def load_images(config: Any) -> tuple[Dataset | IterableDataset, str]:
    """The dataset of unlabelled images that a configuration names, not decoded, and its column of images.

    The main process says what was read.
    """
    where = {"cache_dir": config.cache_dir, "revision": config.dataset_revision} if config.dataset_name else {}
    dataset, column = load_unlabeled(
        *(config.dataset_name, config.dataset_config_name, config.split, config.train_data_dir),
        *(config.image_column, config.streaming),
        **where,
    )
    name = str(config.dataset_name or config.train_data_dir)
    PartialState().print(overview(name, config.split, dataset, column))
    return dataset, column


def make_images(
    config: Any,
    dataset: Dataset | IterableDataset,
    column: str,
    shape: tuple[int, int, int],
    channels: InputChannels | None = None,
) -> TrainingImages:
    """Training batches and images to measure on, from [`load_images`]; `shape` is what images are decoded to."""
    state, size = PartialState(), (shape[1], shape[2])
    options: dict[str, Any] = dict(resize_mode=config.resize_mode, skip_unreadable=config.skip_unreadable)
    wanted = config.num_validation_images
    pixels: Any
    if config.streaming:
        first = list(dataset.take(2 * (VALIDATION_IMAGES if wanted is None else wanted)))
        held_out = len(first) // 2
        batches: ShuffledBatches | StreamedBatches = StreamedBatches(
            *(dataset, column, size, shape[0], config.train_batch_size, config.seed),
            held_out=[cells[column] for cells in first[:held_out]],
            buffer_size=config.shuffle_buffer_size,
            num_threads=config.dataloader_num_workers,
            **options,
        )
        pixels = UnlabeledImages(Dataset.from_list(first), column, size, shape[0], **options)
        order = torch.arange(len(first))
    else:
        chosen = channels or InputChannels()
        images: UnlabeledImages | RandomCrops
        if config.crop:
            pictures = Pictures(dataset, column, config.axes, config.slice_axis)
            where = (config.scale, config.pixel_size, config.skip_unreadable)
            images = RandomCrops(pictures, size, shape[0], chosen, mixed_seed_32(config.seed, 5), *where)
        else:
            images = UnlabeledImages(dataset, column, size, shape[0], **options, input_channels=chosen)
        in_memory = not config.crop and images.fits_in_memory(config.image_cache_gb)  # crops are fresh each epoch
        pixels, unreadable = images.load() if in_memory else (images, 0)
        held_out = min(VALIDATION_IMAGES, len(pixels) // 10) if wanted is None else wanted
        if held_out >= len(pixels):
            raise UserError(f"Of {len(pixels)} images, {held_out} cannot be held out (--num_validation_images).")
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(mixed_seed(config.seed, 4)))
        rest = order[held_out:]
        batches = ShuffledBatches(
            pixels[rest] if in_memory else pixels.select(rest.tolist()),
            *(config.train_batch_size, config.seed, config.dataloader_num_workers),
        )
        batches.unreadable = unreadable
    mine = slice(state.process_index, None, state.num_processes)

    def decoded(rows: torch.Tensor) -> torch.Tensor:
        if torch.is_tensor(pixels):
            return pixels[rows]
        items = [pixels[i][0] for i in rows.tolist()]
        return torch.stack(items) if items else torch.zeros(0, *shape, dtype=torch.uint8)

    looked_at = (decoded(order[:held_out][mine]), decoded(order[held_out : 2 * held_out][mine]))
    return TrainingImages(batches, *looked_at, shape)


def encode_training_images(vae: AutoencoderKL, images: TrainingImages, mirrored: bool) -> TrainingImages:
    """The latents of images that are not streamed, see [`encode_images`]; the order of training stays."""
    batches = images.batches
    batches.images = encode_images(vae, batches.images, mirrored)
    validation, train_sample = encode_images(vae, images.validation), encode_images(vae, images.train_sample)
    channels, height, width = batches.images.shape[1:]
    return TrainingImages(batches, validation, train_sample, (channels, height, width))
