# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The U-Net of guided-diffusion written out plainly, to compare with what its checkpoints become: weights are looked up
in a state dict under their original names, and nothing of diffusers is used."""

import math

import torch
import torch.nn.functional as F

from diffuseseg_diffusers.paper.guided_diffusion import Flags


def channels_of(flags: Flags) -> list[int]:
    return [int(float(m) * flags.num_channels) for m in flags.channel_mult.split(",")]


def attends(flags: Flags, level: int) -> bool:
    return 2**level in [flags.image_size // int(r) for r in flags.attention_resolutions.split(",")]


def random_state(flags: Flags, seed: int = 0, in_channels: int = 3, num_classes: int = 5) -> dict[str, torch.Tensor]:
    """Random weights under the names that guided-diffusion gives them."""
    generator, state = torch.Generator().manual_seed(seed), {}

    def layer(name, *shape):
        fan_in = math.prod(shape[1:])
        state[f"{name}.weight"] = torch.randn(*shape, generator=generator) / math.sqrt(max(1, fan_in))
        if len(shape) == 1:
            state[f"{name}.weight"] = 1 + 0.2 * state[f"{name}.weight"]
        state[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)

    def residual(name, c, out):
        layer(f"{name}.in_layers.0", c)
        layer(f"{name}.in_layers.2", out, c, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * out if flags.use_scale_shift_norm else out, 4 * width)
        layer(f"{name}.out_layers.0", out)
        layer(f"{name}.out_layers.3", out, out, 3, 3)
        if c != out:
            layer(f"{name}.skip_connection", out, c, 1, 1)

    def attention(name, c):
        layer(f"{name}.norm", c)
        layer(f"{name}.qkv", 3 * c, c, 1)
        layer(f"{name}.proj_out", c, c, 1)

    width, widths, n = flags.num_channels, channels_of(flags), flags.num_res_blocks
    layer("time_embed.0", 4 * width, width)
    layer("time_embed.2", 4 * width, 4 * width)
    if flags.class_cond:
        state["label_emb.weight"] = torch.randn(num_classes, 4 * width, generator=generator)
    layer("input_blocks.0.0", widths[0], in_channels, 3, 3)
    c, skips, block = widths[0], [widths[0]], 1
    for level, out in enumerate(widths):
        for _ in range(n):
            residual(f"input_blocks.{block}.0", c, out)
            if attends(flags, level):
                attention(f"input_blocks.{block}.1", out)
            c, block = out, block + 1
            skips.append(c)
        if level < len(widths) - 1:
            if flags.resblock_updown:
                residual(f"input_blocks.{block}.0", c, c)
            else:
                layer(f"input_blocks.{block}.0.op", c, c, 3, 3)
            block += 1
            skips.append(c)
    residual("middle_block.0", c, c)
    attention("middle_block.1", c)
    residual("middle_block.2", c, c)
    block = 0
    for level, out in reversed(list(enumerate(widths))):
        for i in range(n + 1):
            residual(f"output_blocks.{block}.0", c + skips.pop(), out)
            if attends(flags, level):
                attention(f"output_blocks.{block}.1", out)
            c = out
            if level > 0 and i == n:
                name = f"output_blocks.{block}.{1 + attends(flags, level)}"
                if flags.resblock_updown:
                    residual(name, c, c)
                else:
                    layer(f"{name}.conv", c, c, 3, 3)
            block += 1
    layer("out.0", c)
    layer("out.2", in_channels * (2 if flags.learn_sigma else 1), c, 3, 3)
    return state


def forward(state, flags: Flags, x, t, y=None) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The model's output and that of every output block."""

    def conv(name, h, **kwargs):
        return F.conv2d(h, state[f"{name}.weight"], state[f"{name}.bias"], **kwargs)

    def norm(name, h):
        return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-5)

    def linear(name, h):
        return F.linear(h, state[f"{name}.weight"], state[f"{name}.bias"])

    def residual(name, h, resample=lambda h: h):
        out = conv(f"{name}.in_layers.2", resample(F.silu(norm(f"{name}.in_layers.0", h))), padding=1)
        step = linear(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        if flags.use_scale_shift_norm:
            scale, shift = step.chunk(2, dim=1)
            out = norm(f"{name}.out_layers.0", out) * (1 + scale) + shift
        else:
            out = norm(f"{name}.out_layers.0", out + step)
        out = conv(f"{name}.out_layers.3", F.silu(out), padding=1)
        h = resample(h)
        return out + (conv(f"{name}.skip_connection", h) if f"{name}.skip_connection.weight" in state else h)

    def attention(name, h):
        n, c, height, width = h.shape
        heads = c // flags.num_head_channels if flags.num_head_channels != -1 else flags.num_heads
        qkv = F.conv1d(norm(f"{name}.norm", h).flatten(2), state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"])
        if flags.use_new_attention_order:
            q, k, v = qkv.view(n, 3, heads, c // heads, -1).unbind(1)
        else:
            q, k, v = qkv.view(n, heads, 3, c // heads, -1).unbind(2)
        weights = torch.einsum("nhct,nhcs->nhts", q, k).div(math.sqrt(c // heads)).softmax(-1)
        out = torch.einsum("nhts,nhcs->nhct", weights, v).reshape(n, c, -1)
        out = F.conv1d(out, state[f"{name}.proj_out.weight"], state[f"{name}.proj_out.bias"])
        return h + out.view(n, c, height, width)

    def double(h):
        return h.repeat_interleave(2, 2).repeat_interleave(2, 3)

    half = flags.num_channels // 2
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)
    emb = linear("time_embed.2", F.silu(linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))))
    if flags.class_cond:
        emb = emb + state["label_emb.weight"][y]
    n, levels = flags.num_res_blocks, len(channels_of(flags))
    h = conv("input_blocks.0.0", x, padding=1)
    skips, block, outputs = [h], 1, []
    for level in range(levels):
        for _ in range(n):
            h = residual(f"input_blocks.{block}.0", h)
            if attends(flags, level):
                h = attention(f"input_blocks.{block}.1", h)
            skips.append(h)
            block += 1
        if level < levels - 1:
            if flags.resblock_updown:
                h = residual(f"input_blocks.{block}.0", h, lambda h: F.avg_pool2d(h, 2))
            else:
                h = conv(f"input_blocks.{block}.0.op", h, stride=2, padding=1)
            skips.append(h)
            block += 1
    h = residual("middle_block.2", attention("middle_block.1", residual("middle_block.0", h)))
    for block in range(levels * (n + 1)):
        level = levels - 1 - block // (n + 1)
        h = residual(f"output_blocks.{block}.0", torch.cat([h, skips.pop()], 1))
        if attends(flags, level):
            h = attention(f"output_blocks.{block}.1", h)
        if level > 0 and block % (n + 1) == n:
            name = f"output_blocks.{block}.{1 + attends(flags, level)}"
            h = residual(name, h, double) if flags.resblock_updown else conv(f"{name}.conv", double(h), padding=1)
        outputs.append(h)
    return conv("out.2", F.silu(norm("out.0", h)), padding=1), outputs
