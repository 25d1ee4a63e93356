# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Uploads a folder to the Hub: `diffuseseg push`."""

from dataclasses import dataclass
from pathlib import Path

from ..jobs.config import Config, option
from ..jobs.files import read_json


@dataclass(frozen=True, kw_only=True)
class PushConfig(Config):
    """Upload a pipeline, a student or a dataset to the Hub, with its card."""

    folder: Path = option(help="Folder with a pipeline, a student or a dataset.", positional=True, reads=True)
    repo_id: str = option(help="Repository on the Hub, user/name; created if it does not exist.", positional=True)
    private: bool = option(False, "Make a new repository private.")
    commit_message: str | None = option(None, "Message of the commit (default: Upload pipeline, student or dataset).")
    create_pr: bool = option(False, "Upload as a pull request, to review before merging.")
    license: str | None = option(None, "Identifier of the licence on the Hub, such as cc-by-4.0 (default: unknown).")
    evaluation: tuple[Path, ...] = option(
        (), "Output folders of `diffuseseg evaluate`, for the card of a pipeline.", reads=True
    )
    analysis: Path | None = option(
        None, "Output folder of `diffuseseg analyze`, for the card of a pipeline.", reads=True
    )
    num_samples: int = option(8, "Images to generate for the card of a pipeline; 0: none.")


def push(config: PushConfig) -> str:
    """Uploads a folder to the Hub with its card, in one commit.

    Returns:
        `str`: Address of the commit.

    Raises:
        UserError: The folder holds nothing to push, or the Hub refuses it.

    Examples:
        >>> from diffuseseg_diffusers import PushConfig, push
        >>> push(PushConfig(folder="out/model", repo_id="user/faces-diffuseseg"))
    """
    from ..hub.push import push_folder

    names = ("commit_message", "create_pr", "license", "num_samples", "analysis")
    url = push_folder(
        config.folder,
        config.repo_id,
        private=config.private or None,
        evaluations=[read_json(folder / "metrics.json") for folder in config.evaluation],
        **{name: getattr(config, name) for name in names},
    )
    print(f"Pushed: {url}")
    return url
