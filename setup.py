# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Which folders are packaged; metadata and dependencies are in pyproject.toml."""

from setuptools import find_packages, setup


SHIPPED_MODELS = ("drawn_faces_ddpm", "general_ddpm")

setup(
    packages=[
        *find_packages(include=["diffuseseg_diffusers", "diffuseseg_diffusers.*"]),
        "diffuseseg_diffusers.hub_cards",
        "diffuseseg_diffusers.training",
    ],
    # The scripts for `accelerate launch` and the templates of cards stand at the top level; installed, they are part
    # of the package, so that the command `diffuseseg` finds them.
    package_dir={"diffuseseg_diffusers.training": "training", "diffuseseg_diffusers.hub_cards": "hub_cards"},
    package_data={
        "diffuseseg_diffusers": ["py.typed"],
        "diffuseseg_diffusers.datasets": [f"{name}/{files}" for name in SHIPPED_MODELS for files in ("*.json", "*/*")],
        "diffuseseg_diffusers.hub_cards": ["*.md"],
        "diffuseseg_diffusers.labeling": ["static/*"],
        "diffuseseg_diffusers.metrics": ["mean_iou/mean_iou.py"],
        "diffuseseg_diffusers.paper": ["benchmarks/*.json"],
        "diffuseseg_diffusers.training": ["configs/*.json"],
    },
)
