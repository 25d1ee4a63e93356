# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Peak memory of a picture that the model is shown whole, at the picture's own size.

    python benchmarks/bench_whole.py --model MODEL --side 3000

The size of one picture a process, because the system counts the peak of a process.
"""

import argparse
import resource
import time

import numpy as np
from PIL import Image

from diffuseseg_diffusers import load_pipeline


def peak() -> float:
    """Of this process, resident, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--side", type=int, default=3000)
    args = parser.parse_args()

    pipe = load_pipeline(args.model, dtype="float32")
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, pipe.image_size, dtype=np.uint8))
    pipe.segment([small], output_type="np")
    before, began = peak(), time.perf_counter()
    pipe.segment([small.resize((args.side, args.side))], output_type="np")
    seconds = time.perf_counter() - began
    print(f"{args.side} × {args.side}: peak {peak():.2f} GiB, {before:.2f} GiB before it, {seconds:.0f} s")


if __name__ == "__main__":
    main()
