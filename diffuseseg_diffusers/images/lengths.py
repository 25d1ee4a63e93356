# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Lengths with units, as people type them and as files state them."""

import re


MICROMETRES = {"µm": 1.0, "um": 1.0, "micron": 1.0, "micrometer": 1.0, "nm": 1e-3, "nanometer": 1e-3}
MICROMETRES |= {"mm": 1e3, "millimeter": 1e3, "cm": 1e4, "centimeter": 1e4, "m": 1e6, "meter": 1e6, "pm": 1e-6}
MICROMETRES |= {"picometer": 1e-6, "angstrom": 1e-4, "Å": 1e-4}


def micrometres(text: str) -> float:
    """Parses a length: a number in micrometres, or one with a unit, such as `0.5um`, `10m` or `2 mm`.

    Raises:
        ValueError: The text is not a length.
    """
    found = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([a-zµ]*)\s*", text)
    if found is None or found[2] not in ("", *MICROMETRES):
        raise ValueError(f"{text!r} is no length")
    return float(found[1]) * MICROMETRES[found[2] or "um"]
