# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains an autoencoder for latent diffusion on unlabelled images: `diffuseseg train-autoencoder`.

    accelerate launch training/train_autoencoder.py --dataset_name DATA --resolution 64 --output_dir OUT

The same command line resumes a run that was cut off. `train-ddpm --vae OUT` trains a denoiser on its latents.
"""

import argparse
import signal

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from diffuseseg_diffusers.arguments import (
    add_cache_argument,
    add_output_arguments,
    check_at_least_one,
    inputs_of,
    run_script,
)
from diffuseseg_diffusers.datasets.unlabeled import count_channels, load_unlabeled
from diffuseseg_diffusers.diffusion.arguments import (
    add_image_arguments,
    add_run_arguments,
    add_training_arguments,
    check_training_arguments,
)
from diffuseseg_diffusers.diffusion.autoencoder import AutoencoderTraining, make_autoencoder
from diffuseseg_diffusers.diffusion.checkpoints import save_pipeline
from diffuseseg_diffusers.diffusion.log import summary
from diffuseseg_diffusers.diffusion.run import (
    SUMMARY,
    describe_end,
    find_checkpoint,
    is_complete,
    open_output,
    run_settings,
)
from diffuseseg_diffusers.diffusion.setup import make_batches
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.files import check_output_folder, write_json
from diffuseseg_diffusers.jobs.hardware import default_device, report_processes
from diffuseseg_diffusers.jobs.run import may_resume


COMMAND = "train-autoencoder"
SETTINGS = ("latent_channels", "downsample", "base_channels", "kl_weight")
DOWNSAMPLE = (2, 4, 8)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_arguments(parser)
    group = parser.add_argument_group("model")
    group.add_argument("--latent_channels", type=int, default=4, help="Channels of the latents (default: 4).")
    group.add_argument(
        "--downsample",
        type=int,
        choices=DOWNSAMPLE,
        default=4,
        help="Pixels of the image for one of the latents, along each axis (default: 4).",
    )
    group.add_argument("--base_channels", type=int, default=32, help="Width of the finest level (default: 32).")
    group.add_argument(
        "--kl_weight", type=float, default=1e-6, help="Weight of the latents' divergence from a normal (default: 1e-6)."
    )
    add_training_arguments(parser)
    add_output_arguments(parser, "the autoencoder, checkpoints and reconstructions")
    add_run_arguments(parser)
    add_cache_argument(parser)


def main(args: argparse.Namespace) -> int:
    # 1. What the run may write to.
    check_training_arguments(args)
    check_at_least_one(args, "latent_channels", "base_channels")
    if args.input_channels or args.intensity_window or args.intensity_percentiles:
        raise UserError("Autoencoders take pictures of eight bits; leave channels and intensities out.")
    if args.streaming:
        raise UserError("The scale of latents is measured on images at hand; leave --streaming out.")
    if args.overwrite or not may_resume(args.output_dir, COMMAND):
        check_output_folder(args.output_dir, args.overwrite)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        cpu=default_device().type == "cpu",
        log_with=args.report_to,
        project_config=ProjectConfiguration(str(args.output_dir), logging_dir=str(args.output_dir / "logs")),
    )
    report_processes(accelerator)

    # 2. Images and the model.
    where = {"cache_dir": args.cache_dir, "revision": args.dataset_revision} if args.dataset_name else {}
    dataset, column = load_unlabeled(
        args.dataset_name, args.dataset_config_name, args.split, args.train_data_dir, args.image_column, **where
    )
    resolution = args.resolution or [64]
    size = (resolution[0], resolution[-1])
    if any(side % args.downsample for side in size):
        raise UserError(f"--resolution must be a multiple of --downsample {args.downsample}, got {resolution}.")
    channels = args.channels or count_channels(dataset, column)
    torch.manual_seed(args.seed)
    vae = make_autoencoder(size, channels, args.latent_channels, args.downsample, args.base_channels)
    training = AutoencoderTraining(args, accelerator, vae, *make_batches(args, dataset, column, (channels, *size)))
    accelerator.print(training.describe())

    # 3. Where the run was cut off.
    checkpoint = find_checkpoint(args)
    if checkpoint:
        training.resume(checkpoint)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        open_output(args, COMMAND, run_settings(args, SETTINGS), inputs_of(args))
    accelerator.wait_for_everyone()

    # 4. Training, and what is left behind.
    if is_complete(args, training):
        accelerator.print(f"The run in {args.output_dir} is complete, {training.state['step']} steps.")
        training.end()
        return 0
    training.begin()
    stopped = training.run()
    if stopped:
        name, step = signal.Signals(stopped).name, training.state["step"]
        accelerator.print(f"Stopped by {name}: step {step} is saved; the same command line resumes.")
        training.end()
        return 128 + stopped
    averaged = training.look(measuring=True, drawing=args.num_samples > 0)
    if accelerator.is_main_process:
        averaged.register_to_config(scaling_factor=training.scaling_factor(averaged))
        save_pipeline(args.output_dir, averaged)
        said = summary(args, accelerator, training.state, training.batches, training.unet, training.log)
        measured = training.errors(averaged, training.validation) if len(training.validation) else None
        write_json(args.output_dir / SUMMARY, {**said, "reconstruction": measured})
        print(describe_end(args, training))
        if measured:
            error, psnr = measured["absolute_error"], measured["psnr"]
            print(f"Of held-out images: mean absolute error {error:.4f} of 1, PSNR {psnr:.1f} dB.")
    training.end()
    return 0


if __name__ == "__main__":
    run_script(__doc__, add_arguments, main)
