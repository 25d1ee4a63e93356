# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Image files in folders, and images as the content of files."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image


SUFFIXES = tuple(PIL.Image.registered_extensions())


def walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As `os.walk`, sorted, without hidden names, and into linked folders too, unless they lead in a circle."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))
    except PermissionError:
        return
    folders = [name for name in entries if os.path.isdir(os.path.join(folder, name))]
    known = set(folders)
    yield Path(folder), folders, [name for name in entries if name not in known]
    for name in folders:
        yield from walk(Path(folder, name), (*above, real))


def find_images(folder: Path) -> list[Path]:
    """Image files anywhere below a folder, sorted; hidden files are skipped."""
    found = [here / n for here, _, names in walk(folder) for n in names if n.lower().endswith(SUFFIXES)]
    return sorted(path for path in found if path.is_file())


def encode_image(image: PIL.Image.Image, image_format: str = "png", **options: Any) -> bytes:
    """An image as the content of a file; `options` are those of `PIL.Image.Image.save`."""
    stored = io.BytesIO()
    image.save(stored, image_format, **options)
    return stored.getvalue()
