# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains a diffusion model on unlabelled images: `diffuseseg train-ddpm`.

    accelerate launch training/train_ddpm.py --dataset_name DATA --resolution 64 --use_ema --output_dir OUT

`--train_batch_size` is per process: an optimisation step sees `train_batch_size × processes ×
gradient_accumulation_steps` images. The same command line resumes a run that was cut off.
"""

import argparse
import signal
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from diffuseseg_diffusers.arguments import add_cache_argument, add_output_arguments, inputs_of, run_script
from diffuseseg_diffusers.datasets.arguments import read_channels
from diffuseseg_diffusers.datasets.crops import Pictures
from diffuseseg_diffusers.datasets.unlabeled import count_channels, load_unlabeled
from diffuseseg_diffusers.diffusion.arguments import (
    add_image_arguments,
    add_run_arguments,
    add_training_arguments,
    check_training_arguments,
)
from diffuseseg_diffusers.diffusion.checkpoints import save_pipeline
from diffuseseg_diffusers.diffusion.latents import as_latents, as_pipeline, load_autoencoder
from diffuseseg_diffusers.diffusion.log import summary
from diffuseseg_diffusers.diffusion.run import (
    SUMMARY,
    describe_end,
    find_checkpoint,
    is_complete,
    open_output,
    run_settings,
)
from diffuseseg_diffusers.diffusion.setup import make_batches, make_model
from diffuseseg_diffusers.diffusion.training import DenoiserTraining
from diffuseseg_diffusers.diffusion.transformers import DENOISERS
from diffuseseg_diffusers.diffusion.unets import BETA_SCHEDULES, PREDICTION_TYPES
from diffuseseg_diffusers.features.latents import latent_stride
from diffuseseg_diffusers.features.pixel_unet import image_size
from diffuseseg_diffusers.figures.curves import training_curves
from diffuseseg_diffusers.hub.push import add_hub_arguments, finish_push, prepare_push
from diffuseseg_diffusers.images.channels import InputChannels
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.jobs.files import atomic_file, check_output_folder, write_json
from diffuseseg_diffusers.jobs.hardware import default_device, report_processes
from diffuseseg_diffusers.jobs.run import may_resume
from diffuseseg_diffusers.pipelines.loading import load_pipeline


COMMAND = "train-ddpm"
# Options on which the weights depend, beside those of every training.
SETTINGS = ("pretrained", "dropout", "beta_schedule", "prediction_type", "snr_gamma", "vae", "denoiser")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_arguments(parser)
    add_denoiser_arguments(parser)
    add_objective_arguments(parser)
    add_training_arguments(parser)
    add_output_arguments(parser, "the pipeline, checkpoints and samples")
    add_run_arguments(parser)
    add_cache_argument(parser)
    add_hub_arguments(parser)


def add_denoiser_arguments(parser: argparse.ArgumentParser) -> None:
    """Which denoiser."""
    group = parser.add_argument_group("model")
    group.add_argument("--vae", help="Autoencoder whose latents are denoised: a local folder or a name on the Hub.")
    group.add_argument(
        "--denoiser",
        choices=DENOISERS,
        default="unet",
        help="Kind of model: a U-Net, or a transformer (DiT) on square latents (default: unet).",
    )
    model = group.add_mutually_exclusive_group()
    model.add_argument(
        "--model_config", help="Arguments of the model: JSON, YAML, or a folder or Hub name with a U-Net."
    )
    model.add_argument(
        *("--pretrained", "--pretrained_model_name_or_path"),
        help="Pipeline to start from: a local folder or a name on the Hub.",
    )
    model.add_argument("--base_channels", type=int, help="Width of the preset for the resolution.")
    group.add_argument("--dropout", type=float, default=0.0, help="Dropout rate in the residual layers (default: 0).")


def add_objective_arguments(parser: argparse.ArgumentParser) -> None:
    """What it learns."""
    group = parser.add_argument_group("objective")
    group.add_argument("--beta_schedule", choices=list(BETA_SCHEDULES), help="Noise schedule (default: linear).")
    group.add_argument(
        "--prediction_type", choices=PREDICTION_TYPES, help="Quantity that the U-Net predicts (default: epsilon)."
    )
    group.add_argument("--snr_gamma", type=float, help="γ of Min-SNR weighting; 5 is usual (default: no weighting).")


def main(args: argparse.Namespace) -> int:
    # 1. What the run may write to.
    check_training_arguments(args)
    if args.pretrained and (args.beta_schedule or args.prediction_type):
        raise UserError("--pretrained brings its own noise schedule and prediction type; leave the options out.")
    if args.pretrained and args.vae:
        raise UserError("Training of latent models begins anew; leave --pretrained out.")
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
    if accelerator.is_main_process:
        prepare_push(args)

    # 2. Images, still encoded, and the model; its config then says at what size and with how many channels.
    dataset, column = load_unlabeled(
        args.dataset_name,
        args.dataset_config_name,
        args.split,
        args.train_data_dir,
        args.image_column,
        args.streaming,
        **({"cache_dir": args.cache_dir, "revision": args.dataset_revision} if args.dataset_name else {}),
    )
    pretrained = None
    if args.pretrained:
        pretrained = load_pipeline(args.pretrained, device="cpu", dtype="float32", cache_dir=args.cache_dir)
    vae = load_autoencoder(args.vae, args.cache_dir).to(accelerator.device) if args.vae else None
    chosen = channels_of(args, dataset, column, pretrained)
    torch.manual_seed(args.seed)
    count = len(chosen.names) if chosen.names else None
    unet, scheduler = make_model(args, pretrained, vae, lambda: count or count_channels(dataset, column))
    shape = (unet.config.in_channels, *image_size(unet))
    if vae is None:
        images = make_batches(args, dataset, column, shape, chosen)
    else:  # the config is of latents
        size = tuple(side * latent_stride(vae) for side in shape[1:])
        images = make_batches(args, dataset, column, (vae.config.in_channels, *size))
        images = as_latents(vae, *images, mirrored=args.random_flip)
    training = DenoiserTraining(args, accelerator, unet, scheduler, *images, vae=vae)
    accelerator.print(training.describe())

    # 3. Where the run was cut off. All inputs are valid now, so --overwrite costs nothing that is still needed.
    checkpoint = find_checkpoint(args)
    if checkpoint:
        training.resume(checkpoint)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        open_output(args, COMMAND, run_settings(args, SETTINGS), inputs_of(args))
    accelerator.wait_for_everyone()

    # 4. Training, and what is left behind.
    if is_complete(args, training):
        accelerator.print(
            f"The run in {args.output_dir} is complete, {training.state['step']} steps; more of them need a higher "
            f"--max_train_steps or --max_train_minutes."
        )
    else:
        training.begin()
        stopped = training.run()
        if stopped:
            name, step = signal.Signals(stopped).name, training.state["step"]
            accelerator.print(f"Stopped by {name}: step {step} is saved; the same command line resumes.")
            training.end()
            return 128 + stopped
        leave_behind(args, training, chosen)
    training.end()
    if accelerator.is_main_process:
        finish_push(args)
    return 0


def channels_of(args: argparse.Namespace, dataset: Any, column: str, pretrained: Any) -> InputChannels:
    """Which channels of the pictures are trained on, and between which values."""
    known = InputChannels() if pretrained is None else pretrained.channels
    if args.streaming:
        return known
    chosen = read_channels(args, partial(Pictures, dataset, column, args.axes, args.slice_axis), known)
    if args.vae and chosen.config is not None:
        raise UserError("Autoencoders take pictures of eight bits; leave channels and intensities out, or --vae.")
    return chosen


def leave_behind(args: argparse.Namespace, training: DenoiserTraining, channels: InputChannels) -> None:
    """The pipeline, the curves and, last, the summary, which says that the run is complete."""
    accelerator, state, batches = training.accelerator, training.state, training.batches
    averaged = training.look(measuring=True, drawing=args.num_samples > 0)
    if not accelerator.is_main_process:
        return
    save_pipeline(args.output_dir, as_pipeline(averaged, training.scheduler, training.vae, channels))
    with atomic_file(args.output_dir / "training_curves.png") as partial:
        training_curves(training.log.entries).savefig(partial, format="png")
    write_json(args.output_dir / SUMMARY, summary(args, accelerator, state, batches, training.unet, training.log))
    print(describe_end(args, training))


if __name__ == "__main__":
    run_script(__doc__, add_arguments, main)
