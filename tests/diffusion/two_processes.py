# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What each of several processes reads, the gradient of a step, and a run of `train_ddpm` with the given arguments.

Used by tests/training/test_train_ddpm.py.
"""

import sys
from itertools import islice
from pathlib import Path

import datasets
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler

from diffuseseg_diffusers.datasets.unlabeled import UnlabeledImages, load_unlabeled
from diffuseseg_diffusers.diffusion.objective import denoising_loss, draw_step, to_model_range
from diffuseseg_diffusers.diffusion.unets import make_unet, read_model_config
from diffuseseg_diffusers.jobs.command_line import config_line, parse
from diffuseseg_diffusers.tasks.train_ddpm import TrainDDPMConfig
from diffuseseg_diffusers.trainer.batches import ShuffledBatches, StreamedBatches
from diffuseseg_diffusers.training.train_ddpm import train_ddpm


def observe(folder: Path) -> dict:
    """Decoded images, the gradient of a step on eight of them, and an epoch of a stream, as this process sees them."""
    accelerator = Accelerator(cpu=True)
    batch_size = 8 // accelerator.num_processes
    dataset, column = load_unlabeled(data_dir=str(folder / "images"))
    pixels, _ = UnlabeledImages(dataset, column, (16, 16), 1).load()
    batches = ShuffledBatches(pixels, batch_size, seed=0)
    torch.manual_seed(0)
    unet = make_unet({**read_model_config(str(folder / "tiny.json")), "in_channels": 1, "out_channels": 1})
    model = accelerator.prepare(unet)
    first = batch_size * accelerator.process_index
    rows = slice(first, first + batch_size)
    noise, timesteps, flips = draw_step(0, 0, 8, rows, (1, 16, 16), 1000, accelerator.device)
    images = to_model_range(next(iter(batches)), accelerator.device, flips)
    scheduler = DDPMScheduler()
    prediction = model(scheduler.add_noise(images, noise, timesteps), timesteps).sample
    accelerator.backward(denoising_loss(scheduler, prediction, images, noise, timesteps))
    gradient = torch.cat([p.grad.flatten() for p in unet.parameters()])

    stream, column = load_unlabeled(str(folder / "parquet"), streaming=True)
    streamed = StreamedBatches(stream, column, (16, 16), 1, 1, seed=0, buffer_size=4)
    own = 40 // accelerator.num_processes  # one epoch
    seen = {batch.numpy().tobytes().hex() for batch in islice(iter(streamed), own)}
    assert len(seen) == own
    return {"gradient": gradient, "pixels": pixels, "streamed": seen, "process": accelerator.process_index}


if __name__ == "__main__":
    data, out, *arguments = sys.argv[1:]
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1
    observed = observe(Path(data))
    torch.save(observed, f"{out}_{observed['process']}.pt")
    train_ddpm(parse(config_line("train_ddpm.py", TrainDDPMConfig), arguments))
