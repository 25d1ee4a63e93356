# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A pipeline of diffusers as it is, with a segmentation head: images with masks, and masks of real images."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers import __version__ as diffusers_version
from diffusers.utils import logging

from ..features.base import Block, FeatureExtractor
from ..features.denoiser import DenoiserFeatureExtractor
from ..features.families import find_family
from ..heads.ensemble import FOREIGN_FORMAT, PixelClassifierEnsemble
from ..images.image_processor import mask_to_pil
from ..jobs.errors import UserError
from .segmenter import HOW_TO_FIT, DiffuseSegPipelineOutput, HeadSegmenter, check_output_type, predict_masks


logger = logging.get_logger(__name__)

INDEX, HEAD = "model_index.json", "segmentation_head"
# Of a fingerprint: numbers, weights of each tensor that are looked at, and how far two of the same weights may be apart
# because they were loaded in another precision (bfloat16 against float32: about 0.001).
SKETCH, SAMPLES, TOLERANCE = 16, 4096, 0.01


def weights_fingerprint(*models: torch.nn.Module) -> list[float]:
    """Random projections of the weights of models: the same in every precision, within `TOLERANCE`.

    The Euclidean distance of two fingerprints estimates the distance of the weights, relative to their norm (Johnson
    and Lindenstrauss, 1984). A hash would call the same weights in bfloat16 others.

    Raises:
        UserError: The weights are not in memory.
    """
    parts = []
    for model in models:
        for _, weight in sorted(model.named_parameters()):
            if weight.is_meta:
                raise UserError("The weights are offloaded; attach the head before `enable_sequential_cpu_offload()`.")
            flat = weight.detach().flatten()
            parts.append(flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].float().cpu())
    values = torch.cat(parts)
    signs = torch.randint(0, 2, values.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    projected = torch.nn.functional.pad(values * signs, (0, -len(values) % SKETCH)).view(-1, SKETCH).double().sum(0)
    return [round(x, 4) for x in (projected / values.double().norm()).tolist()]


class ComposedDiffuseSegPipeline(HeadSegmenter):
    """Any pipeline of diffusers whose denoiser is of a known family, with a segmentation head.

    The pipeline is neither copied nor changed, and everything that it has is had here: components, `to`, `enable_*`,
    `load_lora_weights`. [`AutoDiffuseSegPipeline`] makes these.

    Args:
        base (`DiffusionPipeline`): As loaded by diffusers.
        segmentation_head ([`PixelClassifierEnsemble`], *optional*): Fitted on this pipeline.
        model (`str`, *optional*), revision (`str`, *optional*): Name or folder of the pipeline, and commit on the Hub;
            saved with the head.

    Raises:
        UserError: The pipeline is of no known family, or the head was fitted on another one.
    """

    def __init__(
        self,
        base: DiffusionPipeline,
        segmentation_head: PixelClassifierEnsemble | None = None,
        model: str | None = None,
        revision: str | None = None,
    ):
        self.__dict__.update(base=base, model=model, revision=revision, _head=None)
        self.family = find_family(base.components)
        self.segmentation_head = segmentation_head

    def __getattr__(self, name: str) -> Any:
        if "base" not in self.__dict__:  # while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.base, name, value) if name in self.base.components else super().__setattr__(name, value)

    @property
    def components(self) -> dict[str, Any]:
        """Those of the base, and `segmentation_head`."""
        return {**self.base.components, HEAD: self.segmentation_head}

    @property
    def denoiser(self) -> torch.nn.Module:
        """The model whose activations are read."""
        return getattr(self.base, getattr(self.family, "component", "unet"))

    @property
    def segmentation_head(self) -> PixelClassifierEnsemble | None:  # type: ignore[override]
        """The head; one that is set is marked with the base, or refused if it is marked with another."""
        return self._head

    @segmentation_head.setter
    def segmentation_head(self, head: PixelClassifierEnsemble | None) -> None:
        if head is not None:
            own = self.base_identity()
            if head.config.base is None:
                head.register_to_config(base=own, format_version=max(FOREIGN_FORMAT, head.config.format_version))
            self._check_base(head.config.base, own)
        self.__dict__["_head"] = head

    def read_networks(self) -> dict[str, torch.nn.Module]:
        read = (getattr(self.family, "component", "unet"), "vae", "vqvae", HEAD)
        return {k: v for k, v in self.networks().items() if k in read or k.startswith("text_encoder")}

    def base_identity(self) -> dict[str, Any]:
        """What a head says of its base: `model`, `revision`, `pipeline` (its class) and `fingerprint`."""
        read = [getattr(self.base, name, None) for name in ("vae", "vqvae")]
        models = [self.denoiser, *(model for model in read if model is not None)]
        return {
            "model": self.model,
            "revision": self.revision,
            "pipeline": type(self.base).__name__,
            "fingerprint": weights_fingerprint(*models),
        }

    @staticmethod
    def _check_base(fitted: dict, found: dict) -> None:
        distance = math.dist(fitted["fingerprint"], found["fingerprint"])
        if distance > TOLERANCE:
            names = [f"{b['model'] or 'a ' + b['pipeline']} (fingerprint {short(b)})" for b in (fitted, found)]
            raise UserError(
                f"The segmentation head was fitted on {names[0]}, but this is {names[1]}: their weights differ by "
                f"{distance:.0%}; use the base that the head was fitted on, or fit one on this."
            )

    def to(self, *args: Any, **kwargs: Any) -> "ComposedDiffuseSegPipeline":
        """As [`DiffusionPipeline.to`], head included."""
        self.base.to(*args, **kwargs)
        if self._head is not None:
            self._head.to(self.base._execution_device)  # it computes in the precision of the activations
        return self

    def feature_extractor(
        self, blocks: Sequence[Block] | None = None, timesteps: Sequence[int] | None = None, **choice: Any
    ) -> FeatureExtractor:
        device = self.base._execution_device
        return self.family.of(self.base, blocks=blocks, timesteps=timesteps, device=device, **choice)

    def release(self) -> None:
        self.base.maybe_free_model_hooks()

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        output_type: str = "pil",
        return_dict: bool = True,
        masks_while_sampling: bool = False,
        **kwargs: Any,
    ) -> DiffuseSegPipelineOutput | tuple:
        """Generates images as the base does, bit for bit, and masks if there is a segmentation head.

        Args:
            *args, **kwargs: Of the base pipeline.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`.
            return_dict (`bool`, defaults to `True`): Whether to return an output object rather than a tuple.
            masks_while_sampling (`bool`, defaults to `False`):
                Take the activations for the masks from the denoising steps whose noise level is nearest to the head's,
                of the half with the prompt under guidance, instead of from the finished images, as in fitting.

        Returns:
            [`DiffuseSegPipelineOutput`], or the tuple `(images, masks, uncertainty)`.

        Raises:
            UserError: An argument is out of range, or the head does not fit.
        """
        # 0. Check the inputs before the long work.
        check_output_type(output_type)
        extractor = None if self._head is None else self.head_extractor()
        if extractor is None:
            logger.warning(f"This pipeline has no segmentation head and returns images without masks; {HOW_TO_FIT}.")
        if masks_while_sampling and not isinstance(extractor, DenoiserFeatureExtractor):
            raise UserError("Masks while sampling need a segmentation head on a denoiser of latents.")

        # 1. Images, by the base; activations of some steps on the way, if masks are to come from those.
        tapping: Any = extractor
        taps: Any = nearest_steps(tapping) if masks_while_sampling else nullcontext({})
        with taps as steps:
            images = self.base(*args, output_type="np", **kwargs).images  # [N,H,W,C]

        # 2. Masks.
        masks = uncertainty = None
        if extractor is not None:
            found: Any
            if masks_while_sampling:
                activations = sampled_activations(tapping, steps, images.shape)
                found = predict_masks(self._head, activations, None, [images.shape[1:3]] * len(images))
            else:
                found = self.segment(list(images), generator=kwargs.get("generator"), output_type="pt")
            masks, uncertainty = torch.stack(found.masks), torch.stack(found.uncertainty)  # [N,H,W] each

        # 3. Convert.
        if masks is not None and output_type != "pt":
            masks, uncertainty = masks.numpy(), uncertainty.numpy()
            if output_type == "pil":
                masks = [mask_to_pil(mask, self.palette) for mask in masks]
        if output_type == "pil":
            images = self.base.numpy_to_pil(images)
        elif output_type == "pt":
            images = torch.from_numpy(images).permute(0, 3, 1, 2)  # [N,C,H,W]
        if not return_dict:
            return images, masks, uncertainty
        return DiffuseSegPipelineOutput(images=images, masks=masks, uncertainty=uncertainty)

    def save_pretrained(self, save_directory: str | os.PathLike) -> None:
        """Saves the head, and which base it is for; of the base itself nothing.

        Args:
            save_directory (`str` or path): Folder; made if it is not there.

        Raises:
            UserError: There is no head.
        """
        if self._head is None:
            raise UserError(f"This pipeline has no segmentation head to save; {HOW_TO_FIT}.")
        folder = Path(save_directory)
        self._head.save_pretrained(folder / HEAD)
        index = {"_class_name": type(self).__name__, "_diffusers_version": diffusers_version}
        index["base"] = {k: v for k, v in self._head.config.base.items() if k != "fingerprint"}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def short(identity: dict) -> str:
    """The first numbers of a fingerprint, for people to compare."""
    return " ".join(f"{x:+.2f}" for x in identity["fingerprint"][:4])


@contextmanager
def nearest_steps(extractor: DenoiserFeatureExtractor) -> Iterator[dict[int, dict]]:
    """Yields a dict that passes of the denoiser fill: for each timestep, what the taps saw at the nearest noise level.

    Of two passes at one level the first counts, which under true guidance is the one with the prompt.
    """
    nearest: dict[int, dict] = {}
    distances = dict.fromkeys(extractor.timesteps, math.inf)
    wanted = {t: math.log(max(extractor.schedule.ratio(t), 1e-6)) for t in extractor.timesteps}

    with extractor.reading(extractor.denoiser) as seen:

        def keep(module: torch.nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
            ratio = extractor.schedule.ratio(extractor.timestep_of(args, kwargs))
            for t, level in wanted.items():
                distance = abs(math.log(min(max(ratio, 1e-6), 1e6)) - level)
                if distance < distances[t]:
                    distances[t], nearest[t] = distance, dict(seen)

        hook = extractor.denoiser.register_forward_hook(keep, with_kwargs=True)
        try:
            yield nearest
        finally:
            hook.remove()


def sampled_activations(
    extractor: DenoiserFeatureExtractor, steps: dict[int, dict], shape: Sequence[int]
) -> list[torch.Tensor]:
    """The activations of [`nearest_steps`] as a head takes them, `[N, channels, h, w]` each.

    Args:
        extractor ([`DenoiserFeatureExtractor`]), steps (`dict`): Of [`nearest_steps`].
        shape (sequence of four `int`): Of the images, `[N, H, W, C]`.

    Raises:
        UserError: The passes were of another number of images than these, or of twice as many.
    """
    n, height, width = shape[:3]
    grid = extractor.latent_grid(height, width)
    activations = []
    for t in extractor.timesteps:
        for block in extractor.blocks:
            maps = extractor.as_map(steps[t][block], grid)
            if len(maps) not in (n, 2 * n):
                raise UserError(
                    f"The denoiser saw {len(maps)} images at once for {n}; masks while sampling know guidance by one "
                    f"negative prompt, and none else."
                )
            first = len(maps) == n or extractor.conditional_first
            activations.append(maps[:n] if first else maps[n:])
    return activations
