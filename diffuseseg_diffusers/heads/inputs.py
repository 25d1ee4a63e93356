# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What a head reads: its members activations, filters of the image, or both; and pictures whole or in tiles."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..features.filters import check_sigmas
from ..jobs.errors import UserError


# The entries of [`Features.activations`], filters last, that a kind of member reads.
READS = {"activations": slice(0, -1), "filters": slice(-1, None), "both": slice(None)}
# From a stranger, a scale far beyond these would ask for billions of tiles, or for tiles of billions of pixels.
SCALES = {"scale": (1e-3, 1e3), "pixel_size": (1e-6, 1e12)}


def member_kinds(inputs: Sequence[str], num_members: int) -> list[str]:
    """What each member reads: `inputs`, one after another, over and over.

    Of a head that sees mirror images, the second half of the members votes on those. Twice as many members as there are
    `inputs`, or a multiple of that, put as many of each kind into both halves.

    Raises:
        UserError: There are no inputs, or there is another one than `"activations"`, `"filters"` and `"both"`.
    """
    wrong = [kind for kind in inputs if kind not in READS]
    if wrong or not inputs:
        raise UserError(f"Members read {', '.join(map(repr, READS))}, got {', '.join(map(repr, wrong)) or 'nothing'}.")
    return [inputs[k % len(inputs)] for k in range(num_members)]


def inputs_config(
    inputs: Sequence[str],
    num_members: int,
    block_channels: Sequence[int],
    blocks: Sequence[Any],
    timesteps: Sequence[int],
    filters: Sequence[float] | None,
) -> dict[str, Any]:
    """What the config of a head says of its inputs: no more of what there is than some member reads.

    Args:
        inputs (sequence of `str`), num_members (`int`): See [`member_kinds`].
        block_channels, blocks, timesteps, filters: What there is, as in [`PixelClassifierEnsemble`].

    Raises:
        UserError: A member would read filters or activations, and there are none.
    """
    kinds = member_kinds(inputs, num_members)
    read = set(kinds or inputs)  # of no members, the ensemble says so
    if read != {"activations"} and not filters:
        raise UserError("Members are to read filters, but none were extracted; give the extractor `filters`.")
    if read != {"filters"} and not blocks:
        raise UserError("Members are to read activations, but none were extracted; give the extractor `blocks`.")
    config: dict[str, Any] = {"member_inputs": kinds if len(read) > 1 else None}
    reads_blocks = read != {"filters"}
    for name, values in (("block_channels", block_channels), ("blocks", blocks), ("timesteps", timesteps)):
        config[name] = list(values) if reads_blocks else []
    return config | {"filters": list(filters or ()) if read != {"activations"} else None}


def check_members(
    num_members: int,
    blocks: Sequence[Any],
    filters: Sequence[float] | None,
    member_inputs: Sequence[str] | None,
    member_weights: Sequence[float] | None,
    voting: str,
    clean: bool = False,
) -> None:
    """Raises [`UserError`] for members that a [`PixelClassifierEnsemble`] cannot have."""
    check_sigmas(filters)
    if num_members < 1:
        raise UserError(f"A head needs one member at least, got {num_members}.")
    if not isinstance(clean, bool):
        raise UserError(f"`clean` is true or false, got {clean!r:.40}.")
    if voting not in ("hard", "soft"):
        raise UserError(f"Voting is 'hard' or 'soft', got {voting!r}.")
    for name, values in (("member_inputs", member_inputs), ("member_weights", member_weights)):
        if values is not None and len(values) != num_members:
            raise UserError(f"`{name}` has {len(values)} entries for {num_members} members.")
    if member_inputs is not None and not (member_kinds(member_inputs, num_members) and blocks and filters):
        raise UserError("`member_inputs` need both `blocks` and `filters`; leave them out.")
    if member_weights is not None and (
        voting != "soft" or min(member_weights) < 0 or not 0 < sum(member_weights) < math.inf
    ):
        raise UserError(f"`member_weights` are of soft votes, 0 or more and not all 0, got {list(member_weights)}.")


def groups_of(member_inputs: Sequence[str] | None, start: int, stop: int) -> list[tuple[Any, slice]]:
    """The members from `start` to `stop` in groups that read the same, and which of the activations that is."""
    if member_inputs is None:
        return [(slice(start, stop), READS["both"])]
    kinds = dict.fromkeys(member_inputs[start:stop])
    return [([k for k in range(start, stop) if member_inputs[k] == kind], READS[kind]) for kind in kinds]


def check_tiling(tiling: Any, image_size: Any = None) -> dict[str, Any]:
    """How labelled images were seen, as a config holds it; empty if it does not say.

    `tiles` is whether they were cut into tiles; `scale`, the model's pixels for one of theirs; `pixel_size`, in
    micrometres, is given if they were brought to one.

    Raises:
        UserError: It is anything else, or a number is far out of range; or `image_size`, if given, is no two sides.
    """
    if image_size is not None:
        sides = list(image_size) if isinstance(image_size, (list, tuple)) else []
        if len(sides) != 2 or not all(hasattr(side, "__index__") and side > 0 for side in sides):
            raise UserError(f"`image_size` is a height and a width in pixels, got {image_size!r:.60}; repair it.")
    valid = tiling is None or isinstance(tiling, Mapping)
    found = dict(tiling) if tiling and valid else {}
    valid = valid and isinstance(found.get("tiles", False), bool)
    for name, (least, most) in SCALES.items():
        value = found.get(name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        valid = valid and (value is None or (number and least <= value <= most))
    if not valid:
        raise UserError(
            f"`tiling` is `tiles`, true or false, and a `scale` and a `pixel_size` above 0 or null, got "
            f"{tiling!r:.60}; repair or remove it."
        )
    return found
