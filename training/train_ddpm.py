# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains a diffusion model on unlabelled images: `diffuseseg train-ddpm`.

    accelerate launch training/train_ddpm.py --train_data_dir DATA --resolution 64 --use_ema --max_train_steps 100000 \\
        --output_dir OUT

`--train_batch_size` is per process: an optimisation step sees `train_batch_size × processes ×
gradient_accumulation_steps` images. The same command line resumes a run that was cut off.
"""

from typing import Any

import torch

from diffuseseg_diffusers.diffusion.objective import (
    denoising_loss,
    draw_step,
    measure_losses,
    null_condition,
    sample_images,
    to_model_range,
)
from diffuseseg_diffusers.diffusion.readiness import describe_scores, load_judges, score_features
from diffuseseg_diffusers.diffusion.run import (
    SUMMARY,
    averaged_copy,
    begin,
    describe_end,
    describe_plan,
    make_trainer,
    open_folder,
    summary,
)
from diffuseseg_diffusers.diffusion.setup import (
    Denoiser,
    TrainingImages,
    load_images,
    make_denoiser,
    make_denoiser_images,
)
from diffuseseg_diffusers.figures.curves import training_curves
from diffuseseg_diffusers.hub.push import finish_push, prepare_push
from diffuseseg_diffusers.jobs.command_line import run_script
from diffuseseg_diffusers.jobs.files import atomic_file, read_json, write_json
from diffuseseg_diffusers.jobs.seeds import mixed_seed
from diffuseseg_diffusers.tasks.train_ddpm import TrainDDPMConfig
from diffuseseg_diffusers.trainer.checkpoints import save_pipeline
from diffuseseg_diffusers.trainer.loop import SYNC_STEPS, Trainer


COMMAND = "train-ddpm"


def train_ddpm(config: TrainDDPMConfig) -> dict[str, Any]:
    """Trains a diffusion model on unlabelled images, or resumes its training.

    Returns:
        `dict`: What `training_state.json` in the output folder holds. The folder is a pipeline of diffusers.

    Raises:
        UserError: The images, the model or the folder cannot be used.
        NotFiniteError: The loss is not finite; the last checkpoint is kept.
        StoppedError: SIGTERM or Ctrl-C ended the run; the step is saved, and the same call resumes.

    Examples:
        >>> from diffuseseg_diffusers import TrainDDPMConfig, train_ddpm
        >>> config = TrainDDPMConfig(train_data_dir="my/images", max_train_steps=100_000, output_dir="out/ddpm")
        >>> train_ddpm(config)["denoising_loss"]
    """
    # 1. The images, still encoded, and the model, whose config says at what size and with how many channels.
    accelerator = begin(config, COMMAND)
    if accelerator.is_main_process:
        prepare_push(config)
    dataset, column = load_images(config)
    judges = load_judges(config) if accelerator.is_main_process else None
    denoiser = make_denoiser(config, dataset, column, accelerator.device)
    images = make_denoiser_images(config, dataset, column, denoiser)

    # 2. Training, from where it was cut off, and what it leaves behind.
    trainer = make_trainer(config, accelerator, denoiser.model, images)
    if open_folder(config, COMMAND, trainer, dataset, column):  # complete
        trainer.end()
        found = read_json(config.output_dir / SUMMARY)
    else:
        with trainer:
            train(config, trainer, denoiser, images)
            averaged = look(config, trainer, denoiser, images, measuring=True, drawing=True)
            found = summary(config, trainer)
            if accelerator.is_main_process:
                save_pipeline(config.output_dir, denoiser.pipeline(averaged))
                with atomic_file(config.output_dir / "training_curves.png") as partial:
                    training_curves(trainer.log.entries).savefig(partial, format="png")
                print(describe_end(config, trainer))
                if judges is not None:
                    found["labeled_mean_iou"] = score_features(config, judges)
                    print(describe_scores(found["labeled_mean_iou"]))
                write_json(config.output_dir / SUMMARY, found)  # last: the run is complete
    if accelerator.is_main_process:
        finish_push(config)
    return found


def train(config: TrainDDPMConfig, trainer: Trainer, denoiser: Denoiser, images: TrainingImages) -> None:
    """The training loop (Ho et al., algorithm 1). What is random about a batch depends on the seed and its place in the
    stream of images alone."""
    accelerator, scheduler, model = trainer.accelerator, denoiser.scheduler, trainer.model
    batch_size, device = config.train_batch_size, accelerator.device
    first = batch_size * accelerator.process_index
    drawn = (batch_size * accelerator.num_processes, slice(first, first + batch_size), images.shape)  # all, and mine
    mirrored = config.random_flip and denoiser.vae is None  # latents come mirrored
    told = False
    for pixels, position in trainer.batches():
        with accelerator.accumulate(model):
            steps = scheduler.config.num_train_timesteps
            noise, timesteps, flips = draw_step(config.seed, position, *drawn, steps, device)
            clean = to_model_range(pixels, device, flips if mirrored else None)  # [B,C,H,W] in [-1, 1], or latents
            torch.manual_seed(mixed_seed(config.seed, position, accelerator.process_index, 3))  # of dropout
            noisy = scheduler.add_noise(clean, noise, timesteps)
            condition = null_condition(denoiser.model.config, timesteps)
            prediction = model(noisy, timesteps, **condition, return_dict=False)[0].float()
            loss = denoising_loss(scheduler, prediction, clean, noise, timesteps, config.snr_gamma)
            accelerator.backward(loss)
            trainer.step(loss)
        if not told and trainer.at(SYNC_STEPS):
            told = True
            accelerator.print("\n" + describe_plan(config, trainer, images))
        measuring, drawing = trainer.due(config.validation_steps), trainer.due(config.sample_steps)
        if measuring or drawing:
            look(config, trainer, denoiser, images, measuring, drawing)
    trainer.check_stopped()


def look(
    config: TrainDDPMConfig,
    trainer: Trainer,
    denoiser: Denoiser,
    images: TrainingImages,
    measuring: bool,
    drawing: bool,
) -> Any:
    """Measures and draws with the weights that would be saved, and returns their model."""
    accelerator, scheduler, step = trainer.accelerator, denoiser.scheduler, trainer.state["step"]
    averaged = averaged_copy(denoiser.model, trainer.ema)
    if measuring:
        seen = {"validation": images.validation, "train_sample": images.train_sample}
        found = measure_losses(accelerator, averaged, scheduler, seen, config.train_batch_size, config.seed)
        trainer.log.write(step, **found)
    if drawing and config.num_samples and accelerator.is_main_process:
        with accelerator.autocast():
            how = (config.num_samples, config.num_inference_steps, config.seed, denoiser.vae)
            trainer.log.draw(step, sample_images(averaged, scheduler, *how))
    return averaged


if __name__ == "__main__":
    run_script(TrainDDPMConfig, train_ddpm)
