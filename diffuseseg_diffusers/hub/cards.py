# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What all cards share: templates, the user's own text, and facts in words."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import PIL.Image
from huggingface_hub import DatasetCard, ModelCard
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..jobs.install import INSTALL, INSTALL_WHERE, INSTALL_WITHOUT_US


CARD = "README.md"
SAMPLES = "samples.png"
MARK = "<!-- Written by diffuseseg-diffusers."  # in cards that a push may replace


def render(
    kind: type[ModelCard] | type[DatasetCard],
    template: str,
    data: Mapping[str, Any],
    repo_id: str,
    license: str | None = None,
    own: ModelCard | DatasetCard | None = None,
    **values: Any,
) -> ModelCard | DatasetCard:
    """Fills in one of the templates of `hub_cards`.

    Args:
        kind (`type`): `ModelCard` or `DatasetCard`.
        template (`str`): File name.
        data (mapping): The metadata; the user's own wins, and a licence that was asked for now over both.
        repo_id (`str`): Where the card will be.
        license (`str`, *optional*): See [`push_folder`].
        own (card, *optional*): What the user wrote; its text stands at the top.
        **values: What else the template names.
    """
    data = {
        "license": "unknown",
        **data,
        **(own.data.to_dict() if own else {}),
        **({"license": license} if license else {}),
    }
    metadata = kind.card_data_class(**{name: value for name, value in data.items() if value is not None})
    folder = resources.files("diffuseseg_diffusers.hub_cards")
    loader = jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8"))
    environment = jinja2.Environment(loader=loader)
    environment.filters["cell"] = escape_cell
    page = environment.get_template(template)
    text = page.render(
        card_data=metadata.to_yaml(),
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        description=own.text.strip() if own else None,
        install=INSTALL,
        install_where=INSTALL_WHERE,
        install_without_us=INSTALL_WITHOUT_US,
        **values,
    )
    return kind(re.sub(r"\n{3,}", "\n\n", text))


def escape_cell(text: str) -> str:
    """Text of a user, such as the name of a class, as one cell of a table in Markdown, without markup or code."""
    line = " ".join(text.split())
    return re.sub(r"([\\`*_|\[\]!])", r"\\\1", line).replace("&", "&amp;").replace("<", "&lt;")


def own_card(folder: Path, kind: type[ModelCard] | type[DatasetCard]) -> ModelCard | DatasetCard | None:
    """The README.md of a folder, unless a push wrote it or it is a link."""
    path = folder / CARD
    if not path.is_file() or path.is_symlink() or MARK in path.read_text(encoding="utf-8"):
        return None
    return kind.load(path)


def describe_images(dataset: Mapping | None, count: int | None) -> str | None:
    """So many images of a dataset of [`describe_dataset`] in words, with a link if it is on the Hub; `None` if nothing
    is known."""
    if not dataset:
        return f"{count:,} images" if count else None
    where = f"[{dataset['name']}](https://huggingface.co/datasets/{dataset['name']})"
    where = where if dataset.get("on_hub") else f"{dataset['name']} (not on the Hub)"
    split = f", split `{dataset['split']}`" if dataset.get("split") else ""
    return (f"{count:,} of " if count else "") + where + split


def describe_duration(seconds: float) -> str:
    """A duration in words."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def describe_machine(record: Mapping) -> str | None:
    """Hardware and number of processes of a run in words; `None` if they are not known."""
    parts = [record.get("hardware"), record.get("num_processes", 1) > 1 and f"{record['num_processes']} processes"]
    return ", ".join(p for p in parts if p) or None


def hex_color(color: Sequence[int]) -> str:
    """`[red, green, blue]`, 0 to 255, as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def figure_image(figure: Figure) -> PIL.Image.Image:
    """A figure drawn, mode "RGB"."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
