# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Image files in folders."""

from pathlib import Path

import PIL.Image


_SUFFIXES = tuple(PIL.Image.registered_extensions())


def find_images(folder: Path) -> list[Path]:
    """Image files anywhere below a folder, sorted; hidden files are skipped."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    return [p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
