# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pushes pipelines and datasets to the Hub, whole or not at all, with cards that need no editing."""

import argparse
import io
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import DDIMScheduler
from diffusers.utils import make_image_grid
from huggingface_hub import (
    CommitOperationAdd,
    DatasetCard,
    DatasetCardData,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
)
from huggingface_hub.errors import HfHubHTTPError

from .commands import load_pipeline
from .data import IMAGE_COLUMNS, MASK_COLUMNS, as_parquet, decode_picture, open_streams, read_label_file
from .features import image_size
from .hub_errors import explain_hub_error
from .image_processor import default_palette, mask_to_pil, to_eight_bit
from .pipeline_diffuseseg import DiffuseSegPipeline, code_files
from .visualization import samples_page


SAMPLES, CURVES = "samples.png", "training_curves.png"
GENERATION = "generation.json"  # how a synthetic dataset was made
MARK = "<!-- Written by diffuseseg-diffusers."  # in cards that a push may replace
TAGS = ["diffuseseg", "ddpm", "label-efficient-segmentation"]
# What describes the training of a pipeline, in the folder that `fit` and `train-ddpm` leave.
RECORDS = ("training_state.json", "head_training.json")
STUDENT_RECORD = "student_training.json"  # the mark of a folder that `train-student` left
STUDENT_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")


def push_pipeline(pipe: DiffuseSegPipeline, repo_id: str, variant: str | None = None, **kwargs) -> str:
    """Uploads a pipeline with its card in one commit; what [`DiffuseSegPipeline.push_to_hub`] calls.

    Args:
        pipe ([`DiffuseSegPipeline`]): With or without a head.
        repo_id (`str`): Repository, `user/name`; made if it is not there.
        variant (`str`, *optional*): As in [`DiffuseSegPipeline.save_pretrained`].
        **kwargs: As in [`push_folder`].

    Returns:
        `str`: The address of the commit.

    Raises:
        ValueError: The Hub does not take it; says why. The repository is then as it was.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder, variant=variant)
        return push_folder(folder, repo_id, pipe=pipe, **kwargs)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    evaluations: Sequence[Mapping] = (),
    num_samples: int = 8,
    pipe: DiffuseSegPipeline | None = None,
    analysis: str | os.PathLike | None = None,
) -> str:
    """Uploads a folder with a pipeline, a student or a dataset, and its card in one commit.

    Of a pipeline's folder go its weights, configs and the code for them, and nothing else; local paths are taken out.
    Of a student's folder go weights and configs; of a dataset's folder goes everything. What a push that was cut off
    had uploaded is not uploaded again.

    Args:
        folder (`str` or path): Saved by [`DiffuseSegPipeline.save_pretrained`], `diffuseseg fit`, `train-ddpm` or
            `train-student`; or anything that [`load_labeled_images`] or `datasets` reads; layouts that only the former
            knows go as Parquet.
        repo_id (`str`): Repository, `user/name`; made if it is not there.
        commit_message (`str`, *optional*), create_pr (`bool`, defaults to `False`): As in `HfApi.create_commit`.
        private (`bool`, *optional*): Whether a new repository is private; the account's default if not given.
        token (`str`, *optional*): The one that you logged in with if not given.
        license (`str`, *optional*): The Hub's identifier of the licence; that of the folder's own README.md or
            "unknown" if not given.
        evaluations (sequence of `dict`): Of a pipeline, metrics that `diffuseseg evaluate` wrote, for the card.
        num_samples (`int`, defaults to 8): Of a pipeline, images to generate for the card, in 50 steps of DDIM.
        pipe ([`DiffuseSegPipeline`], *optional*): What is in the folder, if it is loaded already.
        analysis (`str` or path, *optional*): Of a pipeline, what `diffuseseg analyze` left; the card shows its figures.

    Returns:
        `str`: The address of the commit.

    Raises:
        ValueError: The folder holds nothing to push, or the Hub does not take it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}.")
    figures = sorted(Path(analysis).glob("*.png")) if analysis else []
    if analysis and not figures:
        raise ValueError(f"There are no figures in {analysis}; `diffuseseg analyze` leaves them in its --output_dir.")
    is_pipeline, is_student = (folder / "model_index.json").is_file(), (folder / STUDENT_RECORD).is_file()
    repo_type = "model" if is_pipeline or is_student else "dataset"
    with hub_refusals(f"{folder} cannot be pushed to {repo_id}"), tempfile.TemporaryDirectory() as scratch:
        api = HfApi(token=token)
        repo_id = create_repository(repo_id, private, token, repo_type)
        if is_pipeline:
            files = model_files(folder) | {f"analysis/{path.name}": path for path in figures}
            if pipe is None:
                pipe = load_pipeline(os.fspath(folder))  # what cannot be loaded is not pushed
            if num_samples > 0 and SAMPLES not in files:
                files[SAMPLES] = _png(sample_sheet(pipe, num_samples))
            records = {name: _read_json(folder / name) for name in RECORDS if (folder / name).is_file()}
            card = model_card(pipe, repo_id, files, license, evaluations, records, _own_text(folder, ModelCard))
        elif is_student:
            files = {name: _without_local_path(folder / name) for name in STUDENT_FILES if name.endswith(".json")}
            files |= {name: folder / name for name in STUDENT_FILES if not name.endswith(".json")}
            card = student_card(folder, repo_id, license, _own_text(folder, ModelCard))
        else:
            own = _own_text(folder, DatasetCard)
            folder = as_parquet(folder, Path(scratch)) or folder
            files = {p.relative_to(folder).as_posix(): p for p in _visible_files(folder)}
            card = dataset_card(folder, repo_id, files, license, own)
        files["README.md"] = re.sub(r"\n{3,}", "\n\n", str(card)).encode()
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, content) for name, content in sorted(files.items())],
            commit_message=commit_message
            or f"Upload {'pipeline' if is_pipeline else 'student' if is_student else 'dataset'}",
            repo_type=repo_type,
            create_pr=create_pr,
        )
    return commit.pr_url or commit.commit_url


def create_repository(repo_id: str, private: bool | None, token: str | None = None, repo_type: str = "model") -> str:
    """Makes a repository if it is not there; returns its full name."""
    return HfApi(token=token).create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True).repo_id


@contextmanager
def hub_refusals(what: str) -> Iterator[None]:
    """Turns what the Hub's client raises into a `ValueError` that says what failed, why, and what to do."""
    try:
        yield
    except Exception as error:
        reason = explain_hub_error(error)
        if reason is None and isinstance(error, HfHubHTTPError):
            reason = str(error)
        if reason is None:
            raise
        raise ValueError(f"{what}: {reason}.") from error


def add_hub_arguments(parser: argparse.ArgumentParser, repo_type: str = "model") -> None:
    """`--push_to_hub` and what goes with it, for the training scripts."""
    group = parser.add_argument_group("Hub")
    group.add_argument("--push_to_hub", action="store_true", help=f"Upload the {repo_type} in the end.")
    group.add_argument(
        f"--hub_{repo_type}_id", dest="hub_id", help="Repository, user/name (default: the name of the output folder)."
    )
    group.add_argument("--hub_private_repo", action="store_true", help="Make a new repository private.")
    group.add_argument("--license", help="The Hub's identifier of the licence (default: unknown).")


def prepare_push(args: argparse.Namespace, repo_type: str = "model") -> None:
    """Makes the repository before the long work, so that a wrong name or token shows now and not after it."""
    if args.push_to_hub:
        name = args.hub_id or args.output_dir.name
        with hub_refusals(f"{name} cannot be pushed to"):
            args.hub_id = create_repository(name, args.hub_private_repo or None, repo_type=repo_type)


def finish_push(args: argparse.Namespace) -> None:
    """Uploads the output folder; it stays complete if that fails."""
    if not args.push_to_hub:
        return
    try:
        url = push_folder(args.output_dir, args.hub_id, license=args.license)
    except ValueError as error:
        raise ValueError(
            f"{error} Nothing is lost: when it can be reached, `diffuseseg push {args.output_dir} {args.hub_id}`."
        ) from error
    print(f"Pushed: {url}")


def model_files(folder: Path) -> dict[str, Path | bytes]:
    """What of a pipeline's folder goes to the Hub: path in the repository, and a file or its content.

    Raises:
        ValueError: A part of the pipeline is not there, or only pickled.
    """
    index = _read_json(folder / "model_index.json")
    index.pop("_name_or_path", None)
    is_ours = DiffuseSegPipeline.__name__ in index["_class_name"]
    files: dict[str, Path | bytes] = {}
    for part, where in index.items():
        if part.startswith("_") or not isinstance(where, list) or where[0] is None:
            continue
        root = folder / part if (folder / part).is_dir() else folder  # old pipelines have one level
        found = [p for p in sorted(root.glob("*")) if p.suffix in (".json", ".safetensors") and p.name not in RECORDS]
        found = [p for p in found if p.name != "model_index.json"]
        if not any(p.name.endswith("config.json") for p in found):
            raise ValueError(f"The pipeline in {folder} is not whole: {part} is not there.")
        if part != "scheduler" and not any(p.suffix == ".safetensors" for p in found):
            raise ValueError(f"The weights of {part} in {folder} are not in the safetensors format; save them so.")
        for path in found:
            name = path.relative_to(folder).as_posix()
            files[name] = _without_local_path(path) if path.suffix == ".json" else path
    for picture in (SAMPLES, CURVES):
        if (folder / picture).is_file():
            files[picture] = folder / picture
    if is_ours:
        return files | {name: text.encode() for name, text in code_files(index).items()}
    return files | {"model_index.json": (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()}


def sample_sheet(pipe: DiffuseSegPipeline, count: int, num_inference_steps: int = 50) -> PIL.Image.Image:
    """Images that the pipeline generates with DDIM from seed 0, with their masks and overlays if it has a head."""
    pipe = DiffuseSegPipeline(pipe.unet, DDIMScheduler.from_config(pipe.scheduler.config), pipe.segmentation_head)
    pipe.set_progress_bar_config(desc="Samples for the card", leave=False)
    output = pipe(count, num_inference_steps, generator=torch.Generator().manual_seed(0))
    if output.masks is None:
        columns = max(c for c in range(1, int(count**0.5) + 1) if count % c == 0)
        return make_image_grid(output.images, rows=columns, cols=count // columns)
    return _figure_image(samples_page(output.images, output.masks, pipe.label_names, pipe.palette))


def model_card(
    pipe: DiffuseSegPipeline,
    repo_id: str,
    files: Mapping[str, Path | bytes],
    license: str | None = None,
    evaluations: Sequence[Mapping] = (),
    records: Mapping[str, Mapping] | None = None,
    own: ModelCard | None = None,
) -> ModelCard:
    """The card of a pipeline, of what is known about it and nothing else.

    Args:
        pipe ([`DiffuseSegPipeline`]), repo_id (`str`): What is described, and where it will be.
        files (mapping): What goes with it, see [`model_files`].
        license (`str`, *optional*), evaluations (sequence of `dict`): See [`push_folder`].
        records (mapping, *optional*): Content of `training_state.json` and `head_training.json`, by name.
        own (`ModelCard`, *optional*): What the user wrote; its metadata wins, and its text stands at the top.
    """
    records = records or {}
    training, fitting = (dict(records.get(name, {})) for name in RECORDS)
    head = None if pipe.segmentation_head is None else pipe.segmentation_head.config
    evaluations = [dict(e) for e in evaluations]
    if fitting.get("validation"):
        evaluations.append({**fitting["validation"], "is_validation": True})
    height, width = image_size(pipe.unet)
    kind = "grey-scale images" if pipe.unet.config.in_channels == 1 else "colour images"
    used = [d for d in (training.get("dataset"), fitting.get("dataset"), *[e.get("dataset") for e in evaluations]) if d]
    data = {
        "license": "unknown",
        "library_name": "diffusers",
        "pipeline_tag": "image-segmentation" if head else "unconditional-image-generation",
        "tags": [*TAGS, "semantic-segmentation" if head else "unconditional-image-generation"],
        "datasets": list(dict.fromkeys(d["name"] for d in used if d.get("on_hub"))) or None,
        "base_model": fitting.get("model_on_hub"),
        "metrics": ["mean_iou", "accuracy"] if evaluations else None,
        "model_name": repo_id.split("/")[-1],
        "eval_results": _eval_results(evaluations) or None,
    }
    return ModelCard.from_template(
        ModelCardData(**_with_own(data, own, license)),
        template_str=_template("model_card.md"),
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        description=own.text.strip() if own else None,
        head=head,
        image_kind=f"{kind} of {width} × {height} pixels" + (" and any other size" if head else ""),
        carries_code="pipeline_diffuseseg.py" in files,
        classes=list(zip(pipe.label_names, map(_hex, pipe.palette))) if head else [],
        samples=SAMPLES if SAMPLES in files else None,
        samples_made="50 steps of DDIM, seed 0",
        curves=CURVES if CURVES in files else None,
        figures=[(Path(name).stem.replace("-", " "), name) for name in files if name.startswith("analysis/")],
        evaluations=evaluations,
        facts=list(_facts(pipe, training, fitting)),
    )


def student_card(folder: Path, repo_id: str, license: str | None = None, own: ModelCard | None = None) -> ModelCard:
    """The card of a student that `train-student` left in a folder; the other arguments as in [`model_card`].

    Raises:
        ValueError: A file of the student is not there.
    """
    missing = [name for name in STUDENT_FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"The student in {folder} is not whole: {', '.join(missing)} is not there.")
    record, config = _read_json(folder / STUDENT_RECORD), _read_json(folder / "config.json")
    evaluation, dataset = record.get("evaluation"), record["train_dataset"]
    used = [d for d in (dataset, record.get("real_dataset"), (evaluation or {}).get("dataset")) if d]
    data = {
        "license": "unknown",
        "library_name": "transformers",
        "pipeline_tag": "image-segmentation",
        "tags": ["diffuseseg", "semantic-segmentation"],
        "datasets": list(dict.fromkeys(d["name"] for d in used if d.get("on_hub"))) or None,
        "base_model": record.get("model_on_hub"),
        "metrics": ["mean_iou", "accuracy"] if evaluation else None,
        "model_name": repo_id.split("/")[-1],
        "eval_results": _eval_results([evaluation] if evaluation else []) or None,
    }
    facts = {
        "network": f"{config['architectures'][0]}, {record['parameters'] / 1e6:.1f} million parameters",
        "weights at the start": record["start"],
        "images with masks": _described(dataset, record["num_images"]),
        "and real ones": _described(record.get("real_dataset"), record.get("num_real_images")),
        "training": f"{len(record['epochs'])} epochs in {_duration(record['seconds'])}",
        "mean IoU on held-out training data": f"{record['validation_mean_iou']:.4f}",
        "hardware": _machine(record),
    }
    return ModelCard.from_template(
        ModelCardData(**_with_own(data, own, license)),
        template_str=_template("student_card.md"),
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        description=own.text.strip() if own else None,
        model_type=config["model_type"],
        classes=[config["id2label"][str(i)] for i in range(len(config["id2label"]))],
        synthetic=record["synthetic"],
        evaluation=evaluation,
        facts=[(name, value) for name, value in facts.items() if value],
    )


def _described(dataset: Mapping | None, count: int | None) -> str | None:
    if not dataset:
        return f"{count:,} images" if count else None
    where = f"[{dataset['name']}](https://huggingface.co/datasets/{dataset['name']})"
    where = where if dataset.get("on_hub") else f"{dataset['name']} (not on the Hub)"
    split = f", split `{dataset['split']}`" if dataset.get("split") else ""
    return (f"{count:,} of " if count else "") + where + split


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def _machine(record: Mapping) -> str | None:
    parts = [record.get("hardware"), record.get("num_processes", 1) > 1 and f"{record['num_processes']} processes"]
    return ", ".join(p for p in parts if p) or None


def _facts(pipe: DiffuseSegPipeline, training: Mapping, fitting: Mapping) -> Iterator[tuple[str, str]]:
    """Rows of the table of data and training: what is known, in words."""
    unet, head = pipe.unet, pipe.segmentation_head
    rows = {
        "U-Net": f"{sum(p.numel() for p in unet.parameters()) / 1e6:.1f} million parameters, "
        f"{len(unet.config.block_out_channels)} levels",
        "noise schedule": f"{pipe.scheduler.config.num_train_timesteps} timesteps, "
        f"{pipe.scheduler.config.beta_schedule}, predicts {pipe.scheduler.config.prediction_type}",
        "unlabelled images": _described(training.get("dataset"), None),
    }
    if training:
        rows["training of the U-Net"] = (
            f"{training['step']:,} steps, {training['images_seen']:,} images in {_duration(training['seconds'])}"
            + (f", mixed precision {training['mixed_precision']}" if training["mixed_precision"] != "no" else "")
        )
        rows["hardware for that"] = _machine(training)
    if fitting.get("model_on_hub"):
        rows["U-Net from"] = f"[{fitting['model_on_hub']}](https://huggingface.co/{fitting['model_on_hub']})"
    if head is not None:
        config = head.config
        rows["labelled images"] = _described(fitting.get("dataset"), fitting.get("num_images"))
        rows["segmentation head"] = (
            f"{config.num_members} members on decoder blocks {', '.join(map(str, config.blocks))} at timesteps "
            f"{', '.join(map(str, config.timesteps))}"
        )
        if "seconds" in fitting:
            how = f"recipe `{fitting['recipe']}`, {fitting['dtype']}, seed {fitting['seed']}"
            rows["fitting of the head"] = f"{_duration(fitting['seconds'])}, {how}"
            rows["hardware for fitting"] = _machine(fitting)
    yield from ((name, value) for name, value in rows.items() if value)


def _eval_results(evaluations: Sequence[Mapping]) -> list[EvalResult]:
    results = []
    for e in evaluations:
        data = e.get("dataset") or {"name": "labelled images"}
        values = [("mean_iou", "Mean IoU", e["mean_iou"]), ("accuracy", "Pixel accuracy", e["pixel_accuracy"])]
        values += [("iou", f"IoU of {name}", iou) for name, iou in e["per_class_iou"].items() if iou is not None]
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
        ]
    return results


def dataset_card(
    folder: Path,
    repo_id: str,
    files: dict[str, Path | bytes],
    license: str | None = None,
    own: DatasetCard | None = None,
    num_pictures: int = 8,
    num_masks: int = 1000,
) -> DatasetCard:
    """The card of a dataset: what is in it, with a page of pictures, which is added to `files`.

    Args:
        folder (`Path`), repo_id (`str`): What is described, and where it will be.
        files (`dict`): What goes with it; gets the page of pictures.
        license (`str`, *optional*): The Hub's identifier of its licence.
        own (`DatasetCard`, *optional*): What the user wrote; its metadata wins, and its text stands at the top.
        num_pictures (`int`, defaults to 8): On the page.
        num_masks (`int`, defaults to 1000): How many of them the shares of the classes are counted on, at most.

    Raises:
        ValueError: `datasets` reads nothing from the folder.
    """
    parts, labeled, pictures, classes, shares_of = [], None, [], [], None
    for config, split, rows in open_streams(folder):
        count, sizes, shown, masks, columns = 0, set(), [], [], []
        for row in rows:
            count, columns = count + 1, columns or list(row)
            image, mask = _column(columns, IMAGE_COLUMNS), _column(columns, MASK_COLUMNS)
            if image and count <= 100:
                picture = decode_picture(row[image], f"row {count - 1} of {split}")[0]
                sizes.add(picture.size)
                shown += [picture] * (len(shown) < num_pictures)
            if mask and labeled is None and count <= num_masks:
                masks.append(np.asarray(decode_picture(row[mask], f"the mask of row {count - 1} of {split}")[0]))
        if count == 0:
            continue
        size = " × ".join(_range(values) for values in zip(*sizes))
        parts.append({"config": config, "split": split, "num_images": count, "size": size, "columns": columns})
        if masks and all(m.ndim == 2 and m.dtype == np.uint8 for m in masks):
            labeled = parts[-1]
            names_file = folder / "id2label.json"
            counts = sum(np.bincount(m.ravel(), minlength=256) for m in masks)[:255]
            number = int(np.flatnonzero(counts).max(initial=0)) + 1
            names = read_label_file(names_file) if names_file.is_file() else [f"class {i}" for i in range(number)]
            palette = default_palette(len(names))
            shares = counts[: len(names)] / counts.sum()
            classes = [(name, _hex(color), share) for name, color, share in zip(names, palette, shares)]
            shares_of = f"split `{split}`" if count == len(masks) else f"the first {len(masks)} images of `{split}`"
            masks = [mask_to_pil(np.where(m < len(names), m, 0).astype(np.uint8), palette) for m in masks]
            files[SAMPLES] = _png(_figure_image(samples_page(shown, masks, names, palette)))
        elif shown and not pictures:
            pictures = [to_eight_bit(p).convert("RGB").resize(shown[0].size) for p in shown]
    if not parts:
        raise ValueError(
            f"The folder {folder} holds no pipeline (model_index.json), no student ({STUDENT_RECORD}) and no dataset."
        )
    if pictures and SAMPLES not in files:
        files[SAMPLES] = _png(make_image_grid(pictures, rows=1, cols=len(pictures)))

    total = sum(p["num_images"] for p in parts)
    made = _read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    data = {
        "license": "unknown",
        "pretty_name": repo_id.split("/")[-1],
        "tags": ["diffuseseg", *(["semantic-segmentation"] if labeled else []), *(["synthetic"] if made else [])],
        "task_categories": ["image-segmentation" if labeled else "unconditional-image-generation"],
        "size_categories": [_size_category(total)],
    }
    return DatasetCard.from_template(
        DatasetCardData(**_with_own(data, own, license)),
        template_str=_template("dataset_card.md"),
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        description=own.text.strip() if own else None,
        samples=SAMPLES if SAMPLES in files else None,
        parts=parts,
        classes=classes,
        shares_of=shares_of,
        labeled_part=labeled,
        made=made.get("result"),
        facts=list(_generation_facts(**made)) if made.get("result") else [],
    )


def _generation_facts(settings: Mapping, result: Mapping) -> Iterator[tuple[str, str]]:
    """Rows of the table of how a synthetic dataset was made."""
    model = result["model"]
    yield "model", f"[{model['name']}](https://huggingface.co/{model['name']})" if model["on_hub"] else model["name"]
    yield "sampler", f"{settings['scheduler']}, {settings['num_inference_steps']} steps, {settings['dtype']}"
    yield (
        "masks",
        "from the denoising steps" if settings["masks_while_sampling"] else "from the finished images, noised again",
    )
    yield "seed", str(settings["seed"])
    yield "generated", f"{settings['num_samples']:,} images, of which {result['num_kept']:,} are kept"
    yield "most uncertain left out", f"{settings['drop_uncertain']:.0%}"
    if settings["drop_common"]:
        yield "least of rare classes left out", f"{settings['drop_common']:.0%}"
    if settings["min_distance"]:
        yield "nearer than this left out", str(settings["min_distance"])
    for name, d in result["nearest_neighbours"].items():
        yield f"distance to the nearest, {name}", f"median {d['median']:.3f}, least {d['least']:.3f}"
    if result["seconds_per_image"]:
        yield "time", f"{result['seconds_per_image']:.3f} s an image and process"
    yield "hardware", f"{result['hardware']}, {result['num_processes']} processes"


def _own_text(folder: Path, kind: type) -> ModelCard | DatasetCard | None:
    """The README.md of a folder, unless a push wrote it."""
    path = folder / "README.md"
    if not path.is_file() or MARK in path.read_text(encoding="utf-8"):
        return None
    return kind.load(path)


def _with_own(data: Mapping, own: ModelCard | DatasetCard | None, license: str | None) -> dict:
    """Metadata of a card; the user's own wins, and a licence that was asked for now over both."""
    data = {**data, **(own.data.to_dict() if own else {}), **({"license": license} if license else {})}
    return {name: value for name, value in data.items() if value is not None}


def _template(name: str) -> str:
    return (resources.files(f"{__package__}.hub_cards") / name).read_text(encoding="utf-8")


def _visible_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _without_local_path(path: Path) -> bytes:
    """A config without the place that it was loaded from, which is nobody's business."""
    config = _read_json(path)
    config.pop("_name_or_path", None)
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _column(columns: Sequence[str], usual: Sequence[str]) -> str | None:
    return next((name for name in usual if name in columns), None)


def _range(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _size_category(count: int) -> str:
    bounds = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    return next((name for bound, name in bounds if count < bound), "n>10M")


def _figure_image(figure) -> PIL.Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return PIL.Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
