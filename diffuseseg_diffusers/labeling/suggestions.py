# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Active learning: which picture to label next, and where.

Probes are random places of all pictures; a label covers the probes that are similar to it. The gain of labelling R, a
picture or a place in it, is the coverage that it adds:

    gain(R) = sum over p of w_p * max(0, max over q in R of k(p, q) - c_p)

`k` is a Gaussian kernel on features, `c_p` the largest `k` of probe `p` to anything labelled: to the pictures in which
there are labels for a picture, to the labels themselves for a place. It is the greedy step of facility location, as in
MaxHerding (Bae et al., ECCV 2024). Pictures are to be typical, so their probes weigh the same, `w_p = 1`. Of places
those are worth most that are in doubt and of a class with few strokes: `w_p` is the square of the probe's doubt
(entropy of the mean and divergence of the members) times the sum over the classes of probability over number of
strokes. Of a class without a stroke there is no doubt, since the head does not know it: while there is one, half of
the weight is for what is rare among the probes and therefore new; all of it, while there is no head. What it is worth
was measured: see docs/labeling.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F

from .live import LiveHead, Sampled


MAX_PROBES = 2048  # of all pictures together, but two of each at least
ROWS = 1024  # probes that are compared with all others at once
WIDTH = 0.4  # of the kernel, over the median distance of probes
SIMILAR = 0.1  # what is less like anything labelled is called new
NOVELTY = 0.5  # of the weight is for what is new while a class has no stroke; 0.25 and 1 were worse after 20 strokes
NAMED = 3  # classes without a stroke that a reason names
APART = 2  # pixels of the grid of places between two suggestions, at least


@dataclass
class Place:
    """A suggested place."""

    y: int  # on the grid of places
    x: int
    gain: float  # added coverage as a fraction of the total, 0 to 1
    covered: float  # similarity to the nearest labelled place, 0 to 1


class Rule:
    """The rule for some pictures, from the probes `[P, D]` of each."""

    def __init__(self, probes: list[torch.Tensor]):
        each = max(2, MAX_PROBES // len(probes))
        own = [p[:each].float() for p in probes]
        self.points = torch.cat(own)  # [P,D]
        self.picture = torch.repeat_interleave(torch.arange(len(own)), torch.tensor([len(p) for p in own]))  # [P]
        some = torch.pdist(self.points[:: max(1, len(self.points) // 1024)])
        self.width = WIDTH * float(some.median()) if len(some) and some.any() else 1.0
        self.density = torch.empty(len(self.points))
        self.explained = torch.zeros(len(self.points), len(own))  # by each picture
        for rows in torch.arange(len(self.points)).split(ROWS):  # never all pairs at once
            similar = self.kernel(self.points[rows], self.points)  # [r,P]
            self.density[rows] = similar.mean(1)
            of = self.picture.expand(len(rows), -1)
            self.explained[rows] = self.explained[rows].scatter_reduce(1, of, similar, "amax")

    def kernel(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """`[A, D]` and `[B, D]` to `[A, B]`, 0 to 1."""
        return (-torch.cdist(a, b).square() / (2 * self.width**2)).exp()

    def covered(self, points: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
        """Largest similarity of points `[A, D]` to labelled ones `[L, D]`: `[A]`, 0 to 1."""
        parts = [self.kernel(points, part).amax(1) for part in labelled.split(1024) if len(part)]
        return torch.stack(parts).amax(0) if parts else torch.zeros(len(points))

    def picture_gains(self, done: torch.Tensor) -> torch.Tensor:
        """Gain of each picture, 0 to 1; 0 for those that have labels, whose numbers are `done` `[L]` int64."""
        return (self.explained - self.known(done)[:, None]).clamp(min=0).mean(0)

    def known(self, done: torch.Tensor) -> torch.Tensor:
        """Largest similarity of the probes to pictures with labels: `[P]`, 0 to 1."""
        return self.explained[:, done].amax(1) if len(done) else torch.zeros(len(self.points))

    def weights(self, head: LiveHead | None, strokes: torch.Tensor, seek: bool) -> torch.Tensor:
        """Weights of the probes for choosing places, `[P]`, 1 in sum.

        Args:
            head ([`LiveHead`], *optional*), strokes (`torch.Tensor`): `[C]`, how many each of its classes has.
            seek (`bool`): Whether there are classes without a stroke.
        """
        new = F.normalize(1 / self.density, p=1, dim=0)
        if head is None:
            return new
        mean, doubt = head.predict(self.points)
        torn = F.normalize(doubt.square() * (mean / strokes).sum(1), p=1, dim=0)
        return torch.lerp(torn, new, NOVELTY) if seek else torn

    def places(
        self, grid: torch.Tensor, labelled: torch.Tensor, weights: torch.Tensor, taken: torch.Tensor, count: int
    ) -> list[Place]:
        """At most `count` places of a picture, the best first, chosen greedily.

        Args:
            grid (`torch.Tensor`): `[D, h, w]` float32, features of the picture's places.
            labelled (`torch.Tensor`): `[L, D]`, features of all that is labelled.
            weights (`torch.Tensor`): `[P]`, of the probes.
            taken (`torch.Tensor`): Boolean `[h, w]`, places that are labelled.
        """
        height, width = grid.shape[1:]
        candidates = grid.flatten(1).T  # [Q,D]
        near = self.kernel(self.points, candidates)  # [P,Q]
        covered = self.covered(self.points, labelled)
        w = weights / weights.sum().clamp(min=1e-12)
        free = ~taken.flatten()
        found: list[Place] = []
        while free.any() and len(found) < count:
            gains = torch.where(free, w @ (near - covered[:, None]).clamp(min=0), -1.0)
            best = int(gains.argmax())
            y, x = divmod(best, width)
            like = self.covered(candidates[best][None], labelled)
            found.append(Place(y, x, float(gains[best]), float(like[0])))
            covered = torch.maximum(covered, near[:, best])
            around = free.view(height, width)
            around[max(0, y - APART) : y + APART + 1, max(0, x - APART) : x + APART + 1] = False
        return found


@dataclass
class Suggestion:
    """A picture to label next, and where in it."""

    picture: str
    gain: float  # coverage that labelling it would add, 0 to 1; pictures are ranked by it
    reason: str
    places: list[tuple[int, int, str]] = field(default_factory=list)  # y, x, reason, if they were asked for


def finished_last(found: list[Suggestion], states: Mapping[str, str]) -> list[Suggestion]:
    """Puts pictures in which nothing is left to do last, without a gain; as they are if there are no others.

    Args:
        found (list of [`Suggestion`]): All pictures, the best first.
        states (mapping of `str` to `str`): By picture, why nothing is left to do.
    """
    left = [own for own in found if own.picture not in states]
    done = [replace(own, gain=0.0, reason=states[own.picture]) for own in found if own.picture in states]
    return left + done if left else found


class Advice:
    """Suggestions with reasons in words.

    Args:
        rule ([`Rule`]), head ([`LiveHead`], *optional*): Of the pictures, and the live head if there is one.
        known ([`Sampled`]): All that is labelled, which the head was fitted on.
        done (`torch.Tensor`): `[M]` int64, numbers of the pictures in which something is labelled.
        names (`dict`): Names of the classes by id, those without a stroke too.
    """

    def __init__(self, rule: Rule, head: LiveHead | None, known: Sampled, done: torch.Tensor, names: dict[int, str]):
        self.rule, self.head, self.labelled, self.done, self.names = rule, head, known.around, done, names
        of_class, _ = torch.stack([known.labels, known.strokes]).unique(dim=1)
        classes, strokes = of_class.unique(return_counts=True)  # ascending, as the head's
        self.missing = [name for label, name in names.items() if label not in classes.tolist()]
        self.weights = rule.weights(head, strokes, bool(self.missing))

    def pictures(self, names: Sequence[str]) -> list[Suggestion]:
        """All pictures, the best first, with reasons but without places; `names` in the order of the rule's.

        Those that have labels come last, the most doubtful of them first.
        """
        gains, known = self.rule.picture_gains(self.done), self.rule.known(self.done)
        own = [self.rule.picture == i for i in range(len(names))]
        order = sorted(range(len(names)), key=lambda i: (-float(gains[i]), -float(self.weights[own[i]].mean())))
        left = float((1 - known).mean()) or 1.0
        new = [float((known[mine] < SIMILAR).float().mean()) for mine in own]
        reasons = {i: self._why(i, float(gains[i]) / left, new[i]) for i in order}
        return [Suggestion(names[i], float(gains[i]), reasons[i]) for i in order]

    def places(self, grid: torch.Tensor, drawn: np.ndarray, count: int) -> list[tuple[int, int, str]]:
        """Where to label a picture: at most `count` of y, x (in pixels) and reason, the best first.

        Args:
            grid (`torch.Tensor`): `[D, h, w]` float32, features of its places.
            drawn (`np.ndarray`): Boolean `[H, W]`, what is labelled, at the size of the picture.
        """
        taken = F.interpolate(torch.from_numpy(drawn)[None, None].float(), grid.shape[1:], mode="area")[0, 0] > 0.3
        found = []
        for place in self.rule.places(grid, self.labelled, self.weights, taken, count):
            y, x = (int((p + 0.5) * n / m) for p, n, m in zip((place.y, place.x), drawn.shape, grid.shape[1:]))
            new = self.head is None or place.covered < SIMILAR
            found.append((y, x, self._new() if new else self._torn(grid[:, place.y, place.x][None])))
        return found

    def _new(self) -> str:
        said = "nothing like this is labelled yet"
        if not self.missing or not len(self.labelled):
            return said
        more = [f"{len(self.missing) - NAMED} more"] if len(self.missing) > NAMED else []
        return f"{said}; without a stroke: {', '.join(self.missing[:NAMED] + more)}"

    def _why(self, picture: int, share: float, new: float) -> str:
        if not len(self.done):
            return f"stands for {share:.0%} of what the pictures show"
        if picture in self.done:
            return "has labels" if self.head is None else self._torn(self.rule.points[self.rule.picture == picture])
        if new >= 0.05:
            return f"{new:.0%} of it is like nothing in the labelled pictures"
        return f"stands for {share:.0%} of what the labelled pictures do not show"

    def _torn(self, features: torch.Tensor) -> str:
        """The two classes with the closest probabilities at the most ambiguous place."""
        mean, uncertainty = self.head.predict(features)
        first, second = mean[uncertainty.argmax()].topk(2).indices.tolist()
        return f"doubt: {self.names.get(self.head.classes[first])} or {self.names.get(self.head.classes[second])}"
