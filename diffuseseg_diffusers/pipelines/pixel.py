# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A diffusion pipeline that generates images with masks and segments real ones."""

import inspect
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from ..features.base import FeatureExtractor
from ..features.dry_run import Place
from ..features.filters import filter_bank
from ..features.noise import NoiseSchedule
from ..features.pixel_unet import DecoderFeatureExtractor, default_class_labels, image_size
from ..features.weights import base_weights
from ..heads.decisions import Decisions
from ..heads.ensemble import PixelClassifierEnsemble
from ..heads.guided import joint_bilateral
from ..heads.inputs import member_kinds
from ..heads.upsampling import Blend
from ..images.channels import InputChannels
from ..images.image_processor import DiffuseSegImageProcessor
from ..jobs.errors import UserError
from .identity import describe_segmenter
from .outputs import DiffuseSegPipelineOutput, SegmentationOutput, predict_masks
from .saved_code import code_files, hub_options
from .segmenter import HeadPipeline, Segmenter


logger = logging.get_logger(__name__)


class DiffuseSegPipeline(HeadPipeline, DiffusionPipeline):
    """Unconditional (or class-conditional) image generation with masks, and segmentation of real images.

    Args:
        unet ([`UNet2DModel`]): Denoises images in pixel space; may predict the variance too.
        scheduler ([`SchedulerMixin`]): [`DDPMScheduler`], or any other that shares its `add_noise` and step interface.
        segmentation_head ([`PixelClassifierEnsemble`], *optional*): Reads masks off the U-Net's activations.
        channels (mapping, *optional*): Which channels of an image the U-Net was trained on, and between which values:
            `names` and `windows` of [`InputChannels`].

    Loading with this class runs no code of a repository. A saved folder carries the code that it needs, so any pipeline
    class of diffusers loads it with `from_pretrained(..., trust_remote_code=True)`, without this package too.

    Examples:
        >>> pipe = DiffuseSegPipeline.from_pretrained("user/faces-diffuseseg").to("cuda")
        >>> pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        >>> output = pipe(batch_size=4, num_inference_steps=50)
    """

    family = DecoderFeatureExtractor
    model_cpu_offload_seq = "unet->segmentation_head"
    _optional_components = ["segmentation_head"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        segmentation_head: ModelMixin | None = None,  # in a repository, diffusers takes its class from another file
        channels: dict | None = None,
    ):
        super().__init__()
        if channels is not None:  # of most models nothing, and then nothing is saved
            self.register_to_config(channels=dict(channels))
        self.register_modules(unet=unet, scheduler=scheduler, segmentation_head=segmentation_head)
        if segmentation_head is not None:
            self.head_extractor()  # a head that does not fit says so now

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str | os.PathLike:
        """As in diffusers, but safetensors only, except for plain DDPMs without a head that have none."""
        if kwargs.get("use_safetensors") is not None:
            return super().download(pretrained_model_name, **kwargs)
        try:
            return super().download(pretrained_model_name, **{**kwargs, "use_safetensors": True})
        except OSError as error:
            if "necessary `safetensors` weights" not in str(error):
                raise
            index = cls.load_config(pretrained_model_name, **hub_options(kwargs))
            if (index.get("segmentation_head") or [None])[0] is not None and "segmentation_head" not in kwargs:
                raise UserError(
                    f"{pretrained_model_name} has weights that are not in the safetensors format; pickled ones (.bin) "
                    f"are not loaded beside a segmentation head, because they can run code."
                ) from error
            return super().download(pretrained_model_name, **kwargs)

    @classmethod
    def load_config(cls, *args, **kwargs) -> dict | tuple:
        """As for every head; the folder of an [`AveragedSegmenter`] is refused with how to load it."""
        loaded = super().load_config(*args, **kwargs)
        if "members" in (loaded[0] if isinstance(loaded, tuple) else loaded):
            raise UserError(
                "There are several models in that folder; load it with load_pipeline or AutoDiffuseSegPipeline."
            )
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Saves the pipeline with the code that loads it without this package; strips local paths.

        Args:
            save_directory (`str` or path): Folder; created if missing.
            push_to_hub (`bool`, defaults to `False`): Whether to call `push_to_hub` too.
            **kwargs: As in [`DiffusionPipeline.save_pretrained`] and, with `push_to_hub=True`, `push_to_hub`, whose
                `repo_id` defaults to the name of the folder.
        """
        hub = {k: kwargs.pop(k) for k in ("repo_id", "commit_message", "private", "create_pr", "token") if k in kwargs}
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        for config in folder.glob("*/*config.json"):
            content = json.loads(config.read_text(encoding="utf-8"))
            if content.pop("_name_or_path", None) is not None:
                config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        index = json.loads((folder / self.config_name).read_text(encoding="utf-8"))
        for name, text in self.code_files(index).items():
            (folder / name).write_text(text, encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", folder.name), **hub)

    @staticmethod
    def code_files(index: dict) -> dict[str, str]:
        """The files of code that a saved pipeline with this `index` (`model_index.json`) carries, by name."""
        # Each after those that it needs.
        needed: tuple[Any, ...] = (UserError, InputChannels, DiffuseSegImageProcessor, NoiseSchedule, Place)
        needed += (filter_bank, member_kinds, FeatureExtractor, DecoderFeatureExtractor, base_weights, Decisions)
        needed += (joint_bilateral, Blend, PixelClassifierEnsemble, describe_segmenter, SegmentationOutput, Segmenter)
        needed += (code_files, DiffuseSegPipeline)
        return code_files(index, [one.__module__ for one in needed])

    @property
    def num_timesteps(self) -> int:
        """Denoising steps of the last or current call."""
        return len(self.scheduler.timesteps)

    @property
    def denoiser(self) -> UNet2DModel:
        """The model whose activations are read."""
        return self.unet

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 1000,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        class_labels: torch.Tensor | Sequence[int] | int | None = None,
        masks_while_sampling: bool = False,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> DiffuseSegPipelineOutput | tuple:
        """Generates images, and masks if there is a segmentation head; arguments stand as in [`DDPMPipeline`].

        Args:
            batch_size (`int`, defaults to 1): Number of images.
            generator (`torch.Generator` or list of one per image, *optional*): Makes images and masks deterministic.
            num_inference_steps (`int`, defaults to 1000): Denoising steps; DDIM and DPM-Solver++ need fewer than DDPM.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`; `"latent"` returns the denoised sample
                `[N, C, H, W]` as the scheduler leaves it, without masks.
            return_dict (`bool`, defaults to `True`): Whether to return an output object rather than a tuple.
            class_labels (`torch.Tensor`, sequence of `int` or `int`, *optional*):
                Class of each image for a class-conditional U-Net; class 0 if not given, and always for the masks.
            masks_while_sampling (`bool`, defaults to `False`):
                Read the activations for the masks during the denoising steps nearest to the head's timesteps, without
                further passes of the U-Net, instead of from the finished image; for heads that were fitted with noise.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, step, timestep, {"latents": ...})` after each step with the sample
                `[N, C, H, W]`; may return a dict with changed `latents`.
            callback_on_step_end_tensor_inputs (sequence of `str`): `"latents"`, or its name in 0.1, `"sample"`.

        Returns:
            [`DiffuseSegPipelineOutput`], or the tuple `(images, masks, uncertainty)`.

        Raises:
            UserError: An argument is out of range, or head and U-Net do not fit each other.

        Examples:
            >>> output = pipe(batch_size=4, num_inference_steps=50, generator=torch.manual_seed(0))
            >>> output.images[0].save("face.png")
            >>> output.masks[0].save("face_mask.png")  # a palette image of class ids
        """
        # 0. Check the inputs before the long work.
        if unknown := set(callback_on_step_end_tensor_inputs) - {*self._callback_tensor_inputs, "sample"}:
            raise UserError(f"Callbacks get {self._callback_tensor_inputs}, but {sorted(unknown)} was asked for.")
        extractor = self.extractor_of_call(output_type)
        class_labels = self.check_class_labels(class_labels, batch_size)

        # 1. Draw the noise and denoise it; activations of some steps on the way, if masks are to come from those.
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        tapping: Any = extractor if masks_while_sampling else None
        callback = callback_on_step_end and (callback_on_step_end, callback_on_step_end_tensor_inputs)
        sample, activations = self._denoise(batch_size, generator, class_labels, tapping, callback)  # [N,C,H,W]

        if output_type == "latent":
            self.maybe_free_model_hooks()
            return self.generated(sample, None, output_type, return_dict)

        # 2. Segment what was generated, as it will be stored: clipped to the range of images.
        sample, found = sample.clamp(-1, 1), None
        if extractor is not None:
            sizes, need = [tuple(sample.shape[-2:])] * batch_size, self.guided is not None
            if activations:
                activations += extractor.filtered(sample)
                found = predict_masks(self.segmentation_head, activations, None, sizes, need)
            else:
                found = self.segment_batch(sample, sizes, None, generator, need)
            found = self.refine(found, list(sample / 2 + 0.5))

        # 3. Convert.
        images = DiffuseSegImageProcessor(self.unet.config.in_channels).postprocess(sample, output_type)
        self.maybe_free_model_hooks()
        return self.generated(images, found, output_type, return_dict)

    def _denoise(
        self,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None,
        class_labels: torch.Tensor | None,
        extractor: DecoderFeatureExtractor | None,
        callback: tuple[Callable, Sequence[str]] | None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Samples `[N, C, H, W]`, and the activations of the steps nearest to an extractor's timesteps, if given."""
        device, channels = self._execution_device, self.unet.config.in_channels
        # Float32 between steps, whatever the U-Net's dtype: a thousand roundings add up.
        shape = (batch_size, channels, *image_size(self.unet))
        sample = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)  # [N,C,H,W]
        sample = sample * self.scheduler.init_noise_sigma
        steps = self._steps_to_tap(extractor) if extractor is not None else []
        options = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {"generator": generator} if "generator" in options else {}
        tapped: dict[int, Any] = {}  # by step, then by block
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            model_input = self.scheduler.scale_model_input(sample, t).to(self.unet.dtype)
            with extractor.reading() if i in steps else nullcontext() as tapped[i]:
                prediction = self.unet(model_input, t, class_labels=class_labels).sample  # [N,C,H,W] or [N,2C,H,W]
            prediction = prediction.float()
            if not self._scheduler_uses_variance():
                prediction = prediction[:, :channels]
            sample = self.scheduler.step(prediction, t, sample, **step_kwargs).prev_sample  # [N,C,H,W]
            if callback is not None:
                given = callback[0](self, i, int(t), dict.fromkeys(callback[1], sample)) or {}
                sample = next((given[name] for name in callback[1] if name in given), sample)
        blocks = extractor.blocks if extractor is not None else ()
        return sample, [extractor.as_map(tapped[i][block], ()) for i in steps for block in blocks]

    def check_class_labels(self, class_labels: Any, batch_size: int) -> torch.Tensor | None:
        if class_labels is None:
            return default_class_labels(self.unet, batch_size, self._execution_device)
        if self.unet.class_embedding is None:
            return super().check_class_labels(class_labels, batch_size)
        labels = torch.as_tensor(class_labels, device=self._execution_device)
        labels = labels.expand(batch_size) if labels.ndim == 0 else labels
        if len(labels) != batch_size:
            raise UserError(f"{len(labels)} class labels were given for {batch_size} images.")
        return labels

    def _steps_to_tap(self, extractor: DecoderFeatureExtractor) -> list[int]:
        """The denoising step that is nearest to each of the head's timesteps; refuses samples of another scale."""
        extractor.check_noised()
        if float(self.scheduler.init_noise_sigma) != 1:
            raise UserError(
                f"{type(self.scheduler).__name__} scales samples in its own way; masks while sampling need DDPM, DDIM "
                f"or DPM-Solver++."
            )
        timesteps = self.scheduler.timesteps.cpu().float()
        return [int((timesteps - t).abs().argmin()) for t in extractor.timesteps]

    def _scheduler_uses_variance(self) -> bool:
        """Whether the scheduler takes a predicted variance, `[N, 2C, H, W]`; the other schedulers want it cut off."""
        learned = getattr(self.scheduler.config, "variance_type", None) in ("learned", "learned_range")
        return learned and isinstance(self.scheduler, DDPMScheduler)
