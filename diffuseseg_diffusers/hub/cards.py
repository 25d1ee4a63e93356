# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What all cards share: templates, the user's own text, and facts in words."""

import io
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import PIL.Image
from huggingface_hub import CardData, DatasetCard, EvalResult, ModelCard
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..jobs.install import INSTALL, INSTALL_WHERE, INSTALL_WITHOUT_US


CARD = "README.md"
SAMPLES, CURVES = "samples.png", "training_curves.png"
RECORDS = ("training_state.json", "head_training.json")  # how a pipeline was trained: `train-ddpm` and `fit` leave them
MARK = "<!-- Written by diffuseseg-diffusers."  # in cards that a push may replace
TAGS = ["diffuseseg", "ddpm", "label-efficient-segmentation"]


def render(
    kind: type[ModelCard] | type[DatasetCard],
    template: str,
    data: CardData,
    repo_id: str,
    own: ModelCard | DatasetCard | None,
    **values: Any,
) -> ModelCard | DatasetCard:
    """Fills in one of the templates of `hub_cards`.

    Args:
        kind (`type`): `ModelCard` or `DatasetCard`.
        template (`str`): File name.
        data (`CardData`): The metadata.
        repo_id (`str`): Where the card will be.
        own (card, *optional*): What the user wrote; its text stands at the top.
        **values: What else the template names.
    """
    folder = resources.files("diffuseseg_diffusers.hub_cards")
    loader = jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8"))
    text = (
        jinja2.Environment(loader=loader)
        .get_template(template)
        .render(
            card_data=data.to_yaml(),
            repo_id=repo_id,
            title=repo_id.split("/")[-1],
            description=own.text.strip() if own else None,
            install=INSTALL,
            install_where=INSTALL_WHERE,
            install_without_us=INSTALL_WITHOUT_US,
            **values,
        )
    )
    return kind(re.sub(r"\n{3,}", "\n\n", text))


def own_card(folder: Path, kind: type[ModelCard] | type[DatasetCard]) -> ModelCard | DatasetCard | None:
    """The README.md of a folder, unless a push wrote it or it is a link."""
    path = folder / CARD
    if not path.is_file() or path.is_symlink() or MARK in path.read_text(encoding="utf-8"):
        return None
    return kind.load(path)


def with_own(data: Mapping, own: ModelCard | DatasetCard | None, license: str | None) -> dict:
    """Metadata of a card; the user's own wins, and a licence that was asked for now over both."""
    data = {**data, **(own.data.to_dict() if own else {}), **({"license": license} if license else {})}
    return {name: value for name, value in data.items() if value is not None}


def describe_images(dataset: Mapping | None, count: int | None) -> str | None:
    """Images of a dataset in words, with a link if it is on the Hub; `None` if nothing is known.

    Args:
        dataset (mapping, *optional*): As [`describe_dataset`] gives it.
        count (`int`, *optional*): How many of it.
    """
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


def with_validation(evaluations: Sequence[Mapping], fitting: Mapping) -> list[dict]:
    """Evaluations, and what `fit` measured on images that it held out, if anything."""
    held_out = [{**fitting["validation"], "is_validation": True}] if fitting.get("validation") else []
    return [*map(dict, evaluations), *held_out]


def fitting_facts(config: Mapping, fitting: Mapping) -> dict[str, str | None]:
    """Rows of a card about a segmentation head; `None` where nothing is known.

    Args:
        config (mapping): Of the head.
        fitting (mapping): Content of `head_training.json`, or nothing.
    """
    how = None
    if "seconds" in fitting:
        how = f"recipe `{fitting['recipe']}`, {fitting['dtype']}, seed {fitting['seed']}"
        how = f"{describe_duration(fitting['seconds'])}, {how}"
    return {
        "labelled images": describe_images(fitting.get("dataset"), fitting.get("num_images")),
        "segmentation head": f"{config['num_members']} members on blocks {', '.join(map(str, config['blocks']))} at "
        f"timesteps {', '.join(map(str, config['timesteps']))}",
        "class of a pixel": "the one that raises mean IoU most" if config.get("decisions") else None,
        "fitting of the head": how,
        "hardware for fitting": describe_machine(fitting),
    }


def datasets_on_hub(*datasets: Mapping | None) -> list[str] | None:
    """Names of those of the datasets that are on the Hub, each once; `None` if none is."""
    return list(dict.fromkeys(d["name"] for d in datasets if d and d.get("on_hub"))) or None


def eval_results(evaluations: Sequence[Mapping]) -> list[EvalResult] | None:
    """Metrics that `diffuseseg evaluate` wrote, in the Hub's form; `None` if there are none."""
    results = []
    for e in evaluations:
        data = e.get("dataset") or {"name": "labelled images"}
        values = [("mean_iou", "Mean IoU", e["mean_iou"]), ("accuracy", "Pixel accuracy", e["pixel_accuracy"])]
        values += [("iou", f"IoU of {name}", iou) for name, iou in e["per_class_iou"].items()]
        results += [
            EvalResult(
                task_type="image-segmentation",
                dataset_type=data["name"],
                dataset_name=data["name"],
                dataset_config=data.get("config"),
                dataset_split=data.get("split"),
                metric_type=kind,
                metric_name=name,
                metric_value=round(float(value), 4),
            )
            for kind, name, value in values
            if value is not None
        ]
    return results or None


def hex_color(color: Sequence[int]) -> str:
    """`[red, green, blue]`, 0 to 255, as `#rrggbb`."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def figure_image(figure: Figure) -> PIL.Image.Image:
    """A figure drawn, mode "RGB"."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def png(image: PIL.Image.Image) -> bytes:
    """An image as the content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
