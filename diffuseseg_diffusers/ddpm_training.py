# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The parts of training a diffusion model: U-Nets by image size, the objective, held-out losses, checkpoints.

Ho et al., "Denoising Diffusion Probabilistic Models" (NeurIPS 2020). Everything random in a step is a function of the
run's seed and the step's position in the stream of images, so a checkpoint needs no state of random generators.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel, compute_snr
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from safetensors.torch import load_file

from .commands import write_json
from .features import check_image_size
from .hub_errors import explain_hub_error
from .unlabeled_data import mixed_seed


if TYPE_CHECKING:
    from .unlabeled_data import ShuffledBatches, StreamedBatches


PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
NUM_BUCKETS = 10
STATE_FILE = "run.json"


@dataclass(frozen=True)
class Preset:
    """A U-Net for images up to some size: `base_channels` times a multiplier for each level, and where it attends."""

    base_channels: int
    multipliers: tuple[int, ...]
    attention_levels: tuple[int, ...]


# Of 32 and 256 pixels, Ho et al.'s (appendix B); between them, the same pattern with what one GPU trains in a day.
PRESETS = {
    32: Preset(128, (1, 2, 2, 2), (1,)),
    64: Preset(64, (1, 2, 3, 4), (3,)),
    128: Preset(96, (1, 1, 2, 3, 4), (3, 4)),
    256: Preset(128, (1, 1, 2, 2, 4, 4), (4,)),
}


def preset_config(size: tuple[int, int], channels: int, base_channels: int | None = None) -> dict:
    """Arguments of [`UNet2DModel`] that suit an image size, with group norms that divide its channels.

    Args:
        size (`tuple[int, int]`): Height and width in pixels; the smallest preset that covers the longer side is taken.
        channels (`int`): Of the images.
        base_channels (`int`, *optional*): Channels of the finest level, in place of the preset's.
    """
    preset = PRESETS[next((s for s in PRESETS if max(size) <= s), max(PRESETS))]
    base = base_channels or preset.base_channels
    widths = [base * m for m in preset.multipliers]
    attends = [level in preset.attention_levels for level in range(len(widths))]
    # A group of one channel forgets its mean, and with it what the channel says: four at least.
    groups = max(g for g in range(1, 33) if base % g == 0 and (base >= 4 * g or g == 1))
    return {
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 2,
        "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "norm_num_groups": groups,
        "attention_head_dim": math.gcd(base, 64),
    }


def read_model_config(name: str) -> dict:
    """Arguments of [`UNet2DModel`] from a JSON or YAML file, a folder, or a repository on the Hub.

    Raises:
        ValueError: There is no such file or repository, or it holds something else.
    """
    path = Path(name)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        try:
            config = json.loads(text)
        except json.JSONDecodeError:
            config = yaml.safe_load(text)
            # To PyYAML, 1e-5 without a point is a word.
            for key, value in config.items() if isinstance(config, dict) else ():
                if isinstance(value, str) and re.fullmatch(r"[-+]?\d+e[-+]?\d+", value, re.IGNORECASE):
                    config[key] = float(value)
    else:
        config = None
        for subfolder in ("unet", None):  # of a pipeline, or of a model
            try:
                config = UNet2DModel.load_config(name, subfolder=subfolder)
                break
            except OSError as error:
                reason = explain_hub_error(error) or str(error).splitlines()[0]
        if config is None:
            raise ValueError(f"{name} is no file, and neither a folder nor a Hub repository with a U-Net: {reason}")
    if not isinstance(config, dict):
        raise ValueError(f"{name} must hold the arguments of UNet2DModel by name, found {type(config).__name__}.")
    return {k: v for k, v in config.items() if not k.startswith("_")}


def make_unet(config: dict) -> UNet2DModel:
    """A U-Net with fresh weights.

    Raises:
        ValueError: The config does not make one, or one that cannot take its own `sample_size` (the nearest sizes
            that work are named).
    """
    widths, groups = config.get("block_out_channels", (224, 448, 672, 896)), config.get("norm_num_groups", 32)
    wrong = [w for w in widths if groups and w % groups]
    if wrong:
        works = [g for g in range(1, 65) if all(w % g == 0 for w in widths)]
        raise ValueError(
            f"{wrong[0]} channels do not divide into {groups} groups of the normalisation; norm_num_groups that work "
            f"with block_out_channels {list(widths)} are {', '.join(map(str, works))}."
        )
    try:
        unet = UNet2DModel(**config)
    except (TypeError, ValueError) as error:
        raise ValueError(f"UNet2DModel does not take this config: {error}.") from error
    check_trainable(unet)
    return unet


def check_trainable(unet: UNet2DModel) -> None:
    """Raises `ValueError` if the U-Net is none that predicts one image from one, or if its size does not suit it."""
    config = unet.config
    if config.out_channels != config.in_channels or unet.class_embedding is not None:
        raise ValueError(
            f"The U-Net must take and give as many channels and no class, found {config.in_channels} channels in, "
            f"{config.out_channels} out, class embedding {config.class_embed_type or config.num_class_embeds}; learned "
            f"variances and class conditioning are not trained here."
        )
    size = config.sample_size
    check_image_size(unet, *((size, size) if isinstance(size, int) else size))


def draw_step(
    seed: int,
    position: int,
    total: int,
    rows: slice,
    shape: tuple[int, ...],
    num_timesteps: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is random about a batch: a function of the seed and the batch's position in the stream alone.

    The batch of all processes is drawn and each takes its rows, so that two processes train as one would with both
    batches. Timesteps are stratified, one from each of `total` equal parts, which makes the loss less noisy (Kingma et
    al., "Variational Diffusion Models", appendix I.1).

    Args:
        seed (`int`), position (`int`): Of the run, and images before this batch.
        total (`int`): Images of all processes together.
        rows (`slice`): Those of this process.
        shape (`tuple[int, int, int]`): Of an image.
        num_timesteps (`int`): Timesteps are 0 to `num_timesteps - 1`.
        device (`torch.device`): Where the noise is drawn.

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
    """`[N, C, H, W]` uint8 to float32 in [-1, 1], channels last, mirrored left to right where `flips` says so."""
    images = pixels.to(device, non_blocking=True).float() / 127.5 - 1
    if flips is not None:
        images = torch.where(flips[:, None, None, None], images.flip(-1), images)
    return images.contiguous(memory_format=torch.channels_last)


def denoising_loss(
    unet: torch.nn.Module,
    scheduler: DDPMScheduler,
    images: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    snr_gamma: float | None = None,
) -> torch.Tensor:
    """Mean squared error of what the scheduler's `prediction_type` says the U-Net predicts (Ho et al., eq. 14).

    Args:
        images, noise (`torch.Tensor`): `[N, C, H, W]`, images in [-1, 1].
        timesteps (`torch.Tensor`): `[N]`.
        snr_gamma (`float`, *optional*):
            Min-SNR weighting with this γ (Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy",
            2023, section 3.4).

    Returns:
        Scalar float32.
    """
    noisy = scheduler.add_noise(images, noise, timesteps)
    output = unet(noisy, timesteps, return_dict=False)[0].float()
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        target = noise
    elif kind == "sample":
        target = images
    else:
        target = scheduler.get_velocity(images, noise, timesteps)
    if snr_gamma is None:
        return F.mse_loss(output, target)
    return (min_snr_weights(scheduler, timesteps, snr_gamma) * (output - target).square().mean((1, 2, 3))).mean()


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
    unet: UNet2DModel, scheduler: DDPMScheduler, pixels: torch.Tensor, batch_size: int = 64, seed: int = 0
) -> torch.Tensor:
    """Mean squared error of the predicted noise, apart for ten equal ranges of timesteps.

    Each image is noised once in each range, to a timestep and with a noise that depend on the seed and its place
    alone, so that the figures of different models compare.

    Args:
        unet ([`UNet2DModel`]), scheduler ([`DDPMScheduler`]): The model, of any prediction type.
        pixels (`torch.Tensor`): `[N, C, H, W]` uint8.
        batch_size (`int`, defaults to 64), seed (`int`, defaults to 0).

    Returns:
        `[10]` float64 on the CPU, the noisiest range last; not a number if there are no images.
    """
    if not len(pixels):
        return torch.full((NUM_BUCKETS,), math.nan, dtype=torch.float64)
    steps = scheduler.config.num_train_timesteps
    generator = torch.Generator().manual_seed(mixed_seed(seed, 2))
    low = torch.arange(NUM_BUCKETS) * steps // NUM_BUCKETS
    errors = []
    for batch in pixels.split(max(1, batch_size // NUM_BUCKETS)):
        n = len(batch)
        # image by image, so that the batch size does not change what one gets
        jitter, noise = zip(
            *[
                (
                    torch.rand(NUM_BUCKETS, generator=generator),
                    torch.randn(NUM_BUCKETS, *batch.shape[1:], generator=generator),
                )
                for _ in range(n)
            ]
        )
        timesteps = (low + torch.stack(jitter) * steps / NUM_BUCKETS).long().flatten().to(unet.device)  # [N*10]
        noise = torch.cat(noise).to(unet.device)  # [N*10,C,H,W]
        images = to_model_range(batch.repeat_interleave(NUM_BUCKETS, 0), unet.device)
        noisy = scheduler.add_noise(images, noise, timesteps)
        output = unet(noisy, timesteps, return_dict=False)[0].float()
        error = (predicted_noise(scheduler, output, noisy, timesteps) - noise).square().mean((1, 2, 3))
        errors.append(error.unflatten(0, (n, NUM_BUCKETS)).double().cpu())
    return torch.cat(errors).mean(0)


def averaged_unet(unet: UNet2DModel, ema: EMAModel | None) -> UNet2DModel:
    """A copy to look at and to save: the averaged weights if there are any, else those of the last step."""
    copy = UNet2DModel.from_config(unet.config).to(unet.device, memory_format=torch.channels_last)
    copy.load_state_dict(unet.state_dict())
    if ema is not None:
        ema.copy_to(copy.parameters())
    return copy.eval().requires_grad_(False)


def sample_images(
    unet: UNet2DModel, scheduler: DDPMScheduler, count: int, num_inference_steps: int, seed: int
) -> list[PIL.Image.Image]:
    """Images drawn by the model with DDIM, which needs few steps; the same noise whenever the seed is the same."""
    pipe = DDIMPipeline(unet, DDIMScheduler.from_config(scheduler.config))
    pipe.set_progress_bar_config(desc="Sampling", leave=False)
    generator = torch.Generator().manual_seed(seed)
    return pipe(count, generator=generator, num_inference_steps=num_inference_steps).images


def checkpoints(output_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, the newest last."""
    found = [p for p in output_dir.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: Path,
    run: dict,
    unet: UNet2DModel,
    ema: EMAModel | None,
    batches: "ShuffledBatches | StreamedBatches",
    limit: int | None = None,
) -> Path:
    """Writes a checkpoint that takes its name only once all of it is on the disk, then drops the oldest.

    Args:
        run (`dict`): For `run.json`; its `step` names the folder.
        limit (`int`, *optional*): How many checkpoints are kept.

    Raises:
        OSError: It cannot be written; those before are still there.
    """
    folder = output_dir / f"checkpoint-{run['step']:06d}"
    partial = output_dir / f".{folder.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
        write_json(partial / f"data_{accelerator.process_index}.json", batches.state_dict())
        if accelerator.is_main_process:
            if ema is not None:
                ema.save_pretrained(partial / "unet_ema")
            write_json(partial / STATE_FILE, {**run, "unet": _comparable(unet)})
    except (OSError, RuntimeError, SafetensorError) as error:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        kept = checkpoints(output_dir)
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise OSError(f"The checkpoint of step {run['step']} cannot be saved ({error}); {last}.") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _to_disk(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        for old in checkpoints(output_dir)[: -limit if limit else 0]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return folder


def load_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    unet: UNet2DModel,
    ema: EMAModel | None,
    batches: "ShuffledBatches | StreamedBatches",
) -> dict:
    """Brings a run back to where a checkpoint was made.

    Returns:
        `dict`: What `run.json` says.

    Raises:
        ValueError: The checkpoint is of another model or dataset, or made without EMA when there is one (what differs
            is named).
    """
    if not (folder / STATE_FILE).is_file():
        raise ValueError(f"{folder} is no checkpoint of this script: it has no {STATE_FILE}.")
    run = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    now = _comparable(unet)
    different = [
        f"{k} is {run['unet'].get(k)} there and {now.get(k)} here" for k in now if run["unet"].get(k) != now[k]
    ]
    if different:
        raise ValueError(f"The checkpoint {folder} is of another model: {'; '.join(different)}.")
    if (ema is not None) != (folder / "unet_ema").is_dir():
        raise ValueError(
            f"The checkpoint {folder} was made {'without' if ema else 'with'} --use_ema; do the same here."
        )
    mine = folder / f"data_{accelerator.process_index}.json"
    # Images in any order are shared out by position alone, so a process that was not there can read another's state.
    state = json.loads((mine if mine.is_file() else folder / "data_0.json").read_text(encoding="utf-8"))
    batches.load_state_dict(state)
    accelerator.load_state(str(folder))
    accelerator.step = 0
    if ema is not None:
        # `EMAModel.from_pretrained` warns of what it wrote into the config itself.
        saved = load_file(folder / "unet_ema" / SAFETENSORS_WEIGHTS_NAME)
        for average, (name, _) in zip(ema.shadow_params, unet.named_parameters()):
            average.copy_(saved[name])  # in place, to stay on the device and in channels-last order
        config = json.loads((folder / "unet_ema" / "config.json").read_text(encoding="utf-8"))
        ema.load_state_dict({k: config[k] for k in ema.state_dict() if k in config})
    return run


def _comparable(unet: UNet2DModel) -> dict:
    """What of a U-Net's config its weights and images depend on, as JSON holds it."""
    config = {k: v for k, v in unet.config.items() if not k.startswith("_") and k != "dropout"}
    return json.loads(json.dumps(config))


def save_pipeline(output_dir: Path, unet: UNet2DModel, scheduler: DDPMScheduler) -> None:
    """Writes a plain [`DDPMPipeline`] into a folder that may hold other things; an old one stays until it is whole."""
    partial = output_dir / ".pipeline.partial"
    shutil.rmtree(partial, ignore_errors=True)
    DDPMPipeline(unet, scheduler).save_pretrained(partial)
    _to_disk(partial)
    for part in ("unet", "scheduler"):
        shutil.rmtree(output_dir / part, ignore_errors=True)
    for part in partial.iterdir():
        part.rename(output_dir / part.name)
    partial.rmdir()


def _to_disk(folder: Path) -> None:
    """Waits until the files are on the disk, so that a machine that dies does not leave empty ones under good names."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read_log(path: Path, up_to_step: int) -> list[dict]:
    """Lines of a run's log up to a step; what a run that was cut off wrote after its checkpoint is left out."""
    if not path.is_file():
        return []
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut off while writing
            break
        if entry["step"] > up_to_step:
            break
        entries.append(entry)
    return entries
