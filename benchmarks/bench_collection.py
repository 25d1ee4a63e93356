# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Many small pictures: parts that processes share, against a bare loop; processes, kills and two launches at once.

    OMP_NUM_THREADS=1 python benchmarks/bench_collection.py --model MODEL --num_images 10000 --work_dir out/collection

Drawn faces, shrunk to the model's size, are stored as a Parquet dataset. The bare loop decodes them, segments them in
batches, encodes masks as PNG and writes one Parquet file: what the command does, without parts. Loop and parts run in
turn, in this process. Then the command runs in processes of its own, one and two; then with a worker killed, and with
the driver killed, at random times, two launches at once: the bytes are compared.
"""

import argparse
import hashlib
import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, Image, load_dataset
from tqdm.auto import tqdm

from diffuseseg_diffusers.datasets.drawn_faces import draw_face
from diffuseseg_diffusers.heads.ensemble import image_uncertainty
from diffuseseg_diffusers.images.image_processor import mask_to_pil
from diffuseseg_diffusers.jobs.hardware import hardware
from diffuseseg_diffusers.jobs.parts import finish_parts
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.tiling.collections import CollectionRun
from diffuseseg_diffusers.tiling.files import Reading


BATCH = 16


def png(image: PIL.Image.Image) -> bytes:
    stored = io.BytesIO()
    image.save(stored, "png")
    return stored.getvalue()


def make_dataset(folder: Path, number: int, size: tuple[int, int], mode: str) -> None:
    """A thousand faces, again and again, in files of 2,000."""
    faces = [png(PIL.Image.fromarray(draw_face(i)[0]).convert(mode).resize(size[::-1])) for i in range(1000)]
    features = Features({"image": Image(decode=False)})
    for k, start in enumerate(range(0, number, 2000)):
        cells = [{"bytes": faces[i % 1000], "path": f"{i}.png"} for i in range(start, min(start + 2000, number))]
        dataset = Dataset.from_dict({"image": cells}, features=features).cast(Features({"image": Image()}))
        dataset.to_parquet(folder / "data" / f"train-{k:05d}.parquet")


def bare_loop(pipe, dataset: Dataset, path: Path) -> None:
    """What has to be done, and nothing else."""
    rows = []
    for start in range(0, len(dataset), BATCH):
        cells = [dataset[i]["image"] for i in range(start, min(start + BATCH, len(dataset)))]
        images = [PIL.Image.open(io.BytesIO(cell["bytes"])) for cell in cells]
        output = pipe.segment(images, BATCH, output_type="np")
        for cell, mask, doubt in zip(cells, output.masks, output.uncertainty):
            share = np.bincount(mask.ravel(), minlength=len(pipe.label_names)) / mask.size
            score = image_uncertainty(torch.from_numpy(doubt)).item()
            row = {"path": cell["path"], "mask": png(mask_to_pil(mask, pipe.palette)), "uncertainty": score}
            rows.append(row | {"class_fractions": share.tolist()})
    pq.write_table(pa.Table.from_pylist(rows), path)


def digest(folder: Path) -> str:
    """One number for all files of a run."""
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".diffuseseg-run.json"):
        found.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return found.hexdigest()[:16]


def launch(args: argparse.Namespace, data: Path, out: Path, tasks: int) -> subprocess.Popen:
    words = ["segment", "--dataset_name", data, "--model", args.model, "--batch_size", BATCH, "--rows_per_file", 512]
    words += ["--dtype", "float32", "--output_dir", out, "--tasks", tasks]
    command = [sys.executable, "-m", "diffuseseg_diffusers", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work_dir", type=Path, required=True)
    parser.add_argument("--num_images", type=int, default=10_000)
    parser.add_argument("--sample", type=int, default=1024, help="Images of the comparison with the bare loop.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kills", type=int, default=5)
    args = parser.parse_args()

    folder = args.work_dir
    pipe = load_pipeline(args.model, dtype="float32")
    data = folder / "images"
    if not data.is_dir():
        make_dataset(data, args.num_images, pipe.image_size, "L" if pipe.in_channels == 1 else "RGB")
    dataset = load_dataset(str(data), split="train").cast_column("image", Image(decode=False))
    few = dataset.select(range(min(args.sample, len(dataset))))
    ratios, loops = [], []
    for _ in range(args.repeats):
        began = time.perf_counter()
        bare_loop(pipe, few, folder / "loop.parquet")
        loop = time.perf_counter() - began
        out = folder / "parts"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        began = time.perf_counter()
        finish_parts(CollectionRun(pipe, few, "image", out, Reading(batch_size=BATCH)).parts(), tqdm(disable=True))
        ratios.append((time.perf_counter() - began) / loop)
        loops.append(len(few) / loop)
    report = {"overhead": statistics.median(ratios) - 1, "loop_images_per_second": statistics.median(loops)}
    print(
        f"bare loop {report['loop_images_per_second']:.1f} images a second; parts cost {report['overhead']:.1%} more",
        flush=True,
    )
    bytes_of = {}
    for tasks in (1, 2):
        out = folder / f"tasks{tasks}"
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        assert launch(args, data, out, tasks).wait() == 0
        seconds = time.perf_counter() - began
        bytes_of[f"{tasks} tasks"] = digest(out)
        report[f"images_per_second_{tasks}"] = len(dataset) / seconds
        print(f"{tasks} processes: {len(dataset) / seconds:.1f} images a second, starting included", flush=True)
    out, rng, killed = folder / "killed", random.Random(0), []
    shutil.rmtree(out, ignore_errors=True)
    usual = len(dataset) / report["images_per_second_2"]
    for i in range(args.kills):
        launches = [launch(args, data, out, 2), launch(args, data, out, 1)]  # two at once
        time.sleep(rng.uniform(0.3, 0.5) * usual / args.kills + 8)
        children = psutil.Process(launches[0].pid).children()
        victims = [launches[0]] if i % 2 or not children else children[-1:]  # the driver, or its worker
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
            killed.append("driver" if victim is launches[0] else "worker")
        time.sleep(1)
        if i < args.kills - 1:  # the rest goes too, and the command is started again
            for process in [
                p for one in launches if one.poll() is None for p in (*psutil.Process(one.pid).children(), one)
            ]:
                os.kill(process.pid, signal.SIGKILL)
        for one in launches:
            one.wait()
    assert launch(args, data, out, 1).wait() == 0
    bytes_of[f"after SIGKILL of {', '.join(killed)}"] = digest(out)
    for name, value in bytes_of.items():
        print(f"{name}: {value}", flush=True)
    report |= {"bytes": bytes_of, "hardware": hardware(torch.device("cpu"))}
    (folder / "collection.json").write_text(json.dumps(report, indent=2) + "\n")
    print(report["hardware"])


if __name__ == "__main__":
    main()
