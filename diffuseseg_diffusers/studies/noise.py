# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which features matter: the studies of Baranchuk et al. (ICLR 2022), sections 3 and 4, on anyone's labelled images.

Every activation is computed once, into an [`ActivationTable`] of all blocks and timesteps; a cell of a study trains
small classifiers on some of its columns. Classifiers of several folds, or of several draws of labelled images, are the
members of one ensemble and train side by side.
"""

import torch

from ..features.pixel_unet import DecoderFeatureExtractor, DecoderFeatures


NOISES = ("one", "per timestep", "fresh", "averaged")


class NoiseVariant(DecoderFeatureExtractor):
    """Feature extraction with another choice of noise (paper, section 4, "stochastic feature extraction").

    Args:
        noise (`str`): `"one"` for all images and timesteps, as [`DecoderFeatureExtractor`] does by default;
            `"per timestep"`: one for each timestep, the same for all images; `"fresh"` for every image and timestep;
            `"averaged"`: activations averaged over several fresh ones.
        draws (`int`, defaults to 5): How many, for `"averaged"`.
        **kwargs: As in [`DecoderFeatureExtractor`].
    """

    def __init__(self, *args, noise: str, draws: int = 5, **kwargs):
        super().__init__(*args, **kwargs, share_noise=noise in ("one", "per timestep"))
        self.noise, self.draws = noise, draws if noise == "averaged" else 1

    def _noise(self, images: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        if self.noise != "per timestep":
            return super()._noise(images, generator)
        n, *shape = images.shape
        seeded = torch.Generator().manual_seed(self.noise_seed)
        noise = torch.randn(len(self.timesteps), *shape, generator=seeded)
        return noise.repeat_interleave(n, dim=0).to(images.device)  # [T*N,C,H,W]

    def __call__(self, images: torch.Tensor, *args, **kwargs) -> DecoderFeatures:
        output = super().__call__(images, *args, **kwargs)
        for _ in range(self.draws - 1):
            more = super().__call__(images, *args, **kwargs)
            output.activations = [a + b for a, b in zip(output.activations, more.activations)]
        output.activations = [a / self.draws for a in output.activations]
        return output
