# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints of guided-diffusion (Dhariwal and Nichol, NeurIPS 2021) as `UNet2DModel` and `DDPMScheduler`.

A guided-diffusion checkpoint is a state dict; what it is the weights of stands in the flags that its scripts are called
with. Names of parameters differ from those of diffusers, queries, keys and values are one tensor, and the rest is the
same, number for number.
"""

import pickle
import shlex
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import load_file

from ..jobs.errors import UserError


# Of the same scripts, but of sampling, training, classifiers or arithmetic: they do not change what the weights mean.
OTHER_FLAGS = {
    *("batch_size", "num_samples", "timestep_respacing", "use_ddim", "clip_denoised", "model_path", "seed", "exp"),
    *("use_fp16", "use_checkpoint", "use_kl", "rescale_learned_sigmas", "classifier_scale", "classifier_path"),
    *("data_dir", "lr", "weight_decay", "save_interval", "log_interval", "schedule_sampler", "microbatch", "ema_rate"),
    *("lr_anneal_steps", "resume_checkpoint", "fp16_scale_growth"),
}
CHANNEL_MULT = {512: "0.5,1,1,2,2,4,4", 256: "1,1,2,2,4,4", 128: "1,1,2,3,4", 64: "1,2,3,4"}  # by image size
RESIDUAL = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "proj_out": "to_out.0"}  # and qkv, which is three of ours


def _numbers(name: str, text: str, kind: type) -> list:
    """A flag's numbers, above 0, with commas between them."""
    try:
        numbers = [kind(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise UserError(f"The flag --{name} is positive numbers with commas between them, got {text}.")
    return numbers


def _read(name: str, value: str, kind: type) -> int | float | bool | str:
    if kind is bool:
        if value.lower() not in ("true", "t", "yes", "y", "1", "false", "f", "no", "n", "0"):
            raise UserError(f"The flag {name} is True or False, got {value}.")
        return value.lower() in ("true", "t", "yes", "y", "1")
    try:
        return kind(value)
    except ValueError as error:
        raise UserError(f"The flag {name} is a number, got {value}.") from error


@dataclass(frozen=True)
class Flags:
    """The flags of guided-diffusion's scripts that say what a checkpoint holds, with their defaults."""

    image_size: int = 64
    num_channels: int = 128
    num_res_blocks: int = 2
    num_heads: int = 4
    num_heads_upsample: int = -1
    num_head_channels: int = -1
    attention_resolutions: str = "16,8"
    channel_mult: str = ""
    dropout: float = 0.0
    class_cond: bool = False
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    learn_sigma: bool = False
    diffusion_steps: int = 1000
    noise_schedule: str = "linear"
    predict_xstart: bool = False
    rescale_timesteps: bool = False

    @classmethod
    def parse(cls, text: str) -> "Flags":
        """Reads `--image_size 64 --class_cond True …` as the scripts do; flags of sampling and training are skipped.

        Raises:
            UserError: A flag is unknown, has no value, or one that cannot be read.
        """
        types: dict[str, Any] = {f.name: f.type for f in fields(cls)}
        given: dict[str, Any] = {}
        try:
            words = [part for word in shlex.split(text) for part in word.split("=", 1)]
        except ValueError as error:
            raise UserError(f"The flags cannot be read: {error}.") from error
        while words:
            name = words.pop(0)
            key = name.removeprefix("--")
            if not name.startswith("--") or key not in {*types, *OTHER_FLAGS}:
                raise UserError(f"{name} is no flag of guided-diffusion; those of its models: {', '.join(types)}.")
            if not words or words[0].startswith("--"):
                raise UserError(f"The flag {name} has no value.")
            value = words.pop(0)
            if key in types:
                given[key] = _read(name, value, types[key])
        return cls(**given)

    @property
    def multipliers(self) -> list[float]:
        """Width of each level in multiples of `num_channels`, the finest first."""
        text = self.channel_mult or CHANNEL_MULT.get(self.image_size)
        if text is None:
            raise UserError(f"For images of {self.image_size} pixels, --channel_mult has no default; give it.")
        return _numbers("channel_mult", text, float)

    @property
    def attention_levels(self) -> list[bool]:
        """Which levels attend, the finest first."""
        rates = {self.image_size // r for r in _numbers("attention_resolutions", self.attention_resolutions, int)}
        return [2**level in rates for level in range(len(self.multipliers))]


PUBLISHED = "--num_head_channels 64 --attention_resolutions 32,16,8 --resblock_updown True --learn_sigma True "
LSUN_256 = Flags.parse(f"{PUBLISHED} --image_size 256 --num_channels 256 --dropout 0.1")
PRESETS = {
    "lsun_256": LSUN_256,  # bedroom, cat, horse
    "lsun_256_nodropout": replace(LSUN_256, dropout=0.0),
    "ffhq_256": LSUN_256,  # of Baranchuk et al., with the same flags
    "imagenet_64": Flags.parse(
        f"{PUBLISHED} --image_size 64 --num_channels 192 --num_res_blocks 3 --dropout 0.1 --class_cond True "
        "--use_new_attention_order True --noise_schedule cosine"
    ),
    "imagenet_256": replace(LSUN_256, dropout=0.0, class_cond=True),
    "imagenet_256_uncond": replace(LSUN_256, dropout=0.0),
}


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Reads a state dict, `.safetensors` or what `torch.save` wrote, without running anything of it.

    Raises:
        UserError: The file is not there, is no checkpoint, holds something else, or wants to run code.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # the name of a function or class that is neither a tensor nor a container
            raise UserError(
                f"{path} holds more than tensors, and reading the rest would run code from the file; it is refused. "
                f"Save its state dict alone, or as safetensors."
            ) from error
        raise UserError(f"{path} is no checkpoint that `torch.save` wrote; nothing of it was run.") from error
    except Exception as error:  # whatever a reader comes upon in a file that was cut off, or is something else
        raise UserError(f"{path} cannot be read as a checkpoint ({error or type(error).__name__}).") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        keys = ", ".join(map(str, state))[:100] if isinstance(state, dict) else type(state).__name__
        raise UserError(f"{path} is no state dict of tensors under the names of parameters; it holds {keys}.")
    return state


def unet_config(flags: Flags, in_channels: int = 3, num_classes: int = 1000) -> dict:
    """The arguments of the [`UNet2DModel`] that these flags describe; `num_classes` if it is class-conditional.

    Raises:
        UserError: `UNet2DModel` cannot hold such a model; says why.
    """
    if flags.multipliers[0] != 1:
        raise UserError(
            f"--channel_mult begins with {flags.multipliers[0]:g}: the first level has "
            f"{round(flags.multipliers[0] * flags.num_channels)} channels and the timestep embedding "
            f"{flags.num_channels}, but in UNet2DModel both are the same number, so it cannot hold this model."
        )
    if flags.rescale_timesteps and flags.diffusion_steps != 1000:
        raise UserError(
            f"--rescale_timesteps True with --diffusion_steps {flags.diffusion_steps} gives timesteps that are not "
            f"whole numbers, which DDPMScheduler does not have."
        )
    widths = [round(m * flags.num_channels) for m in flags.multipliers]
    attends = flags.attention_levels
    resample, *plain = (
        ("resnet", "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if flags.resblock_updown
        else ("conv", "DownBlock2D", "UpBlock2D")
    )
    return {
        "sample_size": flags.image_size,
        "in_channels": in_channels,
        "out_channels": in_channels * (2 if flags.learn_sigma else 1),
        "block_out_channels": widths,
        "down_block_types": ["AttnDownBlock2D" if a else plain[0] for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else plain[1] for a in attends[::-1]],
        "layers_per_block": flags.num_res_blocks,
        "downsample_type": resample,
        "upsample_type": resample,
        "attention_head_dim": _head_width(flags, widths),
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,  # the middle block has none otherwise when scale and shift come from the timestep
        "resnet_time_scale_shift": "scale_shift" if flags.use_scale_shift_norm else "default",
        "dropout": flags.dropout,
        "num_class_embeds": num_classes if flags.class_cond else None,
    }


def make_scheduler(flags: Flags) -> DDPMScheduler:
    """The diffusion process that these flags describe, with a learned range of variances if the model has one."""
    if flags.noise_schedule not in ("linear", "cosine"):
        raise UserError(f"--noise_schedule is linear or cosine, got {flags.noise_schedule}.")
    scale = 1000 / flags.diffusion_steps  # the end points are of 1,000 steps
    return DDPMScheduler(
        num_train_timesteps=flags.diffusion_steps,
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[flags.noise_schedule],
        beta_start=scale * 0.0001,
        beta_end=scale * 0.02,
        variance_type="learned_range" if flags.learn_sigma else "fixed_large",
        prediction_type="sample" if flags.predict_xstart else "epsilon",
    )


def convert_checkpoint(
    state: dict[str, torch.Tensor], flags: Flags, dtype: torch.dtype = torch.float32
) -> tuple[UNet2DModel, DDPMScheduler]:
    """Makes a [`UNet2DModel`] and its scheduler of a guided-diffusion state dict; every tensor is used exactly once.

    Args:
        state (`dict[str, torch.Tensor]`), flags ([`Flags`]): The checkpoint, see [`read_checkpoint`], and its flags.
        dtype (`torch.dtype`, defaults to float32): Of the U-Net; with its own dtype, a checkpoint stays bit for bit.

    Raises:
        UserError: The checkpoint is of another kind of model, contradicts the flags (names the first tensor, both
            shapes and the flag), or `UNet2DModel` cannot hold it.
    """
    found = inspect_checkpoint(state, flags.image_size)
    num_classes = len(state["label_emb.weight"]) if found["class_cond"] else 1000
    in_channels = state["input_blocks.0.0.weight"].shape[1]
    with torch.device("meta"):
        unet = UNet2DModel(**unet_config(flags, in_channels, num_classes))
    wanted, sources = unet.state_dict(), _sources(unet, flags)
    _check_shapes(state, {sources[n][0]: _their_shape(n, p.shape) for n, p in wanted.items()}, flags, found)

    heads = {c: c // unet.config.attention_head_dim for c in unet.config.block_out_channels}
    converted = {}
    for name, (source, third) in sources.items():
        tensor = state[source]
        if third is not None:
            tensor = _split_qkv(tensor, heads[tensor.shape[0] // 3], flags.use_new_attention_order)[third]
        tensor = tensor.reshape(wanted[name].shape)
        converted[name] = tensor.to(dtype, copy=True)
        if not converted[name].isfinite().all() and tensor.isfinite().all():
            raise UserError(f"{source} holds {tensor.abs().max():g}, which is too large for {dtype}; use float32.")
    unet.load_state_dict(converted, assign=True)
    return unet.requires_grad_(False).eval(), make_scheduler(flags)


def inspect_checkpoint(state: dict[str, torch.Tensor], image_size: int) -> dict:
    """The flags that the names and shapes of a checkpoint betray.

    Raises:
        UserError: It is no U-Net of guided-diffusion, or one for super-resolution.
    """
    if any(n.startswith("input_blocks.") for n in state) and not any(n.startswith("output_blocks.") for n in state):
        raise UserError("This checkpoint is a classifier: it has input blocks but no output blocks to draw images.")
    try:
        if state["input_blocks.0.0.weight"].shape[1] == 6:
            what = "it takes 6 channels, a low-resolution image beside the noisy one, and cannot stand alone"
            raise UserError(f"This checkpoint is a super-resolution model: {what}.")
        blocks = sorted({int(n.split(".")[1]) for n in state if n.startswith("output_blocks.")})
        parts = [{n.split(".", 3)[2]: n for n in state if n.startswith(f"output_blocks.{b}.")} for b in blocks]
        attends = [f"output_blocks.{b}.1.qkv.weight" in state for b in blocks]
        # Beside its residual layer and attention, the last block of each level but the finest has an upsampler.
        ups = [b for b in blocks if len(parts[b]) > 1 + attends[b]]
        layers = ups[0] + 1 if ups else len(blocks)
        deepest = [state[f"output_blocks.{b}.0.out_layers.3.weight"].shape[0] for b in blocks[::layers]]
        width = state["time_embed.0.weight"].shape[1]
        out, time = state["out.2.weight"].shape[0], state["input_blocks.1.0.emb_layers.1.weight"].shape[0]
        rates = [2**i for i, b in enumerate(blocks[::layers][::-1]) if attends[b]]
        return {
            "num_channels": width,
            "class_cond": "label_emb.weight" in state,
            "learn_sigma": out == 2 * state["input_blocks.0.0.weight"].shape[1],
            "use_scale_shift_norm": time == 2 * state["input_blocks.1.0.out_layers.3.weight"].shape[0],
            "resblock_updown": any(f"output_blocks.{b}.{1 + attends[b]}.in_layers.0.weight" in state for b in ups),
            "num_res_blocks": layers - 1,
            "channel_mult": ",".join(f"{c / width:g}" for c in deepest[::-1]),
            "attention_resolutions": ",".join(str(image_size // r) for r in rates),
        }
    except (KeyError, IndexError) as error:
        raise UserError(f"This checkpoint is no U-Net of guided-diffusion: it has no {error}.") from error


def module_names(flags: Flags) -> Iterator[tuple[str, str]]:
    """Pairs of module names, guided-diffusion's and diffusers', of the model that these flags describe."""
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "label_emb", "class_embedding"
    yield "input_blocks.0.0", "conv_in"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"
    levels, layers, attends = len(flags.multipliers), flags.num_res_blocks, flags.attention_levels
    block = 1
    for level in range(levels):
        for i in range(layers):
            yield from _residual(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{i}")
            if attends[level]:
                yield from _attention(f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{i}")
            block += 1
        if level < levels - 1:
            ours = f"down_blocks.{level}.downsamplers.0"
            yield f"input_blocks.{block}.0.op", f"{ours}.conv"
            yield from _residual(f"input_blocks.{block}.0", ours)
            block += 1
    yield from _residual("middle_block.0", "mid_block.resnets.0")
    yield from _attention("middle_block.1", "mid_block.attentions.0")
    yield from _residual("middle_block.2", "mid_block.resnets.1")
    for block in range(levels * (layers + 1)):
        level, i = divmod(block, layers + 1)
        attention = attends[levels - 1 - level]
        yield from _residual(f"output_blocks.{block}.0", f"up_blocks.{level}.resnets.{i}")
        if attention:
            yield from _attention(f"output_blocks.{block}.1", f"up_blocks.{level}.attentions.{i}")
        if i == layers and level < levels - 1:
            theirs, ours = f"output_blocks.{block}.{1 + attention}", f"up_blocks.{level}.upsamplers.0"
            yield f"{theirs}.conv", f"{ours}.conv"
            yield from _residual(theirs, ours)


def _sources(unet: UNet2DModel, flags: Flags) -> dict[str, tuple[str, int | None]]:
    """Where each parameter of ours comes from: its name in guided-diffusion, and which third of that tensor."""
    modules = {ours: theirs for theirs, ours in module_names(flags)}
    sources = {}
    for name in unet.state_dict():
        module, _, kind = name.rpartition(".")
        attention, _, part = module.rpartition(".")
        if part in ("to_q", "to_k", "to_v"):
            sources[name] = (f"{modules[attention]}.qkv.{kind}", ("to_q", "to_k", "to_v").index(part))
        else:
            sources[name] = (f"{modules[module]}.{kind}", None)
    return sources


def _residual(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    return ((f"{theirs}.{a}", f"{ours}.{b}") for a, b in RESIDUAL.items())


def _attention(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield theirs, ours  # whose qkv is split
    yield from ((f"{theirs}.{a}", f"{ours}.{b}") for a, b in ATTENTION.items())


def _their_shape(name: str, shape: torch.Size) -> list[int]:
    """Attention is of 1×1 convolutions there and of linear maps here."""
    shape = list(shape)
    if ".attentions." in name and name.endswith("weight") and "norm" not in name:
        shape += [1]
    if any(f".{part}." in name for part in ("to_q", "to_k", "to_v")):
        shape[0] *= 3
    return shape


def _split_qkv(tensor: torch.Tensor, heads: int, new_order: bool) -> list[torch.Tensor]:
    """`[3*C, …]` to queries, keys and values `[C, …]`: those of a head lie together in the old order of attention."""
    if new_order:
        return list(tensor.chunk(3))
    return [part.flatten(0, 1) for part in tensor.unflatten(0, (heads, 3, -1)).unbind(1)]


def _check_shapes(state: dict, expected: dict[str, list[int]], flags: Flags, found: dict) -> None:
    odd = next((n for n, shape in expected.items() if n not in state or list(state[n].shape) != shape), None)
    odd = odd or next((n for n in state if n not in expected), None)
    if odd is None:
        return
    levels = enumerate(flags.attention_levels)
    asked = {
        **{name: getattr(flags, name) for name in found},
        "channel_mult": ",".join(f"{m:g}" for m in flags.multipliers),
        "attention_resolutions": ",".join(str(flags.image_size // 2**i) for i, a in levels if a),
    }
    wrong = [f"--{n} ({asked[n]}, but {found[n]} in the checkpoint)" for n in found if asked[n] != found[n]]
    here = f"has the shape {list(state[odd].shape)} in the checkpoint" if odd in state else "is not in the checkpoint"
    there = f"{expected[odd]} by the flags" if odd in expected else "is no part of a model with these flags"
    raise UserError(
        f"The checkpoint contradicts the flags: {odd} {here} and {there}; look at "
        f"{', '.join(wrong) or '--image_size, and whether this is a model of guided-diffusion'}."
    )


def _head_width(flags: Flags, widths: list[int]) -> int:
    """Channels of an attention head, which are one number in `UNet2DModel`."""
    attending = {w for w, a in zip(widths, flags.attention_levels) if a}
    if flags.num_head_channels != -1:
        odd = [w for w in sorted({*attending, widths[-1]}) if w % flags.num_head_channels]
        if odd:
            raise UserError(f"--num_head_channels {flags.num_head_channels} does not divide {odd[0]} channels.")
        return flags.num_head_channels
    up = flags.num_heads if flags.num_heads_upsample == -1 else flags.num_heads_upsample
    found = {w // flags.num_heads for w in {*attending, widths[-1]}} | {w // up for w in attending}
    if len(found) > 1:
        raise UserError(
            f"By --num_heads {flags.num_heads}, attention heads have {', '.join(map(str, sorted(found)))} channels "
            f"from layer to layer, but UNet2DModel has one width for all of them (attention_head_dim), so it cannot "
            f"hold this model."
        )
    return found.pop()
