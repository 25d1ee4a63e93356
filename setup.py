# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import re
from pathlib import Path

from setuptools import find_packages, setup


here = Path(__file__).parent
version = re.search(r'__version__ = "(.+)"', (here / "diffuseseg_diffusers" / "__init__.py").read_text())[1]

# `train` is what reads datasets, measures and draws; generating and segmenting need none of it. The lower bounds are
# the oldest versions under which the tests pass, pinned in constraints-oldest.txt.
train = ["datasets>=4.6", "evaluate>=0.4.6", "matplotlib>=3.9", "transformers>=5.22"]
analysis = [*train, "scikit-learn>=1.5", "imagecorruptions-imaug>=1.1.5"]
# Pictures that are read by windows, each format by the library of its field; what is counted in masks; clusters.
tiff = ["tifffile>=2026.3.3", "zarr>=3.1.6"]
geo = [*tiff, "rasterio>=1.4.4"]
medical = ["SimpleITK>=2.5.7"]
objects = [*geo, "pyarrow>=21.0", "pycocotools>=2.0.11", "pyogrio>=0.13", "scikit-image>=0.26", "shapely>=2.2"]
large = [*objects, *medical]
scale = [*train, "datatrove>=0.10.1"]
app = [*train, "fastapi>=0.121", "scipy>=1.14", "uvicorn>=0.38"]
onnx = ["onnx>=1.17", "onnxscript>=0.6.2", "onnxruntime>=1.20"]
test = [
    *analysis,
    *onnx,
    *large,
    *scale,
    *app,
    "hypothesis>=6.100",
    "playwright>=1.55",
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "tensorboard>=2.18",
]
docs = ["mkdocs>=1.6", "mkdocs-material>=9.5", "mkdocstrings[python]>=0.30", "ruff>=0.9"]
lint = ["mypy>=1.13", "pre-commit>=3.7", "ruff>=0.9"]

setup(
    name="diffuseseg-diffusers",
    version=version,
    description="Segment images from a handful of labels with the features of a diffusion model",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    # Addresses of the source, the documentation and the issues belong here (`project_urls`) once the project has a
    # public home. There is none yet, and the name above is not registered on PyPI. The paper is real.
    project_urls={"Paper": "https://arxiv.org/abs/2112.03126"},
    python_requires=">=3.11",
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
        "diffuseseg_diffusers.datasets": ["drawn_faces_ddpm/*.json", "drawn_faces_ddpm/*/*"],
        "diffuseseg_diffusers.hub_cards": ["*.md"],
        "diffuseseg_diffusers.labeling": ["static/*"],
        "diffuseseg_diffusers.metrics": ["mean_iou/mean_iou.py"],
        "diffuseseg_diffusers.paper": ["benchmarks/*.json"],
        "diffuseseg_diffusers.training": ["configs/*.json"],
    },
    install_requires=[
        "torch>=2.9",
        "diffusers>=0.40",
        "accelerate>=1.2",
        "cyclopts>=4.0",
        "filelock>=3.16",
        "huggingface_hub>=1.31",
        "jinja2>=3.1",
        "numpy>=2.0",
        "packaging>=22.0",
        "pillow>=10.3",
        "psutil>=5.9",
        "pyyaml>=6.0",
        "safetensors>=0.8",
        "tqdm>=4.66.3",
    ],
    extras_require={
        "train": train,
        "analysis": analysis,
        "app": app,
        "onnx": onnx,
        "tiff": tiff,
        "zarr": ["zarr>=3.1.6"],
        "geo": geo,
        "medical": medical,
        "objects": objects,
        "large": large,
        "scale": scale,
        "ray": [*scale, "ray>=2.60"],
        "test": test,
        "docs": docs,
        "lint": lint,
        "dev": [*test, *docs, *lint],
    },
    entry_points={"console_scripts": ["diffuseseg=diffuseseg_diffusers.cli:main"]},
    keywords="diffusion segmentation label-efficient few-shot diffusers pytorch",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
