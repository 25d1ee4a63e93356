# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""An ensemble of pixel classifiers on decoder activations that never builds the full-size feature map.

Each member is the MLP of DatasetGAN (Zhang et al., CVPR 2021), as adopted by Baranchuk et al. (ICLR 2022), section 4.
The published code upsamples every activation to the size of the image and concatenates them: 8,448 floats a pixel for
the paper's models. Here the first layer is applied to each activation at its own resolution, and its output is
upsampled: bilinear upsampling is linear over space and the layer is linear over channels, so the two commute exactly.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput, logging
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from ..features.base import Block
from ..features.filters import filter_channels
from ..jobs.errors import UserError
from .decisions import Decisions, winners
from .guided import check_guided
from .inputs import check_members, check_tiling, groups_of
from .upsampling import blend_of, columns_of, upsampled_rows


logger = logging.get_logger(__name__)

# What a saved head is made of. A change that this code cannot read gets the next number.
FORMAT_VERSION = CLEAN_FORMAT = 7  # the newest that this code reads: of heads that read images without noise
FILTERING_FORMAT = GUIDED_FORMAT = 6  # of heads that read filters, whose members have weights, or with guided masks
ADAPTED_FORMAT = 5  # of heads on pipelines with adapters or FreeU
DECIDING_FORMAT = 4  # of heads with decisions, or that read chosen channels or values between others than all
FOREIGN_FORMAT = 3  # of heads on pipelines of somebody else's
PIXEL_FORMAT = 2  # of heads without any of these, which older versions read
# Bytes of a strip of rows of the hidden layer that inference holds at once; on a CPU it stays in the cache.
STRIP_BYTES = {"cpu": 2**22, "cuda": 2**27}


@dataclass
class PixelClassifierLogits(BaseOutput):
    """Output of [`PixelClassifierEnsemble.forward`]: `[N, K, num_classes, H, W]`, of each member."""

    logits: torch.Tensor


@dataclass
class PixelClassifierOutput(BaseOutput):
    """Output of [`PixelClassifierEnsemble.predict`].

    Args:
        labels (`torch.Tensor`):
            `[N, H, W]` uint8, the class most members voted for, or with soft voting the most probable one on average; a
            tie goes to the smaller id. With [`Decisions`], the class that they prefer, whatever the voting.
        uncertainty (`torch.Tensor`):
            `[N, H, W]` float32, Jensen-Shannon divergence of the members in nats, 0 to `log(num_members)`; of a single
            member that saw the mirror image too, to `log(2)`.
        probabilities (`torch.Tensor`, *optional*): `[N, num_classes, H, W]` float32, mean over the members.
    """

    labels: torch.Tensor
    uncertainty: torch.Tensor
    probabilities: torch.Tensor | None = None


class StackedLinear(nn.Module):
    """`num_members` linear layers as one batched matrix product: `[K, in, P]` to `[K, out, P]` for `P` pixels."""

    def __init__(self, num_members: int, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_members, out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(num_members, out_features))
        nn.init.normal_(self.weight, 0.0, 0.02)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.baddbmm(self.bias.unsqueeze(-1), self.weight, x)


class StackedBatchNorm(nn.Module):
    """`num_members` batch norms over pixels, each with statistics of its own: `[K, features, P]` to the same."""

    def __init__(self, num_members: int, num_features: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(num_members, num_features))
        self.bias = nn.Parameter(torch.zeros(num_members, num_features))
        self.register_buffer("running_mean", torch.zeros(num_members, num_features))
        self.register_buffer("running_var", torch.ones(num_members, num_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, shift = (self.weight, self.bias) if self.training else self.scale_and_shift()
        y = self.normalize(x) if self.training else x
        return torch.addcmul(shift.unsqueeze(-1), scale.unsqueeze(-1), y).to(x.dtype)

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """Zero mean and unit variance over a batch, as in training, in float32: a layer norm over the pixels."""
        if (pixels := x.shape[-1]) < 2:
            raise ValueError(f"Batch norm takes at least two pixels in training, got {pixels}.")
        y, mean, inverse = torch.native_layer_norm(x.float(), (pixels,), None, None, self.eps)
        with torch.no_grad():
            variance = (inverse**-2 - self.eps).clamp(min=0) * (pixels / (pixels - 1))  # unbiased, as PyTorch keeps it
            self.running_mean.lerp_(mean.squeeze(-1), self.momentum)
            self.running_var.lerp_(variance.squeeze(-1), self.momentum)
        return y

    def scale_and_shift(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The affine map that this layer is in evaluation, in float32: `[K, features]` each."""
        scale = self.weight.float() / (self.running_var.float() + self.eps).sqrt()
        return scale, self.bias.float() - scale * self.running_mean.float()


class PixelClassifierEnsemble(ModelMixin, ConfigMixin):
    """`num_members` pixel classifiers, Linear-ReLU-BatchNorm-Linear-ReLU-BatchNorm-Linear, as stacked tensors.

    The config carries all that is needed to use the head: features, classes, colours. The state dict is that of the
    published `pixel_classifier`, with the members stacked along a first dimension.

    Args:
        num_classes (`int`): Number of classes, ids `0` to `num_classes - 1`.
        block_channels (sequence of `int`): Channels of each decoder block in `blocks`.
        blocks (sequence of `int` or `str`): Decoder blocks, ascending, in the paper's numbering, or names of modules.
        timesteps (sequence of `int`): Diffusion timesteps, in the order in which features are concatenated.
        num_members (`int`, defaults to 10): Members of the ensemble.
        hidden_sizes (sequence of two `int`, *optional*): Hidden widths; 128 and 32, from 30 classes on 256 and 128.
        image_size (sequence of two `int`, *optional*): Height and width at which the model reads images.
        in_channels (`int`, defaults to 3): Channels of the images.
        share_noise (`bool`, defaults to `True`), noise_seed (`int`, defaults to 0):
            See [`DecoderFeatureExtractor`].
        clean (`bool`, defaults to `False`): Whether images are read without noise, see there.
        label_names (sequence of `str`, *optional*): Name of each class.
        palette (sequence of `[red, green, blue]`, *optional*): Colour of each class, 0 to 255.
        ignore_index (`int`, defaults to 255): Id of pixels without a label.
        flip (`bool`, defaults to `False`):
            Whether half of the members see the mirror image of every image (a single member sees both).
        voting (`str`, defaults to `"hard"`):
            `"hard"`, every member has one vote (the paper's way), or `"soft"`, the mean of their probabilities decides.
        prompt (`str`, *optional*): What conditioned the model; the model's null prompt if none.
        base (mapping, *optional*): Of a head on another pipeline of diffusers, what it was fitted on: see
            [`describe_base`].
        channels (mapping, *optional*): Which channels of an image the model reads, and between which values: see
            [`InputChannels`].
        tiling (mapping, *optional*): How the labelled images were seen, see [`check_tiling`].
        decisions (mapping, *optional*): Which class a pixel gets, if not the likeliest: see [`Decisions`].
        guided (two `float`, *optional*): Widths over space, in pixels, and over colour of the filter that makes masks
            follow the picture: see [`joint_bilateral`]. The filtered mean probabilities decide, whatever the voting.
        agreement (mapping, *optional*): By precision, the measured share of the pixels whose class is that in float32.
        filters (sequence of `float`, *optional*): Scales of filters of the image that follow the activations, of which
            there may then be none: see [`filter_bank`].
        member_inputs (sequence of `str`, *optional*): What each member reads, see [`member_kinds`]; all if not given.
        member_weights (sequence of `float`, *optional*): Share of each member in soft votes and in the uncertainty.
        format_version (`int`, defaults to 2): What a saved head is made of; a newer one than this code's is refused.
    """

    @register_to_config
    def __init__(
        self,
        *,  # diffusers takes positional arguments for defaults, and would not load the head again
        num_classes: int,
        block_channels: Sequence[int],
        blocks: Sequence[Block],
        timesteps: Sequence[int],
        num_members: int = 10,
        hidden_sizes: Sequence[int] | None = None,
        image_size: Sequence[int] | None = None,
        in_channels: int = 3,
        share_noise: bool = True,
        noise_seed: int = 0,
        label_names: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        ignore_index: int = 255,
        flip: bool = False,
        voting: str = "hard",
        prompt: str | None = None,
        base: Mapping | None = None,
        channels: Mapping | None = None,
        tiling: Mapping | None = None,
        decisions: Mapping | None = None,
        guided: Sequence[float] | None = None,
        agreement: Mapping[str, float] | None = None,
        filters: Sequence[float] | None = None,
        member_inputs: Sequence[str] | None = None,
        member_weights: Sequence[float] | None = None,
        clean: bool = False,
        format_version: int = PIXEL_FORMAT,
    ):
        super().__init__()
        if format_version > FORMAT_VERSION:
            raise UserError(
                f"The segmentation head has format {format_version}, but this version of DiffuseSeg reads formats up "
                f"to {FORMAT_VERSION}; it was made by a newer version: update DiffuseSeg to that one."
            )
        if not 2 <= num_classes <= 256:
            raise UserError(f"A head needs 2 to 256 classes, got {num_classes}.")
        for name, values in (("label_names", label_names), ("palette", palette)):
            if values is not None and len(values) != num_classes:
                raise UserError(f"`{name}` has {len(values)} entries for {num_classes} classes.")
        if label_names is not None and len(set(label_names)) < num_classes:
            raise UserError(f"Two classes have the same name in {list(label_names)}; results are listed by name.")
        Decisions.of(decisions, num_classes)
        check_guided(guided)
        check_tiling(tiling, image_size)
        if len(block_channels) != len(blocks):
            raise UserError(f"`block_channels` has {len(block_channels)} entries for {len(blocks)} blocks.")
        check_members(num_members, blocks, filters, member_inputs, member_weights, voting, clean)
        least = CLEAN_FORMAT if clean else FILTERING_FORMAT if filters or member_weights is not None else PIXEL_FORMAT
        if least > format_version:  # what does not know these must not load the head
            self.register_to_config(format_version=least)
        first, second = hidden_sizes or ((128, 32) if num_classes < 30 else (256, 128))
        self.channels = list(block_channels) * len(timesteps)  # of each activation, in the order of concatenation
        if filters:
            self.channels.append(filter_channels(in_channels, filters))
        self.layers = nn.Sequential(
            StackedLinear(num_members, sum(self.channels), first),
            nn.ReLU(),
            StackedBatchNorm(num_members, first),
            StackedLinear(num_members, first, second),
            nn.ReLU(),
            StackedBatchNorm(num_members, second),
            StackedLinear(num_members, second, num_classes),
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, output_loading_info: bool = False, **kwargs
    ) -> "PixelClassifierEnsemble | tuple[PixelClassifierEnsemble, dict]":
        """Loads a head as [`ModelMixin.from_pretrained`] does, but all of it and from safetensors, or not at all.

        Raises:
            UserError: The head is pickled, corrupt, incomplete or from a newer version.
            OSError: There is none, or the Hub does not give it.
        """
        where = f"The segmentation head in {pretrained_model_name_or_path}"
        kwargs["use_safetensors"] = True
        try:
            head, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except OSError as error:
            if "Unable to load weights" in str(error):
                raise UserError(f"{where} cannot be read: its weights are not a whole safetensors file.") from error
            if "named diffusion_pytorch_model" in str(error):
                why = "pickled ones (.bin) are not loaded, because they can run code"
                raise UserError(f"{where} has no weights in the safetensors format; {why}.") from error
            raise
        except (UserError, KeyError, RuntimeError, TypeError) as error:
            raise UserError(f"{where} cannot be read: {error}") from error
        wrong = [*info["missing_keys"], *info["unexpected_keys"], *[key for key, *_ in info["mismatched_keys"]]]
        if wrong:
            names = ", ".join(sorted(wrong))
            raise UserError(f"{where} does not fit its config: {names} missing, of another shape or not known.")
        if not all(tensor.isfinite().all() for tensor in head.state_dict().values() if not tensor.is_meta):
            raise UserError(f"{where} is corrupt: it has weights that are not finite.")
        return (head, info) if output_loading_info else head

    def save_pretrained(
        self, save_directory: str | os.PathLike, safe_serialization: bool = True, variant: str | None = None, **kwargs
    ) -> None:
        """Saves the head as [`ModelMixin.save_pretrained`] does, always as safetensors; pickled heads are refused."""
        if not safe_serialization:
            logger.warning("The segmentation head is saved as safetensors: pickled heads are not loaded.")
        super().save_pretrained(save_directory, safe_serialization=True, variant=variant, **kwargs)

    @classmethod
    def stack_members(cls, members: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        """State dict of an ensemble from what the published code saves of its members.

        Each is a state dict, or a mapping with it under `model_state_dict`, with or without the prefix `module.` of
        `nn.DataParallel`. Raises [`UserError`] if they differ in their tensors, or are other networks.
        """
        states: list[dict[str, torch.Tensor]] = []
        for member in members:
            state: Mapping = member.get("model_state_dict", member)
            named = {name.removeprefix("module."): tensor for name, tensor in state.items()}
            states.append({name: t for name, t in named.items() if not name.endswith("num_batches_tracked")})
        shapes = [{name: list(tensor.shape) for name, tensor in state.items()} for state in states]
        odd = next((i for i, shape in enumerate(shapes) if shape != shapes[0] or "layers.0.weight" not in shape), None)
        if odd is not None:
            found = ", ".join(shapes[odd])
            raise UserError(f"Member {odd} is not a pixel classifier like the first, layers.0 to layers.6: {found}.")
        return {name: torch.stack([state[name] for state in states]) for name in states[0]}

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        """The members' logits for full feature vectors, the plain formula: `[K, D, P]` to `[K, num_classes, P]`."""
        return self.layers(features)

    def forward(
        self, activations: Sequence[torch.Tensor], size: Sequence[int] | None = None, return_dict: bool = True
    ) -> PixelClassifierLogits | tuple[torch.Tensor]:
        """The members' logits at any resolution, from activations at theirs; batch norms use their running statistics.

        Args:
            activations, size: As in [`~PixelClassifierEnsemble.predict`].
            return_dict (`bool`, defaults to `True`): Whether to return an output object rather than a tuple.

        Returns:
            [`PixelClassifierLogits`], or the tuple `(logits,)`.
        """
        config, n, (height, width) = self.config, len(activations[0]), size or self.config.image_size
        strips = self._strips(activations[0], (height, width), config.num_members)
        groups = groups_of(config.member_inputs, 0, config.num_members)
        found = [self._logits(activations, (height, width), strips, *group) for group in groups]
        logits = activations[0].new_empty(n, config.num_members, config.num_classes, height, width)
        for (members, _), own in zip(groups, found):
            for (images, rows), strip in own:
                logits[images, members, :, rows] = strip
        return PixelClassifierLogits(logits) if return_dict else (logits,)

    @apply_forward_hook
    @torch.no_grad()
    def predict(
        self,
        activations: Sequence[torch.Tensor],
        size: Sequence[int] | None = None,
        return_probabilities: bool = False,
        mirrored: Sequence[torch.Tensor] | None = None,
    ) -> PixelClassifierOutput:
        """Label map and uncertainty by a vote of the members (paper, section 4; DatasetGAN).

        Args:
            activations (sequence of `torch.Tensor`): `[N, channels, h, w]` each, as [`Features.activations`].
            size (two `int`, *optional*): Output height and width; the config's `image_size` if not given.
            return_probabilities (`bool`, defaults to `False`): Whether to return mean class probabilities.
            mirrored (sequence of `torch.Tensor`, *optional*):
                Activations of the mirror images, left and right exchanged. The second half of the members votes on
                those, the first on the images: masks are as good as if all saw both, at half the cost.
        """
        height, width = size or self.config.image_size
        n, device = len(activations[0]), activations[0].device
        # Preallocated to avoid fragmentation between the large blocks of strips.
        labels = torch.empty(n, height, width, dtype=torch.uint8, device=device)
        uncertainty = torch.empty(n, height, width, device=device)
        probabilities = None
        if return_probabilities:
            probabilities = torch.empty(n, self.config.num_classes, height, width, device=device)
        decisions = Decisions.of(self.config.decisions, self.config.num_classes)
        half = (self.config.num_members + 1) // 2 if mirrored is not None else None
        strips_of = self._strips(activations[0], (height, width), half or self.config.num_members)
        total, kinds = self.config.num_members, self.config.member_inputs
        groups = groups_of(kinds, 0, half or total)
        views = [self._logits(activations, (height, width), strips_of, *group) for group in groups]
        if mirrored is not None:
            others = groups_of(kinds, half if total > 1 else 0, total)
            for group in others:
                own = self._logits(mirrored, (height, width), strips_of, *group)
                views.append((where, logits.flip(-1)) for where, logits in own)
            groups += others
        shares = None
        if self.config.member_weights is not None:  # of the members in the order in which the views have them
            weights = torch.tensor(self.config.member_weights, dtype=torch.float32, device=device)
            shares = torch.cat([weights[members] for members, _ in groups])  # [K]
            shares /= shares.sum()
        for strips in zip(*views):
            where, logits = strips[0]
            if len(strips) > 1:
                logits = torch.cat([own for _, own in strips], dim=1)  # [n,K,C,h,W], h rows of n images of the output
            log_p = logits.float().log_softmax(dim=2)  # [n,K,C,h,W]
            p = log_p.exp()  # [n,K,C,h,W]
            mean = _mean(p, shares)  # [n,C,h,W]
            if self.config.voting == "soft" or decisions is not None:
                labels[where] = winners(mean, decisions)
            else:
                votes = F.one_hot(logits.max(dim=2).indices, self.config.num_classes).sum(dim=1)  # [n,h,W,C]
                labels[where] = votes.max(dim=-1).indices
            # Entropy of the mean minus mean entropy; not negative but for rounding.
            jsd = _mean((p * log_p).sum(dim=2), shares) - torch.xlogy(mean, mean).sum(dim=1)  # [n,h,W]
            uncertainty[where] = jsd.clamp_(min=0)
            if probabilities is not None:
                probabilities.movedim(1, -1)[where] = mean.movedim(1, -1)
        return PixelClassifierOutput(labels=labels, uncertainty=uncertainty, probabilities=probabilities)

    def _strips(self, like: torch.Tensor, size: tuple[int, int], members: int) -> list[tuple[slice, slice]]:
        """Slices of images and of their rows, as many as an activation has, for so many members at once."""
        (height, width), hidden = size, self.layers[0].weight.shape[1]
        limit = STRIP_BYTES.get(like.device.type, 2**26)
        rows = max(1, limit // (members * hidden * width * like.element_size()))
        return list(itertools.product(_slices(len(like), max(1, rows // height)), _slices(height, min(height, rows))))

    def _logits(
        self,
        activations: Sequence[torch.Tensor],
        size: tuple[int, int],
        strips: Sequence[tuple[slice, slice]],
        chosen: Any,
        read: slice,
    ) -> Iterator[tuple[tuple[slice, slice], torch.Tensor]]:
        """Yields each strip with `[n, K, num_classes, rows, W]` of the chosen members, by the activations they read."""
        height, width = size
        widths = [a.shape[1] for a in activations]
        if widths != self.channels:
            raise UserError(f"The head was fitted for activations of {self.channels} channels, got {widths}.")
        activations = activations[read]
        first, _, norm1, second, _, norm2, third = self.layers
        dtype = activations[0].dtype  # arithmetic is the U-Net's; the weights may well be kept in float32

        # 1. The first layer at every lower resolution, on all activations of that resolution at once. Channels come
        #    last: upsampling then moves whole vectors, and members are a stride apart for the batched products below.
        members, hidden = first.weight[chosen].shape[:2]
        weights = first.weight[chosen].flatten(0, 1).split(self.channels, dim=1)[read]  # [K*hidden,c] each
        bias = first.bias[chosen].reshape(-1).to(dtype)  # [K*hidden]; upsampling does not change it
        whole, maps = None, []  # of the output's resolution, and of all lower ones
        for resolution in dict.fromkeys(a.shape[-2:] for a in activations):
            same = [i for i, a in enumerate(activations) if a.shape[-2:] == resolution]
            every = [activations[i].movedim(1, -1) for i in same]  # [N,h,w,channels] each
            w = torch.cat([weights[i] for i in same], dim=1).to(dtype)  # [K*hidden,c]
            if resolution == (height, width):
                whole = every, w
            else:
                maps.append(F.linear(torch.cat(every, dim=-1), w, None if maps else bias))  # [N,h,w,K*hidden]

        # 2. Strip by strip: the first layer at the output's resolution, and the other layers, with each batch norm
        #    folded into the linear layer behind it.
        w2, b2 = _fold(norm1, second, chosen, dtype)  # [K,h2,hidden], [K,h2,1]
        w3, b3 = _fold(norm2, third, chosen, dtype)  # [K,C,h2], [K,C,1]
        columns, last = [columns_of(m, width) for m in maps], None
        for where in strips:
            if where[1] != last:  # of strips of whole images it is the same every time
                last, blends = where[1], [blend_of(m, height, where[1]) for m in maps]
            x = upsampled_rows([m[where[0]] for m in maps], blends, columns, width)  # [n,rows,W,K*hidden]
            if whole is not None:
                y = torch.cat([a[where] for a in whole[0]], dim=-1).flatten(0, 2)  # [n*rows*W,c]
                x = F.linear(y, whole[1], bias) if x is None else x.view(len(y), -1).addmm_(y, whole[1].T)
            # Pixels come before channels here: the other way round, a bfloat16 product copies its input first.
            x = x.relu_().view(-1, members, hidden).transpose(0, 1)  # [K,n*rows*W,hidden]
            x = torch.baddbmm(b2.mT, x, w2.mT).relu_()  # [K,n*rows*W,h2]
            x = torch.baddbmm(b3, w3, x.mT)  # [K,C,n*rows*W]
            shape = (-1, where[1].stop - where[1].start, width)
            yield where, x.unflatten(-1, shape).movedim(2, 0)  # [n,K,C,rows,W]


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _mean(x: torch.Tensor, shares: torch.Tensor | None) -> torch.Tensor:
    """The mean of `[n, K, ...]` over the members, with shares `[K]` if they are not equal."""
    return x.mean(dim=1) if shares is None else torch.tensordot(x, shares, ([1], [0]))


def _fold(
    norm: StackedBatchNorm, linear: StackedLinear, chosen: Any, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of `linear(norm(x))` of the chosen members in evaluation, computed in float32, in `dtype`."""
    scale, shift = (x[chosen] for x in norm.scale_and_shift())
    weight = linear.weight[chosen].float()
    bias = linear.bias[chosen].float() + (weight @ shift.unsqueeze(-1)).squeeze(-1)
    return (weight * scale.unsqueeze(1)).to(dtype), bias.unsqueeze(-1).to(dtype)
