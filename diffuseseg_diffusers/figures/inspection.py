# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The page and the contact sheet of `diffuseseg inspect`."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import PIL.Image
import PIL.ImageOps

from ..datasets.inspection import REFUSED, Inspection, View
from ..images.image_processor import overlay


_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .2rem .8rem .2rem 0; text-align: left; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.warning { border-left: .3rem solid #d55e00; margin: .4rem 0; padding: .1rem .7rem; }
.swatch { border: 1px solid #888; display: inline-block; height: .9em; width: .9em; vertical-align: -.1em; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); }
figure { margin: 0; } figure div { display: flex; gap: 2px; } figure img { flex: 1; min-width: 0; width: 0; }
figure img { image-rendering: auto; background: #8884; } figcaption { font-size: .8rem; overflow-wrap: anywhere; }
"""


def inspection_page(found: Inspection, views: Sequence[View], palette: Sequence[Sequence[int]]) -> str:
    """One page of HTML without other files: facts, warnings, classes, and pictures with masks and overlays.

    Args:
        found ([`Inspection`]): What was understood.
        views (sequence of [`View`]): The pictures to show.
        palette (sequence of `[red, green, blue]`): Colours of the classes, 0 to 255.
    """
    title = escape(f"{found.dataset}: what was understood")
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><h1>{title}</h1>',
        f"<p>{escape(found.layout)}</p>",
    ]
    parts += [f"<p><b>{escape(REFUSED)}</b></p>".replace("`", "")] * found.refused
    parts += [f'<p class="warning">{escape(line)}</p>' for line in found.warnings]
    parts.append("<h2>Splits</h2>")
    parts.append(_table(("split", "images", "sizes", "kinds", "values", "pixels"), found.split_facts().items()))
    if found.classes:
        kind = f"{found.mask_format}, by value" if found.by_value else found.mask_format
        parts.append(f"<h2>Classes</h2><p>Masks: {escape(kind)}; {found.ignored_share:.1%} of pixels ")
        parts.append("have no label.</p>")
        rows = []
        for one in found.classes:
            colour = "rgb({}, {}, {})".format(*palette[one.id])
            swatch = f'<span class="swatch" style="background: {colour}"></span> {one.id}'
            rows.append(f"<tr><td>{swatch}<td>{escape(one.name)}<td class=number>{one.share:.2%}")
            rows.append(f"<td class=number>{one.pixels:,}<td class=number>{one.images:,}</tr>")
        head = "<tr><th>id<th>class<th>share<th>pixels<th>images</tr>"
        parts.append(f"<table>{head}{''.join(rows)}</table>")
    for split, number in found.splits.items():
        own = [view for view in views if view.picture.split == split]
        shown = "" if len(own) == number else f", {len(own)} of them shown"
        parts.append(f'<h2>{escape(split)}: {number} image{"s" * (number != 1)}{shown}</h2><div class="pictures">')
        parts += [_figure(view, found.label_names, palette) for view in own]
        parts.append("</div>")
    return "".join(parts) + "</body></html>\n"


def contact_sheet_of(views: Sequence[View], palette: Sequence[Sequence[int]], cell: int = 160) -> PIL.Image.Image:
    """Pictures in rows of eight, each above its mask and overlay if it has one.

    Args:
        views (sequence of [`View`]): What to show.
        palette (sequence of `[red, green, blue]`): Colours of the classes.
        cell (`int`, defaults to 160): Side of a cell in pixels.
    """
    columns, rows = min(8, len(views)), 3 if any(v.mask is not None for v in views) else 1
    sheet = PIL.Image.new("RGB", (columns * cell, -(-len(views) // columns) * rows * cell), (128, 128, 128))
    for i, view in enumerate(views):
        for j, panel in enumerate(_panels(view, palette)):
            panel.thumbnail(
                (cell - 4, cell - 4), PIL.Image.Resampling.NEAREST if j == 1 else PIL.Image.Resampling.LANCZOS
            )
            left, top = i % columns * cell, (i // columns * rows + j) * cell
            sheet.paste(panel, (left + (cell - panel.width) // 2, top + (cell - panel.height) // 2))
    return sheet


def _panels(view: View, palette: Sequence[Sequence[int]]) -> list[PIL.Image.Image]:
    """The picture, its mask in colour and both; the picture alone without a mask."""
    image = PIL.Image.fromarray(view.image)
    if view.mask is None:
        return [image]
    colors = np.full((256, 3), 128, np.uint8)  # ignored pixels are grey
    colors[: len(palette)] = palette
    return [image, PIL.Image.fromarray(colors[view.mask]), overlay(image, view.mask, palette)]


def _figure(view: View, label_names: Sequence[str], palette: Sequence[Sequence[int]]) -> str:
    images = []
    for panel in _panels(view, palette):
        encoded = io.BytesIO()
        panel.save(encoded, "png")
        images.append(f'<img alt="" src="data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}">')
    picture = view.picture
    shown = ", ".join(name for i, name in enumerate(label_names) if i in picture.classes)
    notes = "".join(f'<br><span class="warning">{escape(note)}</span>' for note in picture.notes)
    facts = f"{escape(picture.name)}<br>{escape(picture.size)}, {escape(picture.kind)}<br>{escape(shown)}{notes}"
    return f"<figure><div>{''.join(images)}</div><figcaption>{facts}</figcaption></figure>"


def _table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    titles = "".join(f"<th>{escape(name)}" for name in head)
    lines = [f"<tr><td>{escape(name)}{''.join(f'<td>{escape(fact)}' for fact in facts)}</tr>" for name, facts in rows]
    return f"<table><tr>{titles}</tr>{''.join(lines)}</table>"
