# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Segments images: `diffuseseg segment`."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from ..arguments import (
    add_cache_argument,
    add_model_arguments,
    add_output_arguments,
    check_at_least_one,
    inputs_of,
)
from ..data.image_files import find_images
from ..data.image_processor import DiffuseSegImageProcessor, is_address, mask_to_pil, open_image, overlay
from ..heads.ensemble import image_uncertainty
from ..hub.loading import load_pipeline
from ..runs.errors import UserError
from ..runs.files import atomic_file, check_output_folder, exact_pattern, to_json, write_text
from ..runs.resuming import may_resume, open_run
from ..segmenter import Segmenter


COMMAND, LINES = "segment", "segments.jsonl"
PARTIAL_LINES = f"{LINES}.partial"
LONGEST = 200  # bytes of a file's name before `_overlay.png`; file systems take 255, temporary names included


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", help="Images: files, folders of them, or addresses (https://…).")
    add_model_arguments(parser)
    add_cache_argument(parser)
    parser.add_argument("--batch_size", type=int, default=8, help="Number of images in a pass (default: 8).")
    parser.add_argument(
        "--mask_size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="Size of the masks (default: the images')."
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="Opacity of the overlay, 0 to 1 (default: 0.5).")
    add_output_arguments(parser, f"masks, overlays and {LINES}")


def main(args: argparse.Namespace) -> int:
    # 1. The inputs, and only then the folder.
    check_arguments(args)
    if not may_resume(args.output_dir, COMMAND):
        check_output_folder(args.output_dir, args.overwrite)
    images = list_images(args.images)
    pipe = load_pipeline(args.model, args.revision, args.device, args.dtype, args.cache_dir, args.base_model)
    pipe.check_can_segment()
    names = free_names([stem(image) for image in images])
    files = [(f"{name}_mask.png", f"{name}_overlay.png") for name in names]
    owns = [LINES, PARTIAL_LINES, *(name for pair in files for name in pair)]
    settings = {"images": images, "model": args.model, "revision": args.revision, "base_model": args.base_model}
    settings |= {"mask_size": args.mask_size, "alpha": args.alpha}
    open_run(args.output_dir, COMMAND, settings, map(exact_pattern, owns), args.overwrite, inputs_of(args))
    if (args.output_dir / LINES).is_file():
        print(f"{args.output_dir} is complete.")
        return 0

    # 2. Batch after batch; what cannot be read is named and left out. The lines take their name once all are there.
    path = args.output_dir / PARTIAL_LINES
    done = finished_lines(path)
    missing = [(image, pair) for image, pair in zip(images, files) if image not in done]
    write_text(path, "".join(to_json(line) + "\n" for line in done.values()))
    unreadable = 0
    show = {"total": len(images), "initial": len(images) - len(missing), "desc": "Segmenting", "unit": "image"}
    with open(path, "a", encoding="utf-8") as lines, tqdm(**show) as bar:
        for start in range(0, len(missing), args.batch_size):
            batch = []
            for image, pair in missing[start : start + args.batch_size]:
                try:
                    batch.append((image, open_image(image), *pair))
                except UserError as error:  # the others shall not wait for this one
                    unreadable += 1
                    bar.write(f"error: {error}", file=sys.stderr)
            for part in (batch,) if can_be_read(pipe, batch) else [[one] for one in batch]:
                try:
                    lines.writelines(to_json(line) + "\n" for line in segment_batch(pipe, part, args))
                    lines.flush()
                except UserError as error:
                    unreadable += 1
                    bar.write(f"error: {part[0][0]}: {error}", file=sys.stderr)
            bar.update(min(args.batch_size, len(missing) - start))
    path.rename(args.output_dir / LINES)
    print(f"{len(images) - unreadable} of {len(images)} images segmented; the masks are in {args.output_dir}.")
    return 1 if unreadable else 0


def finished_lines(path: Path) -> dict[str, dict]:
    """What a run that was cut off has done, by image; a line that it was writing then is left out."""
    found = {}
    for text in path.read_text(encoding="utf-8").split("\n") if path.is_file() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        found[line["image"]] = line
    return found


def can_be_read(pipe: Segmenter, batch: Sequence[tuple]) -> bool:
    """Whether the values of all images are in range, so that the batch can go through the model at once."""
    try:
        DiffuseSegImageProcessor(pipe.in_channels).load([image for _, image, _, _ in batch])
    except UserError:
        return False
    return bool(batch)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuses numbers out of range."""
    check_at_least_one(args, "batch_size")
    if args.mask_size and min(args.mask_size) < 1:
        raise UserError(f"--mask_size is a height and a width of at least 1, got {args.mask_size}.")
    if not 0 <= args.alpha <= 1:
        raise UserError(f"--alpha must lie in 0 to 1, got {args.alpha}.")


def segment_batch(
    pipe: Segmenter, batch: Sequence[tuple[str, PIL.Image.Image, str, str]], args: argparse.Namespace
) -> list[dict]:
    """Writes mask and overlay of each `(address, image, mask file, overlay file)`; returns their lines of JSON."""
    size = tuple(args.mask_size) if args.mask_size else None
    output = pipe.segment([image for _, image, _, _ in batch], args.batch_size, size, output_type="np")
    lines = []
    for (address, image, mask_file, overlay_file), mask, uncertainty in zip(
        batch, output.masks, output.uncertainty or [None] * len(batch)
    ):
        shown = image if image.size == mask.shape[::-1] else image.resize(mask.shape[::-1])
        for name, made in (
            (mask_file, mask_to_pil(mask, pipe.palette)),
            (overlay_file, overlay(shown, mask, pipe.palette, args.alpha)),
        ):
            with atomic_file(args.output_dir / name) as partial:
                made.save(partial, "png")
        share = np.bincount(mask.ravel(), minlength=len(pipe.label_names)) / mask.size
        score = None if uncertainty is None else image_uncertainty(torch.from_numpy(uncertainty)).item()
        lines.append(
            {
                "image": address,
                "mask": mask_file,
                "overlay": overlay_file,
                "height": mask.shape[0],
                "width": mask.shape[1],
                "class_fractions": {n: round(float(f), 6) for n, f in zip(pipe.label_names, share)},
                "uncertainty": None if score is None else round(score, 6),  # students have none
            }
        )
    return lines


def list_images(given: Sequence[str]) -> list[str]:
    """Addresses and files as they are, folders by the images anywhere below them.

    Raises:
        UserError: A folder has no images, or none of the files is there.
    """
    found: list[str] = []
    for name in given:
        if not is_address(name) and Path(name).is_dir():
            inside = find_images(Path(name))
            if not inside:
                raise UserError(f"The folder {name} has no images in it.")
            found += map(str, inside)
        else:
            found.append(name)
    if not any(is_address(name) or Path(name).is_file() for name in found):
        raise UserError(f"There is no file or folder {', '.join(found)}.")
    return found


def stem(image: str) -> str:
    """What the files of an image are named after: its name without suffix."""
    path = unquote(urlsplit(image).path) if is_address(image) else image
    name = Path(path).stem or "image"
    return os.fsencode(name)[:LONGEST].decode("utf-8", "ignore") if len(os.fsencode(name)) > LONGEST else name


def free_names(stems: Sequence[str]) -> list[str]:
    """The stems, numbered where images of several folders share one."""
    names: dict[str, None] = {}
    last: dict[str, int] = {}
    for name in stems:
        free, i = name, last.get(name, 1)
        while free in names:
            i += 1
            free = f"{name}-{i}"
        names[free] = None
        last[name] = i
    return list(names)
