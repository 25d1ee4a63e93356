# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which features matter, and why: the studies of Baranchuk et al. (ICLR 2022), on anyone's labelled images."""
