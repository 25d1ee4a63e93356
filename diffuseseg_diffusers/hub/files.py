# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Selects the files of a folder to upload to the Hub: an allow-list for each kind of folder.

Hidden files, links that lead out of the folder and local paths in JSON files are never uploaded.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import get_dataset_config_names, load_dataset_builder
from datasets.exceptions import DatasetsError

from ..datasets.columns import describe_dataset
from ..datasets.parquet import as_parquet
from ..images.image_files import find_images
from ..images.image_processor import is_address
from ..jobs.errors import UserError
from ..jobs.files import RECORD, read_object, read_record
from ..pipelines.auto import AVERAGED
from ..pipelines.averaged import ON_BASE, places_of
from ..pipelines.composed import HEAD, INDEX, ComposedDiffuseSegPipeline
from ..pipelines.pixel import DiffuseSegPipeline
from ..students.unets import RECORD as UNET_RECORD
from .cards import CARD, SAMPLES
from .dataset_card import GENERATION, LABELS


CURVES = "training_curves.png"
RECORDS = ("training_state.json", "head_training.json")  # how a pipeline was trained: `train-ddpm` and `fit` leave them
STUDENT_RECORD = "student_training.json"  # the mark of a folder that `train-student` left
OF_TRANSFORMERS = ("config.json", "model.safetensors", "preprocessor_config.json")
OF_DIFFUSERS = ("config.json", "diffusion_pytorch_model.safetensors", UNET_RECORD)
STUDENT_FILES = tuple(dict.fromkeys((*OF_TRANSFORMERS, *OF_DIFFUSERS)))  # of all kinds
COMPONENTS = {"unet": "config.json", "scheduler": "scheduler_config.json", HEAD: "config.json"}
OF_CODE = ("pipeline_diffuseseg.py", "pixel_classifier_ensemble.py")  # beside a pipeline that is saved alone
WEIGHTS = re.compile(
    r"diffusion_pytorch_model(\.\w+)?(-\d{5}-of-\d{5})?\.safetensors"
    r"|diffusion_pytorch_model\.safetensors\.index(\.\w+)?\.json"
)
LABEL_KEYS = ("id2label", "label2id", "label_names")  # names of classes may look like paths, as in Open Images
DATASET_RUNS = {"generate": GENERATION, "segment": "segmentation.json"}  # whose output is a dataset, with this file
NEITHER = f"no pipeline ({INDEX}), no student ({STUDENT_RECORD}) and no dataset."

Files = dict[str, Path | bytes]  # path in the repository to a file or its content


@dataclass
class Upload:
    """Files to upload."""

    kind: str  # "pipeline", "head", "student", "segmenter" (several models, or a U-Net of `best`), "dataset" or "space"
    root: Path  # the folder, or that of a converted dataset
    files: Files = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)  # paths in the folder that are not uploaded

    @property
    def repo_type(self) -> str:
        """The Hub's name for what it is."""
        return self.kind if self.kind in ("dataset", "space") else "model"

    def describe_left_out(self) -> str | None:
        """One line about what is left out; `None` if nothing is."""
        if not self.left_out:
            return None
        more = f" and {len(self.left_out) - 3} more" if len(self.left_out) > 3 else ""
        return f"Not pushed, because no part of the {self.kind}: {', '.join(self.left_out[:3])}{more}."


def collect(folder: Path, scratch: Path) -> Upload:
    """The files of a folder to upload, without its card; needs no network.

    Args:
        folder (`Path`): See [`push_folder`].
        scratch (`Path`): An empty folder for datasets to convert.

    Raises:
        UserError: The folder holds nothing to push, something of it is missing, or a link leads out of it.
    """
    if any((folder / name).is_file() for name in (INDEX, STUDENT_RECORD, UNET_RECORD)):
        kind, files = model_files(folder)
        upload, used = Upload(kind, folder, files), {CARD, INDEX, STUDENT_RECORD, *RECORDS}
    else:
        root, files, converted = dataset_files(folder, scratch)
        upload = Upload("dataset", root, files)
        used = {CARD, SAMPLES, f".{SAMPLES}", *converted}  # the page is drawn anew
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}
    if upload.kind == "segmenter":  # whose pipelines were saved as if each were alone
        found = {name for name in found if Path(name).name not in OF_CODE}
    upload.left_out = sorted(found - used - set(upload.files) - {RECORD})
    return upload


def model_files(folder: Path, alone: bool = True) -> tuple[str, Files]:
    """The kind and the files of the model in a folder, alone or one of several.

    Raises:
        UserError: It is of a kind that cannot be pushed, a part of it is missing, or a link leads out of the folder.
    """
    if not (folder / INDEX).is_file():
        files = student_files(folder)
        return "student" if (folder / STUDENT_RECORD).is_file() else "segmenter", files
    own_name(folder, folder / INDEX)
    index = read_object(folder / INDEX)
    if index.get("_class_name") == AVERAGED:
        return "segmenter", averaged_files(folder, index)
    if index.get("_class_name") != ComposedDiffuseSegPipeline.__name__:
        return "pipeline", pipeline_files(folder, index, alone)
    if not alone:
        raise UserError(f"{folder} is a head on another pipeline, which is not pushed with others; push it alone.")
    return "head", head_files(folder)


def pipeline_files(folder: Path, index: dict[str, Any], alone: bool = True) -> Files:
    """The files of a pipeline to upload: weights, configs and, of one that is not part of another model, the code for
    them and two images.

    Raises:
        UserError: It is a pipeline of another kind, or a part of it is missing, or only pickled.
    """
    name = index.get("_class_name")
    parts = [k for k, v in index.items() if not k.startswith("_") and isinstance(v, list) and v and v[0] is not None]
    if unknown := sorted(set(parts) - set(COMPONENTS)):
        raise UserError(
            f"{folder} holds a {name} with the parts {', '.join(unknown)}, which cannot be pushed yet; pipelines with "
            f"a U-Net of diffusers for pixels can."
        )
    if not parts:
        raise UserError(f"{folder / INDEX} names no parts of a pipeline; restore it, or save the pipeline again.")
    paths: list[Path] = []
    for part in parts:
        root = folder / part if (folder / part).is_dir() else folder  # old pipelines have one level
        weights = [] if part == "scheduler" else _weights(root)
        if not (root / COMPONENTS[part]).is_file():
            raise UserError(f"The pipeline in {folder} is incomplete: {part} is missing.")
        if part != "scheduler" and not any(p.suffix == ".safetensors" for p in weights):
            raise UserError(f"The weights of {part} in {folder} are not in the safetensors format; save them so.")
        paths += [root / COMPONENTS[part], *weights]
    files = _read(folder, paths) | (_optional(folder, SAMPLES, CURVES) if alone else {})
    kept = {k: v for k, v in index.items() if k in parts or k.startswith("_") or not isinstance(v, list)}
    index = without_local_paths(kept)
    if alone and DiffuseSegPipeline.__name__ in (name if isinstance(name, list) else [name]):
        return files | {name: text.encode() for name, text in DiffuseSegPipeline.code_files(index).items()}
    return files | {INDEX: _encode(index)}


def head_files(folder: Path) -> Files:
    """The files of a head without its base to upload: weights, config, and the name of the base.

    Raises:
        UserError: The base is not on the Hub, or a file is missing.
    """
    own = {f"{HEAD}/{name}": content for name, content in _head_weights(folder / HEAD).items()}
    files = own | _read(folder, [folder / INDEX])
    base = (read_object(folder / HEAD / COMPONENTS[HEAD]).get("base") or {}).get("model")
    if base is None or os.path.isabs(base):
        raise UserError(
            f"The base of the head in {folder} is {base or 'not known'}, which nobody else can fetch; push the base to "
            f"the Hub, and fit with its name there: `diffuseseg fit --model NAME`."
        )
    return files


def averaged_files(folder: Path, index: dict[str, Any]) -> Files:
    """The files of several models that segment together to upload, each in its folder, without code.

    Raises:
        UserError: The index is not valid, or one of the models cannot be pushed.
    """
    files = _read(folder, [folder / INDEX])
    for place, kind in places_of(index, folder, folder):
        found = _head_weights(folder / place) if kind == ON_BASE else model_files(folder / place, alone=False)[1]
        files |= {f"{place}/{name}": content for name, content in found.items()}
    return files


def student_files(folder: Path) -> Files:
    """The files of a student to upload: weights and configs.

    Raises:
        UserError: One of the files is missing.
    """
    names = OF_DIFFUSERS if (folder / UNET_RECORD).is_file() else OF_TRANSFORMERS
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"The student in {folder} is incomplete: {', '.join(missing)} is missing.")
    return _read(folder, [folder / name for name in names])


def dataset_files(folder: Path, scratch: Path) -> tuple[Path, Files, set[str]]:
    """The files of a dataset to upload: those that `datasets` reads, names of classes, the record of its generation.

    Layouts that `datasets` does not know are converted in `scratch`, an empty folder.

    Returns:
        `tuple`: The folder that `datasets` reads (`scratch` if the dataset was converted), the files, and the paths in
        the folder that were converted.

    Raises:
        UserError: The folder holds no dataset, or a link leads out of it.
    """
    run = (read_record(folder) or {}).get("command")
    if run is not None and not (folder / DATASET_RUNS.get(run, "no file")).is_file():
        raise UserError(f"The folder {folder} holds what `diffuseseg {run}` left, and {NEITHER}")
    root, converted = folder, set()
    files: Files = {}
    if as_parquet(folder, scratch) is not None:
        root = scratch
        converted = {own_name(folder, path) for path in (*find_images(folder), *folder.rglob("*.npy"))}
        files = {own_name(scratch, path): path for path in sorted((scratch / "data").glob("*.parquet"))}
    else:
        for path in data_files(folder):
            files[own_name(folder, path)] = without_folders(path, scratch) if run == "segment" else path
    if not files:
        raise UserError(f"The folder {folder} holds {NEITHER}")
    files |= _optional(root, LABELS)
    if found := _optional(folder, GENERATION):
        files |= {name: clean_json(folder / name) for name in found} | _optional(folder, "uncertainty.png")
    return root, files, converted


def without_folders(path: Path, scratch: Path) -> Path:
    """A Parquet file whose column `path` holds no folders of this machine: the file itself, or a copy in `scratch`."""
    table = pq.read_table(path)
    paths = table["path"].to_pylist()
    names = [name if name is None or is_address(name) else without_local_paths(name) for name in paths]
    if names == paths:
        return path
    at = table.schema.get_field_index("path")
    pq.write_table(table.set_column(at, table.schema.field(at), [pa.array(names, pa.string())]), scratch / path.name)
    return scratch / path.name


def data_files(folder: Path) -> list[Path]:
    """The files from which `datasets` reads a folder's dataset; none if it reads nothing.

    Raises:
        UserError: `datasets` does not take the folder; says why.
    """
    found: dict[Path, None] = {}
    try:
        for name in get_dataset_config_names(os.fspath(folder)):
            for paths in (load_dataset_builder(os.fspath(folder), name).config.data_files or {}).values():
                found |= {Path(path): None for path in map(str, paths) if "://" not in path}
    except FileNotFoundError:  # with `datasets`, also of data files in a folder that is there
        return []
    except (DatasetsError, ValueError) as error:
        raise UserError(f"`datasets` does not take the folder {folder}: {error}") from error
    return list(found)


def own_name(folder: Path, path: Path) -> str:
    """The path below the folder of a file in it, which may be a link to another of its files.

    Raises:
        UserError: It leads out of the folder, or to a hidden file.
    """
    root, parent = folder.resolve(), path.parent.resolve()
    for place in (parent / path.name, path.resolve()):
        inside = place.relative_to(root).parts if place.is_relative_to(root) else ("..",)
        if any(part.startswith(".") for part in inside):
            raise UserError(
                f"{path} is hidden, or leads out of {folder} or to a hidden file, and such files are not pushed; put a "
                f"copy of what it leads to in its place."
            )
    return (parent / path.name).relative_to(root).as_posix()


def clean_json(path: Path) -> bytes:
    """A JSON file without paths of this machine."""
    return _encode(without_local_paths(read_object(path)))


def without_local_paths(content: Any, key: str = "") -> Any:
    """Strips local paths from the content of a JSON file, or of a `key` in it: of each the last part stays, and
    `_name_or_path` goes."""
    if key in LABEL_KEYS:
        return content
    if isinstance(content, Mapping):
        return {k: without_local_paths(v, k) for k, v in content.items() if k != "_name_or_path"}
    if isinstance(content, list):
        return [without_local_paths(v, key) for v in content]
    if not isinstance(content, str):
        return content
    # A Hub's name has one slash at most, and a dataset's record may be of a version that kept it as it was typed.
    is_name = key.endswith("dataset_name")
    is_path = re.match(r"[/~]|\.\.?[/\\]|[A-Za-z]:[/\\]|\\\\|file:", content) is not None
    if is_path or (is_name and (content.count("/") > 1 or "\\" in content)):
        return re.split(r"[/\\]", content.rstrip("/\\"))[-1]
    return describe_dataset(content, None, None)["name"] if is_name and content else content


def _head_weights(folder: Path) -> Files:
    """Weights and config of a head; raises [`UserError`] if either is missing."""
    config, weights = folder / COMPONENTS[HEAD], _weights(folder)
    if not config.is_file() or not weights:
        raise UserError(f"The head in {folder} is incomplete: its config or its weights are missing.")
    return _read(folder, [config, *weights])


def _weights(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if WEIGHTS.fullmatch(path.name))


def _read(folder: Path, paths: Iterable[Path]) -> Files:
    """Files of a folder, JSON without local paths. Raises [`UserError`] if one leads out of the folder."""
    files: Files = {}
    for path in paths:
        own_name(folder, path)
        files[path.relative_to(folder).as_posix()] = clean_json(path) if path.suffix == ".json" else path
    return files


def _optional(folder: Path, *names: str) -> Files:
    """Those of the files that the folder has, and not as links that lead elsewhere."""
    paths = {name: folder / name for name in names}
    return {k: p for k, p in paths.items() if p.is_file() and p.resolve() == folder.resolve() / k}


def _encode(content: Mapping) -> bytes:
    """Content of a JSON file, as diffusers writes it."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()
