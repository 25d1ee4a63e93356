# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The U-Net of DiffuseSeg (github.com/harish-jhr/DiffuseSeg), which `UNet2DModel` cannot hold.

Attention follows every residual layer, always with four heads; a level has one skip connection; upsampling is a
transposed convolution that comes first in a level.
"""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn


GROUPS, HEADS, LAST = 8, 4, 16  # of all group norms; of all attentions; channels of the last level


class Level(nn.Module):
    """Residual layers, the first ones followed by attention, with the resampling of a level before or behind them.

    `channels` are those into the first layer and out of each.
    """

    def __init__(
        self,
        channels: Sequence[int],
        temb_channels: int,
        num_attentions: int,
        before: nn.Module | None = None,
        after: nn.Module | None = None,
    ):
        super().__init__()
        how = dict(temb_channels=temb_channels, groups=GROUPS, eps=1e-5, use_in_shortcut=True)
        pairs = list(zip(channels, channels[1:]))
        self.resnets = nn.ModuleList([ResnetBlock2D(in_channels=i, out_channels=o, **how) for i, o in pairs])
        attend = dict(heads=HEADS, eps=1e-5, norm_num_groups=GROUPS, residual_connection=True, bias=True)
        widths = channels[1 : num_attentions + 1]
        self.attentions = nn.ModuleList(
            [Attention(w, dim_head=w // HEADS, upcast_softmax=True, **attend) for w in widths]
        )
        self.before, self.after = before or nn.Identity(), after or nn.Identity()

    def forward(self, x: torch.Tensor, temb: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        x = self.before(x)
        if skip is not None:
            x = torch.cat([x, skip], dim=1)
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if i < len(self.attentions):
                x = self.attentions[i](x)
        return self.after(x)


class DiffuseSegUNet2DModel(UNet2DModel):
    """U-Net of DiffuseSeg's checkpoints, to be used as [`UNet2DModel`]; see [`convert_diffuseseg`].

    Args:
        sample_size (`int`), in_channels (`int`), out_channels (`int`): Side and channels of the images.
        down_channels (sequence of `int`), mid_channels (sequence of `int`): Channels of the levels, the finest first.
        down_sample (sequence of `bool`): Which levels halve the resolution.
        time_embedding_dim (`int`): Channels of the time embedding.
        down_layers (`int`), mid_layers (`int`), layers_per_block (`int`):
            Residual layers of a level; in the decoder one more than `layers_per_block`, as of [`UNet2DModel`].
        block_out_channels (sequence of `int`): Channels of the decoder's levels, the finest first.
    """

    upsamples_first = True

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int = 3,
        out_channels: int = 3,
        down_channels: Sequence[int] = (64, 128, 256, 512),
        mid_channels: Sequence[int] = (512, 512, 256),
        down_sample: Sequence[bool] = (True, True, True),
        time_embedding_dim: int = 256,
        down_layers: int = 2,
        mid_layers: int = 2,
        layers_per_block: int = 1,
        block_out_channels: Sequence[int] = (16, 64, 128),
    ):
        ModelMixin.__init__(self)
        ConfigMixin.__init__(self)
        down, mid, dim = list(down_channels), list(mid_channels), time_embedding_dim
        self.class_embedding = None
        self.time_proj = Timesteps(dim, flip_sin_to_cos=False, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(dim, dim)
        self.conv_in = nn.Conv2d(in_channels, down[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, halves in enumerate(down_sample):
            after = nn.Conv2d(down[i + 1], down[i + 1], 4, 2, 1) if halves else None
            self.down_blocks.append(Level([down[i], *[down[i + 1]] * down_layers], dim, down_layers, after=after))
        self.mid_blocks = nn.ModuleList(
            [Level([i, *[o] * (mid_layers + 1)], dim, mid_layers) for i, o in zip(mid, mid[1:])]
        )
        self.up_blocks = nn.ModuleList()
        for i in reversed(range(len(down) - 1)):
            before = nn.ConvTranspose2d(down[i], down[i], 4, 2, 1) if down_sample[i] else None
            layers = layers_per_block + 1
            self.up_blocks.append(Level([2 * down[i], *[block_out_channels[i]] * layers], dim, layers, before))
        self.conv_norm_out = nn.GroupNorm(GROUPS, LAST)
        self.conv_out = nn.Conv2d(LAST, out_channels, 3, padding=1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple:
        """Predicts the noise `[N, C, H, W]` of noisy images; `class_labels` are for compatibility."""
        timesteps = torch.as_tensor(timestep, device=sample.device).expand(len(sample))  # [N]
        temb = self.time_embedding(self.time_proj(timesteps).to(sample.dtype))  # [N,D]
        x, skips = self.conv_in(sample), []
        for block in self.down_blocks:
            skips.append(x)
            x = block(x, temb)
        for block in self.mid_blocks:
            x = block(x, temb)
        for block in self.up_blocks:
            x = block(x, temb, skips.pop())
        x = self.conv_out(nn.functional.silu(self.conv_norm_out(x)))
        return UNet2DOutput(sample=x) if return_dict else (x,)
