# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Trains a diffusion model on unlabelled images: `diffuseseg train-ddpm`.

    accelerate launch training/train_ddpm.py --dataset_name DATA --resolution 64 --use_ema --output_dir OUT

`--train_batch_size` is per process: an optimisation step sees `train_batch_size × processes ×
gradient_accumulation_steps` images. `--resume_from_checkpoint latest` goes on where a run was cut off.
"""

import argparse
import json
import math
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration
from datasets import Dataset, IterableDataset
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import SchedulerType, get_scheduler
from diffusers.training_utils import EMAModel
from diffusers.utils import make_image_grid
from tqdm.auto import tqdm

from diffuseseg_diffusers import DiffuseSegPipeline
from diffuseseg_diffusers.data.columns import describe_dataset
from diffuseseg_diffusers.data.unlabeled import RESIZE_MODES, UnlabeledImages, count_channels, load_unlabeled
from diffuseseg_diffusers.diffusion.batches import ShuffledBatches, StreamedBatches
from diffuseseg_diffusers.diffusion.checkpoints import (
    checkpoints,
    load_checkpoint,
    read_log,
    save_checkpoint,
    save_pipeline,
)
from diffuseseg_diffusers.diffusion.objective import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    averaged_unet,
    denoising_loss,
    denoising_losses,
    draw_step,
    sample_images,
    to_model_range,
)
from diffuseseg_diffusers.diffusion.unets import check_trainable, make_unet, preset_config, read_model_config
from diffuseseg_diffusers.features.pixel_unet import image_size
from diffuseseg_diffusers.figures.curves import training_curves
from diffuseseg_diffusers.hub.push import add_hub_arguments, finish_push, prepare_push
from diffuseseg_diffusers.runs.command import run_command
from diffuseseg_diffusers.runs.errors import NotFiniteError, UserError
from diffuseseg_diffusers.runs.files import check_output_folder, write_json
from diffuseseg_diffusers.runs.hardware import default_device, hardware
from diffuseseg_diffusers.runs.seeds import mixed_seed


# Losses are read from the device, and processes agree on stopping, once in so many steps: reading waits for the device.
SYNC_STEPS = 10
SCHEDULE_STEPS = 1_000_000  # resolution of the learning-rate schedule when it runs on time
VALIDATION_IMAGES = 128
OWN_FILES = (
    "checkpoint-*",
    "samples",
    "logs",
    "train_log.jsonl",
    "training_*",
    "unet",
    "scheduler",
    "model_index.json",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset_name", help="Images: a local folder or a Hub name, anything `datasets` loads.")
    source.add_argument("--train_data_dir", help="Images: a folder with pictures anywhere below it.")
    group.add_argument("--dataset_config_name", help="Configuration of the dataset.")
    group.add_argument("--dataset_revision", help="Branch, tag or commit of a dataset on the Hub.")
    group.add_argument("--split", default="train", help="Part of the dataset (default: train).")
    group.add_argument("--image_column", help="Column of images (default: image, or a usual name).")
    group.add_argument("--cache_dir", help="Where `datasets` keeps downloads.")
    group.add_argument("--streaming", action="store_true", help="Read while training; nothing is stored.")
    group.add_argument("--shuffle_buffer_size", type=int, default=1000, help="Of a stream, in images (default: 1000).")
    group.add_argument("--resolution", type=int, nargs="+", help="Side, or height and width, in pixels (default: 64).")
    group.add_argument("--channels", type=int, choices=(1, 3), help="1: grey-scale, 3: RGB (default: as the images).")
    group.add_argument("--resize_mode", choices=RESIZE_MODES, default="crop", help="To the shape (default: crop).")
    group.add_argument("--random_flip", action="store_true", help="Mirror half of the images left to right.")
    group.add_argument("--skip_unreadable", action="store_true", help="Go on without images that cannot be read.")
    group.add_argument(
        "--image_cache_gb",
        type=float,
        help="Decode all images once if they need no more (default: half of the memory).",
    )
    group.add_argument("--dataloader_num_workers", type=int, default=4, help="Decode ahead otherwise (default: 4).")
    group.add_argument(
        "--num_validation_images",
        type=int,
        help=f"Held out to measure on (default: a tenth, at most {VALIDATION_IMAGES}).",
    )
    group = parser.add_argument_group("model")
    model = group.add_mutually_exclusive_group()
    model.add_argument(
        "--model_config", help="UNet2DModel arguments: JSON, YAML, or a folder or Hub name with a U-Net."
    )
    model.add_argument("--pretrained", help="Go on from this pipeline: a local folder or a Hub name.")
    model.add_argument("--base_channels", type=int, help="Width of the preset for the resolution.")
    group.add_argument("--dropout", type=float, default=0.0, help="In the residual layers (default: 0).")
    group = parser.add_argument_group("objective")
    group.add_argument("--beta_schedule", choices=list(BETA_SCHEDULES), help="Noise schedule (default: linear).")
    group.add_argument("--prediction_type", choices=PREDICTION_TYPES, help="What is predicted (default: epsilon).")
    group.add_argument("--snr_gamma", type=float, help="Min-SNR weighting; 5 is usual (default: none).")
    group = parser.add_argument_group("training")
    group.add_argument("--train_batch_size", type=int, default=32, help="Images per process and pass (default: 32).")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="Passes in a step (default: 1).")
    group.add_argument("--max_train_steps", type=int, help="Optimisation steps, with those before resuming.")
    group.add_argument("--max_train_minutes", type=float, help="Minutes of training, with those before resuming.")
    group.add_argument("--learning_rate", type=float, default=2e-4, help="Of AdamW (default: 2e-4).")
    group.add_argument(
        "--lr_scheduler",
        choices=[s.value for s in SchedulerType if s is not SchedulerType.PIECEWISE_CONSTANT],
        default="constant",
        help="Of the learning rate after the warm-up, over the steps or minutes of the run (default: constant).",
    )
    group.add_argument("--lr_warmup_steps", type=int, default=200, help="Learning rate from 0 (default: 200 steps).")
    group.add_argument("--adam_weight_decay", type=float, default=0.0, help="(default: 0)")
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="Clip gradients; 0: do not (default: 1).")
    group.add_argument("--use_ema", action="store_true", help="Keep averaged weights, and save them in the end.")
    group.add_argument("--ema_max_decay", type=float, default=0.9999, help="Of the average (default: 0.9999).")
    group.add_argument("--ema_power", type=float, default=0.75, help="Warm-up 1 - step^-power (default: 0.75).")
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), help="(default: as Accelerate is set up)")
    group.add_argument("--gradient_checkpointing", action="store_true", help="Less memory, more time.")
    group.add_argument("--compile", action="store_true", help="torch.compile the U-Net.")
    group.add_argument("--seed", type=int, default=0, help="Of weights, order, noise and timesteps (default: 0).")
    group = parser.add_argument_group("output")
    group.add_argument("--output_dir", type=Path, required=True, help="For the pipeline, checkpoints and pictures.")
    group.add_argument("--overwrite", action="store_true", help="Delete the run that is in the output folder.")
    group.add_argument("--checkpointing_steps", type=int, default=500, help="Steps between checkpoints (default: 500).")
    group.add_argument("--checkpoints_total_limit", type=int, default=3, help="Keep so many (default: 3).")
    group.add_argument("--resume_from_checkpoint", help='A checkpoint folder, or "latest".')
    group.add_argument("--validation_steps", type=int, default=1000, help="Steps between measurements (default: 1000).")
    group.add_argument("--sample_steps", type=int, default=1000, help="Steps between sample grids (default: 1000).")
    group.add_argument("--num_samples", type=int, default=16, help="Images in a grid; 0: none (default: 16).")
    group.add_argument("--num_inference_steps", type=int, default=50, help="DDIM steps of a sample (default: 50).")
    group.add_argument("--report_to", nargs="+", help="Trackers: tensorboard, wandb, …, or all.")
    add_hub_arguments(parser)


def check_arguments(args: argparse.Namespace) -> None:
    if args.max_train_steps is None and args.max_train_minutes is None:
        raise UserError("How long? Give --max_train_steps, --max_train_minutes, or both (what comes first ends it).")
    if args.streaming and args.train_data_dir:
        raise UserError("A folder of pictures is read as it is; --streaming is for --dataset_name.")
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


def main(args: argparse.Namespace) -> int | None:
    # 1. Where the run goes, and where it goes on from.
    check_arguments(args)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        cpu=default_device().type == "cpu",
        log_with=args.report_to,
        project_config=ProjectConfiguration(str(args.output_dir), logging_dir=str(args.output_dir / "logs")),
    )
    device = accelerator.device
    if accelerator.is_main_process:
        prepare_push(args)
        prepare_output_folder(args)
    accelerator.wait_for_everyone()
    resume_from = find_checkpoint(args)

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
    torch.manual_seed(args.seed)
    unet, scheduler = make_model(args, lambda: count_channels(dataset, column))
    shape = (unet.config.in_channels, *image_size(unet))
    batches, validation, train_sample = make_batches(args, dataset, column, shape)

    # 3. What trains it.
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    unet.to(device, memory_format=torch.channels_last)
    ema = None
    if args.use_ema:
        ema = EMAModel(
            unet.parameters(),
            decay=args.ema_max_decay,
            use_ema_warmup=True,
            power=args.ema_power,
            foreach=True,
            model_cls=UNet2DModel,
            model_config=unet.config,
        )
    optimizer = torch.optim.AdamW(
        unet.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay, fused=True
    )
    if args.compile:
        unet.compile()
    model, optimizer = accelerator.prepare(unet, optimizer)
    rate_at = learning_rate_schedule(args, optimizer)
    torch.set_float32_matmul_precision("high")
    accelerator.print(
        f"{sum(p.numel() for p in unet.parameters()) / 1e6:.1f} million parameters; images of "
        f"{' × '.join(map(str, shape))}, {describe(batches)}, {len(validation)} held out by this process; "
        f"{args.train_batch_size} × {accelerator.num_processes} × {args.gradient_accumulation_steps} images a step "
        f"(batch × processes × accumulation); {device.type}"
        + (f", {torch.get_num_threads()} threads" if device.type == "cpu" else "")
        + f"; mixed precision: {accelerator.mixed_precision}."
    )
    run = {"step": 0, "seconds": 0.0, "seconds_waiting_for_data": 0.0, "unreadable": 0}
    if resume_from is not None:
        run |= load_checkpoint(accelerator, resume_from, unet, ema, batches)
        accelerator.print(f"Going on from {resume_from}.")
    log = Log(accelerator, args, run["step"])

    # 4. Training.
    def save() -> None:
        save_checkpoint(accelerator, args.output_dir, run, unet, ema, batches, args.checkpoints_total_limit)

    def look(averaged: UNet2DModel, measuring: bool, drawing: bool) -> None:
        """Measures and draws with the weights that would be saved."""
        if measuring:
            log.write(run["step"], **measure(accelerator, args, averaged, scheduler, validation, train_sample))
        if drawing and accelerator.is_main_process:
            with accelerator.autocast():
                images = sample_images(averaged, scheduler, args.num_samples, args.num_inference_steps, args.seed)
            log.draw(run["step"], images)

    def end() -> None:
        nonlocal model
        accelerator.wait_for_everyone()
        model = accelerator.free_memory(model)[0]  # DistributedDataParallel has to go before its process group
        accelerator.end_training()

    passes = args.gradient_accumulation_steps
    total = args.train_batch_size * accelerator.num_processes
    first_row = args.train_batch_size * accelerator.process_index
    rows = slice(first_row, first_row + args.train_batch_size)
    num_timesteps = scheduler.config.num_train_timesteps
    before, began = dict(run), time.perf_counter()
    if batches.unreadable:
        before["unreadable"] = 0  # all images were decoded, and those counted, anew
    window, window_began = [], (run["step"], began)
    last = finished(args, run)
    progress = tqdm(
        total=args.max_train_steps,
        initial=run["step"],
        desc="Training",
        unit="step",
        disable=not accelerator.is_main_process,
    )
    with StopSignal() as stop, progress as bar:
        stream = iter(batches)
        while not last:
            # One optimisation step.
            for group in optimizer.param_groups:
                group["lr"] = rate_at(run["step"], run["seconds"])
            loss_of_step = torch.zeros((), device=device)
            for _ in range(passes):
                position, asked = batches.position, time.perf_counter()
                pixels = next(stream)  # [B,C,H,W] uint8
                run["seconds_waiting_for_data"] += time.perf_counter() - asked
                noise, timesteps, flips = draw_step(args.seed, position, total, rows, shape, num_timesteps, device)
                images = to_model_range(pixels, device, flips if args.random_flip else None)
                torch.manual_seed(mixed_seed(args.seed, position, accelerator.process_index, 3))  # of dropout
                with accelerator.accumulate(model):
                    loss = denoising_loss(model, scheduler, images, noise, timesteps, args.snr_gamma)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(unet.parameters(), args.max_grad_norm or math.inf)
                    optimizer.step()
                    optimizer.zero_grad()
                loss_of_step += loss.detach() / passes
            if ema is not None:
                ema.step(unet.parameters())
            run["step"] += 1
            window.append(torch.stack([loss_of_step, norm]))
            bar.update()

            # Every few steps: what the losses were, and whether to stop. All processes do this at the same steps.
            step = run["step"]
            events = (args.checkpointing_steps, args.validation_steps, args.sample_steps)
            due = any(step % every == 0 for every in events)
            if not (due or step % SYNC_STEPS == 0 or step == args.max_train_steps or stop.alone(accelerator)):
                continue
            now = time.perf_counter()
            run["seconds"] = before["seconds"] + now - began
            run["unreadable"] = before["unreadable"] + batches.unreadable
            losses, stop_now, run["seconds"] = agree(accelerator, window, stop.signal, run["seconds"])
            check_finite(args, step, losses, accelerator.mixed_precision)
            speed = total * passes * (step - window_began[0]) / (now - window_began[1])
            mean_loss, mean_norm = losses.mean(0).tolist()
            waiting = (run["seconds_waiting_for_data"] - before["seconds_waiting_for_data"]) / (now - began)
            log.write(
                step,
                loss=mean_loss,
                gradient_norm=mean_norm,
                learning_rate=optimizer.param_groups[0]["lr"],
                images_per_second=speed,
                waiting_for_data=waiting,
                seconds=run["seconds"],
            )
            bar.set_postfix_str(f"loss {mean_loss:.4f}, {speed:.1f} images/s, {waiting:.1%} waiting for data")
            window, window_began = [], (step, now)
            last = finished(args, run)
            if step % args.checkpointing_steps == 0 or last or stop_now:
                save()
            if stop_now:
                bar.close()  # before the message
                accelerator.print(
                    f"Stopped by {signal.Signals(stop_now).name}: step {step} is saved, go on with "
                    f"--resume_from_checkpoint latest."
                )
                end()
                return 128 + stop_now
            measuring = step % args.validation_steps == 0
            drawing = args.num_samples > 0 and step % args.sample_steps == 0
            if (measuring or drawing) and not last:
                look(averaged_unet(unet, ema), measuring, drawing)
                window_began = (step, time.perf_counter())
        del stream  # and its worker processes

    # 5. What is left behind.
    averaged = averaged_unet(unet, ema)
    look(averaged, measuring=True, drawing=args.num_samples > 0)
    if accelerator.is_main_process:
        save_pipeline(args.output_dir, averaged, scheduler)
        write_json(args.output_dir / "training_state.json", summary(args, accelerator, run, batches, unet, log))
        training_curves(log.entries).savefig(args.output_dir / "training_curves.png")
        waited = run["seconds_waiting_for_data"] / run["seconds"] if run["seconds"] else 0
        print(
            f"{run['step']} steps, {batches.position} images in {run['seconds'] / 60:.1f} minutes, {waited:.1%} of it "
            f"waiting for data; the pipeline is in {args.output_dir}."
        )
        if run["unreadable"]:
            print(f"{run['unreadable']} times a picture could not be read and was skipped.")
    end()
    if accelerator.is_main_process:
        finish_push(args)


def prepare_output_folder(args: argparse.Namespace) -> None:
    if args.resume_from_checkpoint is None:
        check_output_folder(args.output_dir, args.overwrite)
        for pattern in OWN_FILES:  # and nothing else that may be there
            for old in args.output_dir.glob(pattern):
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for leftover in args.output_dir.glob(".*.partial"):  # of a run that was killed while saving
        shutil.rmtree(leftover)


def find_checkpoint(args: argparse.Namespace) -> Path | None:
    if args.resume_from_checkpoint != "latest":
        return Path(args.resume_from_checkpoint) if args.resume_from_checkpoint else None
    found = checkpoints(args.output_dir)
    # The same command line begins a run and, started again after it was cut off, goes on with it.
    return found[-1] if found else None


def make_model(args: argparse.Namespace, count_channels: Callable[[], int]) -> tuple[UNet2DModel, DDPMScheduler]:
    """The U-Net, fresh or pretrained, whose config says size and channels of the images, and its scheduler."""
    size = tuple(args.resolution * 2 if len(args.resolution) == 1 else args.resolution) if args.resolution else None
    if args.pretrained:
        pipe = DiffuseSegPipeline.from_pretrained(args.pretrained, segmentation_head=None)
        unet, scheduler = pipe.unet, DDPMScheduler.from_config(pipe.scheduler.config)
        if args.channels not in (None, unet.config.in_channels):
            raise UserError(f"{args.pretrained} has {unet.config.in_channels} channels, not {args.channels}.")
        if size:
            unet.register_to_config(sample_size=size[0] if size[0] == size[1] else list(size))
        check_trainable(unet)
        for module in unet.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = args.dropout
        return unet, scheduler
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
    scheduler = DDPMScheduler(
        beta_schedule=BETA_SCHEDULES[args.beta_schedule or "linear"],
        prediction_type=args.prediction_type or "epsilon",
    )
    return make_unet(config), scheduler


def make_batches(
    args: argparse.Namespace, dataset: Dataset | IterableDataset, column: str, shape: tuple[int, int, int]
) -> tuple[ShuffledBatches | StreamedBatches, torch.Tensor, torch.Tensor]:
    """Training batches; and of the validation images, and of as many training images, the share of this process."""
    state = PartialState()
    channels, *size = shape
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
        images = UnlabeledImages(dataset, column, size, channels, **options)
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


def describe(batches: ShuffledBatches | StreamedBatches) -> str:
    if isinstance(batches, StreamedBatches):
        return "streamed"
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


def finished(args: argparse.Namespace, run: dict) -> bool:
    return run["step"] >= (args.max_train_steps or math.inf) or run["seconds"] >= 60 * (
        args.max_train_minutes or math.inf
    )


class StopSignal:
    """SIGTERM (a machine that goes away) and Ctrl-C end the run after the step; a second one at once."""

    def __init__(self):
        self.signal = 0

    def __enter__(self) -> "StopSignal":
        self._before = {s: signal.signal(s, self._remember) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def alone(self, accelerator: Accelerator) -> bool:
        """Whether to stop without asking other processes, because there are none."""
        return bool(self.signal) and accelerator.num_processes == 1


def agree(
    accelerator: Accelerator, window: list[torch.Tensor], stop_signal: int, seconds: float
) -> tuple[torch.Tensor, int, float]:
    """Losses and gradient norms of the last steps, `[steps, 2]`; the signal that any process got; the longest time."""
    losses = torch.stack(window).float()
    if accelerator.num_processes == 1:
        return losses.cpu(), stop_signal, seconds
    losses = accelerator.reduce(losses, "mean")
    state = torch.tensor([[float(stop_signal), seconds]], device=accelerator.device)
    signals, times = accelerator.gather(state).max(0).values.tolist()
    return losses.cpu(), int(signals), times


def check_finite(args: argparse.Namespace, step: int, losses: torch.Tensor, mixed_precision: str) -> None:
    # In float16 the gradient scaler meets infinite gradients and passes over their steps by itself.
    watched = losses[:, :1] if mixed_precision == "fp16" else losses
    bad = (~watched.isfinite().all(1)).nonzero().flatten()
    if len(bad):
        kept = checkpoints(args.output_dir)
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"
        raise NotFiniteError(
            f"The loss or gradient of step {step - len(losses) + 1 + int(bad[0])} is not finite; {last}. A lower "
            f"--learning_rate, --mixed_precision no or bf16, or doing without --compile may help."
        )


def measure(
    accelerator: Accelerator,
    args: argparse.Namespace,
    unet: UNet2DModel,
    scheduler: DDPMScheduler,
    validation: torch.Tensor,
    train_sample: torch.Tensor,
) -> dict[str, list[float]]:
    """Denoising loss by range of timesteps, on held-out images and on as many of the training images."""
    losses = {}
    for name, pixels in (("validation", validation), ("train_sample", train_sample)):
        with accelerator.autocast():
            seed = mixed_seed(args.seed, accelerator.process_index, 5)
            mine = denoising_losses(unet, scheduler, pixels, args.train_batch_size, seed)  # [10]
        weighted = torch.cat([mine.nan_to_num() * len(pixels), torch.tensor([len(pixels)])]).float()
        *sums, count = accelerator.reduce(weighted.to(accelerator.device), "sum").tolist()
        if count:
            losses[name] = [s / count for s in sums]
    return losses


class Log:
    """What the run tells: a line of JSON for each entry, the trackers, and the sample grids."""

    def __init__(self, accelerator: Accelerator, args: argparse.Namespace, step: int):
        self.accelerator, self.tracked = accelerator, bool(args.report_to)
        self.path, self.samples = args.output_dir / "train_log.jsonl", args.output_dir / "samples"
        self.entries = read_log(self.path, step)
        if accelerator.is_main_process:
            self.path.write_text("".join(json.dumps(e) + "\n" for e in self.entries), encoding="utf-8")
        if self.tracked:
            config = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in vars(args).items()}
            accelerator.init_trackers("train_ddpm", config)

    def write(self, step: int, **values) -> None:
        if not values:
            return
        self.entries.append({"step": step, **values})
        if self.accelerator.is_main_process:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(self.entries[-1]) + "\n")
        if self.tracked:
            flat = {}
            for name, value in values.items():
                if isinstance(value, list):
                    flat[f"{name}/mean"] = sum(value) / len(value)
                    flat |= {f"{name}/timesteps_{i}": v for i, v in enumerate(value)}
                else:
                    flat[name] = value
            self.accelerator.log(flat, step=step)

    def draw(self, step: int, images: list[PIL.Image.Image]) -> None:
        """A grid as a picture file and in the trackers."""
        self.samples.mkdir(exist_ok=True)
        columns = math.ceil(math.sqrt(len(images)))
        blank = PIL.Image.new(images[0].mode, images[0].size)
        padded = images + [blank] * (-len(images) % columns)
        grid = make_image_grid(padded, len(padded) // columns, columns)
        grid.save(self.samples / f"step-{step:06d}.png")
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                order = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"samples": np.asarray(grid.convert("RGB"))[None]}, step=step, **order)


def summary(
    args: argparse.Namespace,
    accelerator: Accelerator,
    run: dict,
    batches: ShuffledBatches | StreamedBatches,
    unet: UNet2DModel,
    log: Log,
) -> dict:
    trained = [e for e in log.entries if "loss" in e]
    measured = [e for e in log.entries if "validation" in e]
    return {
        **{k: round(v, 2) if isinstance(v, float) else v for k, v in run.items() if k != "unet"},
        "images_seen": batches.position,
        "images_per_second": round(batches.position / run["seconds"], 2) if run["seconds"] else None,
        "parameters": sum(p.numel() for p in unet.parameters()),
        "loss": trained[-1]["loss"] if trained else None,
        "denoising_loss": {k: measured[-1][k] for k in ("validation", "train_sample")} if measured else None,
        "dataset": describe_dataset(args.dataset_name or args.train_data_dir, args.dataset_config_name, args.split),
        "device": str(accelerator.device),
        "hardware": hardware(accelerator.device),
        "num_processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if not callable(v)},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parsed = parser.parse_args()
    run_command(lambda: main(parsed))
