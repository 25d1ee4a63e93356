# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The live head: an ensemble of linear classifiers, fitted in a fraction of a second.

Multinomial logistic regression with a Gaussian prior, each member on the strokes with random weights of its own (the
Bayesian bootstrap: Rubin, 1981). Classes weigh equally, and strokes within a class, however long they are. So what is
learnt takes rare classes to be as frequent as others; how frequent they are is estimated from pixels without a label,
by expectation maximisation (Saerens, Latinne and Decaestecker, Neural Computation 14, 2002), and the classifiers are
moved halfway there. All choices were measured: see docs/labeling.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..heads.sparse import estimate_shares


MEMBERS = 5
PENALTY = 0.03  # of the squared weights
ITERATIONS = 30  # of L-BFGS
PIXELS = 16  # of a stroke that are learnt from
TRUST = 0.5  # in the estimated shares of the classes: 0 takes all classes to be as frequent, 1 believes the estimate


@dataclass
class Sampled:
    """Labelled pixels to fit on; a head needs at least two classes."""

    features: torch.Tensor  # [P,D] float32
    labels: torch.Tensor  # [P] int64, class ids
    strokes: torch.Tensor  # [P] int64, numbers of their strokes
    around: torch.Tensor  # [P,D] float32, features of the places that they are in, see `features.places`

    @classmethod
    def together(cls, parts: Sequence["Sampled"]) -> "Sampled":
        """Concatenates the pixels of several pictures."""
        if not parts:
            none = torch.zeros(0, dtype=torch.long)
            return cls(torch.zeros(0, 1), none, none, torch.zeros(0, 1))
        return cls(*(torch.cat(column) for column in zip(*(vars(part).values() for part in parts))))


@dataclass
class LiveHead:
    """Linear classifiers on reduced features."""

    classes: list[int]  # their ids, ascending; at least two
    weight: torch.Tensor  # [K,D,C] float32
    bias: torch.Tensor  # [K,C] float32
    shares: torch.Tensor  # [C], estimated share of each class in the pictures

    @classmethod
    def fit(cls, known: Sampled, unlabeled: torch.Tensor, seed: int = 0, members: int = MEMBERS) -> "LiveHead":
        """Fits the members on labelled pixels, and the shares on features `[U, D]` float32 that stand for all pictures.

        `seed` is of the members' random weights.
        """
        classes, y = known.labels.unique(return_inverse=True)
        _, stroke = known.strokes.unique(return_inverse=True)
        # A stroke draws its random weight by its number, so that another stroke leaves it as it is.
        draws = torch.stack([_random_weights(seed, k, known.strokes) for k in range(members)])  # [K,P]
        weights = balanced_weights(y, stroke, len(classes), draws)  # [K,P]
        x = torch.cat([known.features, torch.ones(len(known.features), 1)], dim=1)  # [P,D+1]
        solution = _minimize(x, y, weights, len(classes))  # [K,D+1,C]
        head = cls(classes.tolist(), solution[:, :-1], solution[:, -1], torch.full((len(classes),), 1 / len(classes)))
        head.shares = estimate_shares(head.probabilities(unlabeled).mean(0), head.shares)
        head.bias = head.bias + TRUST * (head.shares * len(classes)).clamp(min=1e-6).log()
        return head

    def probabilities(self, features: torch.Tensor) -> torch.Tensor:
        """Class probabilities by member: `[P, D]` to `[K, P, C]`, float32."""
        return torch.baddbmm(self.bias[:, None], features.expand(len(self.weight), -1, -1), self.weight).softmax(-1)

    def predict(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean class probabilities `[P, C]` and uncertainty `[P]`, float32, from features `[P, D]`.

        Uncertainty is the entropy of the mean plus the divergence of the members, in nats, 0 to `log(C) + log(K)`.
        """
        means, uncertainties = [], []
        for part in features.split(2**14):  # small enough for the cache
            p = self.probabilities(part.float())  # [K,P,C]
            mean = p.mean(0)
            entropy = -torch.xlogy(mean, mean).sum(-1)
            divergence = entropy + torch.xlogy(p, p).sum(-1).mean(0)
            means.append(mean)
            uncertainties.append((entropy + divergence).clamp(min=0))
        return torch.cat(means), torch.cat(uncertainties)


def balanced_weights(y: torch.Tensor, stroke: torch.Tensor, classes: int, draws: torch.Tensor) -> torch.Tensor:
    """Weights under which classes count equally, and within a class strokes by their random weights.

    From classes and strokes (`[P]` int64, from 0) and the random weight of each pixel's stroke `[K, P]`: `[K, P]`, 1 in
    sum over the pixels.
    """
    pair = stroke * classes + y  # an accepted region may have pixels of several classes
    w = draws / torch.bincount(pair)[pair]
    of_class = torch.zeros(len(draws), classes).index_add_(1, y, w)  # [K,C]
    return w / (of_class[:, y] * classes)


def _random_weights(seed: int, member: int, strokes: torch.Tensor) -> torch.Tensor:
    """Exponential random numbers that depend on seed, member and stroke alone: `[P]` int64 to `[P]` float32."""
    numbers, inverse = strokes.unique(return_inverse=True)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + member)
    table = -torch.rand(int(numbers[-1]) + 1, generator=generator).clamp(min=1e-6).log()
    return table[numbers][inverse]


def _minimize(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, classes: int) -> torch.Tensor:
    """The weighted logistic regressions of all members at once: `[K, D+1, C]`, the last row the biases."""
    solution = torch.zeros(len(weights), x.shape[1], classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([solution], max_iter=ITERATIONS, tolerance_grad=1e-5, line_search_fn="strong_wolfe")
    target = y.expand(len(weights), -1).reshape(-1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = x @ solution  # [K,P,C]
        loss = F.cross_entropy(logits.flatten(0, 1), target, reduction="none").view_as(weights)
        total = (loss * weights).sum() + PENALTY / 2 * solution[:, :-1].square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    return solution.detach()
