# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Options of `diffuseseg train-ddpm`; the training is `training/train_ddpm.py`."""

from dataclasses import dataclass

from ..jobs.config import exclusive, option
from ..jobs.errors import UserError
from .options import MODEL_ALIASES, CachesDownloads, PushesModel, WritesFolder, needs
from .train_options import DrawsSamples, KeepsCheckpoints, ReadsUnlabeled, SetsChannels, TrainsBySteps


DENOISERS = ("unet", "dit")
BETA_SCHEDULES = ("linear", "cosine")
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


@dataclass(frozen=True, kw_only=True)
class TrainDDPMConfig(
    ReadsUnlabeled,
    SetsChannels,
    TrainsBySteps,
    KeepsCheckpoints,
    DrawsSamples,
    CachesDownloads,
    PushesModel,
    WritesFolder,
):
    """Train a diffusion model on unlabelled images."""

    title = "model"

    vae: str | None = option(
        None, "Autoencoder whose latents are denoised: a local folder or a name on the Hub.", reads=True
    )
    denoiser: str = option("unet", "Kind of model: a U-Net, or a transformer on square latents.", choices=DENOISERS)
    model_config: str | None = option(
        None, "Arguments of the model: JSON, YAML, or a folder or Hub name with a U-Net.", reads=True
    )
    pretrained: str | None = option(
        None,
        "Pipeline to start from: a local folder, a name on the Hub, or general, which comes with the package.",
        aliases=MODEL_ALIASES,
        reads=True,
    )
    base_channels: int | None = option(
        None, "Width of the preset for the resolution (default: 32 on a CPU, else the preset's)."
    )
    dropout: float = option(0.0, "Dropout rate in the residual layers.")
    beta_schedule: str | None = option(
        None, "Noise schedule (default: linear).", choices=BETA_SCHEDULES, group="objective"
    )
    prediction_type: str | None = option(
        None, "Quantity that the model predicts (default: epsilon).", choices=PREDICTION_TYPES, group="objective"
    )
    snr_gamma: float | None = option(
        None, "γ of Min-SNR weighting; 5 is usual (default: no weighting).", group="objective"
    )
    num_inference_steps: int = option(
        50, "DDIM steps of a sample.", minimum=1, group="run", influence=False, why="only what is shown on the way"
    )
    labeled_dataset_name: str | None = option(
        None,
        "Labelled images, a folder or a name on the Hub, that say at the end what the features are worth beside those "
        "of the general model and its untrained twin.",
        group="validation",
        influence=False,
        why="only what is measured at the end",
        reads=True,
    )
    labeled_dataset_config_name: str | None = option(
        None, "Configuration of that dataset.", group="validation", influence=False, why="what is measured at the end"
    )

    def check(self) -> None:
        super().check()
        exclusive(self, "model_config", "pretrained", "base_channels")
        if self.pretrained and (self.beta_schedule or self.prediction_type):
            raise UserError("--pretrained brings its own noise schedule and prediction type; leave the options out.")
        if self.pretrained and self.vae:
            raise UserError("Training of latent models begins anew; leave --pretrained out.")
        if self.vae and (self.input_channels or self.intensity_window or self.intensity_percentiles):
            raise UserError("Autoencoders take pictures of eight bits; leave channels and intensities out, or --vae.")
        if self.vae and self.labeled_dataset_name:
            raise UserError("Only U-Nets on pixels are measured at the end; leave --labeled_dataset_name out.")
        needs(self, "labeled_dataset_name", "labeled_dataset_config_name")
        if self.vae and self.streaming:
            raise UserError("Latents are encoded before training; --streaming and --vae exclude each other.")
