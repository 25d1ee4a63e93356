# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains a diffusion model on unlabelled images: `diffuseseg train-ddpm`.

    accelerate launch training/train_ddpm.py --dataset_name DATA --resolution 64 --use_ema --output_dir OUT

`--train_batch_size` is per process: an optimisation step sees `train_batch_size × processes ×
gradient_accumulation_steps` images. The same command line resumes a run that was cut off.
"""

import argparse
import os
import signal
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration
from diffusers.optimization import SchedulerType
from tqdm.auto import tqdm

from diffuseseg_diffusers.arguments import add_cache_argument, add_output_arguments
from diffuseseg_diffusers.data.unlabeled import RESIZE_MODES, count_channels, load_unlabeled
from diffuseseg_diffusers.diffusion.checkpoints import OWN_FILES, checkpoints, remove_leftovers, save_pipeline
from diffuseseg_diffusers.diffusion.log import summary
from diffuseseg_diffusers.diffusion.setup import VALIDATION_IMAGES, make_batches, make_model
from diffuseseg_diffusers.diffusion.stopping import StopSignal
from diffuseseg_diffusers.diffusion.training import DenoiserTraining
from diffuseseg_diffusers.diffusion.unets import BETA_SCHEDULES, PREDICTION_TYPES
from diffuseseg_diffusers.features.pixel_unet import image_size
from diffuseseg_diffusers.figures.curves import training_curves
from diffuseseg_diffusers.hub.loading import load_pipeline
from diffuseseg_diffusers.hub.push import add_hub_arguments, finish_push, prepare_push
from diffuseseg_diffusers.runs.command import run_command
from diffuseseg_diffusers.runs.errors import UserError
from diffuseseg_diffusers.runs.files import atomic_file, check_output_folder, read_json, write_json, write_record
from diffuseseg_diffusers.runs.hardware import default_device, report_processes
from diffuseseg_diffusers.runs.resuming import may_resume, open_run


COMMAND, LATEST, SUMMARY = "train-ddpm", "latest", "training_state.json"
# Options on which the weights depend; the others (how long, how often, where, on what hardware) may differ on resuming.
SETTINGS = (
    *("dataset_name", "train_data_dir", "dataset_config_name", "dataset_revision", "split", "image_column"),
    *("streaming", "shuffle_buffer_size", "resize_mode", "random_flip", "num_validation_images"),
    *("pretrained", "dropout", "beta_schedule", "prediction_type", "snr_gamma"),
    *("train_batch_size", "gradient_accumulation_steps", "learning_rate", "lr_scheduler", "lr_warmup_steps"),
    *("adam_weight_decay", "max_grad_norm", "use_ema", "ema_max_decay", "ema_power", "seed"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_arguments(parser)
    add_denoiser_arguments(parser)
    add_objective_arguments(parser)
    add_training_arguments(parser)
    add_run_arguments(parser)
    add_cache_argument(parser)
    add_hub_arguments(parser)


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Which images to read, and how."""
    group = parser.add_argument_group("data")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset_name", help="Images: a local folder or a Hub name, anything `datasets` loads.")
    source.add_argument("--train_data_dir", help="Images: a folder with image files anywhere below it.")
    group.add_argument("--dataset_config_name", help="Configuration of the dataset.")
    group.add_argument("--dataset_revision", help="Branch, tag or commit of a dataset on the Hub.")
    group.add_argument("--split", default="train", help="Part of the dataset (default: train).")
    group.add_argument("--image_column", help="Column of images (default: image, or a usual name).")
    group.add_argument("--streaming", action="store_true", help="Reading while training, without storing the dataset.")
    group.add_argument(
        "--shuffle_buffer_size",
        type=int,
        default=1000,
        help="Images in the buffer that shuffles a stream (default: 1000).",
    )
    group.add_argument("--resolution", type=int, nargs="+", help="Side, or height and width, in pixels (default: 64).")
    group.add_argument("--channels", type=int, choices=(1, 3), help="1: grey-scale, 3: RGB (default: as the images).")
    group.add_argument(
        "--resize_mode",
        choices=RESIZE_MODES,
        default="crop",
        help="Treatment of images of other proportions: cut, or padded with black (default: crop).",
    )
    group.add_argument("--random_flip", action="store_true", help="Mirroring of half of the images, left to right.")
    group.add_argument("--skip_unreadable", action="store_true", help="Training without images that cannot be read.")
    group.add_argument(
        "--image_cache_gb",
        type=float,
        help="Memory for decoded images, in GB; those that need more are decoded while training (default: half of the "
        "free memory).",
    )
    group.add_argument(
        "--dataloader_num_workers", type=int, default=4, help="Processes that decode while training (default: 4)."
    )
    group.add_argument(
        "--num_validation_images",
        type=int,
        help=f"Number of images held out to measure on (default: a tenth, at most {VALIDATION_IMAGES}).",
    )


def add_denoiser_arguments(parser: argparse.ArgumentParser) -> None:
    """Which U-Net."""
    group = parser.add_argument_group("model")
    model = group.add_mutually_exclusive_group()
    model.add_argument(
        "--model_config", help="UNet2DModel arguments: JSON, YAML, or a folder or Hub name with a U-Net."
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


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """How it is trained."""
    group = parser.add_argument_group("training")
    group.add_argument("--train_batch_size", type=int, default=32, help="Images per process and pass (default: 32).")
    group.add_argument(
        "--gradient_accumulation_steps", type=int, default=1, help="Passes per optimisation step (default: 1)."
    )
    group.add_argument("--max_train_steps", type=int, help="Number of optimisation steps, with those before resuming.")
    group.add_argument("--max_train_minutes", type=float, help="Minutes of training, with those before resuming.")
    group.add_argument("--learning_rate", type=float, default=2e-4, help="Learning rate of AdamW (default: 2e-4).")
    group.add_argument(
        "--lr_scheduler",
        choices=[s.value for s in SchedulerType if s is not SchedulerType.PIECEWISE_CONSTANT],
        default="constant",
        help="Schedule of the learning rate after the warm-up, over the whole run (default: constant).",
    )
    group.add_argument(
        "--lr_warmup_steps",
        type=int,
        default=200,
        help="Steps over which the learning rate rises from 0 (default: 200).",
    )
    group.add_argument("--adam_weight_decay", type=float, default=0.0, help="Weight decay of AdamW (default: 0).")
    group.add_argument(
        "--max_grad_norm", type=float, default=1.0, help="Norm that gradients are clipped to; 0: none (default: 1)."
    )
    group.add_argument("--use_ema", action="store_true", help="Averaged weights, which the pipeline then has.")
    group.add_argument(
        "--ema_max_decay", type=float, default=0.9999, help="Decay of the average after its warm-up (default: 0.9999)."
    )
    group.add_argument(
        "--ema_power", type=float, default=0.75, help="Power p of its warm-up, 1 - (1 + step)^-p (default: 0.75)."
    )
    group.add_argument(
        "--mixed_precision", choices=("no", "fp16", "bf16"), help="Precision of the passes (default: Accelerate's)."
    )
    group.add_argument(
        "--gradient_checkpointing", action="store_true", help="Recomputation of activations: less memory, more time."
    )
    group.add_argument("--compile", action="store_true", help="Compilation of the U-Net by torch.compile.")
    group.add_argument("--seed", type=int, default=0, help="Seed of weights, order, noise and timesteps (default: 0).")


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Where it goes, and what it tells on the way."""
    group = add_output_arguments(parser, "the pipeline, checkpoints and samples")
    group.add_argument("--checkpointing_steps", type=int, default=500, help="Steps between checkpoints (default: 500).")
    group.add_argument(
        "--checkpoints_total_limit", type=int, default=3, help="Number of checkpoints to keep; 0: all (default: 3)."
    )
    group.add_argument(
        "--resume_from_checkpoint",
        default=LATEST,
        help="Checkpoint to resume from: latest, the newest in the output folder, of the same settings; "
        "or a folder of a checkpoint, whose settings may differ (default: latest).",
    )
    group.add_argument("--validation_steps", type=int, default=1000, help="Steps between measurements (default: 1000).")
    group.add_argument("--sample_steps", type=int, default=1000, help="Steps between sample grids (default: 1000).")
    group.add_argument("--num_samples", type=int, default=16, help="Images in a grid; 0: no grids (default: 16).")
    group.add_argument("--num_inference_steps", type=int, default=50, help="DDIM steps of a sample (default: 50).")
    group.add_argument("--report_to", nargs="+", help="Trackers: tensorboard, wandb, …, or all.")


def check_arguments(args: argparse.Namespace) -> None:
    if args.max_train_steps is None and args.max_train_minutes is None:
        raise UserError("How long? Give --max_train_steps, --max_train_minutes, or both (what comes first ends it).")
    if args.streaming and args.train_data_dir:
        raise UserError("A folder of images is read as it is; --streaming is for --dataset_name.")
    if args.pretrained and (args.beta_schedule or args.prediction_type):
        raise UserError("--pretrained brings its own noise schedule and prediction type; leave the options out.")
    if args.resolution and len(args.resolution) > 2:
        raise UserError(f"--resolution is one side, or height and width; got {len(args.resolution)} numbers.")
    missing = set(args.report_to or ()) - {"all", *(str(tracker) for tracker in get_available_trackers())}
    if missing:
        raise UserError(f"The tracker {' '.join(sorted(missing))} is not installed, or Accelerate does not know it.")
    for name in (
        "max_train_steps",
        "train_batch_size",
        "gradient_accumulation_steps",
        "checkpointing_steps",
        "validation_steps",
        "sample_steps",
    ):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(args, name)}.")


def main(args: argparse.Namespace) -> int:
    # 1. What the run may write to.
    check_arguments(args)
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
    torch.manual_seed(args.seed)
    unet, scheduler = make_model(args, pretrained, lambda: count_channels(dataset, column))
    shape = (unet.config.in_channels, *image_size(unet))
    training = DenoiserTraining(args, accelerator, unet, scheduler, *make_batches(args, dataset, column, shape))
    accelerator.print(training.describe())

    # 3. Where the run was cut off. All inputs are valid now, so --overwrite costs nothing that is still needed.
    checkpoint = find_checkpoint(args)
    if checkpoint:
        training.resume(checkpoint)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        open_output(args)
    accelerator.wait_for_everyone()

    # 4. Training, and what is left behind.
    if is_complete(args, training):
        accelerator.print(
            f"The run in {args.output_dir} is complete, {training.state['step']} steps; more of them need a higher "
            f"--max_train_steps or --max_train_minutes."
        )
    else:
        training.begin()
        stopped = train(args, training)
        if stopped:
            name, step = signal.Signals(stopped).name, training.state["step"]
            accelerator.print(f"Stopped by {name}: step {step} is saved; the same command line resumes.")
            training.end()
            return 128 + stopped
        leave_behind(args, training)
    training.end()
    if accelerator.is_main_process:
        finish_push(args)
    return 0


def leave_behind(args: argparse.Namespace, training: DenoiserTraining) -> None:
    """The pipeline, the curves and, last, the summary, which says that the run is complete."""
    accelerator, state, batches = training.accelerator, training.state, training.batches
    averaged = training.look(measuring=True, drawing=args.num_samples > 0)
    if not accelerator.is_main_process:
        return
    save_pipeline(args.output_dir, averaged, training.scheduler)
    with atomic_file(args.output_dir / "training_curves.png") as partial:
        training_curves(training.log.entries).savefig(partial, format="png")
    write_json(args.output_dir / SUMMARY, summary(args, accelerator, state, batches, training.unet, training.log))
    waited = state["seconds_waiting_for_data"] / state["seconds"] if state["seconds"] else 0
    print(
        f"{state['step']} steps, {batches.position} images in {state['seconds'] / 60:.1f} minutes, "
        f"{waited:.1%} of it waiting for data; the pipeline is in {args.output_dir}."
    )
    if state["unreadable"]:
        print(f"{state['unreadable']} times an image could not be read and was skipped.")


def train(args: argparse.Namespace, training: DenoiserTraining) -> int:
    """The loop; returns the number of the signal that stopped it, or 0."""
    progress = tqdm(
        total=args.max_train_steps,
        initial=training.state["step"],
        desc="Training",
        unit="step",
        disable=not training.accelerator.is_main_process,
    )
    with StopSignal() as stop, progress as bar:
        stream, last = iter(training.batches), training.finished
        while not last:
            training.optimize(stream)
            bar.update()
            if not training.is_due(stop.alone(training.accelerator)):
                continue
            stopped, line = training.synchronize(stop.signal)
            bar.set_postfix_str(line)
            last, step = training.finished, training.state["step"]
            if step % args.checkpointing_steps == 0 or last or stopped:
                training.save()
            if stopped:
                return stopped
            measuring = step % args.validation_steps == 0
            drawing = args.num_samples > 0 and step % args.sample_steps == 0
            if (measuring or drawing) and not last:
                training.look(measuring, drawing)
    return 0


def run_settings(args: argparse.Namespace) -> dict:
    """What must be the same for a run to be resumed; what checkpoints hold, the U-Net's config and the number of
    images, is compared with them."""
    given = {name: value for name, value in vars(args).items() if name in SETTINGS}
    local = {n: os.path.abspath(v) for n, v in given.items() if isinstance(v, str) and os.path.isdir(v)}
    return {**given, **local}


def find_checkpoint(args: argparse.Namespace) -> Path | None:
    """The checkpoint to resume from, if there is one."""
    if args.resume_from_checkpoint != LATEST:
        return Path(args.resume_from_checkpoint)
    found = checkpoints(args.output_dir)
    return found[-1] if found and not args.overwrite else None


def open_output(args: argparse.Namespace) -> None:
    """Begins the run's folder, or resumes in it; on the main process alone."""
    settings, named = run_settings(args), args.resume_from_checkpoint != LATEST
    if named and not args.overwrite and may_resume(args.output_dir, COMMAND):
        write_record(args.output_dir, COMMAND, OWN_FILES, settings)  # the run that is there takes the settings of now
    open_run(args.output_dir, COMMAND, settings, OWN_FILES, args.overwrite)
    remove_leftovers(args.output_dir)


def is_complete(args: argparse.Namespace, training: DenoiserTraining) -> bool:
    """Whether the steps or minutes that were asked for are over, and all that is left behind is there."""
    path = args.output_dir / SUMMARY
    return training.finished and path.is_file() and read_json(path).get("step") == training.state["step"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parsed = parser.parse_args()
    run_command(lambda: main(parsed))
