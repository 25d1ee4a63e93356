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

from datasets import get_dataset_config_names, load_dataset_builder
from datasets.exceptions import DatasetsError

from ..datasets.columns import describe_dataset
from ..datasets.parquet import as_parquet
from ..images.image_files import find_images
from ..images.image_processor import is_address
from ..jobs.errors import UserError
from ..jobs.files import RECORD, read_json, read_record
from ..pipelines.composed import HEAD, ComposedDiffuseSegPipeline
from ..pipelines.pixel import DiffuseSegPipeline
from .cards import CARD, CURVES, RECORDS, SAMPLES
from .dataset_card import GENERATION, LABELS
from .student_card import STUDENT_RECORD
from .student_card import student_files as expected_files


INDEX = "model_index.json"
COMPONENTS = {"unet": "config.json", "scheduler": "scheduler_config.json", "segmentation_head": "config.json"}
WEIGHTS = re.compile(
    r"diffusion_pytorch_model(\.\w+)?(-\d{5}-of-\d{5})?\.safetensors"
    r"|diffusion_pytorch_model\.safetensors\.index(\.\w+)?\.json"
)
LABEL_KEYS = ("id2label", "label2id", "label_names")  # names of classes may look like paths, as in Open Images
DATASET_RUNS = {"generate": GENERATION, "segment": "segmentation.json"}  # whose output is a dataset, with this file


@dataclass
class Upload:
    """Files to upload.

    Args:
        kind (`str`): `"pipeline"`, `"head"`, `"student"`, `"dataset"` or `"space"`.
        root (`Path`): The folder, or that of a converted dataset.
        files (`dict`): Path in the repository to a file or its content.
        left_out (`list[str]`): Paths in the folder that are not uploaded.
    """

    kind: str
    root: Path
    files: dict[str, Path | bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

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
    if (folder / INDEX).is_file() and is_head(folder):
        upload = Upload("head", folder, head_files(folder))
        used = {CARD, INDEX, *RECORDS}
    elif (folder / INDEX).is_file():
        upload = Upload("pipeline", folder, pipeline_files(folder))
        used = {CARD, INDEX, *RECORDS}
    elif (folder / STUDENT_RECORD).is_file():
        upload = Upload("student", folder, student_files(folder))
        used = {CARD, STUDENT_RECORD}
    else:
        root, files, used = dataset_files(folder, scratch)
        upload = Upload("dataset", root, files)
        used = {CARD, SAMPLES, f".{SAMPLES}", *used}  # the page is drawn anew
    upload.left_out = sorted(set(_walk(folder)) - used - set(upload.files) - {RECORD})
    return upload


def pipeline_files(folder: Path) -> dict[str, Path | bytes]:
    """The files of a pipeline to upload: weights, configs, the code for them, two images.

    Raises:
        UserError: It is a pipeline of another kind, or a part of it is missing, or only pickled.
    """
    index = read_json(own_file(folder, INDEX))
    name = index.get("_class_name")
    is_ours = DiffuseSegPipeline.__name__ in (name if isinstance(name, list) else [name])
    parts = [k for k, v in index.items() if not k.startswith("_") and isinstance(v, list) and v[0] is not None]
    if unknown := sorted(set(parts) - set(COMPONENTS)):
        raise UserError(
            f"{folder} holds a {name} with the parts {', '.join(unknown)}, which cannot be pushed yet; pipelines with "
            f"a U-Net of diffusers for pixels can."
        )
    files: dict[str, Path | bytes] = {}
    for part in parts:
        root = folder / part if (folder / part).is_dir() else folder  # old pipelines have one level
        weights = sorted(p for p in root.iterdir() if part != "scheduler" and WEIGHTS.fullmatch(p.name))
        if not (root / COMPONENTS[part]).is_file():
            raise UserError(f"The pipeline in {folder} is incomplete: {part} is missing.")
        if part != "scheduler" and not any(p.suffix == ".safetensors" for p in weights):
            raise UserError(f"The weights of {part} in {folder} are not in the safetensors format; save them so.")
        for path in (root / COMPONENTS[part], *weights):
            inside = path.relative_to(folder).as_posix()
            own_file(folder, inside)
            files[inside] = clean_json(path) if path.suffix == ".json" else path
    files |= {name: folder / name for name in (SAMPLES, CURVES) if _is_own(folder, name)}
    index = without_local_paths({k: v for k, v in index.items() if k.startswith("_") or k in parts or v is None})
    if is_ours:
        return files | {name: text.encode() for name, text in DiffuseSegPipeline.code_files(index).items()}
    return files | {INDEX: _encode(index)}


def is_head(folder: Path) -> bool:
    """Whether a folder holds a head without its base."""
    return read_json(own_file(folder, INDEX)).get("_class_name") == ComposedDiffuseSegPipeline.__name__


def head_files(folder: Path) -> dict[str, Path | bytes]:
    """The files of a head without its base to upload: weights, config, and the name of the base.

    Raises:
        UserError: The base is not on the Hub, or a file is missing.
    """
    part = COMPONENTS["segmentation_head"]
    paths = {f"{HEAD}/{part}": own_file(folder, f"{HEAD}/{part}")}
    for path in sorted(p for p in (folder / HEAD).iterdir() if WEIGHTS.fullmatch(p.name)):
        paths[f"{HEAD}/{path.name}"] = own_file(folder, f"{HEAD}/{path.name}")
    if len(paths) < 2 or not paths[f"{HEAD}/{part}"].is_file():
        raise UserError(f"The head in {folder} is incomplete: its config or its weights are missing.")
    base = (read_json(paths[f"{HEAD}/{part}"]).get("base") or {}).get("model")
    if base is None or os.path.isabs(base):
        raise UserError(
            f"The base of the head in {folder} is {base or 'not known'}, which nobody else can fetch; push the base to "
            f"the Hub, and fit with its name there: `diffuseseg fit --model NAME`."
        )
    files: dict[str, Path | bytes] = {n: clean_json(p) if p.suffix == ".json" else p for n, p in paths.items()}
    return {**files, INDEX: clean_json(folder / INDEX)}


def student_files(folder: Path) -> dict[str, Path | bytes]:
    """The files of a student to upload: weights and configs.

    Raises:
        UserError: One of the files is missing.
    """
    names = expected_files(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"The student in {folder} is incomplete: {', '.join(missing)} is missing.")
    paths = {name: own_file(folder, name) for name in names}
    return {name: clean_json(path) if path.suffix == ".json" else path for name, path in paths.items()}


def dataset_files(folder: Path, scratch: Path) -> tuple[Path, dict[str, Path | bytes], set[str]]:
    """The files of a dataset to upload: those that `datasets` reads, names of classes, the record of its generation.

    Args:
        folder (`Path`): See [`push_folder`].
        scratch (`Path`): An empty folder, for layouts that `datasets` does not know.

    Returns:
        `tuple`: The folder that `datasets` reads (`scratch` if the dataset was converted), path in the repository to
        a file or its content, and the paths in the folder that were converted.

    Raises:
        UserError: The folder holds no dataset, or a link leads out of it.
    """
    run = read_record(folder)
    if run is not None and not (folder / DATASET_RUNS.get(run["command"], "no file")).is_file():
        raise UserError(
            f"The folder {folder} holds what `diffuseseg {run['command']}` left, and no pipeline ({INDEX}), no student "
            f"({STUDENT_RECORD}) and no dataset."
        )
    converted = as_parquet(folder, scratch) is not None
    if converted:
        used = {own_name(folder, path) for path in (*find_images(folder), *folder.rglob("*.npy"))}
        files: dict[str, Path | bytes] = {own_name(scratch, p): p for p in sorted((scratch / "data").glob("*.parquet"))}
    else:
        used = set()
        files = {own_name(folder, path): path for path in data_files(folder)}
        if run is not None and run["command"] == "segment":
            files = {own_name(folder, path): without_folders(path, scratch) for path in data_files(folder)}
    if not files:
        raise UserError(
            f"The folder {folder} holds no pipeline ({INDEX}), no student ({STUDENT_RECORD}) and no dataset."
        )
    if _is_own(folder, LABELS):
        files[LABELS] = folder / LABELS
    if _is_own(folder, GENERATION):
        files[GENERATION] = clean_json(folder / GENERATION)
        files |= {name: folder / name for name in ("uncertainty.png",) if _is_own(folder, name)}
    return (scratch if converted else folder), files, used


def without_folders(path: Path, scratch: Path) -> Path:
    """A Parquet file whose column `path` holds no folders of this machine: the file itself, or a copy in `scratch`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

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


def own_file(folder: Path, name: str) -> Path:
    """A file of a folder, which may be a link to another of its files.

    Raises:
        UserError: It leads out of the folder, or to a hidden file.
    """
    own_name(folder, folder / name)
    return folder / name


def own_name(folder: Path, path: Path) -> str:
    """The path below the folder of a file in it; raises as [`own_file`]."""
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
    return _encode(without_local_paths(read_json(path)))


def without_local_paths(content: Any, key: str = "") -> Any:
    """Strips local paths from JSON: of each the last part stays, and `_name_or_path` goes.

    Args:
        content: What a JSON file holds.
        key (`str`, defaults to `""`): Name under which it stands.
    """
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


def _is_own(folder: Path, name: str) -> bool:
    """Whether a folder has that file, and not as a link that leads elsewhere."""
    path = folder / name
    return path.is_file() and path.resolve() == folder.resolve() / name


def _encode(content: Mapping) -> bytes:
    """Content of a JSON file, as diffusers writes it."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _walk(folder: Path) -> Iterable[str]:
    """Paths below a folder of all its files; links to folders are not followed."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in [*links, *files]:
            yield Path(os.path.relpath(os.path.join(root, name), folder)).as_posix()
