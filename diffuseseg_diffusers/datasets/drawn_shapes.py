# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Textures and shapes that drawn pictures are made of."""

import math
from dataclasses import dataclass, field

import numpy as np


Window = tuple[slice, slice]


# Textures: fields of zero mean, about one in amplitude.


def stationary_noise(
    rng: np.random.Generator, size: int, exponent: float, stretch: float = 1.0, angle: float = 0.0
) -> np.ndarray:
    """Stationary noise `[S, S]` of unit variance, its amplitude falling with frequency as `1 / f ** exponent`."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    cos, sin = math.cos(angle), math.sin(angle)
    f = np.hypot((cos * fx + sin * fy) * stretch, (cos * fy - sin * fx) / stretch)
    spectrum = np.fft.rfft2(rng.standard_normal((size, size), np.float32))
    x = np.fft.irfft2(spectrum / np.maximum(f, 1 / size) ** exponent * (f > 0), s=(size, size))
    return (x / max(float(x.std()), 1e-6)).astype(np.float32)


def _band(rng: np.random.Generator, size: int, period: float, width: float = 0.4) -> np.ndarray:
    """Noise `[S, S]` of unit variance around one period in pixels: spots and granules of one size."""
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    gain = np.exp(-0.5 * (np.log(np.maximum(f, 1e-6) * period) / width) ** 2)
    x = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size), np.float32)) * gain, s=(size, size))
    return (x / max(float(x.std()), 1e-6)).astype(np.float32)


def _pattern(rng: np.random.Generator, size: int, unit: float) -> np.ndarray:
    """A texture `[S, S]`: noise, grain, stripes, spots, a grid or a gradient."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    angle = rng.uniform(0, math.pi)
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    period = rng.uniform(3, 14) * unit
    match rng.integers(7):
        case 0 | 1:
            return stationary_noise(rng, size, rng.uniform(0.2, 2.2), math.exp(rng.normal(0, 0.5)), angle)
        case 2:
            return np.tanh(rng.uniform(1, 4) * (_band(rng, size, period) - rng.uniform(-0.5, 1.2)))
        case 3:
            warp = stationary_noise(rng, size, 2.0) * rng.uniform(0, 1.5)
            return np.tanh(rng.uniform(1, 3) * np.sin(along * (2 * math.pi / period) + warp))
        case 4:
            lines = np.minimum(np.abs((along / period) % 1 - 0.5), np.abs((across / period) % 1 - 0.5))
            return np.where(lines < rng.uniform(0.05, 0.25), 1.5, -0.5).astype(np.float32)
        case 5:
            return (along - along.mean()) / size * 3.0
        case _:
            return _band(rng, size, period)


class Palette:
    """Colours that occur together: near a few anchors, more or less saturated."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        grey = rng.uniform(0.02, 0.98, (rng.integers(2, 6), 1))
        tint = rng.normal(0, 1, (len(grey), 3)) * rng.choice([0.03, 0.1, 0.22])
        self.anchors = (grey + tint).clip(0, 1)

    def color(self) -> np.ndarray:
        """`[3, 1, 1]` in [0, 1]."""
        anchor = self.anchors[self.rng.integers(len(self.anchors))]
        return (anchor + self.rng.normal(0, 0.06, 3)).clip(0, 1).astype(np.float32)[:, None, None]


def textured_surface(rng: np.random.Generator, size: int, unit: float, palette: Palette) -> np.ndarray:
    """A textured surface `[3, S, S]`."""
    color = palette.color()
    if rng.random() < 0.25:
        return np.repeat(np.repeat(color, size, 1), size, 2)
    towards = palette.color() - color if rng.random() < 0.5 else rng.uniform(-1, 1) * np.ones((3, 1, 1), np.float32)
    return color + _pattern(rng, size, unit) * towards * rng.uniform(0.05, 0.35)


# Shapes.


@dataclass
class Kind:
    """A kind of shapes, whose instances look alike: cells of a kind, leaves, screws, windows."""

    outline: str
    radius: float  # pixels, median
    spread: float  # of the logarithm of the radius
    aspect: float
    color: np.ndarray
    variation: float  # of the colour, from one to another
    surface: np.ndarray | None  # [3,S,S]
    corners: int
    wobble: float
    shading: float  # of the border against the middle
    rim: np.ndarray | None
    rim_width: float
    shadow: float
    softness: float  # pixels of the edge
    opacity: float
    angle: float | None  # of all, or of each its own
    parts: list["Kind"] = field(default_factory=list)
    count: int = 0  # of parts of each kind
    central: bool = False


def make_kind(
    rng: np.random.Generator, size: int, unit: float, palette: Palette, radius: float, depth: int = 0
) -> Kind:
    outline = rng.choice(["ellipse", "blob", "box", "polygon", "stroke"], p=[0.3, 0.3, 0.15, 0.1, 0.15])
    rim = palette.color() if rng.random() < 0.35 else None
    kind = Kind(
        outline=str(outline),
        radius=radius,
        spread=rng.choice([0.08, 0.3, 0.6]),
        aspect=math.exp(abs(rng.normal(0, 0.45))) if outline != "stroke" else 1.0,
        color=palette.color(),
        variation=rng.choice([0.0, 0.04, 0.12]),
        surface=textured_surface(rng, size, unit, palette) if rng.random() < 0.5 else None,
        corners=int(rng.integers(3, 8)),
        wobble=rng.uniform(0.05, 0.3),
        shading=rng.choice([0.0, 0.0, rng.uniform(-0.5, 0.5)]),
        rim=rim,
        rim_width=rng.uniform(0.8, 2.5) * max(1.0, unit),
        shadow=rng.choice([0.0, 0.0, rng.uniform(0.2, 0.6)]),
        softness=rng.choice([0.7, 0.7, 1.5, 0.3 * radius + 0.7]),
        opacity=1.0 if rng.random() < 0.7 else rng.uniform(0.15, 0.9),
        angle=rng.uniform(0, math.pi) if rng.random() < 0.3 else None,
    )
    if depth < 2 and radius > 3 and rng.random() < 0.45:
        kind.central = bool(rng.random() < 0.4)
        kind.count = 1 if kind.central else int(rng.integers(1, 6))
        share = rng.uniform(0.35, 0.65) if kind.central else rng.uniform(0.1, 0.4)
        for _ in range(1 if kind.central else int(rng.integers(1, 3))):
            kind.parts.append(make_kind(rng, size, unit, palette, radius * share, depth + 1))
    return kind


def _window(cx: float, cy: float, extent: float, size: int) -> Window | None:
    left, right = max(0, int(cx - extent)), min(size, int(cx + extent) + 2)
    top, bottom = max(0, int(cy - extent)), min(size, int(cy + extent) + 2)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


def _inside(
    rng: np.random.Generator, kind: Kind, cx: float, cy: float, radius: float, angle: float, where: Window
) -> np.ndarray:
    """Pixels from the edge of a shape, `[h, w]`: positive inside."""
    y, x = np.mgrid[where].astype(np.float32)
    x, y = x - cx, y - cy
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = (cos * x + sin * y) / kind.aspect**0.5, (cos * y - sin * x) * kind.aspect**0.5
    if kind.outline == "stroke":
        # A bent line: three control points, as a chain of segments.
        bend, length = rng.normal(0, 0.6) * radius, radius * 2
        t = np.linspace(0, 1, 7, dtype=np.float32)
        px, py = (2 * t - 1) * length, bend * (1 - (2 * t - 1) ** 2) * 2
        ax, ay, bx, by = px[:-1, None, None], py[:-1, None, None], px[1:, None, None], py[1:, None, None]
        share = ((u - ax) * (bx - ax) + (v - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)
        share = share.clip(0, 1)
        near = np.sqrt((u - ax - share * (bx - ax)) ** 2 + (v - ay - share * (by - ay)) ** 2).min(0)
        return max(0.6, radius * kind.wobble) - near
    rho, theta = np.hypot(u, v), np.arctan2(v, u)
    if kind.outline == "ellipse":
        edge = np.float32(1)
    elif kind.outline == "box":
        power = 8.0
        edge = (np.abs(np.cos(theta)) ** power + np.abs(np.sin(theta)) ** power) ** (-1 / power)
    elif kind.outline == "polygon":
        step = 2 * math.pi / kind.corners
        edge = math.cos(step / 2) / np.cos(theta % step - step / 2)
    else:
        edge = np.ones_like(theta)
        for k in range(2, 6):
            edge += kind.wobble * rng.normal() / (k - 1) * np.cos(k * theta + rng.uniform(0, 2 * math.pi))
        edge = np.maximum(edge, 0.25)
    return radius * edge - rho


def paint(
    rng: np.random.Generator,
    canvas: np.ndarray,
    kind: Kind,
    cx: float,
    cy: float,
    radius: float,
    angle: float,
    within: np.ndarray | None = None,
) -> None:
    """Draws one shape; parts stay within their whole, `[S, S]` in [0, 1]."""
    size = canvas.shape[1]
    extent = radius * max(kind.aspect, 1) ** 0.5 * (2.6 if kind.outline == "stroke" else 1.6) + 3
    where = _window(cx, cy, extent, size)
    if where is None:
        return
    inside = _inside(rng, kind, cx, cy, radius, angle, where)  # [h,w]
    alpha = (inside / kind.softness + 0.5).clip(0, 1)
    if within is not None:
        alpha = alpha * within[where]
    if kind.shadow and within is None:
        dx, dy = rng.uniform(1, 3, 2)
        cast = _window(cx + dx, cy + dy, extent, size)
        if cast is not None and all(a.stop - a.start == b.stop - b.start for a, b in zip(cast, where)):
            canvas[:, *cast] *= 1 - kind.shadow * alpha
    color = kind.color + rng.normal(0, 1, (3, 1, 1)).astype(np.float32) * kind.variation
    fill = np.broadcast_to(color, (3, *alpha.shape))
    if kind.surface is not None:
        fill = kind.surface[:, *where] + (color - kind.color)
    if kind.shading:
        fill = fill + kind.shading * ((inside / max(radius, 1)).clip(0, 1) - 0.5)
    if kind.rim is not None:
        rim = (1 - np.abs(inside - kind.rim_width / 2) / kind.rim_width * 1.5).clip(0, 1)
        fill = fill + rim * (kind.rim - fill)
    canvas[:, *where] += alpha * kind.opacity * (fill - canvas[:, *where])
    if kind.parts:
        whole = np.zeros(canvas.shape[1:], np.float32)
        whole[where] = alpha
        for part in kind.parts:
            for _ in range(kind.count):
                away = 0.0 if kind.central else rng.uniform(0, 0.75) * radius
                at = rng.uniform(0, 2 * math.pi)
                own = part.radius * radius / kind.radius * math.exp(rng.normal(0, part.spread) * 0.5)
                turned = angle if rng.random() < 0.5 else rng.uniform(0, math.pi)
                paint(rng, canvas, part, cx + away * math.cos(at), cy + away * math.sin(at), own, turned, whole)


def _places(rng: np.random.Generator, size: int, count: int, radius: float) -> np.ndarray:
    """Centres `[n, 2]`: at random, apart from each other, in clusters, on a grid, or around a middle."""
    match rng.integers(5):
        case 0:
            return rng.uniform(0, size, (count, 2))
        case 1:  # each apart from those before it
            places: list[np.ndarray] = []
            for place in rng.uniform(0, size, (count * 3, 2)):
                if all(np.hypot(*(place - other)) > 2 * radius for other in places):
                    places.append(place)
                if len(places) == count:
                    break
            return np.array(places)
        case 2:
            middles = rng.uniform(0, size, (max(1, count // 6), 2))
            return middles[rng.integers(len(middles), size=count)] + rng.normal(0, 2 * radius + 1, (count, 2))
        case 3:
            step = max(2.2 * radius, size / max(1, math.sqrt(count)))
            grid = np.stack(np.meshgrid(np.arange(0, size, step), np.arange(0, size, step)), -1).reshape(-1, 2)
            return grid + rng.uniform(0, step, 2) + rng.normal(0, 0.1 * step, grid.shape)
        case _:
            middle, turn = rng.uniform(0.2, 0.8, 2) * size, rng.uniform(0, 2 * math.pi)
            at = turn + np.arange(count) * 2 * math.pi / max(3, min(count, 9))
            away = radius * (1 + np.arange(count) // 9)
            return middle + np.stack([np.cos(at) * away, np.sin(at) * away], 1)


def scatter(rng: np.random.Generator, canvas: np.ndarray, kind: Kind, count: int) -> None:
    """Draws many shapes of a kind."""
    places = _places(rng, canvas.shape[1], count, kind.radius)
    middle = places.mean(0) if len(places) else 0
    outward = rng.random() < 0.2
    for place in places:
        radius = kind.radius * math.exp(rng.normal(0, kind.spread))
        angle = rng.uniform(0, math.pi) if kind.angle is None else kind.angle + rng.normal(0, 0.1)
        if outward:
            angle = math.atan2(*(place - middle)[::-1])
        paint(rng, canvas, kind, float(place[0]), float(place[1]), radius, angle)
