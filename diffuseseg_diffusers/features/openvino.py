# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Passes of a U-Net on pixels by OpenVINO, on CPUs.

PyTorch brings the weights into the layout of its kernels in every pass, OpenVINO once: it is faster the fewer images go
through the model together (`benchmarks/bench_engines.py`).
"""

import copy
import threading
import warnings
import weakref
from typing import Any

import torch
from torch import nn

from ..jobs.errors import UserError
from ..jobs.install import missing_extra
from .base import Block
from .dry_run import hooked
from .pixel_unet import DecoderFeatureExtractor
from .weights import state_of


KEPT = 4  # passes, of each kind


class OpenVINOEngine:
    """Computes what U-Nets on pixels see, in place of PyTorch: in bfloat16 where the U-Net is, else in float32.

    A pass is compiled for each choice of blocks and each shape of a batch, when it is first asked for, and anew when
    the model or its weights are others ([`state_of`]); the last few are kept.

    Raises:
        UserError: `openvino` is not installed, or cannot be imported.
    """

    def __init__(self) -> None:
        try:
            import openvino
        except ImportError as error:
            if error.name == "openvino":
                raise missing_extra("openvino", error.name) from error
            raise UserError(f"OpenVINO cannot be imported: {error}.") from error
        self.openvino, self._lock = openvino, threading.Lock()
        # Of each U-Net its state, and what was converted and compiled in it.
        self._known: weakref.WeakKeyDictionary[Any, tuple[tuple, dict, dict]] = weakref.WeakKeyDictionary()

    @torch.no_grad()
    def __call__(
        self, extractor: DecoderFeatureExtractor, noisy: torch.Tensor, timesteps: torch.Tensor
    ) -> dict[Block, torch.Tensor]:
        """Activations of the blocks of an extractor.

        Args:
            extractor ([`DecoderFeatureExtractor`]): Of any U-Net without classes.
            noisy (`torch.Tensor`): `[N, C, H, W]`, as the U-Net sees it.
            timesteps (`torch.Tensor`): `[N]`, of its schedule.

        Returns:
            `dict`: `[N, c, h, w]` of each block, in the precision of the U-Net.

        Raises:
            UserError: It does not compute such U-Nets, see [`~OpenVINOEngine.check`], or it is not on the CPU.
        """
        self.check(extractor.model)
        if noisy.device.type != "cpu":
            raise UserError(f"--engine openvino computes on the CPU, and the model is on {noisy.device}.")
        with self._lock:
            compiled = self._pass(extractor, noisy, timesteps)
            found = compiled([noisy.float().numpy(), timesteps.numpy()])
            return {block: torch.from_numpy(found[i]).to(noisy.dtype) for i, block in enumerate(extractor.blocks)}

    def check(self, unet: Any) -> None:
        """Raises [`UserError`] for U-Nets that are conditioned on classes, or scale and shift by the timestep."""
        if getattr(unet, "class_embedding", None) is not None:
            raise UserError("This U-Net is conditioned on classes, which --engine openvino does not compute.")
        if unet.config.get("resnet_time_scale_shift", "default") != "default":  # its compiler ends the process
            raise UserError("This U-Net scales and shifts by the timestep, which --engine openvino does not compute.")

    def _pass(self, extractor: DecoderFeatureExtractor, noisy: torch.Tensor, timesteps: torch.Tensor) -> Any:
        """The pass up to the last block, ready to run on batches of this shape."""
        state = state_of(extractor.model)
        if self._known.get(extractor.model, ((),))[0] != state:
            self._known[extractor.model] = (state, {}, {})
        _, converted, compiled = self._known[extractor.model]
        shape = (extractor.blocks, tuple(noisy.shape[1:]))
        key = (*shape, len(noisy), torch.get_num_threads())
        if key not in compiled:
            if shape not in converted:
                _keep(converted, shape, self.convert(extractor, noisy, timesteps))
            model = converted[shape].clone()
            model.reshape(dict(zip(model.inputs, ([*noisy.shape], [*timesteps.shape]))))
            _keep(compiled, key, self.compile(model, noisy.dtype))
        return compiled[key]

    def convert(self, extractor: DecoderFeatureExtractor, noisy: torch.Tensor, timesteps: torch.Tensor) -> Any:
        """The pass up to the last block in OpenVINO's representation, for any number of images of one size."""
        unet = copy.deepcopy(extractor.model).float().to(memory_format=torch.contiguous_format).eval()
        net = _TappedUNet(unet, {tap.index: tap for tap in extractor.taps if tap.index in extractor.blocks})
        given = (noisy.float().contiguous(), timesteps)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer names each comparison of shapes
            traced = torch.jit.trace(net, given, check_trace=False)
        return self.openvino.convert_model(traced, example_input=given, input=[[-1, *x.shape[1:]] for x in given])

    def compile(self, model: Any, dtype: torch.dtype) -> Any:
        """A converted pass, ready to run on as many threads as PyTorch uses."""
        precision = "bf16" if dtype == torch.bfloat16 else "f32"
        threads = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "ENABLE_CPU_PINNING": False}
        return self.openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision, **threads})


def _keep(known: dict, key: Any, value: Any) -> None:
    known[key] = value
    while len(known) > KEPT:
        del known[next(iter(known))]


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
