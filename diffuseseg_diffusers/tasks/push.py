# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Uploads a folder to the Hub: `diffuseseg push`."""

import argparse
from pathlib import Path

from ..hub.push import push_folder
from ..jobs.files import read_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="Folder with a pipeline, a student or a dataset.")
    parser.add_argument("repo_id", metavar="REPO", help="Repository on the Hub, user/name; made if it is not there.")
    parser.add_argument("--private", action="store_true", help="Privacy of the repository, if it is a new one.")
    parser.add_argument(
        "--commit_message", help="Message of the commit (default: Upload pipeline, student or dataset)."
    )
    parser.add_argument(
        "--create_pr", action="store_true", help="Upload as a pull request, to look at before it is merged."
    )
    parser.add_argument("--license", help="Identifier of the licence on the Hub, such as cc-by-4.0 (default: unknown).")
    parser.add_argument(
        "--evaluation",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="Folders that `diffuseseg evaluate` wrote, for the card of a pipeline.",
    )
    parser.add_argument(
        "--analysis",
        type=Path,
        metavar="DIR",
        help="Folder that `diffuseseg analyze` wrote, for the card of a pipeline.",
    )
    parser.add_argument(
        "--num_samples",
        type=int,
        default=8,
        help="Number of images to generate for the card of a pipeline; 0: none (default: 8).",
    )


def main(args: argparse.Namespace) -> None:
    evaluations = [read_json(folder / "metrics.json") for folder in args.evaluation]
    url = push_folder(
        args.folder,
        args.repo_id,
        commit_message=args.commit_message,
        private=args.private or None,
        create_pr=args.create_pr,
        license=args.license,
        evaluations=evaluations,
        num_samples=args.num_samples,
        analysis=args.analysis,
    )
    print(f"Pushed: {url}")
