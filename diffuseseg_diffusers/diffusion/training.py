# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A training run: its loop, one optimisation step, measuring and drawing, saving."""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ..features.pixel_unet import image_size
from ..jobs.seeds import mixed_seed
from .batches import ShuffledBatches, StreamedBatches
from .checkpoints import load_checkpoint, save_checkpoint
from .log import TrainingLog, measure
from .objective import averaged_unet, denoising_loss, draw_step, null_condition, sample_images, to_model_range
from .setup import describe_batches, learning_rate_schedule
from .stopping import StopSignal, agree, check_finite, finished


# Losses are read from the device, and processes agree on stopping, once in so many steps: reading waits for the device.
SYNC_STEPS = 10


class Training:
    """A model in training, with its optimizer, averaged weights, batches and log. Subclasses say what it learns.

    Args:
        args (`argparse.Namespace`): The arguments of the script.
        accelerator (`Accelerator`): Of this process.
        unet (`ModelMixin`): What is trained.
        batches ([`ShuffledBatches`] or [`StreamedBatches`]): Training images, or latents of such.
        validation (`torch.Tensor`), train_sample (`torch.Tensor`): `[N, C, H, W]` uint8, or latents in float32, to
            measure on, the first held out.

    Attributes:
        state (`dict`): `step`, `seconds`, `seconds_waiting_for_data`, `unreadable`; what checkpoints keep.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        unet: Any,
        batches: ShuffledBatches | StreamedBatches,
        validation: torch.Tensor,
        train_sample: torch.Tensor,
    ):
        self.args, self.accelerator, self.unet = args, accelerator, unet
        self.batches, self.validation, self.train_sample = batches, validation, train_sample
        self.shape = (unet.config.in_channels, *image_size(unet))
        if args.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        unet.to(accelerator.device, memory_format=torch.channels_last)
        self.ema = None
        if args.use_ema:
            self.ema = EMAModel(
                unet.parameters(),
                decay=args.ema_max_decay,
                use_ema_warmup=True,
                power=args.ema_power,
                foreach=True,
                model_cls=type(unet),
                model_config=unet.config,
            )
        optimizer = torch.optim.AdamW(
            unet.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay, fused=True
        )
        if args.compile:
            unet.compile()
        self.model, self.optimizer = accelerator.prepare(self.whole(), optimizer)
        self.rate_at = learning_rate_schedule(args, self.optimizer)
        torch.set_float32_matmul_precision("high")
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "seconds_waiting_for_data": 0.0, "unreadable": 0}

    def whole(self) -> torch.nn.Module:
        """What a step runs: the model, or a module around it."""
        return self.unet

    def loss(self, pixels: torch.Tensor, position: int, rows: slice) -> torch.Tensor:
        """The loss of a batch, a scalar.

        Args:
            pixels (`torch.Tensor`): `[B, C, H, W]`, of this process.
            position (`int`): Images of all processes before this batch; everything random is a function of it.
            rows (`slice`): Of this process among the images of all.
        """
        raise NotImplementedError

    def look(self, measuring: bool, drawing: bool) -> Any:
        """Measures and draws with the weights that would be saved, and returns those."""
        raise NotImplementedError

    def run(self) -> int:
        """The loop; returns the number of the signal that stopped it, or 0."""
        args, state = self.args, self.state
        show = self.accelerator.is_main_process
        steps = {"total": args.max_train_steps, "initial": state["step"], "unit": "step"}
        progress = tqdm(desc="Training", disable=not show, **steps)
        with StopSignal() as stop, progress as bar:
            stream, last = iter(self.batches), self.finished
            while not last:
                self.optimize(stream)
                bar.update()
                if not self.is_due(stop.alone(self.accelerator)):
                    continue
                stopped, line = self.synchronize(stop.signal)
                bar.set_postfix_str(line)
                last, step = self.finished, state["step"]
                if step % args.checkpointing_steps == 0 or last or stopped:
                    self.save()
                if stopped:
                    return stopped
                measuring = step % args.validation_steps == 0
                drawing = args.num_samples > 0 and step % args.sample_steps == 0
                if (measuring or drawing) and not last:
                    self.look(measuring, drawing)
        return 0

    def resume(self, checkpoint: Path) -> None:
        """Brings the run back to where a checkpoint was made; see [`load_checkpoint`]."""
        self.state |= load_checkpoint(self.accelerator, checkpoint, self.unet, self.ema, self.batches)
        self.accelerator.print(f"Resuming from {checkpoint}.")

    def begin(self) -> None:
        """Starts the clock and the log."""
        self.log = TrainingLog(self.accelerator, self.args, self.state["step"])
        self.before, self.began = dict(self.state), time.perf_counter()
        if self.batches.unreadable:
            self.before["unreadable"] = 0  # all images were decoded, and those counted, anew
        self.window: list[torch.Tensor] = []
        self.window_began = (self.state["step"], self.began)

    @property
    def images_per_pass(self) -> int:
        """Of all processes together."""
        return self.args.train_batch_size * self.accelerator.num_processes

    @property
    def finished(self) -> bool:
        """Whether the steps or minutes that were asked for are over."""
        return finished(self.args, self.state)

    def describe(self) -> str:
        """What is trained on what, in a sentence."""
        args, accelerator, device = self.args, self.accelerator, self.accelerator.device
        return (
            f"{sum(p.numel() for p in self.unet.parameters()) / 1e6:.1f} million parameters; images of "
            f"{' × '.join(map(str, self.shape))}, {describe_batches(self.batches)}, {len(self.validation)} held out by "
            f"this process; {args.train_batch_size} × {accelerator.num_processes} × {args.gradient_accumulation_steps} "
            f"images a step (batch × processes × accumulation); {device.type}"
            + (f", {torch.get_num_threads()} threads" if device.type == "cpu" else "")
            + f"; mixed precision: {accelerator.mixed_precision}."
        )

    def optimize(self, stream) -> None:
        """One optimisation step on the next batches of `[B, C, H, W]` uint8."""
        args, accelerator, state = self.args, self.accelerator, self.state
        device, passes = accelerator.device, args.gradient_accumulation_steps
        first_row = args.train_batch_size * accelerator.process_index
        rows = slice(first_row, first_row + args.train_batch_size)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate_at(state["step"], state["seconds"])
        loss_of_step = torch.zeros((), device=device)
        for _ in range(passes):
            position, asked = self.batches.position, time.perf_counter()
            pixels = next(stream)  # [B,C,H,W] uint8
            state["seconds_waiting_for_data"] += time.perf_counter() - asked
            with accelerator.accumulate(self.model):
                loss = self.loss(pixels, position, rows)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.unet.parameters(), args.max_grad_norm or math.inf)
                self.optimizer.step()
                self.optimizer.zero_grad()
            loss_of_step += loss.detach() / passes
        if self.ema is not None:
            self.ema.step(self.unet.parameters())
        state["step"] += 1
        self.window.append(torch.stack([loss_of_step, norm]))

    def is_due(self, stopping: bool) -> bool:
        """Whether to synchronise after this step; all processes do so at the same steps."""
        args, step = self.args, self.state["step"]
        events = (args.checkpointing_steps, args.validation_steps, args.sample_steps)
        due = any(step % every == 0 for every in events)
        return due or step % SYNC_STEPS == 0 or step == args.max_train_steps or stopping

    def synchronize(self, stop_signal: int) -> tuple[int, str]:
        """Reads the losses of the last steps, checks and logs them.

        Args:
            stop_signal (`int`): The signal that this process got, 0 for none.

        Returns:
            The signal that any process got, and a line for the progress bar.

        Raises:
            NotFiniteError: A loss or gradient is not finite.
        """
        state, now = self.state, time.perf_counter()
        state["seconds"] = self.before["seconds"] + now - self.began
        state["unreadable"] = self.before["unreadable"] + self.batches.unreadable
        losses, stop_signal, state["seconds"] = agree(self.accelerator, self.window, stop_signal, state["seconds"])
        check_finite(self.args, state["step"], losses, self.accelerator.mixed_precision)
        steps, passes = state["step"] - self.window_began[0], self.args.gradient_accumulation_steps
        speed = self.images_per_pass * passes * steps / (now - self.window_began[1])
        mean_loss, mean_norm = losses.mean(0).tolist()
        waited = state["seconds_waiting_for_data"] - self.before["seconds_waiting_for_data"]
        waiting = waited / (now - self.began)
        self.log.write(
            state["step"],
            loss=mean_loss,
            gradient_norm=mean_norm,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            images_per_second=speed,
            waiting_for_data=waiting,
            seconds=state["seconds"],
        )
        self.window, self.window_began = [], (state["step"], now)
        return stop_signal, f"loss {mean_loss:.4f}, {speed:.1f} images/s, {waiting:.1%} waiting for data"

    def save(self) -> None:
        """Writes a checkpoint."""
        folder, limit = self.args.output_dir, self.args.checkpoints_total_limit
        save_checkpoint(self.accelerator, folder, self.state, self.unet, self.ema, self.batches, limit)

    def end(self) -> None:
        """Ends trackers and processes."""
        self.accelerator.wait_for_everyone()
        # DistributedDataParallel has to go before its process group.
        self.model = self.accelerator.free_memory(self.model)[0]
        self.accelerator.end_training()


class DenoiserTraining(Training):
    """A denoiser in training, of pixels or of latents; the other arguments as in [`Training`].

    Args:
        scheduler ([`DDPMScheduler`]): Its noise.
        vae (`AutoencoderKL` or `VQModel`, *optional*): What latents are decoded with, to draw.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        unet: Any,
        scheduler: DDPMScheduler,
        *images: Any,
        vae: torch.nn.Module | None = None,
    ):
        self.scheduler, self.vae = scheduler, vae
        super().__init__(args, accelerator, unet, *images)

    def loss(self, pixels: torch.Tensor, position: int, rows: slice) -> torch.Tensor:
        args, device = self.args, self.accelerator.device
        num_timesteps, total = self.scheduler.config.num_train_timesteps, self.images_per_pass
        noise, timesteps, flips = draw_step(args.seed, position, total, rows, self.shape, num_timesteps, device)
        images = to_model_range(pixels, device, flips if args.random_flip and self.vae is None else None)
        torch.manual_seed(mixed_seed(args.seed, position, self.accelerator.process_index, 3))  # of dropout
        condition = null_condition(self.unet.config, timesteps)
        return denoising_loss(self.model, self.scheduler, images, noise, timesteps, args.snr_gamma, condition)

    def look(self, measuring: bool, drawing: bool) -> Any:
        args, accelerator, step = self.args, self.accelerator, self.state["step"]
        averaged = averaged_unet(self.unet, self.ema)
        if measuring:
            measured = measure(accelerator, args, averaged, self.scheduler, self.validation, self.train_sample)
            self.log.write(step, **measured)
        if drawing and accelerator.is_main_process:
            steps = args.num_inference_steps
            with accelerator.autocast():
                images = sample_images(averaged, self.scheduler, args.num_samples, steps, args.seed, self.vae)
            self.log.draw(step, images)
        self.window_began = (step, time.perf_counter())
        return averaged
