# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which class a pixel gets so that mean IoU is highest, and not the number of pixels that are right.

A pixel that is given to a class with expected intersection I and union U changes its IoU by about
`(p * (1 + IoU) - IoU) / U`, where `p` is the probability that it is of the class: where the IoU is low, a small
probability is enough, and where the class is rare, a pixel counts for more. Each pixel goes to the class that gains
most (Nowozin, *Optimal Decisions from Probabilistic Models: the Intersection-over-Union Case*, CVPR 2014, there for a
single image and by search). I and U are expectations under the probabilities themselves, so that no label is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..jobs.errors import UserError


ROUNDS = 8  # the expectations settle in three or four
TINY = 1e-30  # what float32 can divide by
LEAST = 1e-3  # share of the pixels: a class of which fewer are expected gets what is probably of it, and no more


@dataclass(frozen=True)
class Decisions:
    """What decides, beside the probabilities, to which class a pixel goes.

    Args:
        iou (sequence of `float`): Expected IoU of each class, 0 to 1.
        union (sequence of `float`): Expected union of predicted and true pixels of each class, as a share of all.

    Raises:
        UserError: There are none, the two are not of the same length, or out of range.
    """

    iou: Sequence[float]
    union: Sequence[float]

    def __post_init__(self):
        pairs = list(zip(self.iou, self.union, strict=False))
        if not pairs or len(self.iou) != len(self.union) or not all(0 <= x <= 1 and TINY <= y <= 1 for x, y in pairs):
            raise UserError(
                f"Decisions are an IoU from 0 to 1 and a union above 0 and up to 1 for each class, got "
                f"{self.iou!r:.60} and {self.union!r:.60}; remove or repair them."
            )

    @classmethod
    def of(cls, config: Any, num_classes: int) -> "Decisions | None":
        """Those that a config holds, if any; refuses anything else, and those of another number of classes."""
        if config is None:
            return None
        try:
            found = cls(tuple(config["iou"]), tuple(config["union"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"The decisions {config!r:.100} are no lists `iou` and `union`; remove them.") from error
        if len(found.iou) != num_classes:
            raise UserError(f"The decisions are of {len(found.iou)} classes, and there are {num_classes}; remove them.")
        return found

    @property
    def config(self) -> dict:
        """As JSON holds it."""
        return {"iou": list(self.iou), "union": list(self.union)}

    def gains(self, p: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """What each class would gain by a pixel, of the shape of its probabilities, whose classes are along `dim`."""
        shape = [-1 if i == dim % p.ndim else 1 for i in range(p.ndim)]
        iou, union = (torch.tensor(x, dtype=p.dtype, device=p.device).view(shape) for x in (self.iou, self.union))
        return (p * (1 + iou) - iou) / union


def winners(p: torch.Tensor, decisions: Decisions | None, dim: int = 1) -> torch.Tensor:
    """The class of each pixel by its probabilities: the likeliest one, or that which the decisions prefer.

    Args:
        p (`torch.Tensor`): `[..., C, ...]`, classes along `dim`.
        decisions ([`Decisions`], *optional*): What prefers.

    Returns:
        `torch.Tensor` of class ids, int64, without `dim`; of equals the smallest.
    """
    # `max`, not `argmax`: the latter is fourteen times slower along an inner dimension on a CPU.
    return (p if decisions is None else decisions.gains(p, dim)).max(dim=dim).indices


def expected_decisions(p: torch.Tensor) -> Decisions | None:
    """The decisions with the highest expected mean IoU, by the class probabilities `[C, P]` float32 of pixels.

    Starts with the likeliest classes; then expectations and classes take turns. Classes that are not expected do not
    count, and only get pixels that are probably theirs. `None` if the likeliest classes are the best.
    """
    classes, number = p.shape
    present = p.sum(1, dtype=torch.float64)  # [C]; in float32, sums of many pixels would not be right
    there = present >= LEAST * number  # [C]
    now: Decisions | None = None
    best, highest = now, -1.0
    for _ in range(ROUNDS):
        chosen = winners(p, now, 0)
        inside = torch.zeros_like(present).index_add_(0, chosen, p.gather(0, chosen[None])[0].double())
        predicted = torch.bincount(chosen, minlength=classes)
        union = torch.where(there, (present + predicted - inside) / number, LEAST).clamp(max=1)
        iou = torch.where(there, inside / number / union, 1.0).clamp(0, 1)
        if (mean := float(iou[there].mean())) > highest:
            best, highest = now, mean
        now = Decisions(tuple(iou.tolist()), tuple(union.tolist()))
    return best


def image_uncertainty(uncertainty: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Uncertainty score of whole images: the mean over the 10 % most uncertain pixels (DatasetGAN's filter).

    Takes `[..., H, W]` in nats, as `pipe.segment("photo.jpg")` gives it, and returns `[...]` in nats.
    """
    pixels = torch.as_tensor(uncertainty).flatten(-2)
    return pixels.topk(max(1, pixels.shape[-1] // 10), dim=-1).values.mean(-1)
