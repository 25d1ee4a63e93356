# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The training loop: batches, optimizer steps, averaged weights, log, checkpoints and stop signals."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm

from ..jobs.errors import StoppedError
from .checkpoints import checkpoints, load_checkpoint, save_checkpoint
from .log import TrainingLog
from .schedule import Plan
from .stopping import StopSignal, agree, check_finite


# Losses are read from the device, and processes agree on stopping, once in so many steps: reading waits for the device.
SYNC_STEPS = 10


class Trainer:
    """A model in training. The loss is the caller's, everything around it is here.

    Args:
        accelerator (`Accelerator`): Of this process.
        folder (`Path`): The run's folder, for log and checkpoints.
        model (`torch.nn.Module`): What is trained, in place.
        optimizer (`torch.optim.Optimizer`): Of its parameters; groups may have a `share` of the learning rate.
        stream: Batches without end when iterated, with `position` (images of all processes so far), `unreadable`,
            `state_dict` and `load_state_dict`, such as [`ShuffledBatches`].
        learning_rate (`Callable[[int, float], float]`): By step and second.
        plan ([`Plan`]): How long, and what happens when.
        ema (`EMAModel`, *optional*): Averages the weights.
        around (`torch.nn.Module`, *optional*): A module around the model that is called in its place.
        settings (mapping, *optional*): Values that trackers show.

    Attributes:
        model: What the caller's loss runs, prepared by Accelerate.
        state (`dict`): `step`, `seconds`, `seconds_waiting_for_data`, `unreadable`, and what the caller adds, as JSON
            holds it; checkpoints keep it.

    Examples:
        >>> with trainer:
        ...     for images, position in trainer.batches():
        ...         with accelerator.accumulate(trainer.model):
        ...             loss = F.mse_loss(trainer.model(images), images)
        ...             accelerator.backward(loss)
        ...             trainer.step(loss)
        ...     trainer.check_stopped()
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        stream: Any,
        learning_rate: Callable[[int, float], float],
        plan: Plan,
        ema: EMAModel | None = None,
        around: torch.nn.Module | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        self.accelerator, self.folder, self.stream, self.plan, self.ema = accelerator, folder, stream, plan, ema
        self.bare, self.settings, self.learning_rate = model, settings or {}, learning_rate
        self.model, self.optimizer = accelerator.prepare(model if around is None else around, optimizer)
        self.state: dict[str, Any] = {"step": 0, "seconds": 0.0, "seconds_waiting_for_data": 0.0, "unreadable": 0}
        self.signal, self._stop = 0, StopSignal()
        self._loss, self._window = torch.zeros((), device=accelerator.device), []  # of the step; of those not read yet

    def resume(self, checkpoint: Path) -> None:
        """Brings the run back to where a checkpoint was made; see [`load_checkpoint`]."""
        self.state |= load_checkpoint(self.accelerator, checkpoint, self.bare, self.ema, self.stream)
        self.accelerator.print(f"Resuming from {checkpoint}.")

    def __enter__(self) -> Self:
        self.log = TrainingLog(self.accelerator, self.folder, self.state["step"], self.settings)
        self._before, self._began = dict(self.state), time.perf_counter()
        if self.stream.unreadable:
            self._before["unreadable"] = 0  # all images were decoded, and those counted, anew
        show = {"total": self.plan.max_steps, "initial": self.state["step"], "unit": "step"}
        self._bar = tqdm(desc="Training", disable=not self.accelerator.is_main_process, **show)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._stop.restore()
        self._bar.close()
        if kind in (None, StoppedError):
            self.end()

    def end(self) -> None:
        """Ends trackers and processes; called when the context ends."""
        self.accelerator.wait_for_everyone()
        # DistributedDataParallel has to go before its process group.
        self.model = self.accelerator.free_memory(self.model)[0]
        self.accelerator.end_training()

    @property
    def finished(self) -> bool:
        """Whether the steps or minutes of the plan are over."""
        return self.plan.is_over(self.state)

    def batches(self) -> Iterator[tuple[Any, int]]:
        """Yields batches, each with the number of images of all processes before it, until the run ends.

        SIGTERM and Ctrl-C end it after the step, which is saved; see [`Trainer.check_stopped`].
        """
        stream, state = iter(self.stream), self.state
        self._stop.listen()
        while not (self.finished or self.signal):
            if not self._window:
                self._window_began = (self.stream.position, time.perf_counter())
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate(state["step"], state["seconds"]) * group.get("share", 1.0)
            for _ in range(self.accelerator.gradient_accumulation_steps):
                position, asked = self.stream.position, time.perf_counter()
                batch = next(stream)
                state["seconds_waiting_for_data"] += time.perf_counter() - asked
                yield batch, position
        self._stop.restore()
        self._bar.close()

    def step(self, loss: torch.Tensor) -> None:
        """Updates the weights once a step's gradients are all there; then logs and saves what is due.

        The scalar loss is of this batch; `accelerator.backward(loss)` has been called.

        Raises:
            NotFiniteError: A loss or gradient of the last steps is not finite.
            UserError: A checkpoint cannot be written.
        """
        accelerator, plan = self.accelerator, self.plan
        self._loss = self._loss + loss.detach() / accelerator.gradient_accumulation_steps
        if accelerator.sync_gradients:
            norm = accelerator.clip_grad_norm_(self.bare.parameters(), plan.max_grad_norm or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if not accelerator.sync_gradients:
            return
        if self.ema is not None:
            self.ema.step(self.bare.parameters())
        self.state["step"] += 1
        self._window.append(torch.stack([self._loss, norm]))
        self._loss = torch.zeros_like(self._loss)
        self._bar.update()
        every = plan.checkpointing_steps
        alone = bool(self._stop.signal) and accelerator.num_processes == 1  # nobody else has to be asked
        if self.at(SYNC_STEPS, every, *plan.events) or self.state["step"] == plan.max_steps or alone:
            self._synchronize()
            if every and (self.at(every) or self.finished or self.signal):
                self.save()

    def at(self, *numbers: int | None) -> bool:
        """Whether a step has just ended that is a multiple of one of the numbers."""
        step = self.state["step"]
        return self.accelerator.sync_gradients and any(number and step % number == 0 for number in numbers)

    def due(self, *numbers: int | None) -> bool:
        """The same, except for the last step of the run."""
        return self.at(*numbers) and not (self.finished or self.signal)

    def _synchronize(self) -> None:
        """Reads the losses of the last steps, checks and logs them, and agrees with the other processes on stopping."""
        state, now, (position, began) = self.state, time.perf_counter(), self._window_began
        state["seconds"] = self._before["seconds"] + now - self._began
        state["unreadable"] = self._before["unreadable"] + self.stream.unreadable
        given = (self.accelerator, self._window, self._stop.signal, state["seconds"])
        losses, self.signal, state["seconds"] = agree(*given)
        check_finite(self.folder, state["step"], losses, self.accelerator.mixed_precision)
        mean_loss, mean_norm = losses.mean(0).tolist()
        speed = (self.stream.position - position) / (now - began)
        waiting = (state["seconds_waiting_for_data"] - self._before["seconds_waiting_for_data"]) / (now - self._began)
        self.log.write(
            state["step"],
            loss=mean_loss,
            gradient_norm=mean_norm,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            images_per_second=speed,
            waiting_for_data=waiting,
            seconds=state["seconds"],
        )
        self._window = []
        self._bar.set_postfix_str(f"loss {mean_loss:.4f}, {speed:.1f} images/s, {waiting:.1%} waiting for data")

    def save(self, write: Callable[[Path], None] | None = None) -> None:
        """Writes a checkpoint; `write` adds files to it, see [`save_checkpoint`]."""
        given = (self.state, self.bare, self.ema, self.stream.state_dict(), self.plan.total_limit, write)
        save_checkpoint(self.accelerator, self.folder, *given)

    def check_stopped(self) -> None:
        """Raises [`StoppedError`] if a signal has ended the run; commands exit with 143 for SIGTERM, 130 for Ctrl-C."""
        if self.signal:
            kept = checkpoints(self.folder)
            saved = f"step {int(kept[-1].name.split('-')[1])} is saved" if kept else "nothing is saved yet"
            name = signal.Signals(self.signal).name
            raise StoppedError(f"Stopped by {name}: {saved}; the same command line resumes.", self.signal)
