# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import re
from pathlib import Path

from setuptools import setup


here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "diffuseseg_diffusers" / "__init__.py").read_text())[1]

# `train` is what reads datasets, measures and draws; generating and segmenting need none of it.
train = ["datasets>=4.0", "evaluate>=0.4.6", "matplotlib>=3.9", "transformers>=5.0"]
analysis = [*train, "scikit-learn>=1.4", "imagecorruptions-imaug>=1.1.5"]
onnx = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
test = [*analysis, *onnx, "pytest>=8.0", "pytest-xdist>=3.6", "hypothesis>=6.100", "tensorboard>=2.15"]

setup(
    name="diffuseseg-diffusers",
    version=version,
    description="Segment images from a handful of labels with the features of a diffusion model",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        "diffuseseg_diffusers",
        "diffuseseg_diffusers.hub_cards",
        "diffuseseg_diffusers.metrics",
        "diffuseseg_diffusers.training",
    ],
    # The scripts for `accelerate launch` and the templates of cards stand at the top level; installed, they are part
    # of the package, so that the command `diffuseseg` finds them.
    package_dir={"diffuseseg_diffusers.training": "training", "diffuseseg_diffusers.hub_cards": "hub_cards"},
    package_data={
        "diffuseseg_diffusers": ["drawn_faces_ddpm/*.json", "drawn_faces_ddpm/*/*"],
        "diffuseseg_diffusers.hub_cards": ["*.md"],
        "diffuseseg_diffusers.metrics": ["mean_iou/mean_iou.py"],
        "diffuseseg_diffusers.training": ["configs/*.json", "configs/benchmarks/*.json"],
    },
    install_requires=[
        "torch>=2.4",
        "diffusers>=0.38",
        "accelerate>=1.0",
        "huggingface_hub>=0.34",
        "jinja2>=3.0",
        "numpy>=1.26",
        "pillow>=10.3",
        "psutil",
        "pyyaml>=6.0",
        "safetensors>=0.4.3",
        "tqdm>=4.60",
    ],
    extras_require={"train": train, "analysis": analysis, "onnx": onnx, "test": test, "dev": [*test, "ruff>=0.9"]},
    entry_points={"console_scripts": ["diffuseseg=diffuseseg_diffusers.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
