# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A pipeline of diffusers as it is, with a segmentation head: images with masks, and masks of real images."""

import functools
import inspect
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers import __version__ as diffusers_version
from diffusers.utils import PushToHubMixin, logging

from ..features.base import FeatureExtractor
from ..features.denoiser import DenoiserFeatureExtractor
from ..features.families import find_family
from ..features.noise import noise_schedule
from ..features.weights import state_of
from ..heads.ensemble import ADAPTED_FORMAT, FOREIGN_FORMAT, PixelClassifierEnsemble
from ..jobs.errors import UserError
from .adapters import load_adapters
from .bases import check_base, check_condition, describe_adapters, describe_base, describe_condition, tell_unstated
from .identity import describe_freeu, describe_noise
from .outputs import DiffuseSegPipelineOutput, predict_masks
from .sampled import nearest_steps, sampled_activations
from .saved_code import hub_options
from .segmenter import HOW_TO_FIT, HeadSegmenter
from .variants import load_variant, only_variant


logger = logging.get_logger(__name__)

INDEX, HEAD = "model_index.json", "segmentation_head"


class _WithBaseSignature:
    """Descriptor of a method whose signature is that of the base's `__call__` and the arguments that it adds."""

    def __init__(self, method: Callable):
        self.method, self.__doc__, self.__name__ = method, method.__doc__, method.__name__

    def __get__(self, pipe: "ComposedDiffuseSegPipeline | None", owner: type | None = None) -> Callable:
        if pipe is None:
            return self.method
        bound = functools.wraps(self.method)(functools.partial(self.method, pipe))
        given = inspect.signature(pipe.base.__call__).parameters
        own = inspect.signature(self.method).parameters.items()
        added = [p.replace(kind=p.KEYWORD_ONLY) for k, p in own if k not in (*given, "self", "args", "kwargs")]
        every = sorted([*given.values(), *added], key=lambda p: p.kind)  # `**kwargs` stay last
        bound.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        return bound


class ComposedDiffuseSegPipeline(HeadSegmenter, PushToHubMixin):
    """Any pipeline of diffusers whose denoiser is of a known family, with a segmentation head.

    Delegates unknown attributes to the base pipeline, which is neither copied nor changed: components, `enable_*`,
    `load_lora_weights`. What is saved and pushed is the head and the name of the base, not the base's weights.

    Args:
        base (`DiffusionPipeline`): As loaded by diffusers.
        segmentation_head ([`PixelClassifierEnsemble`], *optional*): Fitted on this pipeline.
        model (`str`, *optional*), revision (`str`, *optional*): Name or folder of the pipeline, and commit on the Hub;
            saved with the head.

    Raises:
        UserError: The pipeline is of no known family, or the head was fitted on another one.

    Examples:
        >>> pipe = ComposedDiffuseSegPipeline(StableDiffusionPipeline.from_pretrained("user/model"))
        >>> pipe.segmentation_head = fit_segmentation_head(pipe, dataset)
        >>> mask = pipe.segment("photo.jpg").masks[0]
    """

    _state: tuple | None  # of the base when it was last compared with what the head states
    _condition: dict | None  # the conditioning that was last compared

    def __init__(
        self,
        base: DiffusionPipeline,
        segmentation_head: PixelClassifierEnsemble | None = None,
        model: str | None = None,
        revision: str | None = None,
    ):
        self.__dict__.update(base=base, model=model, revision=revision, _head=None, _state=None, _condition=None)
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
    def _optional_components(self) -> list[str]:
        return [*self.base._optional_components, HEAD]

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
        self.__dict__.update(_head=None, _state=None, _condition=None)
        if head is not None and head.config.base is None:
            self._mark(head)
        elif head is not None:
            tell_unstated(head.config.base)
            self._check_base(head)
        self.__dict__["_head"] = head

    def _mark(self, head: PixelClassifierEnsemble) -> None:
        """States in a new head what it was fitted on."""
        base = describe_base(self, head.config.timesteps)
        try:
            self.__dict__["_head"] = head
            base["condition"] = describe_condition(_condition_of(super().head_extractor()))
        finally:
            self.__dict__["_head"] = None
        special = base["adapters"] or base["freeu"]  # what does not know them must not load the head
        version = max(ADAPTED_FORMAT if special else FOREIGN_FORMAT, head.config.format_version)
        head.register_to_config(base=base, format_version=version)

    def _check_base(self, head: PixelClassifierEnsemble) -> None:
        """Compares the base with what the head states, if anything about it changed since it was last compared."""
        networks = {name: network for name, network in self.read_networks().items() if name != HEAD}
        noise = describe_noise(noise_schedule(self.base.scheduler), head.config.timesteps)
        state = ({name: state_of(network) for name, network in networks.items()}, describe_freeu(self.denoiser), noise)
        if state != self._state:
            check_base(head.config.base, self, head.config.timesteps)
            self._state = state

    def head_extractor(self) -> FeatureExtractor:
        extractor = super().head_extractor()
        assert self._head is not None
        self._check_base(self._head)
        condition = _condition_of(extractor)
        if condition is not self._condition:
            check_condition(self._head.config.base, condition, describe_adapters(self.read_networks()))
            self._condition = condition
        return extractor

    def read_networks(self) -> dict[str, torch.nn.Module]:
        """Those of [`~Segmenter.networks`] on which masks depend."""
        read = (getattr(self.family, "component", "unet"), "vae", "vqvae", HEAD)
        return {k: v for k, v in self.networks().items() if k in read or k.startswith("text_encoder")}

    def to(self, *args: Any, **kwargs: Any) -> "ComposedDiffuseSegPipeline":
        """As [`DiffusionPipeline.to`], head included."""
        self.base.to(*args, **kwargs)
        if self._head is not None:
            dtypes = [value for value in (*args, kwargs.get("dtype")) if isinstance(value, torch.dtype)]
            self._head.to(self.base._execution_device, *dtypes)
        return self

    @_WithBaseSignature
    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        output_type: str = "pil",
        return_dict: bool = True,
        masks_while_sampling: bool = False,
        **kwargs: Any,
    ) -> DiffuseSegPipelineOutput | tuple:
        """Generates images exactly as the base does, and masks if there is a segmentation head.

        Args:
            *args, **kwargs: Of the base pipeline; `inspect.signature(pipe.__call__)` lists them.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`; `"latent"` returns the base's latents
                as `images`, without masks.
            return_dict (`bool`, defaults to `True`): Whether to return an output object rather than a tuple.
            masks_while_sampling (`bool`, defaults to `False`):
                Read the activations for the masks during the denoising steps whose noise levels are nearest to the
                head's, from the conditional half under guidance, instead of from the finished images; for heads that
                were fitted with noise.

        Returns:
            [`DiffuseSegPipelineOutput`], or the tuple `(images, masks, uncertainty)`.

        Raises:
            UserError: An argument is out of range, or the head does not fit.

        Examples:
            >>> output = pipe("a face", num_inference_steps=30, generator=torch.manual_seed(0))
            >>> output.images[0].save("face.png")
            >>> output.masks[0].save("face_mask.png")  # a palette image of class ids
        """
        # 0. Check the inputs before the long work.
        latent, extractor = output_type == "latent", self.extractor_of_call(output_type)
        if masks_while_sampling and not isinstance(extractor, DenoiserFeatureExtractor):
            raise UserError("Masks while sampling need a segmentation head on a denoiser of latents.")
        if masks_while_sampling and latent:
            raise UserError('`output_type="latent"` comes without masks; leave `masks_while_sampling` out.')

        # 1. Images, by the base; activations of some steps on the way, if masks are to come from those.
        tapping: Any = extractor
        taps: Any = nearest_steps(tapping) if masks_while_sampling else nullcontext({})
        with taps as steps:
            images = self.base(*args, output_type="latent" if latent else "np", **kwargs).images  # [N,H,W,C]
        if latent:
            return self.generated(images, None, output_type, return_dict)

        # 2. Masks.
        found: Any = None
        if masks_while_sampling:
            pictures, sizes = torch.from_numpy(images).movedim(-1, 1), [images.shape[1:3]] * len(images)  # [N,C,H,W]
            activations = [*sampled_activations(tapping, steps, images.shape), *tapping.filtered(pictures * 2 - 1)]
            found = predict_masks(self._head, activations, None, sizes, self.guided is not None)
            found = self.refine(found, list(pictures))
        elif extractor is not None:
            given = {"generator": kwargs.get("generator"), "output_type": "pt", "return_images": False}
            found = self.segment(list(images), **given)

        # 3. Convert.
        if output_type == "pil":
            images = self.base.numpy_to_pil(images)
        elif output_type == "pt":
            images = torch.from_numpy(images).permute(0, 3, 1, 2)  # [N,C,H,W]
        return self.generated(images, found, output_type, return_dict)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Saves the head and the name of its base, not the base's weights.

        Args:
            save_directory (`str` or path): Folder; created if missing.
            safe_serialization, variant, max_shard_size: As in [`PixelClassifierEnsemble.save_pretrained`].
            push_to_hub (`bool`, defaults to `False`): Whether to call `push_to_hub` too, with **kwargs, whose
                `repo_id` defaults to the name of the folder.

        Raises:
            UserError: There is no head.
        """
        if self._head is None:
            raise UserError(f"This pipeline has no segmentation head to save; {HOW_TO_FIT}.")
        folder = Path(save_directory)
        size = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
        self._head.save_pretrained(folder / HEAD, safe_serialization, variant, **size)
        index: dict[str, Any] = {"_class_name": type(self).__name__, "_diffusers_version": diffusers_version}
        index[HEAD] = [__package__.partition(".")[0], PixelClassifierEnsemble.__name__]
        index["base"] = {k: self._head.config.base[k] for k in ("model", "revision", "pipeline")}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), variant=variant, **kwargs)

    def push_to_hub(self, repo_id: str, *args: Any, **kwargs: Any) -> str:
        """Uploads the head and the name of its base; the arguments are those of [`DiffusionPipeline.push_to_hub`].

        Raises:
            UserError: There is no head, or the base is not on the Hub.
        """
        base = self._head.config.base["model"] if self._head is not None else ""
        if base is None or os.path.isabs(base):
            raise UserError(
                f"The base of this head is {base or 'not known'}, which nobody else can load; push the base to the "
                f"Hub, and fit on it under its name there."
            )
        return super().push_to_hub(repo_id, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        base_model: str | os.PathLike | None = None,
        **kwargs: Any,
    ) -> "ComposedDiffuseSegPipeline":
        """Loads a head and its base, or a base alone; runs no code of a repository.

        Args:
            pretrained_model_name_or_path (`str` or path): Folder or Hub name of a head as
                [`~ComposedDiffuseSegPipeline.save_pretrained`] saves it, or of a pipeline of diffusers.
            base_model (`str` or path, *optional*): Where the base of a head is, if not where the head says.
            **kwargs: As in [`DiffusionPipeline.from_pretrained`], for head and base. `revision` is the head's, which
                names that of its base; `dtype` may name `segmentation_head`; `variant` applies to whichever of the two
                has it. `use_safetensors` is `True` if not given. `lora` lists LoRAs to load onto the base.

        Raises:
            UserError: The pipeline is of no known family, or the base is not the one that the head was fitted on.

        Examples:
            >>> pipe = ComposedDiffuseSegPipeline.from_pretrained("user/faces-head", dtype=torch.float16)
        """
        name, kwargs = os.fspath(pretrained_model_name_or_path), {"use_safetensors": True, **kwargs}
        where = hub_options(kwargs)
        index = DiffusionPipeline.load_config(name, **where)
        if index.get("_class_name") != ComposedDiffuseSegPipeline.__name__:
            if base_model is not None:
                raise UserError(f"{name} is not a head on another pipeline; leave `base_model` out.")
            return cls(*_load_base(name, kwargs))
        kwargs.pop("revision", None)
        dtype = kwargs.get("dtype")
        if isinstance(dtype, dict):
            dtype = dtype.get(HEAD, dtype.get("default"))
            kwargs["dtype"] = {k: v for k, v in kwargs["dtype"].items() if k != HEAD}
        given = {**where, "subfolder": HEAD, **({} if dtype is None else {"dtype": dtype})}
        variant, refused = kwargs.pop("variant", None), False
        try:
            head = load_variant(PixelClassifierEnsemble.from_pretrained, name, variant=variant, **given)
        except UserError:
            if variant is None:
                raise
            head, refused = load_variant(PixelClassifierEnsemble.from_pretrained, name, **given), True
        base, revision = _find_base(name, index.get("base") or {}, base_model)
        kwargs |= {} if revision is None else {"revision": revision}
        try:
            pipe = cls(*_load_base(base, {**kwargs, "variant": variant}))
        except ValueError as error:
            if variant is None or refused or f"variant={variant}" not in str(error):
                raise
            pipe = cls(*_load_base(base, kwargs))
        pipe.segmentation_head = head.to(pipe.base._execution_device)
        return pipe


def _find_base(head: str, named: dict[str, Any], given: str | os.PathLike | None) -> tuple[str, str | None]:
    """Name and revision of the base of a head: where it is given, or where the head says."""
    if given is not None:
        return os.fspath(given), None
    name = named.get("model")
    if name is None:
        kind = named.get("pipeline")
        raise UserError(f"The head in {head} does not say where its base is, a {kind}; give `base_model`.")
    if os.path.isabs(name) and not os.path.isdir(name):
        raise UserError(f"The base of the head in {head} is not in {name} any more; give `base_model`.")
    return name, named.get("revision")


def _load_base(name: str, kwargs: dict[str, Any]) -> tuple[DiffusionPipeline, None, str, str | None]:
    """A pipeline of diffusers, no head, and its name and revision for heads that are fitted on it."""
    lora, kwargs = kwargs.get("lora") or (), {k: v for k, v in kwargs.items() if k != "lora"}
    where, revision = {k: kwargs[k] for k in ("cache_dir", "token") if k in kwargs}, None
    if os.path.isdir(name):
        pipe = load_variant(DiffusionPipeline.from_pretrained, name, trust_remote_code=False, **kwargs)
        name = os.path.abspath(name)
    else:
        folder = Path(load_variant(DiffusionPipeline.download, name, **kwargs))
        revision = folder.name if folder.parent.name == "snapshots" else kwargs.get("revision")
        variant = kwargs.get("variant") or only_variant(folder, {})
        pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=False, **{**kwargs, "variant": variant})
    load_adapters(pipe, lora, **where)
    return pipe, None, name, revision


def _condition_of(extractor: FeatureExtractor) -> dict[str, torch.Tensor]:
    return extractor.condition() if isinstance(extractor, DenoiserFeatureExtractor) else {}
