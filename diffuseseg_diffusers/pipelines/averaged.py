# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Several models as one: the weighted mean of their probabilities, in memory and in a folder."""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download

from ..features.base import Generators
from ..features.weights import weight_bytes
from ..heads.decisions import Decisions, winners
from ..heads.ensemble import PixelClassifierEnsemble
from ..heads.guided import check_guided
from ..jobs.errors import UserError
from ..jobs.files import read_object, write_json
from ..jobs.hardware import short_name
from .auto import AutoDiffuseSegPipeline
from .composed import INDEX
from .identity import weights_digest
from .outputs import SegmentedBatch
from .pixel import DiffuseSegPipeline
from .saved_code import hub_options
from .segmenter import HeadSegmenter, Segmenter


# In a saved folder: the diffusion model of the heads, which is stored once; the heads; and all members of other kinds,
# each as it is saved alone. A member that is a head on the base is of the first kind, all others of the second.
BASE, ON_BASE, ALONE = "base", "head", "model"
FILES = [INDEX, "*/*.json", "*/*.safetensors"]  # that loading reads; the patterns cross slashes


class AveragedSegmenter(Segmenter):
    """Segments with several models of the same classes: heads at several scales, and students.

    Each reads the same picture or tile at a size of its own; the weighted mean of their probabilities decides. Its
    uncertainty is the entropy of that mean in nats.

    Args:
        models (mapping): Name, for messages, to [`Segmenter`]. The first says colours, channels and the id of ignored
            pixels; the one with the largest images, of equals the first, says at which size images are read, and with
            that the scale of tiles. If all have decisions, the weighted means of what they expect decide.
        weights (sequence of `float`, *optional*): Of each model, from 0 on; all alike if not given.
        guided (two `float`, *optional*): Widths of the filter that makes masks follow the picture, see
            [`joint_bilateral`]; those of the models themselves do not count.

    Raises:
        UserError: One of them has no head; or they differ in classes, in the channels of their images, or in what of a
            picture they read at once.

    Examples:
        >>> both = AveragedSegmenter({"fine": fine, "context": coarse, "student": student}, weights=[2, 1, 1])
        >>> both.save_pretrained("out/model")
    """

    def __init__(
        self,
        models: Mapping[str, Segmenter],
        weights: Sequence[float] | None = None,
        guided: Sequence[float] | None = None,
    ):
        for one in models.values():
            one.check_can_segment()
        (first, model), *others = models.items()
        for name, other in others:
            for what, one, another in (
                ("the classes", model.label_names, other.label_names),
                ("the number of channels", model.in_channels, other.in_channels),
                ("the channels", model.channels.config, other.channels.config),
            ):
                if one != another:
                    raise UserError(f"{name} has {what} {another}, but {first} has {one}; they have to be the same.")
        _check_views(models)
        self.first, self.names, self.models = model, list(models), list(models.values())
        self.weights = _shares(weights, len(models))
        self.guided = check_guided(guided)
        self.finest = max(self.models, key=lambda model: math.prod(model.image_size))
        every = [model.decisions for model in self.models]
        if not any(decisions is None for decisions in every):
            share = torch.tensor(self.weights)
            iou, union = (share @ torch.tensor([getattr(d, name) for d in every]) for name in ("iou", "union"))
            self.decisions = Decisions(tuple(iou.tolist()), tuple(union.tolist()))

    image_size = property(attrgetter("finest.image_size"))
    in_channels = property(attrgetter("first.in_channels"))
    label_names = property(attrgetter("first.label_names"))
    palette = property(attrgetter("first.palette"))
    ignore_index = property(attrgetter("first.ignore_index"))
    channels = property(attrgetter("first.channels"))

    @property
    def fitted_tiles(self) -> dict:
        """Those of the finest model; if it states none, those of another at the scale at which that one reads."""
        for model in (self.finest, *self.models):
            if fitted := dict(model.fitted_tiles):
                ratio = self.image_size[0] / model.image_size[0]
                for name, factor in (("scale", ratio), ("pixel_size", 1 / ratio)):
                    fitted |= {name: fitted[name] * factor} if fitted.get(name) else {}
                return fitted
        return {}

    @property
    def nbytes(self) -> int:
        parts = {id(part): part for model in self.models for part in model.networks().values()}
        return sum(weight_bytes(part) for part in parts.values())

    def identity(self) -> dict[str, str]:
        parts = [(i, model.identity()) for i, model in enumerate(self.models)]
        own = {"weights": json.dumps([round(w, 6) for w in self.weights]), "guided": json.dumps(self.guided)}
        own |= {} if self.decisions is None else {"decisions": json.dumps(self.decisions.config)}
        return own | {f"{i}.{name}": value for i, found in parts for name, value in found.items()}

    def check_can_segment(self) -> None:
        for model in self.models:
            model.check_can_segment()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        with ExitStack() as models:
            for model in self.models:
                models.enter_context(model.prepared())
            yield

    def check_class_labels(self, class_labels: Any, batch_size: int) -> torch.Tensor | None:
        return [model.check_class_labels(class_labels, batch_size) for model in self.models][0]

    def segment_batch(
        self,
        pixels: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
        class_labels: torch.Tensor | None = None,
        generator: Generators = None,
        return_probabilities: bool = False,
    ) -> SegmentedBatch:
        means: list[torch.Tensor] = [torch.zeros(())] * len(sizes)  # [C,H,W] each
        for model, weight in zip(self.models, self.weights, strict=True):
            size, own = model.image_size, pixels
            if size != tuple(pixels.shape[-2:]):
                own = F.interpolate(pixels, size, mode="bilinear", antialias=True).clamp(-1, 1)  # [N,C,h,w]
            found: Any = model.segment_batch(own, sizes, class_labels, generator, True).probabilities
            means = [mean + weight * p.float().cpu() for mean, p in zip(means, found, strict=True)]
        return SegmentedBatch(
            [winners(p, self.decisions, 0).to(torch.uint8) for p in means],
            [-torch.xlogy(p, p).sum(0).clamp(max=0) for p in means],
            means if return_probabilities else None,
        )

    def to(self, device: torch.device | str) -> Self:
        """Moves all models to a device."""
        every: list[Any] = self.models
        for model in every:
            model.to(device)
        return self

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Saves all models in one folder; a diffusion model that several heads read is stored once.

        Args:
            folder (`str` or path): Created if missing.

        Raises:
            UserError: One of the models is an ONNX file.
        """
        folder, members, base = Path(folder), [], None
        for name, model in zip(self.names, self.models, strict=True):
            save = getattr(model, "save_pretrained", None)
            if save is None:
                raise UserError(f"{name} is an ONNX file, which is not saved with others; give what it was made of.")
            kind = ALONE
            if isinstance(model, DiffuseSegPipeline):
                base = base or DiffuseSegPipeline(model.unet, model.scheduler, None, model.config.get("channels"))
                kind, save = (ON_BASE, model.segmentation_head.save_pretrained) if _on(model, base) else (kind, save)
            room = "heads" if isinstance(model, HeadSegmenter) else "students"
            place = f"{room}/{sum(member['folder'].startswith(room) for member in members)}"
            save(folder / place)
            members.append({"folder": place, "kind": kind})
        if base is not None:
            base.save_pretrained(folder / BASE)
        index: dict[str, Any] = {"_class_name": type(self).__name__, "members": members, "weights": self.weights}
        index["agreement"] = least_agreement(self.models)
        index["guided"] = None if self.guided is None else list(self.guided)
        index["decisions"] = None if self.decisions is None else self.decisions.config
        write_json(folder / INDEX, index)

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, dtype: torch.dtype = torch.float32, **kwargs: Any
    ) -> "AveragedSegmenter":
        """Loads what [`~AveragedSegmenter.save_pretrained`] saved; runs no code of a repository.

        Args:
            name (`str` or path): Folder or Hub name.
            dtype (`torch.dtype`, defaults to `torch.float32`): Precision of the models; heads keep float32.
            **kwargs: `revision`, `cache_dir`, … as in [`DiffusionPipeline.from_pretrained`].

        Raises:
            UserError: A model is missing or cannot be loaded, or they do not fit each other.
        """
        local = os.path.isdir(name)
        folder = Path(name if local else snapshot_download(str(name), allow_patterns=FILES, **hub_options(kwargs)))
        index = read_object(folder / INDEX)
        base: Any = None
        models: dict[str, Segmenter] = {}
        for own, kind in places_of(index, folder, name):
            place = folder / own
            if own == BASE:
                base = AutoDiffuseSegPipeline.from_pretrained(place, dtype=short_name(dtype))
            elif kind == ON_BASE:
                head = PixelClassifierEnsemble.from_pretrained(place)
                models[str(place)] = DiffuseSegPipeline(base.unet, base.scheduler, head, base.config.get("channels"))
            else:
                models[str(place)] = AutoDiffuseSegPipeline.from_pretrained(place, dtype=short_name(dtype))
        found = cls(models, index.get("weights"), index.get("guided"))
        found.decisions = Decisions.of(index.get("decisions"), len(found.label_names))
        return found


def _shares(weights: Any, number: int) -> list[float]:
    """Weights that add up to 1; raises [`UserError`] if they are not one for each model."""
    try:
        given = [1.0] * number if weights is None else [float(weight) for weight in weights]
    except (TypeError, ValueError):
        given = []
    if len(given) != number or not min(given) >= 0 or not 0 < sum(given) < math.inf:
        raise UserError(f"The {number} models need a weight from 0 on each, and one above 0; got {weights!r:.100}.")
    return [weight / sum(given) for weight in given]


def _check_views(models: Mapping[str, Segmenter]) -> None:
    """Raises [`UserError`] if one model reads tiles that cover more of a picture than those of another."""
    views = {}
    for name, model in models.items():
        fitted = model.fitted_tiles
        if fitted.get("tiles"):
            side = fitted.get("pixel_size") or 1 / (fitted.get("scale") or 1)
            height, width = (round(side * length) for length in model.image_size)
            views[name] = f"tiles of {width} × {height} {'µm' if fitted.get('pixel_size') else 'pixels'}"
        elif fitted:
            views[name] = "whole pictures"
    (first, view), *others = list(views.items()) or [("", "")]
    for name, other in others:
        if other != view:
            raise UserError(
                f"{name} was fitted on {other}, but {first} on {view}; models segment together that read the same."
            )


def _on(model: DiffuseSegPipeline, base: DiffuseSegPipeline) -> bool:
    """Whether a pipeline's diffusion model is a base's."""
    same = model.unet is base.unet or weights_digest(model.unet) == weights_digest(base.unet)
    configs = ((pipe.scheduler.config, pipe.config.get("channels")) for pipe in (model, base))
    return same and len({json.dumps(config, sort_keys=True, default=str) for config in configs}) == 1


def least_agreement(models: Sequence[Segmenter]) -> dict[str, float]:
    """By precision, the least share of pixels on which a model's masks are those in float32, where it was measured."""
    least: dict[str, float] = {}
    for model in models:
        head = getattr(model, "segmentation_head", None)
        shares = getattr(model, "agreement", None) if head is None else head.config.agreement
        for dtype, share in (shares or {}).items():
            least[dtype] = min(share, least.get(dtype, 1.0))
    return least


def places_of(index: Mapping[str, Any], folder: Path, name: str | os.PathLike) -> list[tuple[str, str]]:
    """The folder and the kind of each member that an index lists, behind those of the base, if any is on it.

    Raises:
        UserError: The index is not valid, names places elsewhere, or one of them is not there.
    """
    members = index.get("members")
    # None is listed twice: a short list of one large model could keep the machine busy for hours.
    valid = isinstance(members, list) and members and len({str(member) for member in members}) == len(members)
    places: list[tuple[str, str]] = []
    for member in members if isinstance(members, list) else ():
        place, kind = (str(member.get(key)) for key in ("folder", "kind")) if isinstance(member, dict) else ("", "")
        valid = valid and re.fullmatch(r"(heads|students)/[0-9]{1,9}", place) and kind in (ON_BASE, ALONE)
        places.append((place, kind))
    places = [(BASE, ALONE)] * any(kind == ON_BASE for _, kind in places) + places
    # No folder is a link: that would lead elsewhere, or back into this one without end.
    if not valid or any((folder / place).resolve() != folder.resolve() / place for place, _ in places):
        raise UserError(f"The {INDEX} of {name} lists no members in heads/ and students/; restore it or fit again.")
    for place, _ in places:
        if not (folder / place).is_dir():  # else it would be looked for on the Hub
            raise UserError(f"{name} lacks its member {place}; restore the folder or fit again.")
    return places
