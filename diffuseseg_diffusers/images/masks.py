# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Every kind of mask to class ids; what fits no class is counted, and above a small share refused."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image

from ..jobs.errors import UserError
from .image_processor import warn_once


MASK_FORMATS = ("index", "binary", "rgb", "instances")
SMALL_SHARE = 0.05  # of a mask's pixels that may fit no class; they get no label, and a line says so
MANY = 12  # ids in one mask, each of one piece, that are objects rather than classes
_VOID = (224, 224, 192)  # the colour that Pascal VOC gives to borders without a label
_MOSTLY = 0.3  # of a binary mask's pixels that may be grey: smooth edges are fewer
_GRAY = 0.1  # of the range, from black or white: nearer values are noise of either


@dataclass
class Tally:
    """What the parts of a mask held, so that the whole of it is judged.

    Args:
        where (`str`): What to call the mask in messages.
    """

    where: str
    pixels: int = 0
    unfit: Counter = field(default_factory=Counter)  # pixels of each value that fits no class
    low: float = np.inf
    high: float = -np.inf
    white: float = 0.0
    gray: int = 0  # pixels between black and white

    def add(self, values: np.ndarray) -> None:
        """Counts pixels that fit no class, by their values."""
        found, counts = np.unique(values, return_counts=True, axis=0 if values.ndim == 2 else None)
        self.unfit.update({_said(value): int(n) for value, n in zip(found, counts)})

    @property
    def share(self) -> float:
        """Of the pixels that fit no class, 0 to 1."""
        return self.unfit.total() / max(1, self.pixels)

    @property
    def commonest(self) -> str:
        """The values that fit no class, with their shares, the commonest first."""
        found = [f"{value} ({n / self.pixels:.1%})" for value, n in self.unfit.most_common(5)]
        return ", ".join(found) + ", …" * (len(self.unfit) > 5)


@dataclass(frozen=True)
class MaskReader:
    """Reads masks of one format.

    Args:
        mask_format (`str`, defaults to `"index"`):
            `"index"`: pixel values are class ids. `"binary"`: at least half of the range is class 1, less is class 0.
            `"rgb"`: colours of the palette. `"instances"`: 0 is class 0, every other value an object of class 1.
        palette (sequence of `[red, green, blue]`, *optional*): Colours of the classes, for `"rgb"`.
        ignored_colors (sequence of `[red, green, blue]`): Colours of pixels without a label, for `"rgb"`.
        ignore_index (`int`, defaults to 255): Id of pixels without a label, and the value that says so in masks.
        nearest_color (`bool`, defaults to `False`): Whether other colours are those of the palette that are nearest.
        white (`float`, *optional*): Value of white in binary masks; from the mask's type and values if not given.

    Raises:
        UserError: The format is unknown, or needs a palette; or `ignore_index` is not 0 to 255.
    """

    mask_format: str = "index"
    palette: Sequence[Sequence[int]] | None = None
    ignored_colors: Sequence[Sequence[int]] = ()
    ignore_index: int = 255
    nearest_color: bool = False
    white: float | None = None

    def __post_init__(self) -> None:
        if self.mask_format not in MASK_FORMATS:
            raise UserError(f"`mask_format` is one of {', '.join(MASK_FORMATS)}, got {self.mask_format!r}.")
        if self.mask_format == "rgb" and self.palette is None:
            raise UserError("Masks in colour need the palette of the classes (`--palette`).")
        if not 0 <= self.ignore_index <= 255:
            raise UserError(
                f"`ignore_index` is 0 to 255, got {self.ignore_index}; NaN, -1 and 65535 are no label in any case."
            )
        if self.nearest_color and self.mask_format != "rgb":
            raise UserError("--nearest_color is for masks in colour, --mask_format rgb.")

    @property
    def shows_colors(self) -> bool:
        """Whether of a palette image the colours count, and not the values of its pixels."""
        return self.mask_format in ("binary", "rgb")

    def ids(self, mask: np.ndarray | PIL.Image.Image, where: str, tally: Tally | None = None) -> np.ndarray:
        """Class ids of a mask, or of a part of one.

        Args:
            mask (`np.ndarray` or `PIL.Image.Image`): `[H, W]` or `[H, W, C]` of any numeric type, or a picture.
            where (`str`): What to call it in messages.
            tally ([`Tally`], *optional*): Of the whole mask, if this is a part; pass it to `check` after the last.

        Returns:
            `np.ndarray`: `[H, W]` uint8; `ignore_index` where there is no label.

        Raises:
            UserError: It is not of the format; says what it holds and what to type.
        """
        values = (
            picture_values(mask, self.shows_colors, where) if isinstance(mask, PIL.Image.Image) else np.asarray(mask)
        )
        whole = Tally(where) if tally is None else tally
        whole.pixels += int(np.prod(values.shape[:2]))
        read = {"rgb": self._colors, "binary": self._binary, "instances": self._instances}
        ids = read.get(self.mask_format, self._index)(values, whole)
        if tally is None:
            self.check(whole)
        return ids

    def check(self, tally: Tally) -> None:
        """Judges a whole mask by what its parts held.

        Raises:
            UserError: More than a small share of its pixels fits no class.
        """
        if tally.white > 1 and tally.low < tally.high < tally.white / 2:
            raise UserError(
                f"{tally.where} holds values from {tally.low:g} to {tally.high:g}, none of them white, which is "
                f"{tally.white:g} here; pass --mask_format index if they are class ids, or make it black and white."
            )
        if tally.gray > _MOSTLY * tally.pixels:
            raise UserError(
                f"{tally.gray / tally.pixels:.0%} of the pixels of {tally.where} are neither black nor white, which "
                f"{tally.white:g} is: no binary mask; pass --mask_format index if they are class ids."
            )
        if not tally.unfit:
            return
        said = f"{tally.share:.1%} of the pixels of {tally.where} fit no class: {tally.commonest}"
        if tally.share <= SMALL_SHARE:
            warn_once(f"{said}. They get no label.")
            return
        hints = {
            "rgb": "Give those colours to classes in --palette, or to no class (its id 255), or pass --nearest_color.",
            "binary": "Binary masks are black and white; pass --ignore_index with the value that has no label, or "
            "--mask_format index if these are class ids.",
        }
        raise UserError(f"{said}. {hints.get(self.mask_format, 'Pass --ignore_index with the value of no label.')}")

    def _index(self, values: np.ndarray, tally: Tally) -> np.ndarray:
        values = _single(values, tally.where, "for masks in colour pass --mask_format rgb --palette FILE")
        if values.dtype == bool or values.dtype == np.uint8:
            return values.astype(np.uint8)
        unlabeled = _without_label(values)
        rest = values[~unlabeled]
        if rest.size and (rest.min() < 0 or rest.max() > 255 or (rest != np.floor(rest)).any()):
            many = len(np.unique(rest)) > 256
            hint = " If they are numbers of objects, pass --mask_format instances." if many else ""
            raise UserError(
                f"{tally.where} holds values from {rest.min():g} to {rest.max():g}; class ids are integers 0 to "
                f"255.{hint}"
            )
        if unlabeled.any():
            said = ", ".join(map(_said, np.unique(values[unlabeled])[:2]))
            warn_once(f"{unlabeled.mean():.1%} of the pixels of {tally.where} are {said}, and get no label.")
        ids = np.full(values.shape, self.ignore_index, np.uint8)
        ids[~unlabeled] = rest.astype(np.uint8)
        return ids

    def _instances(self, values: np.ndarray, tally: Tally) -> np.ndarray:
        if values.ndim == 3 and values.shape[2] in (3, 4):  # each object in a colour of its own
            return (values[..., :3] != 0).any(-1).astype(np.uint8)
        values = _single(values, tally.where, "numbers of objects are expected")
        none = _without_label(values)
        ids = ((values != 0) & ~none).astype(np.uint8)
        ids[none] = self.ignore_index
        if values.dtype == np.uint8 and not (values == 254).any():  # else there are that many objects
            ids[values == self.ignore_index] = self.ignore_index
        return ids

    def _binary(self, values: np.ndarray, tally: Tally) -> np.ndarray:
        opacity = None
        if values.ndim == 3 and values.shape[2] in (2, 4):
            opacity, values = values[..., -1], values[..., :-1]
            if (values == values.flat[0]).all() and opacity.min() < opacity.max() and values.flat[0] == 0:
                raise UserError(f"{tally.where} is black, transparent in parts; save it in black and white.")
        values = _single(values, tally.where, "binary masks are black and white; for others pass --mask_format rgb")
        if opacity is not None:  # what is transparent is background, as on black
            values = values.astype(np.float32) * (opacity / white_of(opacity))
        white = tally.white = self.white or max(tally.white, white_of(values))
        none = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
        if 0 < self.ignore_index < white:
            none |= values == self.ignore_index
        known = values[~none]
        if known.size:
            tally.low, tally.high = min(tally.low, known.min()), max(tally.high, known.max())
        if values.dtype.kind == "f" and np.isnan(values).any():
            tally.add(values[np.isnan(values)])
        gray = (values > _GRAY * white) & (values < (1 - _GRAY) * white) & ~none
        tally.gray += int(gray.sum())
        wrong = (gray & np.isin(values, _flat(values, gray))) | (values < 0) | (values > white)
        if wrong.any():
            tally.add(values[wrong])
        ids = (values >= white / 2).astype(np.uint8)
        ids[none | wrong] = self.ignore_index
        return ids

    def _colors(self, values: np.ndarray, tally: Tally) -> np.ndarray:
        colors = _eight_bit_colors(values)
        keys = colors[..., :3].astype(np.int64) @ [65536, 256, 1]  # [H,W]
        known = {int(np.dot(c, [65536, 256, 1])): i for i, c in reversed(list(enumerate(self.palette)))}
        ignored = {int(np.dot(c, [65536, 256, 1])) for c in (_VOID, *self.ignored_colors)} - set(known)
        found, inverse = np.unique(keys, return_inverse=True)
        ids = np.array([known.get(int(key), self.ignore_index) for key in found], np.uint8)
        strange = np.array([int(key) not in known and int(key) not in ignored for key in found], bool)
        if self.nearest_color and strange.any():
            shown = np.stack([found[strange] >> 16, found[strange] >> 8 & 255, found[strange] & 255], 1)
            every = np.array([*self.palette, *self.ignored_colors], np.int64)
            nearest = ((shown[:, None] - every) ** 2).sum(-1).argmin(1)
            ids[strange] = np.where(nearest < len(self.palette), nearest, self.ignore_index)
            strange[:] = False
        ids, strange = ids[inverse].reshape(keys.shape), strange[inverse].reshape(keys.shape)
        if colors.shape[2] == 4:
            strange |= colors[..., 3] < 128  # transparent
        if strange.any():
            tally.add(colors[strange][:, :3])
            ids[strange] = self.ignore_index
        return ids


def picture_values(image: PIL.Image.Image, colors: bool, where: str = "A mask") -> np.ndarray:
    """The values of a picture's pixels: `[H, W]`, or `[H, W, C]` of those in colour.

    Args:
        image (`PIL.Image.Image`): Of any mode.
        colors (`bool`): Whether a palette image gives its colours, in place of its numbers.
        where (`str`): What to call it in messages.

    Raises:
        UserError: Numbers are asked for of a palette of white and black in this order, which say the contrary.
    """
    if image.mode == "P" and not colors:
        return _numbers(image, where)
    if image.mode in ("P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"):
        return np.asarray(image.convert("RGB"))
    if image.mode in ("PA", "La", "RGBa"):
        return np.asarray(image.convert("LA" if image.mode == "La" else "RGBA"))
    return np.asarray(image)


def _numbers(image: PIL.Image.Image, where: str) -> np.ndarray:
    """The class ids of a palette image: its numbers, unless they are only where greys that are ids stand."""
    numbers = np.asarray(image)
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    used = np.unique(numbers)
    if len(used) < 2 or used[-1] >= len(palette) or (palette != palette[:, :1]).any():
        return numbers
    greys = palette[used, 0]
    if greys.tolist() == [255, 0]:
        raise UserError(
            f"{where} is black and white, its number {used[0]} white and {used[1]} black; pass --mask_format binary "
            f"for white as class 1."
        )
    if len(set(greys.tolist())) == len(used) and greys[greys < 255].max() < 32:  # programs sort palettes as they like
        return palette[:, 0][numbers]
    return numbers


def unscaled(values: np.ndarray, source: str | os.PathLike | bytes, where: str, colors: bool) -> np.ndarray:
    """The values that a file stores, where Pillow gives others.

    Args:
        values (`np.ndarray`): As [`picture_values`] gives them: of grey PNGs of two or four bits 85 or 17 times as
            high.
        source (path or `bytes`): The file.
        where (`str`): What to call it in messages.
        colors (`bool`): Whether its colours count, so that white is white.

    Raises:
        UserError: It is a bitmap that Pillow misreads.
    """
    if isinstance(source, bytes):
        head = source[:32]
    else:
        with open(source, "rb") as file:
            head = file.read(32)
    if head[:2] == b"BM" and values.dtype == bool and head[28:29] != b"\1":  # taken for one bit by its two colours
        raise UserError(f"{where} is a bitmap of {head[28]} bits in black and white alone; save it as PNG.")
    grey_png = head[:8] == b"\x89PNG\r\n\x1a\n" and head[25:26] == b"\0"
    if colors or not grey_png or values.dtype != np.uint8:
        return values
    return values // {2: 85, 4: 17}.get(head[24], 1)


def white_of(values: np.ndarray) -> float:
    """The value of white in a mask of these values: 1 where none is above, else the top of 8 or of 16 bits."""
    high = np.nanmax(values, initial=0) if values.dtype.kind == "f" else values.max(initial=0)
    return 1.0 if high <= 1 else 255.0 if high <= 255 else 65535.0


def _without_label(values: np.ndarray) -> np.ndarray:
    """Where a mask has what programs write where there is no class: -1, 65535, NaN."""
    none = np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    if values.dtype.kind in "if":
        none |= values == -1
    if values.dtype.itemsize > 1 and values.dtype != np.float16:
        none |= values == 65535
    return none


def _single(values: np.ndarray, where: str, hint: str) -> np.ndarray:
    """The only channel of a mask `[H, W]` or `[H, W, C]`; grey that is saved in colour has one."""
    if values.ndim == 3 and values.shape[2] in (2, 4):
        top = white_of(values[..., -1:])
        if (values[..., -1] != (top if values.dtype.kind != "u" else np.iinfo(values.dtype).max)).any():
            raise UserError(f"{where} is transparent in parts, and what that means is not known; save it opaque.")
        values = values[..., :-1]
    if values.ndim == 3 and values.shape[2] in (1, 3) and (values[..., :1] == values).all():
        values = values[..., 0]
    if values.ndim != 2:
        count = values.shape[-1] if values.ndim == 3 else f"the shape {values.shape}, not"
        raise UserError(f"{where} has {count} channels, but masks have one, of class ids; {hint}.")
    return values


def _eight_bit_colors(values: np.ndarray) -> np.ndarray:
    """`[H, W, 3]` or `[H, W, 4]` uint8 of a mask of any type; grey is a colour too."""
    if values.ndim == 2:
        values = values[..., None]
    if values.shape[2] < 3:
        gray, alpha = values[..., :1], values[..., 1:]
        values = np.concatenate([gray, gray, gray, alpha], -1)
    if values.dtype == np.uint8:
        return values
    top = white_of(values)
    return np.rint(np.nan_to_num(values.astype(np.float64)) * (255 / top)).clip(0, 255).astype(np.uint8)


def _flat(values: np.ndarray, gray: np.ndarray) -> np.ndarray:
    """The grey values that cover areas: smooth edges have no flat parts, a third class has."""
    padded = np.pad(values, 1, mode="edge")
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    inside = gray & np.logical_and.reduce([one == values for one in around])
    found, counts = np.unique(values[inside], return_counts=True)
    return np.array([v for v, n in zip(found, counts) if 4 * n >= np.count_nonzero(values == v)], values.dtype)


def _said(value: Any) -> str:
    """A value, or a colour, for messages."""
    return "#" + "".join(f"{int(x):02x}" for x in value) if np.ndim(value) else f"{value:g}"


def looks_gray(pixels: np.ndarray) -> bool:
    """Whether masks are black and white with grey edges, by their pixels of each value, `[256]`."""
    black, white = pixels[:26].sum(), pixels[230:].sum()
    edges = np.count_nonzero(pixels) >= 8 and pixels[200:255].any()  # classes seldom have such numbers
    return bool(edges and black and white and black + white >= 0.8 * pixels.sum())


def looks_like_instances(masks: Sequence[np.ndarray], ignore_index: int = 255) -> bool:
    """Whether the values of masks are numbers of objects: many in a mask, each of one piece, in no two masks alike.

    Args:
        masks (sequence of `np.ndarray`): `[H, W]` integers each; 0 is background.
        ignore_index (`int`, defaults to 255): Value without a label.
    """
    ids = [np.setdiff1d(mask, [0, ignore_index]) for mask in masks]
    ids = [own for own in ids if len(own)]
    if max(map(len, ids), default=0) < MANY:
        return False
    dense = all(own[-1] - own[0] + 1 == len(own) for own in ids)
    unique = len(np.unique(np.concatenate(ids))) == sum(map(len, ids))
    numbered = dense and len({len(own) for own in ids}) > 1  # as many as there are objects
    if not (unique or numbered):
        return False
    whole = [n == 1 for mask in masks for value, n in _pieces(mask).items() if value not in (0, ignore_index)]
    return bool(np.mean(whole) >= 0.9)


def _pieces(mask: np.ndarray) -> dict[int, int]:
    """Number of connected pieces of each value, pixels that touch at a corner included."""
    height, width = mask.shape
    new = np.ones(mask.shape, bool)
    new[:, 1:] = mask[:, 1:] != mask[:, :-1]
    starts = np.flatnonzero(new)  # of runs along rows
    ends = np.append(starts[1:], height * width)
    values = mask.reshape(-1)[starts]
    root = list(range(len(starts)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    first = np.searchsorted(ends, starts + width - 1, side="right")  # below: from the one that touches its left end
    for i in range(len(starts)):
        for j in range(first[i], len(starts)):
            if starts[j] > ends[i] + width or starts[i] // width + 1 < starts[j] // width:
                break
            if values[j] == values[i] and starts[j] // width == starts[i] // width + 1:
                root[find(j)] = find(i)
    pieces = Counter(int(values[i]) for i in range(len(root)) if root[i] == i)
    return dict(pieces)
