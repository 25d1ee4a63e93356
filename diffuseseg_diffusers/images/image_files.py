# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Image files in folders, and images as the content of files."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image


PIL.Image.preinit()  # PNG and JPEG are tried first, and not after a dozen of rare formats
SUFFIXES = tuple(PIL.Image.registered_extensions())


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As `os.walk`, sorted, without hidden names, and into linked folders too, unless they lead in a circle."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted((e for e in os.scandir(folder) if not e.name.startswith(".")), key=lambda entry: entry.name)
    except PermissionError:
        return
    folders = [entry.name for entry in entries if _is_folder(entry)]
    yield Path(folder), folders, [entry.name for entry in entries if not _is_folder(entry)]
    for name in folders:
        yield from walk(Path(folder, name), (*above, real))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def find_images(folder: Path) -> list[Path]:
    """Image files anywhere below a folder, sorted; hidden files are skipped."""
    found = [here / n for here, _, names in walk(folder) for n in names if n.lower().endswith(SUFFIXES)]
    return sorted(path for path in found if path.is_file())


def encode_image(image: PIL.Image.Image, image_format: str = "png", **options: Any) -> bytes:
    """An image as the content of a file; `options` are those of `PIL.Image.Image.save`."""
    stored = io.BytesIO()
    image.save(stored, image_format, **options)
    return stored.getvalue()
