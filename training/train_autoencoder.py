# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains an autoencoder for latent diffusion on unlabelled images: `diffuseseg train-autoencoder`.

    accelerate launch training/train_autoencoder.py --train_data_dir DATA --resolution 64 --max_train_steps 20000 \\
        --output_dir OUT

The same command line resumes a run that was cut off. `train-ddpm --vae OUT` trains a denoiser on its latents.
"""

from typing import Any

import torch
import torch.nn.functional as F

from diffuseseg_diffusers.datasets.unlabeled import count_channels
from diffuseseg_diffusers.diffusion.autoencoder import (
    Reconstruction,
    draw_reconstructions,
    latent_scale,
    make_autoencoder,
    reconstruction_errors,
)
from diffuseseg_diffusers.diffusion.objective import draw_step, to_model_range
from diffuseseg_diffusers.diffusion.run import (
    SUMMARY,
    averaged_copy,
    begin,
    describe_end,
    make_trainer,
    open_folder,
    summary,
)
from diffuseseg_diffusers.diffusion.setup import TrainingImages, load_images, make_images
from diffuseseg_diffusers.jobs.command_line import run_script
from diffuseseg_diffusers.jobs.files import read_json, write_json
from diffuseseg_diffusers.jobs.seeds import mixed_seed
from diffuseseg_diffusers.tasks.train_autoencoder import TrainAutoencoderConfig
from diffuseseg_diffusers.trainer.checkpoints import save_pipeline
from diffuseseg_diffusers.trainer.loop import Trainer


COMMAND = "train-autoencoder"


def train_autoencoder(config: TrainAutoencoderConfig) -> dict[str, Any]:
    """Trains an autoencoder on unlabelled images, or resumes its training.

    Returns:
        `dict`: What `training_state.json` in the output folder holds. The folder is an `AutoencoderKL` of diffusers.

    Raises:
        UserError: The images, the model or the folder cannot be used.
        NotFiniteError: The loss is not finite; the last checkpoint is kept.
        StoppedError: SIGTERM or Ctrl-C ended the run; the step is saved, and the same call resumes.

    Examples:
        >>> from diffuseseg_diffusers import TrainAutoencoderConfig, train_autoencoder
        >>> config = TrainAutoencoderConfig(train_data_dir="my/images", max_train_steps=20_000, output_dir="out/vae")
        >>> train_autoencoder(config)["reconstruction"]
    """
    # 1. The images, still encoded, and the model.
    accelerator = begin(config, COMMAND)
    dataset, column = load_images(config)
    channels = config.channels or count_channels(dataset, column)
    torch.manual_seed(config.seed)
    vae = make_autoencoder(config.size, channels, config.latent_channels, config.downsample, config.base_channels)
    images = make_images(config, dataset, column, (channels, *config.size))

    # 2. Training, from where it was cut off, and what it leaves behind.
    trainer = make_trainer(config, accelerator, vae, images, around=Reconstruction(vae))
    if open_folder(config, COMMAND, trainer, dataset, column):  # complete
        trainer.end()
        return read_json(config.output_dir / SUMMARY)
    with trainer:
        train(config, trainer, images)
        averaged = look(config, trainer, images, measuring=True, drawing=True)
        measured = reconstruction_errors(averaged, images.validation) if len(images.validation) else None
        found = summary(config, trainer) | {"reconstruction": measured}
        if accelerator.is_main_process:
            averaged.register_to_config(scaling_factor=latent_scale(averaged, images.batches.images))
            save_pipeline(config.output_dir, averaged)
            write_json(config.output_dir / SUMMARY, found)  # last: the run is complete
            print(describe_end(config, trainer))
            if measured:
                error, psnr = measured["absolute_error"], measured["psnr"]
                print(f"Held-out images: mean absolute error {error:.4f} of 1, PSNR {psnr:.1f} dB.")
    return found


def train(config: TrainAutoencoderConfig, trainer: Trainer, images: TrainingImages) -> None:
    """The training loop (Rombach et al., section 3.1, without perceptual and adversarial losses)."""
    accelerator, model, device = trainer.accelerator, trainer.model, trainer.accelerator.device
    batch_size, process = config.train_batch_size, accelerator.process_index
    drawn = (batch_size * accelerator.num_processes, slice(batch_size * process, batch_size * (process + 1)))
    for pixels, position in trainer.batches():
        with accelerator.accumulate(model):
            _, _, flips = draw_step(config.seed, position, *drawn, (1, 1, 1), 1, device)
            clean = to_model_range(pixels, device, flips if config.random_flip else None)  # [B,C,H,W] in [-1, 1]
            restored, divergence = model(clean, mixed_seed(config.seed, position, process, 6))
            loss = F.l1_loss(restored.float(), clean) + config.kl_weight * divergence.float()
            accelerator.backward(loss)
            trainer.step(loss)
        measuring, drawing = trainer.due(config.validation_steps), trainer.due(config.sample_steps)
        if measuring or drawing:
            look(config, trainer, images, measuring, drawing)
    trainer.check_stopped()


def look(
    config: TrainAutoencoderConfig, trainer: Trainer, images: TrainingImages, measuring: bool, drawing: bool
) -> Any:
    """Measures and draws with the weights that would be saved, and returns their model."""
    step, averaged = trainer.state["step"], averaged_copy(trainer.bare, trainer.ema)
    if measuring and len(images.validation):
        found = reconstruction_errors(averaged, images.validation)
        trainer.log.write(step, **{f"validation_{name}": value for name, value in found.items()})
    held_out = images.validation if len(images.validation) else images.train_sample
    if drawing and config.num_samples and trainer.accelerator.is_main_process and len(held_out):
        trainer.log.draw(step, draw_reconstructions(averaged, held_out[: config.num_samples]))
    return averaged


if __name__ == "__main__":
    run_script(TrainAutoencoderConfig, train_autoencoder)
