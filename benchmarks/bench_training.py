# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images a second of `train_ddpm.py` beside a bare loop, and of two processes beside one.

    OMP_NUM_THREADS=1 python benchmarks/bench_training.py

The bare loop draws timesteps and noise, and does nothing else but forward, backward, clipping and the optimiser's step
on one batch that lies in memory: same U-Net, batch, precision and memory layout. The two take turns in one process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import DDPMScheduler

from diffuseseg_diffusers.datasets.drawn_faces import draw_face
from diffuseseg_diffusers.diffusion.objective import denoising_loss
from diffuseseg_diffusers.diffusion.unets import make_unet, read_model_config
from diffuseseg_diffusers.jobs.command import keep_freed_memory
from diffuseseg_diffusers.jobs.hardware import default_device
from diffuseseg_diffusers.training import train_ddpm


ROOT = Path(__file__).parent.parent


def arguments(args, data: Path, out: Path) -> list[str]:
    return [
        *("--train_data_dir", str(data), "--model_config", args.model_config, "--train_batch_size", str(args.batch)),
        *("--max_train_steps", str(args.steps), "--mixed_precision", args.mixed_precision, "--num_samples", "0"),
        *("--num_validation_images", "0", "--output_dir", str(out), "--random_flip"),
        *(["--use_ema"] if args.use_ema else []),
    ]


def logged(out: Path) -> list[float]:
    """Images a second of each ten steps, without the first ten."""
    lines = (out / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line)["images_per_second"] for line in lines][1:]


def run_script(args, data: Path, out: Path) -> list[float]:
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    parser = argparse.ArgumentParser()
    train_ddpm.add_arguments(parser)
    train_ddpm.main(parser.parse_args(arguments(args, data, out)))
    return logged(out)


def run_bare(args) -> list[float]:
    device = default_device()
    torch.manual_seed(0)
    unet = make_unet({**read_model_config(args.model_config), "in_channels": 3, "out_channels": 3})
    unet.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    scheduler = DDPMScheduler()
    images = torch.rand(args.batch, 3, 64, 64, device=device) * 2 - 1
    images = images.contiguous(memory_format=torch.channels_last)
    precision = torch.autocast(device.type, torch.bfloat16, enabled=args.mixed_precision == "bf16")
    speeds, began = [], time.perf_counter()
    for step in range(1, args.steps + 1):
        noise = torch.randn_like(images)
        timesteps = torch.randint(0, 1000, (args.batch,), device=device)
        with precision:
            loss = denoising_loss(unet, scheduler, images, noise, timesteps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            loss.item()  # waits for the device
            now = time.perf_counter()
            speeds.append(10 * args.batch / (now - began))
            began = now
    return speeds[1:]


def run_processes(args, data: Path, out: Path, count: int) -> list[float]:
    launch = ["torchrun", "--standalone", "--nproc_per_node", str(count)]
    command = [*launch, "training/train_ddpm.py", *arguments(args, data, out)]
    programs = str(Path(sys.executable).parent)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    return logged(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_config", default=str(ROOT / "training" / "configs" / "small_64.json"))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="bf16")
    parser.add_argument("--use_ema", action="store_true", help="In the script, not in the bare loop.")
    parser.add_argument("--processes", action="store_true", help="Also two processes of one thread beside one.")
    args = parser.parse_args()
    keep_freed_memory()  # as in every command, here for both sides
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        for i in range(64):
            PIL.Image.fromarray(draw_face(i)[0]).save(folder / "data" / f"{i}.png")
        bare, script = [], []
        for i in range(args.rounds):
            bare.append(statistics.median(run_bare(args)))
            script.append(statistics.median(run_script(args, folder / "data", folder / f"script{i}")))
        ratios = [s / b for s, b in zip(script, bare)]
        print(f"\nthreads {torch.get_num_threads()}, batch {args.batch}, {args.mixed_precision}, EMA {args.use_ema}")
        print(f"bare loop  {np.median(bare):6.2f} images/s  {[round(x, 2) for x in bare]}")
        print(f"script     {np.median(script):6.2f} images/s  {[round(x, 2) for x in script]}")
        print(f"ratio      {np.median(ratios):6.3f}           {[round(x, 3) for x in ratios]}")
        if args.processes:
            one, two = [], []
            for i in range(args.rounds):
                one.append(statistics.median(run_processes(args, folder / "data", folder / f"one{i}", 1)))
                two.append(statistics.median(run_processes(args, folder / "data", folder / f"two{i}", 2)))
            ratios = [t / o for t, o in zip(two, one)]
            print(f"1 process  {np.median(one):6.2f} images/s  {[round(x, 2) for x in one]}")
            print(f"2 processes{np.median(two):6.2f} images/s  {[round(x, 2) for x in two]}")
            print(f"ratio      {np.median(ratios):6.3f}           {[round(x, 3) for x in ratios]}")


if __name__ == "__main__":
    main()
