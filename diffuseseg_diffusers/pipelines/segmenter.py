# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""One contract for everything that segments images: pipelines of any family, and students."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from diffusers.utils import logging
from torch import nn

from ..features.base import Block, FeatureExtractor, Generators
from ..features.noise import sees_no_noise
from ..features.weights import weight_bytes
from ..heads.decisions import Decisions, winners
from ..heads.ensemble import DECIDING_FORMAT, GUIDED_FORMAT, PixelClassifierEnsemble
from ..heads.guided import check_guided, joint_bilateral
from ..images.channels import InputChannels
from ..images.image_processor import DiffuseSegImageProcessor, ImageInput, default_palette, mask_to_pil, unnamed_classes
from ..jobs.errors import UserError
from .identity import describe_segmenter
from .outputs import (
    DiffuseSegPipelineOutput,
    SegmentationOutput,
    SegmentedBatch,
    check_output_type,
    predict_masks,
    together,
)


logger = logging.get_logger(__name__)

HOW_TO_FIT = (
    "fit one with `pipe.segmentation_head = fit_segmentation_head(pipe, dataset)` or the command `diffuseseg fit`"
)
# Largest single image, in pixels, that is batched with its mirror image: at small sizes the number of operations sets
# the time, and the memory is that of a batch of two.
SMALL = 2**16


class Segmenter(ABC):
    """A model that segments images. Subclasses say at what size they read images, and segment a batch of them."""

    decisions: Decisions | None = None  # which class a pixel gets, if not the likeliest one
    guided: tuple[float, float] | None = None  # widths of the filter that makes masks follow the picture, if it is used

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels at which images are read."""

    @property
    @abstractmethod
    def in_channels(self) -> int:
        """Channels of the images that the model reads."""

    @property
    @abstractmethod
    def label_names(self) -> list[str]:
        """Name of each class."""

    @property
    @abstractmethod
    def palette(self) -> list[list[int]]:
        """Colour of each class, `[red, green, blue]`, 0 to 255."""

    @property
    def ignore_index(self) -> int:
        """Id of pixels without a label."""
        return 255

    @property
    def nbytes(self) -> int:
        """Bytes of all weights of [`~Segmenter.networks`]."""
        return sum(weight_bytes(network) for network in self.networks().values())

    def networks(self) -> dict[str, nn.Module]:
        """The networks that it consists of, by name: of a pipeline its components."""
        if isinstance(self, nn.Module):
            return {"model": self}
        parts = self.components if hasattr(self, "components") else vars(self)
        return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}

    def identity(self) -> dict[str, str]:
        """Everything that masks depend on beside the images, by name, for runs to compare; reads all weights."""
        return describe_segmenter(self)

    @property
    def channels(self) -> InputChannels:
        """Which channels of an image those are, and between which values."""
        return InputChannels()

    @property
    def fitted_tiles(self) -> dict:
        """How the labelled images were seen in fitting: `tiles`, `scale` and `pixel_size`, as far as it is known."""
        return {}

    @abstractmethod
    def segment_batch(
        self,
        pixels: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
        class_labels: torch.Tensor | None = None,
        generator: Generators = None,
        return_probabilities: bool = False,
    ) -> SegmentedBatch:
        """Segments images `[N, in_channels, *image_size]` in [-1, 1]; `sizes` are those of the masks.

        The other arguments are as in [`~Segmenter.segment`]. If `guided` is set, [`~Segmenter.refine`] comes next.
        """

    def refine(
        self, found: SegmentedBatch, pictures: Sequence[torch.Tensor], return_probabilities: bool = False
    ) -> SegmentedBatch:
        """Masks that follow the pictures, `[c, H, W]` each in [0, 1] and of the size of its mask, if `guided` is set.

        They are those of the probabilities that were `found`, filtered; the uncertainty stays.
        """
        if self.guided is None:
            return found
        assert found.probabilities is not None
        refined = [joint_bilateral(p, x.to(p.device), *self.guided) for p, x in zip(found.probabilities, pictures)]
        masks = [winners(p, self.decisions, 0).to(torch.uint8) for p in refined]
        return SegmentedBatch(masks, found.uncertainty, refined if return_probabilities else None)

    def check_can_segment(self) -> None:  # noqa: B027 (most need nothing more)
        """Raises [`UserError`] if something is missing that segmenting needs."""

    def release(self) -> None:  # noqa: B027
        """Frees what the model holds on the device between calls, as CPU offload wants it."""

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Checks that the model can segment; batches within the block share what no image changes.

        The model must not be changed within the block. What it holds on the device is freed at the end.
        """
        self.check_can_segment()
        try:
            yield
        finally:
            self.release()

    def check_class_labels(self, class_labels: Any, batch_size: int) -> torch.Tensor | None:
        """Class labels as a tensor `[N]`, or `None`. Raises for unconditional models."""
        if class_labels is not None:
            raise UserError("`class_labels` were given, but the model is not class-conditional.")
        return None

    @torch.no_grad()
    def segment(
        self,
        images: ImageInput | Sequence[ImageInput],
        batch_size: int = 8,
        mask_size: tuple[int, int] | None = None,
        class_labels: torch.Tensor | Sequence[int] | int | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_probabilities: bool = False,
        return_dict: bool = True,
        return_images: bool = True,
    ) -> SegmentationOutput | tuple:
        """Segments real images of any size and mode (paper, section 4).

        The model reads each image at its own size; the mask is computed at the size of the original.

        Args:
            images:
                A path, an address (`https://…`), a PIL image, array (`[H, W]`, `[H, W, C]`, `[N, H, W, C]`) or tensor
                (`[H, W]`, `[C, H, W]`, `[N, C, H, W]`), uint8, uint16 or floating point in [0, 1], or of any type and
                number of channels if the head says which values are black and white; or a list of these.
            batch_size (`int`, defaults to 8): Images per forward pass, each at every timestep. A single small image is
                batched with its mirror image if the head sees that.
            mask_size (two `int`, *optional*): Height and width of the masks; those of each image if not given.
            class_labels (`torch.Tensor`, sequence of `int` or `int`, *optional*):
                For class-conditional U-Nets; class 0 if not given, as in the fitting of the head.
            generator (`torch.Generator` or list of one per image, *optional*): For heads fitted with fresh noise.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`.
            return_probabilities (`bool`, defaults to `False`): Whether to return the probabilities of the classes.
            return_dict (`bool`, defaults to `True`): Whether to return an output object rather than a tuple.
            return_images (`bool`, defaults to `True`): Whether to return the images too, as `output_type` says.

        Returns:
            [`SegmentationOutput`], or the tuple `(images, masks, uncertainty)` of lists, followed by `probabilities`
            with `return_probabilities=True`.

        Raises:
            UserError: The head is missing or does not fit, an option is out of range, or an image is unreadable.

        Examples:
            >>> output = pipe.segment(["photo.jpg", "other.png"], output_type="np")
            >>> [(mask.shape, mask.dtype) for mask in output.masks]  # the images' own sizes, uint8 class ids
        """
        # 0. Check the inputs.
        check_output_type(output_type)
        if batch_size < 1:
            raise UserError(f"`batch_size` must be at least 1, got {batch_size}.")
        with self.prepared():
            processor = DiffuseSegImageProcessor(self.in_channels, self.channels)
            loaded = processor.load(images)
            labels = self.check_class_labels(class_labels, len(loaded))
            if isinstance(generator, (list, tuple)) and len(generator) != len(loaded):
                raise UserError(f"{len(generator)} generators were given for {len(loaded)} images.")

            # 1. Features and masks, batch by batch.
            found = []
            for start in range(0, len(loaded), batch_size):
                own = slice(start, start + batch_size)
                sizes = [(mask_size[0], mask_size[1])] * len(loaded[own]) if mask_size else processor.sizes(loaded[own])
                pixels = processor.preprocess(loaded[own], *self.image_size)  # [N,C,H,W]
                noise = generator[own] if isinstance(generator, (list, tuple)) else generator
                classes = None if labels is None else labels[own]
                batch = self.segment_batch(pixels, sizes, classes, noise, return_probabilities or bool(self.guided))
                guides = () if self.guided is None else zip(loaded[own], sizes, strict=True)
                pictures = [processor.preprocess([image], *size)[0] / 2 + 0.5 for image, size in guides]  # [C,H,W]
                found.append(self.refine(batch, pictures, return_probabilities))

        # 2. Convert.
        masks = together([batch.masks for batch in found], output_type)
        if output_type == "pil":
            masks = [mask_to_pil(mask, self.palette) for mask in masks]
        output = SegmentationOutput(
            images=[processor.convert(image, output_type) for image in loaded] if return_images else None,
            masks=masks,
            uncertainty=together([batch.uncertainty for batch in found], output_type),
            probabilities=together([batch.probabilities for batch in found], output_type),
        )
        if return_dict:
            return output
        parts = (output.images, output.masks, output.uncertainty)
        return (*parts, output.probabilities) if return_probabilities else parts


class HeadSegmenter(Segmenter):
    """Segments with a head on a frozen model's activations, which subclasses give."""

    segmentation_head: PixelClassifierEnsemble | None
    config: Any
    family: type[FeatureExtractor]  # reads the activations
    _execution_device: torch.device  # these two of diffusers' pipelines
    maybe_free_model_hooks: Callable[[], None]
    _extractor: FeatureExtractor | None = None  # within `prepared`

    def features(
        self,
        blocks: Sequence[Block] | None = None,
        timesteps: Sequence[int] | None = None,
        filters: Sequence[float] | None = None,
        **choice: Any,
    ) -> FeatureExtractor:
        """The frozen model as a source of features.

        Args:
            blocks (sequence of `int` or `str`, *optional*), timesteps (sequence of `int`, *optional*):
                What to read; the family's default if not given.
            filters (sequence of `float`, *optional*): Scales in pixels of filters of the images, see [`filter_bank`],
                which then follow the activations; with no `blocks`, `[]`, they are all, and the model does not run.
            **choice: `share_noise`, `noise_seed`, `clean`, `size`, `prompt`: see the family's extractor.

        Examples:
            >>> features = pipe.features(blocks=[5, 6], timesteps=[50])(images)  # images: [N,C,H,W] in [-1, 1]
            >>> shapes = [tuple(a.shape) for a in features.activations]
        """
        alone = bool(filters) and blocks is not None and not len(blocks)
        given: dict[str, Any] = {} if alone else {"blocks": blocks, "timesteps": timesteps}
        extractor = self.family.of(self, device=self._execution_device, **given, **choice)
        return extractor.with_filters(filters, alone) if filters else extractor

    def head_extractor(self) -> FeatureExtractor:
        """The features that the head was fitted on; raises [`UserError`] if there is none, or it does not fit."""
        if self._extractor is not None:
            return self._extractor
        if self.segmentation_head is None:
            raise UserError(f"This pipeline has no segmentation head; {HOW_TO_FIT}.")
        head = self.segmentation_head.config
        extractor = self.features(
            head.blocks,
            head.timesteps,
            head.filters,
            share_noise=head.share_noise,
            noise_seed=head.noise_seed,
            clean=head.clean,
            size=tuple(head.image_size),
            prompt=head.prompt,
        )
        if head.in_channels != extractor.in_channels:
            raise UserError(
                f"The segmentation head was fitted on images of {head.in_channels} channels, but the model takes "
                f"{extractor.in_channels}."
            )
        channels = [i.channels for i in extractor.feature_info()[: len(head.blocks)]]
        if channels != list(head.block_channels):
            raise UserError(
                f"The segmentation head was fitted on blocks {list(head.blocks)} with {list(head.block_channels)} "
                f"channels, but this model's blocks have {channels}; use the model that the head was fitted on."
            )
        return extractor

    def check_can_segment(self) -> None:
        self.head_extractor()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        if self._extractor is not None:  # of an outer block
            yield
            return
        self._extractor = self.head_extractor()
        try:
            yield
        finally:
            self._extractor = None
            self.release()

    @property
    def image_size(self) -> tuple[int, int]:
        return tuple(self.segmentation_head.config.image_size)

    in_channels = property(attrgetter("segmentation_head.config.in_channels"))
    ignore_index = property(attrgetter("segmentation_head.config.ignore_index"))

    @property
    def channels(self) -> InputChannels:
        head = self.segmentation_head
        return InputChannels.of(head.config.channels if head is not None else self.config.get("channels"))

    @property
    def fitted_tiles(self) -> dict:
        return dict(self.segmentation_head.config.tiling or {})

    @property
    def palette(self) -> list[list[int]]:
        return self.segmentation_head.config.palette or default_palette(self.segmentation_head.config.num_classes)

    @property
    def decisions(self) -> Decisions | None:
        config = self.segmentation_head.config
        return Decisions.of(config.decisions, config.num_classes)

    @decisions.setter
    def decisions(self, decisions: Decisions | None) -> None:
        config = {"decisions": None}
        if decisions is not None:  # what does not know them must not load the head
            version = max(DECIDING_FORMAT, self.segmentation_head.config.format_version)
            config = {"decisions": decisions.config, "format_version": version}
        self.segmentation_head.register_to_config(**config)

    @property
    def guided(self) -> tuple[float, float] | None:
        return check_guided(self.segmentation_head.config.guided)

    @guided.setter
    def guided(self, widths: Sequence[float] | None) -> None:
        given, version = check_guided(widths), self.segmentation_head.config.format_version
        version = version if given is None else max(GUIDED_FORMAT, version)  # what does not know it must not load it
        self.segmentation_head.register_to_config(guided=given and list(given), format_version=version)

    @property
    def label_names(self) -> list[str]:
        config = self.segmentation_head.config
        return list(config.label_names or unnamed_classes(config.num_classes))

    def segment_batch(
        self,
        pixels: torch.Tensor,
        sizes: Sequence[tuple[int, int]],
        class_labels: torch.Tensor | None = None,
        generator: Generators = None,
        return_probabilities: bool = False,
    ) -> SegmentedBatch:
        extractor, head = self.head_extractor(), self.segmentation_head
        mirrored = None
        # Filters of mirror images are mirror images: of filters alone, all members would see the same twice.
        flip = head.config.flip and len(extractor.blocks) > 0
        if flip and len(pixels) == 1 and pixels[0, 0].numel() <= SMALL:
            labels = None if class_labels is None else torch.cat([class_labels, class_labels])
            generators = [*generator, *generator] if isinstance(generator, (list, tuple)) else generator
            both = extractor(torch.cat([pixels, pixels.flip(-1)]), labels, generators).activations
            activations, mirrored = [a[:1] for a in both], [a[1:] for a in both]
        else:
            activations = extractor(pixels, class_labels, generator).activations
            if flip:
                mirrored = extractor(pixels.flip(-1), class_labels, generator).activations
        return predict_masks(head, activations, mirrored, sizes, return_probabilities)

    def release(self) -> None:
        self.maybe_free_model_hooks()

    def extractor_of_call(self, output_type: str) -> FeatureExtractor | None:
        """What a generating call reads masks off, if there is a head; checks its inputs before the long work."""
        if output_type != "latent":
            check_output_type(output_type)
        if sees_no_noise(getattr(self, "scheduler", None)):
            raise UserError("This denoiser was distilled to see clean images: it segments, and cannot generate.")
        if self.segmentation_head is None:
            logger.warning(f"This pipeline has no segmentation head and returns images without masks; {HOW_TO_FIT}.")
            return None
        return self.head_extractor()

    def generated(
        self, images: Any, found: SegmentedBatch | None, output_type: str, return_dict: bool
    ) -> DiffuseSegPipelineOutput | tuple:
        """What a generating call returns: images, which are in the type of the output, and their masks, if any."""
        masks: Any = None if found is None else torch.stack(found.masks)  # [N,H,W]
        uncertainty: Any = None if found is None else torch.stack(found.uncertainty)  # [N,H,W]
        if found is not None and output_type != "pt":
            masks, uncertainty = masks.numpy(), uncertainty.numpy()
            masks = [mask_to_pil(mask, self.palette) for mask in masks] if output_type == "pil" else masks
        output = DiffuseSegPipelineOutput(images=images, masks=masks, uncertainty=uncertainty)
        return output if return_dict else (images, masks, uncertainty)


class HeadPipeline(HeadSegmenter):
    """Mixin of a [`DiffusionPipeline`] whose optional component `segmentation_head` is the head."""

    register_modules: Callable[..., None]  # of the diffusers pipeline

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike, **kwargs) -> dict:
        """Reads `model_index.json` as if it named no code; diffusers calls this before the download and after it."""
        index = super()._dict_from_json_file(json_file, **kwargs)  # type: ignore[misc]
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        if (index.get("segmentation_head") or [None])[0] is not None:
            index["segmentation_head"] = ["diffusers", "ModelMixin"]  # the download takes no class that it cannot find
        return index

    @classmethod
    def load_config(cls, *args, **kwargs) -> dict | tuple:
        """As in diffusers; the class of the head is the one that is installed."""
        loaded = super().load_config(*args, **kwargs)  # type: ignore[misc]
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        if (index.get("segmentation_head") or [None])[0] is not None:
            index["segmentation_head"] = [PixelClassifierEnsemble.__module__, PixelClassifierEnsemble.__name__]
        return loaded

    def feature_extractor(self, *args: Any, **kwargs: Any) -> FeatureExtractor:
        """[`~HeadSegmenter.features`] under its name in version 0.1."""
        return self.features(*args, **kwargs)

    def __setattr__(self, name: str, value: Any):
        super().__setattr__(name, value)
        # diffusers leaves a component that was None as (None, None) in the config, and would not save the new one.
        if name == "segmentation_head" and value is not None and self.config.segmentation_head[0] is None:
            self.register_modules(segmentation_head=value)
