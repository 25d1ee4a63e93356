# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which network a student is: one of `transformers` for semantic segmentation, with its image processor."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffusers.utils import logging
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    BaseImageProcessor,
    PreTrainedModel,
    SegformerConfig,
)
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

from ..jobs.errors import UserError
from ..jobs.files import read_json
from ..jobs.hub_errors import explain_hub_error


logger = logging.get_logger(__name__)

DEFAULT_STUDENT = "nvidia/mit-b0"  # SegFormer-B0's encoder
# Said in every call, so that no change of a default makes us run a repository's code.
SAFE = {"trust_remote_code": False}
OWN_CODE = "it needs code of its own repository, which is not run; choose one that transformers itself knows"


def make_student(
    name: str, label_names: Sequence[str], from_scratch: bool = False, cache_dir: str | os.PathLike | None = None
) -> PreTrainedModel:
    """A semantic-segmentation model of `transformers` for these classes; runs no code of a repository.

    Args:
        name (`str`): Hub name or folder of a model, or a JSON file with its config (`model_type` and the rest).
        label_names, from_scratch, cache_dir: As in [`new_student`].

    Raises:
        UserError: There is no such model, it is of another kind, made for another number of classes, needs code of its
            own, or has pickled weights alone.
    """
    labels = {"id2label": dict(enumerate(label_names)), "label2id": {n: i for i, n in enumerate(label_names)}}
    if name.endswith(".json"):
        config = _read_config(name, labels)
        with loading_errors(name):
            return AutoModelForSemanticSegmentation.from_config(config, **SAFE)
    if from_scratch and name == DEFAULT_STUDENT:
        # The defaults of the config are B0, and the Hub need not be asked.
        return AutoModelForSemanticSegmentation.from_config(SegformerConfig(**labels), **SAFE)
    try:
        with loading_errors(name):
            if from_scratch:
                config = AutoConfig.from_pretrained(name, cache_dir=cache_dir, **labels, **SAFE)
                return AutoModelForSemanticSegmentation.from_config(config, **SAFE)
            return AutoModelForSemanticSegmentation.from_pretrained(
                name, cache_dir=cache_dir, **labels, ignore_mismatched_sizes=True, use_safetensors=True, **SAFE
            )
    except UserError as error:
        if name != DEFAULT_STUDENT or os.path.isdir(name):
            raise
        logger.warning(f"{error} The same network is trained from scratch.")
        return make_student(name, label_names, from_scratch=True)


def _read_config(path: str, labels: dict) -> AutoConfig:
    """The config in a JSON file, for these labels."""
    if not os.path.isfile(path):
        raise UserError(f"There is no file {path}.")
    given = read_json(path)
    number = given.get("num_labels") or len(given.get("id2label") or labels["id2label"])
    if number != len(labels["id2label"]):
        raise UserError(f"{path} is for {number} classes, but the dataset has {len(labels['id2label'])}.")
    if "model_type" not in given:
        raise UserError(f"{path} must hold the config of a transformers model, with its model_type.")
    given = {k: v for k, v in given.items() if k not in ("num_labels", "id2label", "label2id")}
    try:
        return AutoConfig.for_model(given.pop("model_type"), **given, **labels)
    except Exception as error:  # each kind of config checks in its own way
        raise UserError(f"transformers does not take the config {path}: {error}") from error


@contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Turns what `transformers` raises where the model of that name cannot be loaded into a [`UserError`]."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        text = str(error)
        reason = None if os.path.exists(name) else explain_hub_error(error)
        if reason is None and "trust_remote_code" in text:
            reason = OWN_CODE
        if reason is None and "Unrecognized configuration class" in text:
            raise UserError(f"{name} is no model that `AutoModelForSemanticSegmentation` knows.") from error
        if reason is None and isinstance(error, SafetensorError):
            reason = f"its weights are damaged ({text})"
        if reason is None and "model.safetensors" in text:
            reason = "it has no weights in the safetensors format (pickled ones are not loaded: they can run code)"
        raise UserError(f"{name} cannot be loaded: {reason or text.splitlines()[0].rstrip('.')}.") from error


def make_processor(
    name: str,
    size: tuple[int, int] | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    required: bool = False,
) -> BaseImageProcessor:
    """The image processor of a student; SegFormer's for the default and where it has none.

    Args:
        name (`str`), revision (`str`, *optional*), cache_dir (`str` or path, *optional*): As in [`make_student`].
        size (two `int`, *optional*): Height and width of images; the processor's own if not given.
        required (`bool`, defaults to `False`): Whether it must have one of its own, as what is trained has.

    Raises:
        UserError: It needs code of its own, or has none and must have.
    """
    processor = None
    if name != DEFAULT_STUDENT and not name.endswith(".json"):
        try:
            processor = AutoImageProcessor.from_pretrained(
                name, revision=revision or "main", cache_dir=cache_dir, **SAFE
            )
        except (OSError, ValueError) as error:
            if "trust_remote_code" in str(error):
                raise UserError(f"The image processor of {name} cannot be loaded: {OWN_CODE}.") from error
            if required:
                reason = str(error).splitlines()[0]
                raise UserError(
                    f"{name} has no image processor that can be loaded ({reason}), and how it reads images is not "
                    f"known; restore its preprocessor_config.json."
                ) from error
            logger.warning(f"{name} has no image processor that can be loaded; SegFormer's is used.")
    processor = processor or SegformerImageProcessorPil()
    if size is not None:
        processor.size = {"height": size[0], "width": size[1]}
    processor.do_reduce_labels = False
    return processor
