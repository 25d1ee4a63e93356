# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Students as segmenters: the contract of the pipelines, in one fast pass."""

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForSemanticSegmentation, BaseImageProcessor, PreTrainedModel

from ..heads.decisions import Decisions, winners
from ..heads.guided import check_guided
from ..heads.inputs import check_tiling
from ..images.image_processor import default_palette
from ..jobs.errors import UserError
from ..pipelines.identity import digest
from ..pipelines.outputs import SegmentedBatch
from ..pipelines.segmenter import Segmenter
from .networks import SAFE, loading_errors, make_processor


class LogitSegmenter(Segmenter):
    """Segments with a single network. Its uncertainty is the entropy of the network's own probabilities in nats."""

    # Set by `__init__`, in place of the properties of `Segmenter`.
    image_size: tuple[int, int] = (0, 0)
    in_channels: int = 0
    label_names: list[str] = []
    palette: list[list[int]] = []
    fitted_tiles: dict = {}

    @abstractmethod
    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits `[N, num_classes, h, w]` of any resolution for pixels `[N, in_channels, *image_size]` in [0, 1]."""

    @torch.no_grad()
    def segment_batch(
        self,
        pixels: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
        class_labels: torch.Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        return_probabilities: bool = False,
    ) -> SegmentedBatch:
        return masks_of_logits(self.logits(pixels / 2 + 0.5), sizes, return_probabilities, self.decisions)


class Student(LogitSegmenter):
    """A small network of PyTorch. Subclasses say how it is called and saved.

    Args:
        model (`torch.nn.Module`): The network; it computes in its own dtype, on its own device.
        label_names (sequence of `str`): Name of each class.
        image_size (two `int`), in_channels (`int`): Height, width and channels of the images that it reads.
        palette (sequence of `[red, green, blue]`, *optional*):
            Colours of the classes, 0 to 255; [`default_palette`] if not given.

    Attributes:
        fitted_tiles (`dict`): How the images that it learned from were cut, see [`Segmenter.fitted_tiles`].
        agreement (`dict`): By precision, the share of the pixels whose class is that in float32, if it was measured.
    """

    def __init__(
        self,
        model: Any,
        label_names: Sequence[str],
        image_size: tuple[int, int],
        in_channels: int,
        palette: Sequence[Sequence[int]] | None = None,
    ):
        self.model, self.label_names = model, list(label_names)
        self.image_size, self.in_channels = image_size, in_channels
        self.palette = [list(color) for color in palette or default_palette(len(label_names))]
        self.agreement: dict[str, float] = {}
        self.fitted_tiles: dict = {}

    @abstractmethod
    def logits(self, pixels: torch.Tensor, model: nn.Module | None = None) -> torch.Tensor:
        """As in [`LogitSegmenter`]; `model` is called in place of the student's own, such as what Accelerate made of
        it."""

    @abstractmethod
    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Saves it so that its library and `from_pretrained` load it."""

    def to(self, device: torch.device | str) -> Self:
        """Moves the network to a device."""
        self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return self.model.device

    def identity(self) -> dict[str, str]:
        tiles = {"tiling": digest(self.fitted_tiles)} if self.fitted_tiles else {}
        guided = {"guided": digest(self.guided)} if self.guided else {}
        return super().identity() | {"classes": digest([self.label_names, self.palette])} | tiles | guided

    def segment_batch(self, pixels: torch.Tensor, *args: Any, **kwargs: Any) -> SegmentedBatch:
        self.model.eval()
        return super().segment_batch(pixels.to(self.device), *args, **kwargs)

    def extras(self) -> dict[str, Any]:
        """What the configs of the libraries do not state, from colours to agreement."""
        decisions = None if self.decisions is None else self.decisions.config
        tiling, agreement = self.fitted_tiles or None, self.agreement or None
        found = {"palette": self.palette, "decisions": decisions, "tiling": tiling, "agreement": agreement}
        return found | ({"guided": list(self.guided)} if self.guided else {})

    def restore(self, extras: Mapping[str, Any], name: str) -> Self:
        """Takes decisions, guided masks, tiles and agreement from [`~Student.extras`] as they were saved.

        Raises:
            UserError: One of them is not valid, or the decisions are of another number of classes.
        """
        try:
            self.decisions = Decisions.of(extras.get("decisions"), len(self.label_names))
            self.fitted_tiles = check_tiling(extras.get("tiling"))
            self.guided = check_guided(extras.get("guided"))
        except UserError as error:
            raise UserError(f"{name} cannot be loaded: {error}") from error
        agreement = extras.get("agreement")
        self.agreement = dict(agreement) if isinstance(agreement, Mapping) else {}
        return self


class StudentSegmenter(Student):
    """A drop-in replacement for [`DiffuseSegPipeline`] in segmenting: a small network of `transformers`.

    Args:
        model (`PreTrainedModel`): The student; it computes in its own dtype, on its own device.
        processor (`BaseImageProcessor`): Says at what size and how normalised it takes images.
        palette (sequence of `[red, green, blue]`, *optional*): As in [`Student`].

    Raises:
        UserError: The processor resizes images to no fixed height and width.
    """

    def __init__(
        self, model: PreTrainedModel, processor: BaseImageProcessor, palette: Sequence[Sequence[int]] | None = None
    ):
        size = dict(processor.size)
        if not {"height", "width"} <= size.keys():
            raise UserError(
                f"The student's image processor resizes to {size}, but a height and a width are needed; set its size."
            )
        names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        super().__init__(model, names, (size["height"], size["width"]), 3, palette)
        self.processor = processor

    def logits(self, pixels: torch.Tensor, model: nn.Module | None = None) -> torch.Tensor:
        given = (self.processor.image_mean, self.processor.image_std)
        mean, std = (torch.tensor(x, device=pixels.device).view(3, 1, 1) for x in given)
        pixels = ((pixels - mean) / std).to(self.model.dtype, memory_format=torch.channels_last)  # [N,3,H,W]
        network = self.model if model is None else model  # a compiled model has no truth value
        return network(pixels).logits  # [N,C,h,w]

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike, dtype: torch.dtype = torch.float32, revision: str | None = None, **kwargs: Any
    ) -> "StudentSegmenter":
        """Loads a student of `transformers`; runs no code of a repository.

        Args:
            name (`str` or path): Local folder or Hub name.
            dtype (`torch.dtype`, defaults to `torch.float32`): Precision in which it runs.
            revision (`str`, *optional*): Branch, tag or commit on the Hub.
            **kwargs: As in `PreTrainedModel.from_pretrained`, such as `cache_dir`.

        Raises:
            UserError: It cannot be loaded; says why.

        Examples:
            >>> student = StudentSegmenter.from_pretrained("out/student")
            >>> mask = student.segment("photo.jpg").masks[0]
        """
        name, options = os.fspath(name), {"use_safetensors": True, **kwargs, **SAFE}
        with loading_errors(name):
            model, info = AutoModelForSemanticSegmentation.from_pretrained(
                name, dtype=dtype, revision=revision or "main", output_loading_info=True, **options
            )
        if wrong := sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}):
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise UserError(f"{name} is no whole student: its weights lack {wrong[0]}{more}, which its config names.")
        processor = make_processor(name, revision=revision, cache_dir=kwargs.get("cache_dir"), required=True)
        extras = model.config.to_dict()
        return cls(model.eval(), processor, extras.get("palette")).restore(extras, name)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        self.model.config.update(self.extras())
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def masks_of_logits(
    logits: torch.Tensor,
    sizes: Sequence[tuple[int, int]],
    return_probabilities: bool = False,
    decisions: Decisions | None = None,
) -> SegmentedBatch:
    """Masks, uncertainties and, if asked for, probabilities of a batch, each image's at a size of its own.

    Args:
        logits (`torch.Tensor`): `[N, C, h, w]`, upsampled bilinearly.
        sizes (sequence of `(height, width)`): For each image.
        return_probabilities (`bool`, defaults to `False`): Whether to return probabilities.
        decisions ([`Decisions`], *optional*): Which class a pixel gets, if not the likeliest.
    """
    found: list[list] = [[None] * len(sizes) for _ in range(3)]
    for size in dict.fromkeys(sizes):  # images of one size go together
        same = [i for i, s in enumerate(sizes) if s == size]
        log_p = logits.float()[same]
        if log_p.shape[-2:] != size:
            log_p = F.interpolate(log_p, size=size, mode="bilinear", align_corners=False)  # [n,C,H,W]
        log_p = log_p.log_softmax(dim=1)  # [n,C,H,W]
        p = log_p.exp()  # [n,C,H,W]
        ids = winners(log_p if decisions is None else p, decisions).to(torch.uint8)  # [n,H,W]
        entropy = -(p * log_p).sum(dim=1).clamp(max=0)  # [n,H,W]
        for j, i in enumerate(same):
            found[0][i], found[1][i] = ids[j].cpu(), entropy[j].cpu()
            found[2][i] = p[j].cpu() if return_probabilities else None
    masks, uncertainty, probabilities = found
    return SegmentedBatch(masks, uncertainty, probabilities if return_probabilities else None)
