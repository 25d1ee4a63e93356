# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""One clean pass in place of many noised ones: a copy of a denoiser learns what the original's activations are on
average over noise.

Stracke et al., "CleanDIFT: Diffusion Features without Noise" (CVPR 2025), for any denoiser whose features are known
here. A head reads activations at several timesteps, each with one noise. Least squares learn the mean of a noisy
target, so a copy that sees the clean image learns the means in one pass: a linear map for each timestep and tap, which
is thrown away afterwards, tells them apart.
"""

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..features.base import FeatureExtractor
from ..features.families import find_family
from ..features.noise import clean_scheduler, sees_no_noise
from ..features.weights import adapted_layers, base_weights
from ..heads.fit import recipe_extractor
from ..jobs.errors import UserError
from ..jobs.install import missing_extra
from ..jobs.seeds import mixed_seed_32
from ..pipelines.general import comes_with_package, suited_recipe
from ..pipelines.pixel import DiffuseSegPipeline
from .latents import as_pipeline
from .objective import to_model_range
from .run import OWN_FILES


BATCH = 16  # images that activations are measured on at once
MEASURED = 64  # images that the first maps are fitted on
PLACES = 256  # of each of these images
RIDGE = 1e-3  # of the variance, in that fit
LEAST_DEVIATION = 1e-3  # of a channel of the teacher
# What transformers writes of text encoders, of tokenizers beside their vocabulary, and of image processors.
ENCODER_FILES = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json")
ENCODER_FILES += ("model-[0-9]*-of-[0-9]*.safetensors",)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
PROCESSOR_FILES = ("preprocessor_config.json",)


def teacher_features(config: Any, pipe: Any) -> FeatureExtractor:
    """What a configuration (`tasks.distil_features`) distils of a pipeline: the default recipe's taps, or its own.

    Raises:
        UserError: The model sees no noise, does not have what is asked for, or gives it in one pass already.
    """
    if getattr(pipe, "scheduler", None) is None:
        raise UserError(f"{config.model} sees no noise as it is, so there is nothing to distil; give a denoiser.")
    if sees_no_noise(pipe.scheduler):
        raise UserError(f"{config.model} was distilled already; give the model that it was distilled from.")
    if comes_with_package(config.model) and config.size is None:
        raise UserError(
            f"`fit` reads {config.model} at the size of the pictures or tiles; give it by --resolution, to `fit` too."
        )
    clean = config.noise == "none"
    reading: dict[str, Any] = {"share_noise": False, "clean": clean, "size": config.size}
    reading |= {} if config.prompt is None else {"prompt": config.prompt}
    recipe = suited_recipe("default", config.model)
    recipe = replace(recipe, timesteps=recipe.distilled_timesteps or recipe.timesteps)
    teacher = recipe_extractor(pipe, recipe, config.blocks, config.timesteps, **reading)
    teacher.check_size(*teacher.size)
    if clean and len(teacher.timesteps) == 1 and not config.random_flip:
        raise UserError(
            f"Clean images at timestep {teacher.timesteps[0]} are read in one pass already; give several --timesteps, "
            f"--random_flip to learn the mean over mirror images, or --noise fresh."
        )
    return teacher


def describe_teacher(teacher: FeatureExtractor) -> str:
    """What is distilled, in words."""
    blocks, timesteps = (" ".join(map(str, own)) for own in (teacher.blocks, teacher.timesteps))
    noise, (height, width) = "clean images" if teacher.clean else "fresh noise", teacher.size
    prompt = "" if teacher.prompt is None else f", prompt {teacher.prompt!r}"
    return f"blocks {blocks} at timesteps {timesteps}, {noise}, {height} × {width} pixels{prompt}"


def with_clean_copy(pipe: Any, rank: int | None = None, seed: int = 0) -> Any:
    """A pipeline of diffusers with a copy of its denoiser, in float32, that sees no noise; all else is shared.

    Args:
        pipe ([`DiffuseSegPipeline`] or [`ComposedDiffuseSegPipeline`]): Its weights are frozen; a head is left out.
        rank (`int`, *optional*): Of low-rank adapters of the copy, which alone are trained; see [`merge_adapters`].
        seed (`int`, defaults to 0): Of the adapters' weights.

    Raises:
        UserError: `peft` is not installed.
    """
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False)  # gradients would go through the autoencoder
    denoiser = copy.deepcopy(pipe.denoiser).float().eval().requires_grad_(True)
    if rank is not None:
        add_adapters(denoiser, rank, seed)
    return with_denoiser(pipe, denoiser)


def add_adapters(denoiser: nn.Module, rank: int, seed: int = 0) -> None:
    """Freezes a denoiser and gives its linear layers and convolutions low-rank adapters (Hu et al., ICLR 2022).

    Raises:
        UserError: `peft` is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise missing_extra("lora", error.name) from error
    layers = [
        name
        for name, layer in denoiser.named_modules()
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    ]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), denoiser)


def merge_adapters(denoiser: Any) -> Any:
    """A denoiser of the weights of another with adapters of [`add_adapters`], which are merged there, in place."""
    for layer in adapted_layers(denoiser).values():
        layer.merge()
    plain = type(denoiser).from_config(denoiser.config).to(denoiser.device)
    found = base_weights(denoiser, buffers=True)
    plain.load_state_dict({name: found[name] for name in plain.state_dict()})
    return plain.eval().requires_grad_(False)


def with_denoiser(pipe: Any, denoiser: Any) -> Any:
    """A pipeline of diffusers with another denoiser, which sees no noise."""
    if isinstance(pipe, DiffuseSegPipeline):
        return as_pipeline(denoiser, clean_scheduler(), None, pipe.channels)
    base, parts = pipe.base, {getattr(pipe.family, "component", "unet"): denoiser, "scheduler": clean_scheduler()}
    parts = {**base.components, **parts}
    settings = [name for name in inspect.signature(type(base).__init__).parameters if name in base.config]
    return type(base)(**parts, **{name: base.config[name] for name in settings if name not in parts})


def owned_files(pipe: Any) -> list[str]:
    """What a run writes that distils a pipeline, as patterns for its record."""
    owned = list(OWN_FILES)
    for name, part in pipe.components.items():
        files: Sequence[str] = PROCESSOR_FILES if name in ("feature_extractor", "image_processor") else ()
        if hasattr(part, "vocab_files_names"):
            files = [*TOKENIZER_FILES, *part.vocab_files_names.values()]
        elif isinstance(part, nn.Module) and type(part).__module__.startswith("transformers."):
            files = ENCODER_FILES
        owned += [f"{name}/{file}" for file in files]
    return owned


def reader(made: Any, like: FeatureExtractor) -> FeatureExtractor:
    """What reads the taps of an extractor in the one pass of a pipeline of [`with_denoiser`]."""
    prompt: dict[str, Any] = {} if like.prompt is None else {"prompt": like.prompt}
    where = dict(size=like.size, device=like.device)
    return find_family(made.components).of(made, blocks=like.blocks, timesteps=(0,), **where, **prompt)


class StandardizedMap(nn.Module):
    """A linear map from activations to others of as many channels, both standardised as the target.

    It begins as the best one, by ridge regression.

    Args:
        found (`torch.Tensor`), target (`torch.Tensor`): `[pixels, c]` of each.
    """

    def __init__(self, found: torch.Tensor, target: torch.Tensor):
        super().__init__()
        mean, deviation = target.mean(0), target.std(0, correction=0).clamp(min=LEAST_DEVIATION)
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("deviation", deviation.view(1, -1, 1, 1))
        x, y = ((one - mean) / deviation for one in (found, target))
        offset = x.mean(0)
        x = x - offset  # the target's mean is 0
        products = x.T @ x / len(x)
        products += RIDGE * products.diagonal().mean().clamp(min=1e-6) * torch.eye(len(mean), device=x.device)
        weight = torch.linalg.solve(products, x.T @ y / len(x)).T  # [c,c]
        self.linear = nn.Conv2d(len(mean), len(mean), 1, device=x.device)
        with torch.no_grad():
            self.linear.weight.copy_(weight[:, :, None, None])
            self.linear.bias.copy_(-weight @ offset)

    def forward(self, found: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean squared error of a map of `[N, c, h, w]` to a target of that shape, in units of its variance."""
        found, target = ((x.float() - self.mean) / self.deviation for x in (found, target))
        return (self.linear(found).float() - target).square().mean()


class CleanPass(nn.Module):
    """A denoiser that sees clean images, and a linear map for each activation of its teacher.

    Args:
        made (`DiffusionPipeline`): Of [`with_clean_copy`]; its denoiser is trained.
        teacher ([`FeatureExtractor`]): Of the original, see [`teacher_features`].
        images (`torch.Tensor`): `[N, C, H, W]` uint8, those of this process; the maps are fitted on those of all.
        mirror (`bool`, defaults to `False`): Whether what is learned is the mean of an image's activations and those of
            its mirror image, mirrored back.

    Attributes:
        denoiser (`torch.nn.Module`): What is trained.
        student ([`FeatureExtractor`]): Reads it.
        maps (`torch.nn.ModuleList`): [`StandardizedMap`] of each activation of the teacher, timestep by timestep.

    Raises:
        UserError: There are no images.
    """

    def __init__(self, made: Any, teacher: FeatureExtractor, images: torch.Tensor, mirror: bool = False):
        super().__init__()
        self.student, self.teacher, self.mirror = reader(made, teacher), teacher, mirror
        self.denoiser = self.student.model
        samples = [one for process in gather_object([self._sampled(images)]) for one in process]
        if not samples:
            raise UserError("No images can be held out to measure on; ten are needed, or --num_validation_images.")
        self.maps = nn.ModuleList()
        for pairs in zip(*samples):
            found, target = (torch.cat(side).to(teacher.device) for side in zip(*pairs))
            self.maps.append(StandardizedMap(found, target))

    @torch.no_grad()
    def _sampled(self, images: torch.Tensor) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
        """Of each batch of images, and of each activation of the teacher, some pixels of both, `[pixels, c]` each."""
        samples = []
        for i, batch in enumerate(images[:MEASURED].split(BATCH)):
            if len(batch):
                clean, generator = to_model_range(batch, self.teacher.device), torch.Generator().manual_seed(i)
                own, pairs = self.student.run(clean), []
                seeds = [mixed_seed_32(i, row) for row in range(len(batch))]
                for k, target in enumerate(self.mean_targets(clean, seeds)):
                    places = torch.randint(target[0, 0].numel(), (PLACES,), generator=generator).to(target.device)
                    both = (own[k % len(own)].float(), target)
                    pairs.append(tuple(x.flatten(2)[:, :, places].mT.flatten(0, 1).cpu() for x in both))
                samples.append(pairs)
        return samples

    def targets(self, images: torch.Tensor, seeds: Sequence[int], mirrored: bool = False) -> list[torch.Tensor]:
        """Activations of the teacher, timestep by timestep.

        Args:
            images (`torch.Tensor`): `[N, C, H, W]` float32 in [-1, 1].
            seeds (sequence of `int`): Of the noise of each image.
            mirrored (`bool`, defaults to `False`): Whether those of the mirror images, mirrored back.
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        found = self.teacher(images.flip(-1) if mirrored else images, generator=generators).activations
        return [x.flip(-1).float() if mirrored else x.float() for x in found]

    def mean_targets(self, images: torch.Tensor, seeds: Sequence[int]) -> list[torch.Tensor]:
        """Those of [`~CleanPass.targets`], with `mirror` their mean with those of the mirror images."""
        found = self.targets(images, seeds)
        return [(x + y) / 2 for x, y in zip(found, self.targets(images, seeds, True))] if self.mirror else found

    def forward(self, images: torch.Tensor, targets: Sequence[torch.Tensor]) -> torch.Tensor:
        """Mean squared error of each of the teacher's activations, in units of its variance, `[timesteps * taps]`.

        Args:
            images (`torch.Tensor`): `[N, C, H, W]` float32 in [-1, 1], clean.
            targets (sequence of `torch.Tensor`): Of [`~CleanPass.targets`].
        """
        return self.errors(self.student, images, targets)

    def errors(self, student: FeatureExtractor, images: torch.Tensor, targets: Sequence[torch.Tensor]) -> torch.Tensor:
        """Those of [`~CleanPass.forward`], of any denoiser."""
        own = student.run(images)
        return torch.stack([one(own[i % len(own)], target) for i, (one, target) in enumerate(zip(self.maps, targets))])

    @torch.no_grad()
    def measure(self, student: FeatureExtractor, images: torch.Tensor, accelerator: Accelerator) -> list[float]:
        """Errors on the images `[N, C, H, W]` uint8 of all processes, in the order of the teacher's activations."""
        total = torch.zeros(1 + len(self.maps), device=accelerator.device)
        for i, batch in enumerate(images.split(BATCH)):
            if len(batch):
                clean = to_model_range(batch, accelerator.device)
                seeds = [mixed_seed_32(accelerator.process_index, i, row) for row in range(len(batch))]
                with accelerator.autocast():
                    found = self.errors(student, clean, self.mean_targets(clean, seeds))
                total += len(batch) * torch.cat([torch.ones(1, device=accelerator.device), found.float()])
        count, *sums = accelerator.reduce(total, "sum").tolist()
        return [one / max(1.0, count) for one in sums]


def freeze_unread(clean: CleanPass) -> None:
    """Freezes what lies behind the last tap, which no gradient reaches."""
    first = torch.zeros(1, clean.teacher.in_channels, *clean.teacher.size, device=clean.teacher.device)
    clean(first, clean.targets(first, [0])).sum().backward()
    for parameter in clean.denoiser.parameters():
        parameter.requires_grad_(parameter.grad is not None)
    clean.zero_grad()


def describe_errors(clean: CleanPass, found: Mapping[str, Any]) -> str:
    """What one clean pass leaves unexplained of the teacher, before and after, with a verdict."""
    info, (before, after) = clean.teacher.feature_info(), (found["errors_before"], found["errors"])
    means = [sum(errors) / len(errors) for errors in (before, after)]
    verdict = "" if means[1] < means[0] else " No better than without training: take more steps, or other pictures."
    pairs = zip(info, before, after)
    said = "; ".join(f"block {i.block} at timestep {i.timestep} {a:.2f}, then {b:.2f}" for i, a, b in pairs)
    noise = "" if clean.teacher.clean else " Noise that no clean pass can know is in these."
    return (
        f"Squared error on held-out images, in units of the target's variance: {means[0]:.2f} before and "
        f"{means[1]:.2f} after, on average ({said}).{noise}{verdict}"
    )
