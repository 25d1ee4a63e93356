# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Hidden states of a frozen vision model of `transformers`.

The baselines of Baranchuk et al. (ICLR 2022), section 4: the same head on the activations of MAE, SwAV and the like.
"""

import copy
import inspect
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ..jobs.errors import UserError
from .base import Block, FeatureExtractor, Generators, Tap, both_sides, refuse_prompt
from .dry_run import Place, hooked


DEFAULT_SIZE = 224  # of images, where neither image processor nor config say one

# What has been found of each model's hidden states, by size of the images.
_DESCRIBED: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class VisionFeatureExtractor(FeatureExtractor):
    """Hidden states of a vision model as pixel features: no noise, and a single timestep, 0.

    Args:
        backbone (`PreTrainedModel`): A vision model with hidden states: a ViT of any kind, a ResNet, Swin, ConvNeXt.
        image_processor: Its image processor, which says how images are normalised.
        blocks (sequence of `int`, *optional*): Hidden states, counted from 0 as the model returns them; four spread
            evenly over the depth if not given.
        timesteps (sequence of `int`, *optional*): `(0,)`, if given.
        size (two `int`, *optional*), device (`torch.device`, *optional*): As in [`DecoderFeatureExtractor`].

    Raises:
        UserError: The model gives no hidden states with a place in the image, or not those that were asked for.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        image_processor: Any,
        blocks: Sequence[Block] | None = None,
        timesteps: Sequence[int] | None = None,
        size: tuple[int, int] | None = None,
        device: torch.device | None = None,
    ):
        if "pixel_values" not in inspect.signature(backbone.forward).parameters:
            raise UserError(f"{type(backbone).__name__} takes no images; a backbone is a vision model.")
        self.model, self.origin = backbone, (backbone, image_processor)
        self.settings = dict(size=size, device=device)
        self.mean, self.std = (
            torch.tensor(getattr(image_processor, name, None) or [0.5] * 3).view(3, 1, 1)
            for name in ("image_mean", "image_std")
        )
        height, width = size or own_size(backbone, image_processor)
        known = _DESCRIBED.setdefault(backbone, {})
        if (height, width) not in known:
            known[height, width] = describe_hidden_states(backbone, (height, width))
        names, shapes = zip(*known[height, width])
        self._shapes = dict(enumerate(shapes))
        taps = [Tap(i, name, s[1], -(-height // s[2])) for i, (name, s) in enumerate(zip(names, shapes))]
        super().__init__(taps, blocks, timesteps, (height, width), in_channels=3)

    @classmethod
    def of(cls, pipe: Any, **choice: Any) -> "VisionFeatureExtractor":
        refuse_prompt(pipe.backbone, choice.pop("prompt", None))
        choice = {name: value for name, value in choice.items() if name not in ("share_noise", "noise_seed", "clean")}
        return cls(pipe.backbone, pipe.image_processor, **choice)

    def default_blocks(self, of_18: Sequence[int] | None = None) -> tuple[Block, ...]:
        return tuple(sorted({round(len(self.taps) * part / 4) - 1 for part in (1, 2, 3, 4)} - {-1}))

    def run(
        self, images: torch.Tensor, class_labels: torch.Tensor | None = None, generator: Generators = None
    ) -> list[torch.Tensor]:
        images = images.to(self.device)
        pixels = ((images / 2 + 0.5 - self.mean.to(images)) / self.std.to(images)).to(self.dtype)  # [N,3,H,W]
        states: Any = _output(self.model, pixels)["maps"]
        return [_as_map(self.model, states[block], pixels.shape[-2:]) for block in self.blocks]


def _output(backbone: PreTrainedModel, pixels: torch.Tensor) -> dict[str, Sequence[torch.Tensor]]:
    """Hidden states as the model computes them, `raw`, and as it reshapes them to `maps` if it does."""
    accepted, config = inspect.signature(backbone.forward).parameters, backbone.config
    options: dict[str, Any] = {}
    if "interpolate_pos_encoding" in accepted:
        options["interpolate_pos_encoding"] = True
    ratio = getattr(config, "mask_ratio", None) if "noise" in accepted else None
    if ratio is not None:
        # MAE drops and shuffles patches by this noise; in ascending order and with none dropped, it does neither.
        config.mask_ratio = 0.0
        patches = (pixels.shape[-2] // config.patch_size) * (pixels.shape[-1] // config.patch_size)
        options["noise"] = torch.arange(patches, device=pixels.device).float().expand(len(pixels), -1)
    was_training = backbone.training
    backbone.eval()
    try:
        output = backbone(pixels, output_hidden_states=True, **options)
    finally:
        backbone.train(was_training)
        if ratio is not None:
            config.mask_ratio = ratio
    raw = getattr(output, "hidden_states", None)
    if not raw:
        raise UserError(f"{type(backbone).__name__} gives no hidden states; it cannot be a backbone here.")
    return {"raw": raw, "maps": getattr(output, "reshaped_hidden_states", None) or raw}


def describe_hidden_states(backbone: PreTrainedModel, size: tuple[int, int]) -> list[tuple[str, torch.Size]]:
    """Module and shape `[1, channels, h, w]` of each hidden state, by a twin on the meta device that computes nothing.

    The module is the innermost one whose output is the hidden state; where there is none, because the model computes
    it from several modules' outputs, it is called `hidden_states.{i}`.
    """
    with torch.device("meta"), torch.no_grad():
        twin = type(backbone)(copy.deepcopy(backbone.config)).eval()
        outputs: dict[int, tuple[str, torch.Tensor]] = {}  # with the tensor, so that its identity is not given anew

        def remember(name: str, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor):
                outputs.setdefault(id(tensor), (name, tensor))

        with hooked(twin, {name: Place(name) for name, _ in twin.named_modules() if name}, remember):
            states = _output(twin, torch.zeros(1, 3, *size))
    maps = [_as_map(backbone, state, size).shape for state in states["maps"]]
    names = [outputs.get(id(state), (f"hidden_states.{i}",))[0] for i, state in enumerate(states["raw"])]
    return list(zip(names, maps, strict=True))


def _as_map(backbone: PreTrainedModel, state: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if state.ndim == 4:
        return state  # [N,c,h,w]
    patch = getattr(backbone.config, "patch_size", None)
    if state.ndim == 3 and isinstance(patch, int):
        height, width = (side // patch for side in size)
        others = state.shape[1] - height * width  # class and register tokens stand first
        if others >= 0:
            return state[:, others:].mT.unflatten(2, (height, width))  # [N,c,h,w]
    raise UserError(
        f"The hidden states of {type(backbone).__name__} have the shape {list(state.shape)}, which has no place in the "
        f"image; a backbone needs maps [N, channels, height, width], or a token for each patch."
    )


def own_size(backbone: PreTrainedModel, image_processor: Any) -> tuple[int, int]:
    """Height and width of the images that a backbone was trained on, as far as it says."""
    for size in (getattr(image_processor, "crop_size", None), getattr(image_processor, "size", None)):
        size = dict(size or {})
        if "height" in size:
            return size["height"], size["width"]
        if "shortest_edge" in size:
            return size["shortest_edge"], size["shortest_edge"]
    return both_sides(getattr(backbone.config, "image_size", DEFAULT_SIZE))
