# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""OME-TIFF: images in several files, and what their XML says of planes."""

import xml.etree.ElementTree as ET
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...jobs.errors import UserError


SUFFIXES = (".ome.tif", ".ome.tiff", ".ome.btf", ".ome.tf2", ".ome.tf8")


def open_whole(file: Any, path: Path | None, name: str) -> Any:
    """Opens the image that an OME-TIFF is a part of.

    Args:
        file (`tifffile.TiffFile`): The open file; another one may be returned in its place.
        path (`Path`, *optional*): Where it is; not given of bytes.
        name (`str`): What to call it in messages.

    Raises:
        UserError: A file of the image is missing, whose planes would be read as black.
    """
    import tifffile

    root = _parsed(file.ome_metadata)
    described_by = _described_by(root)
    if path is None:
        if described_by or _other_files(root):
            raise UserError(f"{name} is a part of an image in several files, which bytes alone do not hold.")
        return file
    folder = path.parent
    if described_by:
        master = folder / described_by
        if not master.is_file():
            raise UserError(f"{name} is a part of an image that {described_by} describes, which is missing beside it.")
        file.close()
        if not master.name.lower().endswith(SUFFIXES):
            file = tifffile.TiffFile(path, omexml=master.read_text(encoding="utf-8"))
        else:
            file = tifffile.TiffFile(master)
        root = _parsed(file.ome_metadata)
    others = _other_files(root)
    missing = sorted(other for other in others if not (folder / other).is_file())
    if missing:
        file.close()
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{name} is a part of an image in {len(others | {path.name})} files, of which {missing[0]}{more} "
            f"{'are' if more else 'is'} missing beside it."
        )
    return file


def whole_images(paths: Iterable[Path]) -> list[Path]:
    """Paths without OME-TIFFs that are further parts of an image of which one is there already."""
    kept, parts = [], set[Path]()
    for path in paths:
        if path in parts:
            continue
        kept.append(path)
        if path.name.lower().endswith(SUFFIXES):
            parts |= {path.with_name(name) for name in parts_of(path)}
    return kept


def pixels_of(file: Any) -> Any:
    """The element of OME-XML that describes the first picture, if the file has one."""
    root = _parsed(file.ome_metadata) if file.is_ome else None
    return None if root is None else root.find(".//{*}Pixels")


def parts_of(path: Path) -> set[str]:
    """Names of the files that an image is in; empty if it cannot be read, or is in one."""
    try:
        import tifffile

        with tifffile.TiffFile(path, _multifile=False) as file:
            root = _parsed(file.ome_metadata)
        master = _described_by(root)
        if master and master.lower().endswith(SUFFIXES):
            with tifffile.TiffFile(path.with_name(master), _multifile=False) as file:
                root = _parsed(file.ome_metadata)
        elif master:
            root = _parsed(path.with_name(master).read_text(encoding="utf-8"))
    except Exception:  # what is wrong with it is said when it is opened
        return set()
    return _file_names(root) | ({master} if master else set())


def _parsed(xml: str | None) -> ET.Element | None:
    try:
        return ET.fromstring(xml or "")
    except ET.ParseError:
        return None


def _described_by(root: ET.Element | None) -> str | None:
    only = None if root is None else root.find("{*}BinaryOnly")
    return None if only is None else only.get("MetadataFile")


def _other_files(root: ET.Element | None) -> set[str]:
    """Names of the files that planes are in, without the file itself, whatever it is called now."""
    return set() if root is None else _file_names(root, but=root.get("UUID"))


def _file_names(root: ET.Element | None, but: str | None = None) -> set[str]:
    """Names of the files that planes are in, without the one of an identifier."""
    if root is None:
        return set()
    named = (uuid for uuid in root.findall(".//{*}TiffData/{*}UUID") if but is None or uuid.text != but)
    return {name for uuid in named if (name := uuid.get("FileName"))}
