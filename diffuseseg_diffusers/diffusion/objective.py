# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a denoiser is trained on: batches as functions of seed and position, the loss, held-out losses, samples.

Ho et al., "Denoising Diffusion Probabilistic Models" (NeurIPS 2020). Everything random in a step is a function of the
run's seed and the step's position in the stream of images, so a checkpoint needs no state of random generators.
"""

import math
from collections.abc import Mapping

import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import compute_snr
from tqdm.auto import tqdm

from ..features.pixel_unet import image_size
from ..images.image_processor import DiffuseSegImageProcessor
from ..jobs.seeds import mixed_seed


NUM_BUCKETS = 10


def draw_step(
    seed: int, position: int, total: int, rows: slice, shape: tuple[int, ...], num_timesteps: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is random about a batch: a function of the seed and the batch's position in the stream alone.

    The batch of all processes is drawn and each takes its rows, so that two processes train as one would with both
    batches. Timesteps are stratified, one from each of `total` equal parts, which makes the loss less noisy (Kingma et
    al., "Variational Diffusion Models", appendix I.1).

    Args:
        seed (`int`), position (`int`): Of the run, and images before this batch.
        total (`int`), rows (`slice`): Images of all processes together, and those of this process.
        shape (`tuple[int, int, int]`), num_timesteps (`int`), device (`torch.device`): Of the noise and timesteps.

    Returns:
        Noise `[N, C, H, W]`, timesteps `[N]` (int64) and whether to flip, `[N]` (bool).
    """
    mixed = mixed_seed(seed, position, 1)
    generator = torch.Generator().manual_seed(mixed)
    strata = torch.randperm(total, generator=generator)
    timesteps = ((strata + torch.rand(total, generator=generator, dtype=torch.float64)) / total * num_timesteps).long()
    flips = torch.rand(total, generator=generator) < 0.5
    on_device = torch.Generator(device).manual_seed(mixed)
    noise = torch.randn(total, *shape, generator=on_device, device=device)[rows]
    return noise, timesteps[rows].to(device), flips[rows].to(device)


def to_model_range(pixels: torch.Tensor, device: torch.device, flips: torch.Tensor | None = None) -> torch.Tensor:
    """`[N, C, H, W]` uint8 to float32 in [-1, 1], channels last, mirrored left to right where `flips` says so.

    Latents, which are float32 already, stay as they are.
    """
    images = pixels.to(device, non_blocking=True)
    if not images.is_floating_point():
        images = images.float() / 127.5 - 1
    if flips is not None:
        images = torch.where(flips[:, None, None, None], images.flip(-1), images)
    return images.contiguous(memory_format=torch.channels_last)


def denoising_loss(
    scheduler: DDPMScheduler,
    prediction: torch.Tensor,
    images: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """Mean squared error of a prediction of what the scheduler's `prediction_type` states (Ho et al., eq. 14).

    Args:
        scheduler (`DDPMScheduler`): Added the noise.
        prediction, images, noise (`torch.Tensor`): `[N, C, H, W]`, images in [-1, 1].
        timesteps (`torch.Tensor`): `[N]`.
        snr_gamma (`float`, *optional*):
            Min-SNR weighting with this γ (Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy",
            2023, section 3.4).

    Returns:
        Scalar float32.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "sample":
        target = images
    else:
        target = scheduler.get_velocity(images, noise, timesteps)
    if snr_gamma is None:
        return F.mse_loss(prediction, target)
    return (min_snr_weights(scheduler, timesteps, snr_gamma) * (prediction - target).square().mean((1, 2, 3))).mean()


def min_snr_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """`[N]` weights: min(SNR, γ) for predicting the image, over SNR for the noise, over SNR + 1 for the velocity."""
    snr = compute_snr(scheduler, timesteps)
    clipped = snr.clamp(max=gamma)
    kind = scheduler.config.prediction_type
    return clipped / {"epsilon": snr, "sample": 1, "v_prediction": snr + 1}[kind]


def predicted_noise(
    scheduler: DDPMScheduler, output: torch.Tensor, noisy: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The noise that a prediction of any type means, so that losses of different types can be compared."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return output
    alpha = scheduler.alphas_cumprod.to(output.device)[timesteps][:, None, None, None]
    if kind == "sample":
        return (noisy - alpha.sqrt() * output) / (1 - alpha).sqrt()
    return alpha.sqrt() * output + (1 - alpha).sqrt() * noisy


@torch.no_grad()
def denoising_losses(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    pixels: torch.Tensor,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> torch.Tensor:
    """Mean squared error of the predicted noise, apart for ten equal ranges of timesteps.

    Each image is noised once in each range, to a timestep and with a noise that depend on the seed and its place
    alone, so that the figures of different models compare.

    Args:
        unet ([`UNet2DModel`]), scheduler ([`DDPMScheduler`]): The model, of any prediction type.
        pixels (`torch.Tensor`): `[N, C, H, W]` uint8, or latents.
        batch_size (`int`, defaults to 64): Images times timesteps per forward pass.

    Returns:
        `[10]` float64 on the CPU, the noisiest range last; not a number if there are no images.
    """
    if not len(pixels):
        return torch.full((NUM_BUCKETS,), math.nan, dtype=torch.float64)
    steps = scheduler.config.num_train_timesteps
    generator = torch.Generator().manual_seed(mixed_seed(seed, 2))
    low = torch.arange(NUM_BUCKETS) * steps // NUM_BUCKETS
    errors = []
    batches = pixels.split(max(1, batch_size // NUM_BUCKETS))
    for batch in tqdm(batches, desc="Measuring", leave=False, disable=not progress):
        jitter, noises = [], []
        for _ in batch:  # image by image, so that the batch size does not change what one gets
            jitter.append(torch.rand(NUM_BUCKETS, generator=generator))
            noises.append(torch.randn(NUM_BUCKETS, *batch.shape[1:], generator=generator))
        timesteps = (low + torch.stack(jitter) * steps / NUM_BUCKETS).long().flatten().to(unet.device)  # [N*10]
        noise = torch.cat(noises).to(unet.device)  # [N*10,C,H,W]
        images = to_model_range(batch.repeat_interleave(NUM_BUCKETS, 0), unet.device)
        noisy = scheduler.add_noise(images, noise, timesteps)
        output = unet(noisy, timesteps, **null_condition(unet.config, timesteps), return_dict=False)[0].float()
        error = (predicted_noise(scheduler, output, noisy, timesteps) - noise).square().mean((1, 2, 3))
        errors.append(error.unflatten(0, (-1, NUM_BUCKETS)).double().cpu())
    return torch.cat(errors).mean(0)


def measure_losses(
    accelerator: Accelerator,
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    images: Mapping[str, torch.Tensor],
    batch_size: int,
    seed: int,
) -> dict[str, list[float]]:
    """[`denoising_losses`] of the images of all processes; `images` are this one's by name, without any left out."""
    losses = {}
    for name, pixels in images.items():
        with accelerator.autocast():
            own = mixed_seed(seed, accelerator.process_index, 5)
            show = accelerator.is_main_process
            mine = denoising_losses(unet, scheduler, pixels, batch_size, own, show)  # [10]
        weighted = torch.cat([mine.nan_to_num() * len(pixels), torch.tensor([len(pixels)])]).float()
        *sums, count = accelerator.reduce(weighted.to(accelerator.device), "sum").tolist()
        if count:
            losses[name] = [s / count for s in sums]
    return losses


def sample_images(
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    count: int,
    num_inference_steps: int,
    seed: int,
    vae: torch.nn.Module | None = None,
) -> list[PIL.Image.Image]:
    """Images drawn by the model with DDIM, which needs few steps; the same noise whenever the seed is the same."""
    if vae is not None:
        return sample_latents(unet, DDIMScheduler.from_config(scheduler.config), count, num_inference_steps, seed, vae)
    pipe = DDIMPipeline(unet, DDIMScheduler.from_config(scheduler.config))
    pipe.set_progress_bar_config(desc="Sampling", leave=False)
    generator = torch.Generator().manual_seed(seed)
    drawn = pipe(count, generator=generator, num_inference_steps=num_inference_steps, output_type="np").images
    return DiffuseSegImageProcessor.numpy_to_pil(drawn)  # of any number of channels


@torch.no_grad()
def sample_latents(
    denoiser: torch.nn.Module,
    scheduler: DDIMScheduler,
    count: int,
    num_inference_steps: int,
    seed: int,
    vae: torch.nn.Module,
) -> list[PIL.Image.Image]:
    """Images of latents that a model draws, of any proportions, as its pipeline would decode them."""
    shape = (count, denoiser.config.in_channels, *image_size(denoiser))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(denoiser.device)  # [N,c,h,w]
    scheduler.set_timesteps(num_inference_steps)
    for t in tqdm(scheduler.timesteps, desc="Sampling", leave=False):
        steps = t.expand(count).to(denoiser.device)
        predicted = denoiser(latents, steps, **null_condition(denoiser.config, steps), return_dict=False)[0].float()
        latents = scheduler.step(predicted, t, latents).prev_sample
    images = vae.decode(latents / vae.config.scaling_factor).sample  # [N,C,H,W]
    pixels = (images / 2 + 0.5).clamp(0, 1).cpu().permute(0, 2, 3, 1).numpy()
    return DDIMPipeline.numpy_to_pil(pixels)


def null_condition(config: Mapping, timesteps: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a denoiser needs beside images and timesteps `[N]`: of class-conditional transformers the null class."""
    classes = config.get("num_embeds_ada_norm")
    return {} if classes is None else {"class_labels": torch.full_like(timesteps, classes)}
