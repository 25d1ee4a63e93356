# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Input channels of a model and their intensity windows: any number of channels, of any numeric type."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..jobs.errors import UserError


LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's mode "L"
DISPLAYED = (0.5, 99.5)  # percentiles that become black and white on a screen
_FULL_RANGE = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "bool": (0.0, 1.0)}


@dataclass(frozen=True)
class InputChannels:
    """The channels that a model reads, in its order, and the values mapped to black and white.

    Args:
        names (sequence of `str` or `int`, *optional*): Names of the channels, or their numbers from 0; all if none.
        windows (sequence of `(low, high)`, *optional*): For each channel, the values that become 0 and 1; others are
            clipped. Without windows, unsigned integers use their full range, and floating point must lie in 0 to 1.

    Raises:
        UserError: A window is empty, or there are not as many windows as channels.
    """

    names: tuple[str | int, ...] | None = None
    windows: tuple[tuple[float, float], ...] | None = None

    def __post_init__(self):
        for low, high in self.windows or ():
            if not low < high:
                raise UserError(f"An intensity window is a low and a high value, got {low:g} and {high:g}.")
        if self.names and self.windows and len(self.windows) not in (1, len(self.names)):
            raise UserError(f"{len(self.windows)} intensity windows were given for {len(self.names)} channels.")

    @classmethod
    def of(cls, config: Mapping[str, Any] | None) -> "InputChannels":
        """From the `channels` entry of a model's config; all channels over their full range if it has none."""
        config = config or {}
        names, windows = config.get("names"), config.get("windows")
        return cls(tuple(names) if names else None, tuple((w[0], w[1]) for w in windows) if windows else None)

    @property
    def config(self) -> dict | None:
        """The `channels` entry of a model's config; `None` for all channels over their full range."""
        if self.names is None and self.windows is None:
            return None
        windows = [list(window) for window in self.windows] if self.windows else None
        return {"names": list(self.names) if self.names else None, "windows": windows}

    def indices(self, available: Sequence[str], where: str) -> list[int]:
        """Indices of the channels among those of an image, alpha excluded.

        Args:
            available (sequence of `str`): Names of the picture's channels.
            where (`str`): What to call it in messages.

        Raises:
            UserError: The picture has no such channel; names those that it has.
        """
        if self.names is None:
            return [i for i, name in enumerate(available) if name != "alpha"]
        found = []
        for name in self.names:
            if isinstance(name, str) and name in available:
                found.append(list(available).index(name))
            elif str(name).isdecimal() and int(name) < len(available):
                found.append(int(name))
            else:
                raise UserError(f"{where} has no channel {name!r}; it has {describe_channels(available)}.")
        return found

    def encode(self, values: np.ndarray, in_channels: int, where: str = "An image") -> np.ndarray:
        """Scales chosen channels of any numeric type to the model's input.

        Args:
            values (`np.ndarray`): `[C, H, W]`, the chosen channels in their order, of any numeric type.
            in_channels (`int`): Channels that the model takes. Grey is repeated for three, and of red, green and blue
                the luma is taken for one.
            where (`str`): What to call the picture in messages.

        Returns:
            `np.ndarray`: `[in_channels, H, W]` float32 in 0 to 1; NaN becomes 0.

        Raises:
            UserError: The number of channels does not fit, or the type has no natural range and no window is given.
        """
        count = len(values)
        if count != in_channels and (count, in_channels) not in ((1, 3), (3, 1)):
            raise UserError(
                f"{where} has {count} channel{'s' * (count != 1)}, and the model takes {in_channels}; choose them, in "
                f"the model's order, with --input_channels."
            )
        low, high = self._window(values, where)  # [C] each
        x = values.astype(np.float32)
        x -= low[:, None, None]
        x /= (high - low)[:, None, None]
        np.nan_to_num(x, copy=False)
        x.clip(0, 1, out=x)
        if count == in_channels:
            return x
        if in_channels == 1:
            return np.tensordot(np.array(LUMA, np.float32), x, 1)[None]
        return np.repeat(x, in_channels, axis=0)

    def without_nan(self, values: np.ndarray) -> np.ndarray:
        """Chosen channels `[C, H, W]` with black in place of NaN, as [`encode`] has it."""
        if values.dtype.kind != "f" or not np.isnan(values).any():
            return values
        black = np.array([low for low, _ in self.windows or ((0.0, 1.0),)], values.dtype)
        return np.where(np.isnan(values), black[:, None, None], values)

    def _window(self, values: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
        count = len(values)
        if self.windows:
            if len(self.windows) not in (1, count):
                raise UserError(f"{where} has {count} channels, but there are {len(self.windows)} intensity windows.")
            windows = np.array(list(self.windows) * (count if len(self.windows) == 1 else 1), np.float32)  # [C,2]
            return windows[:, 0], windows[:, 1]
        low, high = _FULL_RANGE.get(str(values.dtype), (0.0, 1.0))
        if str(values.dtype) not in _FULL_RANGE:
            finite = values[np.isfinite(values)]
            least, most = (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)
            if values.dtype.kind != "f" or not 0 <= least <= most <= 1:
                raise UserError(
                    f"{where} has values of {values.dtype} from {least:g} to {most:g}, which have no range of their "
                    f"own; say which are black and white, with --intensity_window or --intensity_percentiles."
                )
        return np.full(count, low, np.float32), np.full(count, high, np.float32)


def full_range(dtype: str) -> tuple[float, float] | None:
    """The values that are black and white where none are named; `None` for types without such."""
    return _FULL_RANGE.get(dtype)


def describe_channels(names: Sequence[str]) -> str:
    """Names of channels with their numbers, for messages."""
    return ", ".join(f"{i} ({name})" if name != str(i) else name for i, name in enumerate(names))


def percentile_windows(
    samples: Sequence[np.ndarray], percentiles: tuple[float, float]
) -> tuple[tuple[float, float], ...]:
    """For each channel, the values at two percentiles over samples of pictures.

    Args:
        samples (sequence of `np.ndarray`): `[C, P]` values each, the same channels in the same order.
        percentiles (two `float`): 0 to 100.

    Raises:
        UserError: A channel is constant.
    """
    values = np.concatenate([sample.astype(np.float64) for sample in samples], axis=1)  # [C,P]
    found = []
    for i, channel in enumerate(values):
        low, high = (float(x) for x in np.nanpercentile(channel, percentiles))
        if not low < high:
            raise UserError(
                f"Channel {i} has the value {low:g} at both percentiles {percentiles[0]:g} and {percentiles[1]:g}; "
                f"give an --intensity_window, or leave the channel out (--input_channels)."
            )
        found.append((low, high))
    return tuple(found)


def display_range(values: np.ndarray) -> tuple[float, float]:
    """The values that are black and white on a screen: their 0.5th and 99.5th percentile, of eight bits the full range.

    The least and the greatest value if the percentiles are one value; 0 and 0 if no value is finite.
    """
    if values.dtype in (np.uint8, bool):
        return _FULL_RANGE[str(values.dtype)]
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return 0.0, 0.0
    low, high = (float(x) for x in np.percentile(finite[:: -(-finite.size // 2**22)], DISPLAYED))
    return (low, high) if low < high else (float(finite.min()), float(finite.max()))


def stretch(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Values of any numeric type for a screen.

    Returns:
        float32 of the same shape in 0 to 1, NaN being 0; and the values that became 0 and 1, see [`display_range`].
    """
    low, high = display_range(values)
    scaled = (values.astype(np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-12))
    return np.nan_to_num(scaled).clip(0, 1), low, high


def to_rgb(values: np.ndarray) -> np.ndarray:
    """An RGB rendering of an image with any number of channels: the first three are red, green and blue.

    Args:
        values (`np.ndarray`): `[C, H, W]` float32 in 0 to 1. One channel is shown in grey; of two, blue stays black.

    Returns:
        `np.ndarray`: `[H, W, 3]` uint8.
    """
    shown = np.repeat(values, 3, axis=0) if len(values) == 1 else values[:3]
    if len(shown) == 2:
        shown = np.concatenate([shown, np.zeros_like(shown[:1])])
    return (shown * 255).round().astype(np.uint8).transpose(1, 2, 0)
