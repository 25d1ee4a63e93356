# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What stored samples look like in a viewer: inverted, indexed, of few bits, or of another colour space than RGB."""

from dataclasses import dataclass

import numpy as np
import PIL.Image

from ...jobs.errors import UserError


COLOURS = {"CMYK": 4, "LAB": 3, "YCbCr": 3}  # Pillow's names of colour spaces, and their channels


@dataclass(frozen=True)
class Samples:
    """How the samples of a file are stored.

    Args:
        name (`str`): Of the file, for messages.
        bits (`int`, *optional*): Of a sample, where they are fewer than its type has.
        inverted (`bool`): Whether 0 is white (MinIsWhite).
        palette (`np.ndarray`, *optional*): `[N, 3]` uint8, the colours of indices.
        space (`str`, *optional*): Colour space other than grey and RGB, a key of `COLOURS`.
    """

    name: str
    bits: int | None = None
    inverted: bool = False
    palette: np.ndarray | None = None
    space: str | None = None

    @property
    def coloured(self) -> bool:
        """Whether what is shown is red, green and blue where one index, or another colour space, is stored."""
        return self.space is not None or (self.palette is not None and not self._grey)

    @property
    def _grey(self) -> bool:
        return self.palette is not None and bool((self.palette == self.palette[:, :1]).all())

    def channels(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the channels that are shown, of those that are stored."""
        if not self.coloured:
            return names
        return "red", "green", "blue", *names[COLOURS[self.space] if self.space else 1 :]

    def dtype(self, own: np.dtype) -> np.dtype:
        """Type of what is shown, of that of what is stored."""
        return own if self.palette is None else np.dtype(np.uint8)

    def shown(self, values: np.ndarray, numbers: bool = False) -> np.ndarray:
        """Samples `[C, h, w]` as a viewer shows them, `[C', h, w]`; see `channels`.

        Args:
            values (`np.ndarray`): What is stored.
            numbers (`bool`): Whether indices, and numbers of few bits, stay as they are, as in masks of class ids.

        Raises:
            UserError: Their type has no white to invert them at, or no known meaning in their colour space.
        """
        if self.inverted:
            values = self._inverse(values)
        if self.space:
            count = COLOURS[self.space]
            return np.concatenate([self._rgb(values[:count]), values[count:]])
        if numbers:
            return values
        if self.palette is not None:
            colours = self.palette[:, :1] if self._grey else self.palette
            shown = colours[np.minimum(values[0], len(colours) - 1)].transpose(2, 0, 1)
            return np.concatenate([shown, values[1:].astype(np.uint8)])
        if self.bits and self.bits < 8:
            return (values.astype(np.float32) * (255 / (2**self.bits - 1))).round().astype(np.uint8)
        return values

    def _inverse(self, values: np.ndarray) -> np.ndarray:
        if values.dtype == bool:
            return ~values
        if values.dtype.kind != "u":
            raise UserError(
                f"{self.name} is MinIsWhite with values of {values.dtype}, of which no black is known; save it as "
                f"MinIsBlack."
            )
        return values.dtype.type(2 ** (self.bits or values.dtype.itemsize * 8) - 1) - values

    def _rgb(self, values: np.ndarray) -> np.ndarray:
        if self.space == "CMYK" and values.dtype.kind == "u":
            top = float(np.iinfo(values.dtype).max)
            ink: np.ndarray = values.astype(np.float64)
            return ((top - ink[:3]) * (top - ink[3]) / top).round().astype(values.dtype)
        if values.dtype != np.uint8:
            raise UserError(f"{self.name} holds {self.space} colours of {values.dtype}; save it as RGB.")
        size = values.shape[2], values.shape[1]
        image = PIL.Image.frombytes(str(self.space), size, np.ascontiguousarray(values.transpose(1, 2, 0)).tobytes())
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
