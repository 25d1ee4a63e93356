# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What names of folders and files say: whether they hold pictures or masks, of which split, and what goes together."""

import re
import unicodedata
from functools import cache
from pathlib import Path

from ..images.formats.opening import GEO, TIFF, VOLUME, ZARR
from ..images.image_files import SUFFIXES


_IMAGES = ("images", "image", "imgs", "img", "jpegimages", "leftimg8bit", "imgdir", "photos", "pictures", "inputs")
MASKS = (  # the first of those that are there is taken
    *("1stmanual", "manual"),  # of DRIVE, whose mask/ is what the camera sees
    *("masks", "mask", "labels", "label", "segmentationclass", "anndir", "annotations", "annotation", "annot"),
    *("gtfine", "gt", "groundtruth", "segmentations", "segmentation", "gtcoarse", "targets"),
)
_NO_CLASSES = ("segmentationobject", "instanceids")  # masks too, of objects
_SPLITS = {
    "train": ("train", "training", "trainset", "trn", "tr"),
    "validation": ("val", "valid", "validation", "dev", "valset"),
    "test": ("test", "testing", "testset", "tst", "ts"),
}
_CANONICAL = {name: split for split, names in _SPLITS.items() for name in names}
_SEVERAL = ("trainvaltest", "trainvaltestset", "all", "dir", "png", "raw", "aug")  # said of a folder, and no split
_MASK_NAMES = (
    r"(?P<name>.+?)[_.\- ](gt(Fine|Coarse)_labelTrainIds|labelTrainIds)",
    r"(?P<name>.+?)[_.\- ](gt(Fine|Coarse)_labelIds|labelIds)",
    r"(?P<name>.+?)[_.\- ]((bin_?)?masks?|labels?|segmentation|seg|gt|ground_?truth|annotations?|manual\d?|(?-i:L))"
    r"([_\-]\d+)?",
    r"(mask|label|seg|gt)[_\- ](?P<name>.+)",
)
NO_CLASS_NAMES = r".+[_.\- ](color|instanceIds|instanceTrainIds|overlay|viz)"
_IMAGE_NAMES = (
    r"(?P<name>.+?)[_.\- ](leftImg8bit|image|images|img|sat|training|test|\d{4})",
    r"(image|img)[_\- ](?P<name>.+)",
)
_LONG_NAMES = (  # of folders: ISIC2018_Task1_Training_GroundTruth, X_train and y_train
    r".*?(?P<split>training|train|validation|val|test).*?(?P<role>inputs?|groundtruth)",
    r"(?P<role>[xy])(?P<split>training|train|validation|val|test)",
)
_KNOWN = frozenset((*SUFFIXES, *TIFF, *GEO, *VOLUME, *ZARR, ".npy"))


def bare_name(path: Path) -> str:
    """Name of a picture without the suffix of its format (`.ome.tif`, `.nii.gz`), as NFC; dots of UIDs stay."""
    name = unicodedata.normalize("NFC", path.name)
    parts = name.lower().split(".")
    suffix = next((s for s in (".".join(["", *parts[-2:]]), f".{parts[-1]}") if s in _KNOWN and s != f".{name}"), None)
    if suffix is None:  # of a folder of DICOM slices, which has any name
        return name
    name = name[: -len(suffix)]
    return name[:-4] if name.lower().endswith((".ome", ".seg")) else name


@cache
def said_by(folder: str) -> tuple[str, str]:
    """Role and split that the name of a folder states, each empty if it does not."""
    plain = plain_name(folder)
    if plain in _IMAGES:
        return "image", ""
    if plain in MASKS:
        return "mask", ""
    if plain in _NO_CLASSES:
        return "other", ""
    if split_of(folder) and len(plain) > 2:
        return "", folder
    for pattern in _LONG_NAMES:
        if said := re.fullmatch(pattern, plain):
            return "mask" if said["role"] in ("groundtruth", "y") else "image", split_of(said["split"]) or ""
    for role, names in (("image", _IMAGES), ("mask", MASKS)):
        for name in names:
            rest = plain.removeprefix(name) if plain.startswith(name) else plain.removesuffix(name)
            if rest != plain and split_of(rest):
                return role, split_of(rest)
            if rest != plain and rest in _SEVERAL:
                return role, ""
    return "", ""


def split_of(name: str) -> str | None:
    """The usual name of a split: `train` for `Training` or `train2017`."""
    return _CANONICAL.get(re.sub(r"[^a-z]", "", re.sub(r"\d{4}$", "", name.lower())))


def plain_name(folder: str) -> str:
    """Its letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", folder.lower())


def image_keys(path: Path) -> list[str]:
    """Names that the mask of a picture may have, the likeliest first."""
    keys = [unicodedata.normalize("NFC", path.name), bare_name(path)]
    keys += [found["name"] for pattern in _IMAGE_NAMES if (found := re.fullmatch(pattern, bare_name(path)))]
    return [*keys, ""] if plain_name(bare_name(path)) in _IMAGES else keys


def mask_keys(path: Path) -> list[str]:
    """Names that the picture of a mask may have, the likeliest first."""
    keys = [bare_name(path)]
    keys += [found["name"] for p in _MASK_NAMES if (found := re.fullmatch(p, bare_name(path), re.IGNORECASE))]
    return [*keys, ""] if plain_name(bare_name(path)) in MASKS else keys
