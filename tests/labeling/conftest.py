# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pictures to label, sessions on them, and strokes that tell the truth."""

import os
import resource
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from diffuseseg_diffusers.labeling.regions import to_runs
from diffuseseg_diffusers.labeling.session import LabelSession

from ..conftest import draw, make_pipeline
from .page import Server


NAMES = ["sky", "disc", "bar"]


@pytest.fixture(scope="session")
def pipe():
    """A small U-Net with random weights; to be left as it is."""
    return make_pipeline()


@pytest.fixture
def pictures(tmp_path):
    """A folder with six drawn pictures of two sizes, and their true masks by name."""
    folder, masks = tmp_path / "pictures", {}
    folder.mkdir()
    for seed in range(6):
        name = f"{seed}.png"
        image, masks[name] = draw((24, 30) if seed < 4 else (16, 16), seed)
        Image.fromarray(image).save(folder / name)
    return folder, masks


@pytest.fixture
def open_session(pipe, pictures, tmp_path):
    """Opens the session in a folder, again and again."""

    def opened(**kwargs) -> LabelSession:
        kwargs = {"pipe": pipe, "class_names": NAMES, **kwargs}
        return LabelSession(images=pictures[0], folder=tmp_path / "session", **kwargs)

    return opened


@pytest.fixture
def session(open_session):
    """With features, and without labels."""
    session = open_session()
    session.extract()
    return session


@pytest.fixture
def stack(tmp_path):
    """Twelve slowly changing planes of 16 bits in a folder with nothing else, and their true masks by name."""
    tifffile = pytest.importorskip("tifffile")
    (tmp_path / "stacks").mkdir()
    y, x = np.mgrid[:24, :30]
    masks = {}
    for z in range(12):
        mask = ((y - 6 - z) ** 2 + (x - 8 - z) ** 2 < 30).astype(np.uint8)
        masks[f"stack.tif, z {z + 1}"] = np.where(abs(y - 20) < 2, 2, mask).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 5000, (12, 24, 30))
    values = (np.array([10000, 30000, 55000])[np.stack(list(masks.values()))] + noise).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stacks" / "stack.tif", values, imagej=True, metadata={"axes": "ZYX"})
    return tmp_path / "stacks", masks, values


def true_runs(mask: np.ndarray, label: int, length: int = 5) -> list[list[int]]:
    """A horizontal stroke on a class, as far inside it as can be."""
    depth = distance_transform_edt(np.pad(mask == label, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), mask.shape)
    inside = np.zeros(mask.shape, bool)
    inside[y, max(0, x - length // 2) : x + length // 2 + 1] = True
    return to_runs(inside & (mask == label), label)


def label(session: LabelSession, masks: dict, names: list[str]) -> list[int]:
    """One true stroke of each class in some pictures."""
    return [session.draw(n, true_runs(masks[n], int(c))) for n in names for c in np.unique(masks[n])]


@contextmanager
def full_disk(size: int):
    """No file of this process can grow beyond so many bytes: what a full disk does to a write, at that place."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def start():
    """Starts servers, and ends those that are left."""
    servers = []

    def started(*arguments) -> Server:
        servers.append(Server(*arguments))
        return servers[-1]

    yield started
    for server in servers:
        server.kill()


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = os.environ.get("DIFFUSESEG_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("There is no Chromium; see CONTRIBUTING.md")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()
