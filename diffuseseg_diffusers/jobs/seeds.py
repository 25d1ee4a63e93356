# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Seeds that depend on several numbers: of a run and an image, of a run and a member."""

import numpy as np


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers; neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def mixed_seed_32(*numbers: int) -> int:
    """The same in 32 bits, for the members of an ensemble and the augmented views that it learns from."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
