# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A diffusion pipeline that generates images with masks and segments real ones."""

import ast
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.utils import BaseOutput, logging
from diffusers.utils.torch_utils import randn_tensor

from .features import DecoderFeatureExtractor, default_class_labels, image_size
from .image_processor import DiffuseSegImageProcessor, ImageInput, default_palette, mask_to_pil
from .segmentation_head import PixelClassifierEnsemble


logger = logging.get_logger(__name__)

# Where saved pipelines carry the code that runs them without this package: beside model_index.json, and in the head's
# folder, because diffusers looks for the code of a component there.
PIPELINE_CODE = "pipeline_diffuseseg.py"
HEAD_CODE = "segmentation_head/pixel_classifier_ensemble.py"

HOW_TO_FIT = (
    "fit one with `pipe.segmentation_head = fit_segmentation_head(pipe, dataset)` or the command `diffuseseg fit`"
)


@dataclass
class DiffuseSegPipelineOutput(BaseOutput):
    """Output of [`DiffuseSegPipeline`].

    Generated images all have one size, so arrays and tensors are stacked; pictures given to
    [`~DiffuseSegPipeline.segment`] may differ in size, so every field is a list with one element a picture.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`):
            PIL images of mode "L" or "RGB", arrays `[N, H, W, C]`, or tensors `[N, C, H, W]`, float32 in [0, 1].
        masks (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`, *optional*):
            Class ids: PIL palette images of mode "P", or uint8 arrays or tensors `[N, H, W]`. `None` without a head.
        uncertainty (`np.ndarray` or `torch.Tensor`, *optional*):
            `[N, H, W]` float32, Jensen-Shannon divergence of the ensemble's members in nats; arrays go with PIL
            images. [`image_uncertainty`] makes a score of it. `None` without a head.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    masks: list[PIL.Image.Image] | np.ndarray | torch.Tensor | None = None
    uncertainty: np.ndarray | torch.Tensor | None = None


class DiffuseSegPipeline(DiffusionPipeline):
    """Unconditional (or class-conditional) image generation with masks, and segmentation of real images.

    Args:
        unet ([`UNet2DModel`]): Denoises images in pixel space; may predict the variance too.
        scheduler ([`SchedulerMixin`]): [`DDPMScheduler`], or any other that shares its `add_noise` and step interface.
        segmentation_head ([`PixelClassifierEnsemble`], *optional*): Reads masks off the U-Net's activations.

    Loading with this class runs no code of a repository, whatever it carries. A saved folder carries the code that it
    needs, so `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)` loads it without this package.
    """

    model_cpu_offload_seq = "unet->segmentation_head"
    _optional_components = ["segmentation_head"]
    _callback_tensor_inputs = ["sample"]

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        segmentation_head: ModelMixin | None = None,  # in a repository, diffusers takes its class from another file
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, segmentation_head=segmentation_head)
        self.feature_extractor_for_head()  # a head that does not fit says so now

    def __setattr__(self, name: str, value: Any):
        super().__setattr__(name, value)
        # diffusers leaves a component that was None as (None, None) in the config, and would not save the new one.
        if name == "segmentation_head" and value is not None and self.config.segmentation_head[0] is None:
            self.register_modules(segmentation_head=value)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict:
        """Reads `model_index.json` as if it named no code; diffusers calls this before the download and after it."""
        index = super()._dict_from_json_file(json_file)
        if isinstance(index.get("_class_name"), list):
            index["_class_name"] = index["_class_name"][-1]
        if (index.get("segmentation_head") or [None])[0] is not None:
            index["segmentation_head"] = ["diffusers", "ModelMixin"]  # the download takes no class that it cannot find
        return index

    @classmethod
    def load_config(cls, *args, **kwargs) -> dict | tuple:
        """As in diffusers; the class of the head is the one that is installed."""
        loaded = super().load_config(*args, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        if (index.get("segmentation_head") or [None])[0] is not None:
            index["segmentation_head"] = [PixelClassifierEnsemble.__module__, PixelClassifierEnsemble.__name__]
        return loaded

    @classmethod
    def download(cls, pretrained_model_name: str, **kwargs) -> str | os.PathLike:
        """As in diffusers; but weights in the safetensors format only, unless it is a plain DDPM from before there was.

        Raises:
            ValueError: The repository has a segmentation head, and not all its weights are in that format.
        """
        if kwargs.get("use_safetensors") is not None:
            return super().download(pretrained_model_name, **kwargs)
        try:
            return super().download(pretrained_model_name, **{**kwargs, "use_safetensors": True})
        except OSError as error:
            if "necessary `safetensors` weights" not in str(error):
                raise
            where = ("cache_dir", "force_download", "local_files_only", "token", "revision")
            index = cls.load_config(pretrained_model_name, **{k: kwargs[k] for k in where if k in kwargs})
            if (index.get("segmentation_head") or [None])[0] is not None and "segmentation_head" not in kwargs:
                raise ValueError(
                    f"{pretrained_model_name} has weights that are not in the safetensors format; pickled ones (.bin) "
                    f"are not loaded beside a segmentation head, because they can run code."
                ) from error
            return super().download(pretrained_model_name, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs) -> None:
        """Saves the pipeline, with the code that loads it where this package is not installed.

        Args:
            save_directory (`str` or path): Folder; made if it is not there.
            push_to_hub (`bool`, defaults to `False`): Whether to call [`push_to_hub`] as well.
            **kwargs: As in [`DiffusionPipeline.save_pretrained`] and, with `push_to_hub=True`, [`push_to_hub`], whose
                `repo_id` is the name of the folder if not given.
        """
        hub = {k: kwargs.pop(k) for k in ("repo_id", "commit_message", "private", "create_pr", "token") if k in kwargs}
        super().save_pretrained(save_directory, **kwargs)
        index = json.loads(Path(save_directory, self.config_name).read_text(encoding="utf-8"))
        for name, text in code_files(index).items():
            Path(save_directory, name).write_text(text, encoding="utf-8")
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", Path(save_directory).name), **hub)

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """Uploads the pipeline with its card in one commit; see [`diffuseseg_diffusers.hub.push_pipeline`]."""
        from .hub import push_pipeline

        return push_pipeline(self, repo_id, **kwargs)

    def feature_extractor_for_head(self) -> DecoderFeatureExtractor | None:
        """The extractor of the features that the head was fitted on; `None` without a head.

        Raises:
            ValueError: Head and U-Net do not fit each other; says which number differs.
        """
        if self.segmentation_head is None:
            return None
        head, unet = self.segmentation_head.config, self.unet.config
        if head.in_channels != unet.in_channels:
            raise ValueError(
                f"The segmentation head was fitted on images of {head.in_channels} channels, but the U-Net takes "
                f"{unet.in_channels}."
            )
        extractor = DecoderFeatureExtractor(
            self.unet, self.scheduler, head.blocks, head.timesteps, None, head.share_noise, head.noise_seed
        )
        channels = [i.channels for i in extractor.feature_info(*head.image_size)[: len(head.blocks)]]
        if channels != list(head.block_channels):
            raise ValueError(
                f"The segmentation head was fitted on blocks {list(head.blocks)} with {list(head.block_channels)} "
                f"channels, but this U-Net's blocks have {channels}; use the U-Net that the head was fitted on."
            )
        return extractor

    @property
    def palette(self) -> list[list[int]]:
        """Colour of each class, `[red, green, blue]`, 0 to 255."""
        return self.segmentation_head.config.palette or default_palette(self.segmentation_head.config.num_classes)

    @property
    def label_names(self) -> list[str]:
        """Name of each class; "class 0", "class 1", … if the head does not know."""
        config = self.segmentation_head.config
        return list(config.label_names or [f"class {i}" for i in range(config.num_classes)])

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 1000,
        generator: torch.Generator | list[torch.Generator] | None = None,
        class_labels: torch.Tensor | Sequence[int] | int | None = None,
        masks_while_sampling: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[[DiffusionPipeline, int, int, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sample",),
    ) -> DiffuseSegPipelineOutput | tuple:
        """Generates images, and masks if there is a segmentation head.

        Args:
            batch_size (`int`, defaults to 1): Number of images.
            num_inference_steps (`int`, defaults to 1000): Denoising steps; DDIM and DPM-Solver++ need fewer than DDPM.
            generator (`torch.Generator` or list of one per image, *optional*): Makes the generation deterministic.
            class_labels (`torch.Tensor`, sequence of `int` or `int`, *optional*):
                Class of each image for a class-conditional U-Net; class 0 if not given. Features for the mask always
                use the default class, as they did when the head was fitted.
            masks_while_sampling (`bool`, defaults to `False`):
                Take the activations for the masks from the denoising steps nearest to the head's timesteps, which
                costs no pass of the U-Net, instead of from the finished image, noised anew to each of them.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`.
            return_dict (`bool`, defaults to `True`): Whether to return an output object rather than a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, step, timestep, {"sample": ...})` after each step; may return a dict with a
                changed `sample`.
            callback_on_step_end_tensor_inputs (sequence of `str`): What the callback gets; `"sample"` is all there is.

        Returns:
            [`DiffuseSegPipelineOutput`], or the tuple `(images, masks, uncertainty)`.

        Raises:
            ValueError: An argument is out of range, or head and U-Net do not fit each other.
        """
        # 0. Check the inputs before the long work.
        self._check_output_type(output_type)
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"Callbacks get {self._callback_tensor_inputs}, but {sorted(unknown)} was asked for.")
        extractor = self.feature_extractor_for_head()
        if extractor is None:
            logger.warning(f"This pipeline has no segmentation head and returns images without masks; {HOW_TO_FIT}.")
        device = self._execution_device
        channels = self.unet.config.in_channels
        class_labels = self._class_labels(class_labels, batch_size)

        # 1. Draw the noise. Float32 between steps, whatever the U-Net's dtype: a thousand roundings add up.
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        shape = (batch_size, channels, *image_size(self.unet))
        sample = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)  # [N,C,H,W]
        sample = sample * self.scheduler.init_noise_sigma
        taps = self._steps_to_tap(extractor) if masks_while_sampling and extractor is not None else []

        # 2. Denoise.
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        step_kwargs = {"generator": generator} if takes_generator else {}
        tapped: dict[int, dict[int, torch.Tensor]] = {}  # by step, then by block
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            model_input = self.scheduler.scale_model_input(sample, t).to(self.unet.dtype)
            with extractor.tapped() if i in taps else nullcontext() as tapped[i]:
                prediction = self.unet(model_input, t, class_labels=class_labels).sample  # [N,C,H,W] or [N,2C,H,W]
            prediction = prediction.float()
            if not self._scheduler_uses_variance():
                prediction = prediction[:, :channels]
            sample = self.scheduler.step(prediction, t, sample, **step_kwargs).prev_sample  # [N,C,H,W]
            if callback_on_step_end is not None:
                given = {"sample": sample} if "sample" in callback_on_step_end_tensor_inputs else {}
                sample = (callback_on_step_end(self, i, int(t), given) or {}).get("sample", sample)

        # 3. Segment what was generated, as it will be stored: clipped to the range of images.
        sample = sample.clamp(-1, 1)
        masks = uncertainty = None
        if extractor is not None:
            sizes = [tuple(sample.shape[-2:])] * batch_size
            activations = [tapped[i][block] for i in taps for block in extractor.blocks]
            views = (activations, None) if activations else extract_views(extractor, self.segmentation_head, sample)
            masks, uncertainty = predict_masks(self.segmentation_head, *views, sizes)
            masks, uncertainty = torch.stack(masks), torch.stack(uncertainty)  # [N,H,W] each

        # 4. Convert.
        images = DiffuseSegImageProcessor(channels).postprocess(sample, output_type)
        if masks is not None and output_type != "pt":
            masks, uncertainty = masks.numpy(), uncertainty.numpy()
            if output_type == "pil":
                masks = [mask_to_pil(m, self.palette) for m in masks]
        self.maybe_free_model_hooks()
        if not return_dict:
            return images, masks, uncertainty
        return DiffuseSegPipelineOutput(images=images, masks=masks, uncertainty=uncertainty)

    @torch.no_grad()
    def segment(
        self,
        images: ImageInput | Sequence[ImageInput],
        batch_size: int = 8,
        mask_size: tuple[int, int] | None = None,
        class_labels: torch.Tensor | Sequence[int] | int | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> DiffuseSegPipelineOutput | tuple:
        """Segments real images of any size and mode (paper, section 4).

        The U-Net sees each image at its own training size; the mask is computed at the size of the original.

        Args:
            images:
                A path, PIL image, array (`[H, W]`, `[H, W, C]`, `[N, H, W, C]`) or tensor (`[H, W]`, `[C, H, W]`,
                `[N, C, H, W]`), uint8 or floating point in [0, 1], or a list of these.
            batch_size (`int`, defaults to 8): Images that go through the U-Net at once, each at every timestep.
            mask_size (two `int`, *optional*): Height and width of the masks; those of each image if not given.
            class_labels (`torch.Tensor`, sequence of `int` or `int`, *optional*):
                For class-conditional U-Nets; class 0 if not given, as in the fitting of the head.
            generator (`torch.Generator`, *optional*): CPU generator, for heads fitted with `share_noise=False`.
            output_type (`str`, defaults to `"pil"`): `"pil"`, `"np"` or `"pt"`.
            return_dict (`bool`, defaults to `True`): Whether to return an output object rather than a tuple.

        Returns:
            [`DiffuseSegPipelineOutput`] of lists, or the tuple `(images, masks, uncertainty)` of lists.

        Raises:
            ValueError: There is no head, it does not fit the U-Net, or an image cannot be read.
        """
        # 0. Check the inputs.
        self._check_output_type(output_type)
        extractor = self.feature_extractor_for_head()
        if extractor is None:
            raise ValueError(f"This pipeline has no segmentation head; {HOW_TO_FIT}.")
        processor = DiffuseSegImageProcessor(self.unet.config.in_channels)
        loaded = processor.load(images)
        class_labels = self._class_labels(class_labels, len(loaded))
        height, width = self.segmentation_head.config.image_size

        # 1. Features and masks, batch by batch.
        masks, uncertainty = [], []
        for start in range(0, len(loaded), batch_size):
            batch = loaded[start : start + batch_size]
            sizes = [tuple(mask_size)] * len(batch) if mask_size else processor.sizes(batch)
            labels = None if class_labels is None else class_labels[start : start + batch_size]
            pixels = processor.preprocess(batch, height, width)  # [N,C,H,W]
            views = extract_views(extractor, self.segmentation_head, pixels, labels, generator)
            batch_masks, batch_uncertainty = predict_masks(self.segmentation_head, *views, sizes)
            masks += batch_masks
            uncertainty += batch_uncertainty

        # 2. Convert.
        if output_type != "pt":
            masks = [m.numpy() for m in masks]
            uncertainty = [u.numpy() for u in uncertainty]
        if output_type == "pil":
            masks = [mask_to_pil(m, self.palette) for m in masks]
        outputs = [self._convert_input(x, processor, output_type) for x in loaded]
        self.maybe_free_model_hooks()
        if not return_dict:
            return outputs, masks, uncertainty
        return DiffuseSegPipelineOutput(images=outputs, masks=masks, uncertainty=uncertainty)

    def _steps_to_tap(self, extractor: DecoderFeatureExtractor) -> list[int]:
        """The denoising step that is nearest to each of the head's timesteps.

        Raises:
            ValueError: The scheduler's samples are not on the scale of the noised images that the head was fitted on.
        """
        if float(self.scheduler.init_noise_sigma) != 1:
            raise ValueError(
                f"{type(self.scheduler).__name__} scales samples in its own way; masks while sampling need DDPM, DDIM "
                f"or DPM-Solver++."
            )
        timesteps = self.scheduler.timesteps.cpu().float()
        return [int((timesteps - t).abs().argmin()) for t in extractor.timesteps]

    def _scheduler_uses_variance(self) -> bool:
        """Whether the scheduler takes a predicted variance, `[N, 2C, H, W]`; the other schedulers want it cut off."""
        learned = getattr(self.scheduler.config, "variance_type", None) in ("learned", "learned_range")
        return learned and isinstance(self.scheduler, DDPMScheduler)

    def _class_labels(self, class_labels: Any, batch_size: int) -> torch.Tensor | None:
        if class_labels is None:
            return default_class_labels(self.unet, batch_size)
        if self.unet.class_embedding is None:
            raise ValueError("`class_labels` were given, but the U-Net is not class-conditional.")
        labels = torch.as_tensor(class_labels, device=self._execution_device)
        labels = labels.expand(batch_size) if labels.ndim == 0 else labels
        if len(labels) != batch_size:
            raise ValueError(f"{len(labels)} class labels were given for {batch_size} images.")
        return labels

    @staticmethod
    def _check_output_type(output_type: str) -> None:
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'`output_type` is "pil", "np" or "pt", got {output_type!r}.')

    @staticmethod
    def _convert_input(image: PIL.Image.Image | torch.Tensor, processor: DiffuseSegImageProcessor, output_type: str):
        if isinstance(image, PIL.Image.Image):
            if output_type == "pil":
                return image
            image = processor.numpy_to_pt(processor.pil_to_numpy(image))[0]  # [C,H,W]
        if output_type == "pt":
            return image
        array = processor.pt_to_numpy(image[None])  # [1,H,W,C]
        return processor.numpy_to_pil(array)[0] if output_type == "pil" else array[0]


def extract_views(
    extractor: Callable, head: PixelClassifierEnsemble, pixels: torch.Tensor, *args
) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """Activations of images, `[N, channels, h, w]` each, and of their mirror images if the head votes on those too.

    Args:
        extractor (`Callable`): Gives the activations of images.
        head ([`PixelClassifierEnsemble`]): The classifiers.
        pixels (`torch.Tensor`): `[N, C, H, W]` in [-1, 1].
        *args: What else the extractor takes.
    """
    activations = extractor(pixels, *args).activations
    return activations, extractor(pixels.flip(-1), *args).activations if head.config.flip else None


def predict_masks(
    head: PixelClassifierEnsemble,
    activations: Sequence[torch.Tensor],
    mirrored: Sequence[torch.Tensor] | None,
    sizes: Sequence[tuple[int, int]],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Masks and uncertainties of a batch, each image's at a size of its own, on the CPU.

    Args:
        head ([`PixelClassifierEnsemble`]): The classifiers.
        activations (sequence of `torch.Tensor`): `[N, channels, h, w]` each.
        mirrored (sequence of `torch.Tensor`, *optional*): The same of the mirror images.
        sizes (sequence of `(height, width)`): For each image.

    Returns:
        `[H, W]` uint8 and `[H, W]` float32 in nats, for each image.
    """
    masks: list = [None] * len(sizes)
    uncertainty: list = [None] * len(sizes)
    for size in dict.fromkeys(sizes):  # images of one size go together
        same = [i for i, s in enumerate(sizes) if s == size]
        index = same if len(same) < len(sizes) else slice(None)  # all of them without a copy
        chosen, other = (None if v is None else [a[index] for a in v] for v in (activations, mirrored))
        output = head.predict(chosen, size, mirrored=other)
        for i, mask, u in zip(same, output.labels.cpu(), output.uncertainty.cpu()):
            masks[i], uncertainty[i] = mask, u
    return masks, uncertainty


def code_files(index: dict) -> dict[str, str]:
    """Files that let a saved pipeline load with `trust_remote_code=True` where this package is missing.

    The code is one file, made of those that define the classes of this pipeline; in a pipeline that was itself loaded
    from such code, that is one file already.

    Args:
        index (`dict`): Content of the pipeline's `model_index.json`.

    Returns:
        `dict`: Content of each file by its path below the folder; `model_index.json` is one of them.
    """
    classes = (DecoderFeatureExtractor, DiffuseSegImageProcessor, PixelClassifierEnsemble, DiffuseSegPipeline)
    sources = dict.fromkeys(sys.modules[c.__module__].__file__ for c in classes)
    code = "\n\n".join(_stand_alone(Path(source).read_text(encoding="utf-8")) for source in sources)
    index = {k: v for k, v in index.items() if k != "_name_or_path"}  # where it was loaded from is nobody's business
    index["_class_name"] = [Path(PIPELINE_CODE).stem, DiffuseSegPipeline.__name__]
    files = {PIPELINE_CODE: code}
    if (index.get("segmentation_head") or [None])[0] is not None:
        index["segmentation_head"] = [Path(HEAD_CODE).stem, PixelClassifierEnsemble.__name__]
        files[HEAD_CODE] = code
    files["model_index.json"] = json.dumps(index, indent=2, sort_keys=True) + "\n"
    return files


def _stand_alone(source: str) -> str:
    """The source without imports from this package, and without the functions that import from it when called."""

    def imports_package(node: ast.AST) -> bool:
        return isinstance(node, ast.ImportFrom) and node.level > 0

    tree = ast.parse(source)
    left_out = [node for node in tree.body if imports_package(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(imports_package(n) for n in node.body):
            left_out.append(node)
    lines = source.splitlines()
    for node in left_out:
        for line in range(node.lineno - 1, node.end_lineno):
            lines[line] = None
    return "\n".join(line for line in lines if line is not None) + "\n"
