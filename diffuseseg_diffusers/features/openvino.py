# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Passes of a U-Net on pixels by OpenVINO, on CPUs.

PyTorch brings the weights into the layout of its kernels in every pass, OpenVINO once: it is faster the fewer images go
through the model together (`benchmarks/bench_engines.py`).
"""

import copy
import warnings
from typing import Any

import torch
from torch import nn

from ..jobs.errors import UserError
from ..jobs.install import missing_extra
from .base import Block
from .dry_run import hooked
from .pixel_unet import DecoderFeatureExtractor
from .weights import state_of


class OpenVINOEngine:
    """Computes what a [`DecoderFeatureExtractor`] sees, in place of PyTorch, in the precision of the U-Net.

    A pass is compiled for each choice of blocks and each shape of a batch, when it is first asked for, and anew when
    the weights have changed.

    Args:
        unet ([`UNet2DModel`]): The model.

    Raises:
        UserError: `openvino` is not installed, the U-Net is conditioned on classes, or not on the CPU.
    """

    def __init__(self, unet: Any):
        try:
            import openvino
        except ImportError as error:
            raise missing_extra("openvino", error.name) from error
        if getattr(unet, "class_embedding", None) is not None:
            raise UserError("This U-Net is conditioned on classes, which --engine openvino does not compute.")
        self.openvino, self.unet = openvino, unet
        self._state: tuple = ()
        self._converted: dict[tuple, Any] = {}
        self._compiled: dict[tuple, Any] = {}

    @torch.no_grad()
    def __call__(
        self, extractor: DecoderFeatureExtractor, noisy: torch.Tensor, timesteps: torch.Tensor
    ) -> dict[Block, torch.Tensor]:
        """Activations of the blocks of an extractor.

        Args:
            extractor ([`DecoderFeatureExtractor`]): Of the U-Net.
            noisy (`torch.Tensor`): `[N, C, H, W]`, as the U-Net sees it.
            timesteps (`torch.Tensor`): `[N]`, of its schedule.

        Returns:
            `dict`: `[N, c, h, w]` of each block, in the precision of the U-Net.

        Raises:
            UserError: The U-Net is not on the CPU.
        """
        if self.unet.device.type != "cpu":
            raise UserError(f"--engine openvino computes on the CPU, and the model is on {self.unet.device}.")
        state = state_of(self.unet)
        if state != self._state:
            self._state, self._converted, self._compiled = state, {}, {}
        key = (extractor.blocks, tuple(noisy.shape))
        if key not in self._compiled:
            model = self.convert(extractor, noisy, timesteps)
            model.reshape(dict(zip(model.inputs, ([*noisy.shape], [*timesteps.shape]))))
            self._compiled[key] = self.compile(model)
        found = self._compiled[key]([noisy.float().numpy(), timesteps.numpy()])
        return {block: torch.from_numpy(found[i]).to(noisy.dtype) for i, block in enumerate(extractor.blocks)}

    def convert(self, extractor: DecoderFeatureExtractor, noisy: torch.Tensor, timesteps: torch.Tensor) -> Any:
        """The pass up to the last block in OpenVINO's representation, for images of one size."""
        key = (extractor.blocks, tuple(noisy.shape[1:]))
        if key not in self._converted:
            unet = copy.deepcopy(self.unet).float().to(memory_format=torch.contiguous_format).eval()
            net = _TappedUNet(unet, {tap.index: tap for tap in extractor.taps if tap.index in extractor.blocks})
            given = (noisy.float().contiguous(), timesteps)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer names each comparison of shapes
                traced = torch.jit.trace(net, given, check_trace=False)
            shapes = [[-1, *x.shape[1:]] for x in given]
            self._converted[key] = self.openvino.convert_model(traced, example_input=given, input=shapes)
        return self._converted[key].clone()

    def compile(self, model: Any) -> Any:
        """A converted pass, ready to run in the precision of the U-Net and on as many threads as PyTorch uses."""
        precision = "bf16" if self.unet.dtype == torch.bfloat16 else "f32"
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "ENABLE_CPU_PINNING": False}
        return self.openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision, **threads})


class _TappedUNet(nn.Module):
    """A U-Net whose outputs are those of some taps."""

    def __init__(self, unet: Any, taps: dict[Block, Any]):
        super().__init__()
        self.unet, self.taps = unet, taps

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen: dict[Block, Any] = {}
        with hooked(self.unet, self.taps, seen.__setitem__):
            self.unet(noisy, timesteps)
        found = (seen[block] for block in self.taps)
        return tuple(one[0] if isinstance(one, tuple) else one for one in found)
