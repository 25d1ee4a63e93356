# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How many pictures a second are read, beside the library of the format alone and beside another checkout?

    python benchmarks/bench_reading.py --before ../earlier

Pictures of noise on a gradient are read as training reads them (`decode_pixels`), at their own size, by path. The
library alone decodes the same files to an array: Pillow PNG and JPEG, tifffile TIFF. `--before` is a checkout of an
earlier commit, which reads the same files in processes of its own, in turn with this one.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path


KINDS = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "TIFF, tiles, deflate": "-tiles.tif"}


def write(folder: Path, side: int, number: int) -> None:
    import numpy as np
    import PIL.Image
    import tifffile

    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(side), np.arange(side))[..., None] * 96 // side
    for i in range(number):
        pixels = (ramp + rng.integers(0, 32, (side, side, 3))).astype(np.uint8)
        for suffix in (".png", ".jpg"):
            PIL.Image.fromarray(pixels).save(folder / f"{i}{suffix}")
        tifffile.imwrite(folder / f"{i}.tif", pixels, photometric="rgb")
        tifffile.imwrite(folder / f"{i}-tiles.tif", pixels, photometric="rgb", tile=(256, 256), compression="zlib")


def measure(folder: str, alone: bool, side: int, number: int) -> dict[str, float]:
    """Processor seconds for a picture of each kind; the first ones warm up."""
    import numpy as np
    import PIL.Image
    import tifffile

    from diffuseseg_diffusers.datasets.unlabeled import decode_pixels

    def read(name: str) -> None:
        if not alone:
            decode_pixels(name, name, (side, side), 3, "crop")
        elif name.endswith(".tif"):
            tifffile.imread(name)
        else:
            np.asarray(PIL.Image.open(name))

    seconds = {}
    for kind, suffix in KINDS.items():
        files = [os.path.join(folder, f"{i}{suffix}") for i in range(number)]
        for name in files[:3]:
            read(name)
        began = time.process_time()
        for name in files:
            read(name)
        seconds[kind] = (time.process_time() - began) / number
    return seconds


if sys.argv[1:2] == ["--point"]:  # before anything of this checkout is imported: it may be another that is measured
    print(json.dumps(measure(**json.loads(sys.argv[2]))))
    raise SystemExit

from harness import Result, arguments, in_own_process, ratio  # noqa: E402
from tables import ROOT  # noqa: E402


COLUMNS = {
    "picture": ("pictures of 512 × 512", "text"),
    "library": ("library alone, a second", "int"),
    "ours": ("read, a second", "int"),
    "ratio": ("as fast as the library", "times"),
    "before": ("by the earlier commit, a second", "int"),
    "gain": ("as fast as that", "times"),
}


def main() -> None:
    args = arguments(__doc__, task=None, before=None, side=512, number=40, rounds=5)
    columns = dict(COLUMNS) if args.before else {k: v for k, v in COLUMNS.items() if k not in ("before", "gain")}
    result = Result("reading", columns, args, f"RGB, medians of {args.rounds} rounds of {args.number} pictures.")
    sides = {"library": (ROOT, True), "ours": (ROOT, False)}
    if args.before:
        sides["before"] = (Path(args.before).resolve(), False)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), args.side, args.number)
        seconds: dict[str, list[dict]] = {name: [] for name in sides}
        for _ in range(args.rounds):
            for name, (checkout, alone) in sides.items():
                os.environ["PYTHONPATH"] = str(checkout)
                point = dict(folder=folder, alone=alone, side=args.side, number=args.number)
                seconds[name].append(in_own_process(**point))
    for kind in KINDS:
        own = {name: [found[kind] for found in rounds] for name, rounds in seconds.items()}
        rates = {name: round(1 / statistics.median(times)) for name, times in own.items()}
        compared = {"ratio": ratio(own, "library", "ours")}
        if args.before:
            compared["gain"] = ratio(own, "before", "ours")
        result.row(picture=kind, **rates, **compared)
    result.show()


if __name__ == "__main__":
    main()
