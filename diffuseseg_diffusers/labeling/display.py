# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How a picture is shown on a screen: window and level, gamma, one channel; the model sees none of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import PIL.Image

from ..datasets.columns import ReadImage
from ..images.channels import DISPLAYED, InputChannels, display_range, full_range
from ..images.image_processor import to_eight_bit
from ..jobs.errors import UserError


GAMMAS = (0.1, 10.0)  # that can be asked for
Range: TypeAlias = tuple[float, float]  # the values that become black and white


@dataclass(frozen=True)
class View:
    """What is asked for: an intensity `v` is shown as `((v - low) / (high - low)) ** (1 / gamma)`, 0 being black.

    Args:
        low, high (`float`, *optional*): The picture's own values that become black and white. Without them, eight bits
            are shown as they are, and other values from their 0.5th to their 99.5th percentile.
        gamma (`float`, defaults to 1): From 0.1 to 10; above 1 the dark parts become brighter.
        invert (`bool`, defaults to `False`): Whether black and white are exchanged, after gamma.
        channel (`str`, *optional*): Name or number of the one channel that is shown, in grey.

    Raises:
        UserError: Only one of `low` and `high` is given, they are no window, or `gamma` is out of range.
    """

    low: float | None = None
    high: float | None = None
    gamma: float = 1.0
    invert: bool = False
    channel: str | None = None

    def __post_init__(self):
        if self.low is None or self.high is None:
            if self.low is not self.high:
                name = "low" if self.high is None else "high"
                raise UserError(f"A window has a low and a high value, and only {name} was given; give both or none.")
        elif not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UserError(f"A window is a low and a greater high value, got {self.low:g} and {self.high:g}.")
        if not GAMMAS[0] <= self.gamma <= GAMMAS[1]:
            raise UserError(f"Gamma is a number from {GAMMAS[0]:g} to {GAMMAS[1]:g}, got {self.gamma:g}.")

    @property
    def window(self) -> Range | None:
        """The low and the high value, if they are given."""
        return None if self.low is None or self.high is None else (self.low, self.high)


PLAIN = View()


class Shown(NamedTuple):
    """A picture for a screen.

    Attributes:
        image (`PIL.Image.Image`): Mode "L" or "RGB"; it may be the decoded picture itself, and is not to be changed.
        lines (`list[str]`): What has to be said of it.
        display (`dict`): `low` and `high`, the values shown as black and white (of channels that are stretched one by
            one, the least and the greatest); `least` and `most`, the extreme values of the channels that are shown,
            `None` if nothing was measured; `automatic`, whether the range was chosen here; `channels`, all names; and
            `channel`, the name of the one that is shown alone, or `None`.
    """

    image: PIL.Image.Image
    lines: list[str]
    display: dict


def show(found: ReadImage, name: str, view: View, channels: InputChannels) -> Shown:
    """A decoded picture as a view asks for it, of many channels the first three.

    Pixels without a measurement are black, unless the picture has eight bits.

    Args:
        found ([`ReadImage`]): The picture.
        name (`str`): What to call it in messages.
        view ([`View`]): What is asked for.
        channels ([`InputChannels`]): Those of the model, to tell what is black and white there.

    Raises:
        UserError: It has no such channel.
    """
    image, lines = _decoded(found.image)
    names = found.channels or _names(image)
    indices = range(len(names))[:3] if view.channel is None else InputChannels((view.channel,)).indices(names, name)
    chosen = tuple(names[i] for i in indices)
    part = _part(image, indices)
    dtype = np.dtype(np.uint8) if isinstance(part, PIL.Image.Image) else part.dtype
    gaps = None if dtype == np.uint8 else found.gaps  # eight bits have something to show there
    ranges = [view.window] if view.window else _automatic(part, gaps, together=chosen == ("red", "green", "blue"))
    if view.channel is None and len(names) not in (1, 3):
        colours = "red and green" if len(names) == 2 else "red, green and blue"
        lines.append(f"Of {len(names)} channels, {', '.join(chosen)} are shown as {colours}.")
    if dtype not in (np.uint8, bool) or view != View(channel=view.channel):
        lines.append(_of_range(ranges, chosen, view, dtype, channels))
    extremes = _extremes(part, found.gaps)
    low, high, least, most = (
        None if x is None else float(x) if dtype.kind == "f" or x % 1 else int(x)
        for x in (min(low for low, _ in ranges), max(high for _, high in ranges), *extremes)
    )
    display = {
        **{"low": low, "high": high, "least": least, "most": most, "automatic": view.window is None},
        **{"channels": list(names), "channel": None if view.channel is None else chosen[0]},
    }
    return Shown(_shade(part, ranges, view, gaps), lines, display)


def _decoded(image: PIL.Image.Image | np.ndarray) -> tuple[PIL.Image.Image | np.ndarray, list[str]]:
    """Eight bits as a picture of mode "L" or "RGB", others as an array `[H, W, C]`; and what has to be said of it."""
    if not isinstance(image, PIL.Image.Image):
        return image, []
    if image.mode.startswith(("I", "F")):
        return np.asarray(image)[..., None], []
    if not image.has_transparency_data or image.convert("RGBA").getchannel("A").getextrema()[0] == 255:
        return to_eight_bit(image), []
    line = "Its transparency is left out: the model sees the colours that lie below, as they are shown."
    return to_eight_bit(image), [line]


def _names(image: PIL.Image.Image | np.ndarray) -> tuple[str, ...]:
    """Names of the channels of a picture that has none."""
    count = len(image.getbands()) if isinstance(image, PIL.Image.Image) else image.shape[2]
    return {1: ("gray",), 3: ("red", "green", "blue")}.get(count) or tuple(str(i) for i in range(count))


def _part(image: PIL.Image.Image | np.ndarray, chosen: Sequence[int]) -> PIL.Image.Image | np.ndarray:
    """Successive channels: of a picture all or one."""
    if not isinstance(image, PIL.Image.Image):
        return image[..., chosen[0] : chosen[-1] + 1]
    return image if len(chosen) == len(image.getbands()) else image.getchannel(chosen[0])


def _automatic(part: PIL.Image.Image | np.ndarray, gaps: np.ndarray | None, together: bool) -> list[Range]:
    """The range that each channel is shown in by itself; one alone if all have the same."""
    if isinstance(part, PIL.Image.Image):
        return [(0.0, 255.0)]
    parts = [part] if together else [part[..., i] for i in range(part.shape[2])]
    ranges = [display_range(x if gaps is None else x[~gaps]) for x in parts]
    return ranges[:1] if len(set(ranges)) == 1 else ranges


def _extremes(part: PIL.Image.Image | np.ndarray, gaps: np.ndarray | None) -> tuple[float | None, float | None]:
    """The least and the greatest value that was measured."""
    if isinstance(part, PIL.Image.Image) and gaps is None:
        found = np.ravel(part.getextrema())
        return found.min(), found.max()
    values = np.asarray(part) if gaps is None else np.asarray(part)[~gaps]
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    return (values.min(), values.max()) if values.size else (None, None)


def _shade(
    part: PIL.Image.Image | np.ndarray, ranges: Sequence[Range], view: View, gaps: np.ndarray | None
) -> PIL.Image.Image:
    """The channels in one range or in one each, as a picture of mode "L" or "RGB"."""
    if isinstance(part, PIL.Image.Image):
        if view == View(channel=view.channel):
            return part
        return part.point(_eight_bit(np.arange(256), ranges[0], view).tolist() * len(part.getbands()))
    shown = []
    for i in range(part.shape[2]):
        values, limits = part[..., i], ranges[min(i, len(ranges) - 1)]
        if values.dtype.kind in "biu" and values.itemsize <= 2:
            values = values.astype(np.uint8) if values.dtype == bool else values
            every = np.arange(2 ** (8 * values.itemsize)).astype(values.dtype)  # negative ones count from the end
            x = _eight_bit(every, limits, view)[values]
        else:
            x = _eight_bit(values, limits, view)
        shown.append(PIL.Image.fromarray(x if gaps is None else np.where(gaps, np.uint8(0), x)))
    if len(shown) == 1:
        return shown[0]
    return PIL.Image.merge("RGB", (*shown, *[PIL.Image.new("L", shown[0].size)] * (3 - len(shown))))


def _eight_bit(values: np.ndarray, limits: Range, view: View) -> np.ndarray:
    """Intensities of any type and shape for a screen, uint8; NaN and infinity are black."""
    low, high = limits
    with np.errstate(over="ignore", invalid="ignore"):
        x = values.astype(np.float64)
        x -= low
        x /= max(high - low, np.finfo(np.float64).tiny)
    finite = np.isfinite(values)
    x = np.where(finite, x, 0).clip(0, 1)
    if view.gamma != 1:
        x **= 1 / view.gamma
    if view.invert:
        x = np.where(finite, 1 - x, 0)
    return (x * 255).round().astype(np.uint8)


def _of_range(
    ranges: Sequence[Range], names: Sequence[str], view: View, dtype: np.dtype, channels: InputChannels
) -> str:
    """A line with the range that is shown, and the one of the model."""
    several = len(ranges) > 1
    limits = ", ".join(
        (f"{name} " if several else "") + f"{low:,.5g} to {high:,.5g}" for name, (low, high) in zip(names, ranges)
    )
    if view.window is None and dtype not in (np.uint8, bool):
        how = f"Stretched for display alone, from percentile {DISPLAYED[0]:g} to {DISPLAYED[1]:g}: {limits}"
    else:
        how = f"Shown from {limits} for display alone"
    how += f", gamma {view.gamma:g}" * (view.gamma != 1) + ", inverted" * view.invert
    black, white = (channels.windows or [full_range(dtype.name) or (0, 1 if dtype.kind == "f" else 65535)])[0]
    first = " (in its first channel)" if len(channels.windows or ()) > 1 else ""
    return f"{how}. For the model, {black:,.5g} is black and {white:,.5g} white{first}."
