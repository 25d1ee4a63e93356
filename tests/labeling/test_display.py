# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import io
import json
import os
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffuseseg_diffusers import UserError
from diffuseseg_diffusers.datasets.columns import ReadImage
from diffuseseg_diffusers.images.channels import InputChannels
from diffuseseg_diffusers.labeling import pictures
from diffuseseg_diffusers.labeling.display import View, show
from diffuseseg_diffusers.labeling.pictures import LastRead, Picture, find_pictures
from diffuseseg_diffusers.labeling.server import create_app


GRID = np.arange(8 * 10).reshape(8, 10)
DEEP = (GRID * 800).astype(np.uint16)  # 0 to 63,200
RGB = np.stack([GRID * 3, 255 - GRID, GRID], 2).astype(np.uint8)
TWO = np.stack([GRID, GRID * 10 + 5]).astype(np.uint16)
FLOAT = (GRID / 100).astype(np.float32)
FLOAT[0, 0], FLOAT[7, 8], FLOAT[7, 9] = np.nan, -np.inf, np.inf  # 0.01 to 0.77 of the others


def formula(values, low, high, gamma=1.0, invert=False):
    x = ((np.asarray(values, float) - low) / (high - low)).clip(0, 1) ** (1 / gamma)
    return (1 - x if invert else x) * 255


def seen(image, name="a.tif", **view):
    """An image or array `[H, W, C]` as it is shown, and what is reported of it."""
    found = ReadImage(image, name)
    shown, lines, display = show(found, name, View(**view), InputChannels())
    json.dumps(display, allow_nan=False)
    return np.asarray(shown, float), lines, display


def off(shown, expected):
    return np.abs(shown - expected).max()


def tiff(path, values, **options) -> Picture:
    tifffile.imwrite(path, values, **options)
    return find_pictures(path.parent)[0][path.name]


def test_a_narrow_range_of_sixteen_bits_fills_the_screen(tmp_path):
    shown, lines, display = tiff(tmp_path / "a.tif", DEEP).shown(InputChannels(), View(4000, 8000))
    assert off(np.asarray(shown, float), formula(DEEP, 4000, 8000)) <= 0.5
    assert lines == ["Shown from 4,000 to 8,000 for display alone. For the model, 0 is black and 65,535 white."]
    expected = {"low": 4000, "high": 8000, "least": 0, "most": 63200, "automatic": False}
    assert display == {**expected, "channels": ["gray"], "channel": None}
    assert all(isinstance(display[key], int) for key in ("low", "high", "least", "most"))


def test_without_a_window_eight_bits_are_as_they_are_and_others_are_stretched():
    picture = Image.fromarray(RGB)
    shown, lines, display = seen(picture)
    assert np.array_equal(shown, RGB) and not lines
    expected = {"low": 0, "high": 255, "least": 0, "most": 255, "automatic": True, "channel": None}
    assert display == {**expected, "channels": ["red", "green", "blue"]}
    shown, (line,), display = seen(DEEP[..., None])
    low, high = np.percentile(DEEP, (0.5, 99.5))
    assert (display["low"], display["high"], display["automatic"]) == (low, high, True)
    assert off(shown, formula(DEEP, low, high)) <= 0.5 and f"{low:,.5g} to {high:,.5g}" in line


def test_all_colours_share_a_window_and_one_can_be_shown_alone():
    picture = Image.fromarray(RGB)
    shown, (line,), display = seen(picture, low=20.5, high=60)
    assert off(shown, formula(RGB, 20.5, 60)) <= 0.5
    assert line == "Shown from 20.5 to 60 for display alone. For the model, 0 is black and 255 white."
    shown, lines, display = seen(picture, channel="green")
    assert np.array_equal(shown, RGB[..., 1]) and not lines
    assert (display["least"], display["most"], display["channel"]) == (176, 255, "green")
    assert off(seen(picture, channel="blue", low=3, high=50)[0], formula(RGB[..., 2], 3, 50)) <= 0.5
    assert np.array_equal(np.asarray(picture), RGB)


def test_channels_of_a_tiff_are_stretched_one_by_one_or_share_a_window(tmp_path):
    picture = tiff(tmp_path / "a.tif", TWO, photometric="minisblack", metadata={"axes": "CYX"})
    shown, lines, display = picture.shown(InputChannels())
    ranges = [np.percentile(values, (0.5, 99.5)) for values in TWO]
    for i in range(2):
        assert off(np.asarray(shown, float)[..., i], formula(TWO[i], *ranges[i])) <= 0.5
    assert not np.asarray(shown)[..., 2].any() and "0, 1 are shown as red and green" in lines[0]
    assert (display["low"], display["high"]) == (ranges[0][0], ranges[1][1])
    assert (display["least"], display["most"], display["channels"]) == (0, 795, ["0", "1"])
    shared = np.asarray(picture.shown(InputChannels(), View(10, 500)).image, float)
    assert off(shared[..., :2], formula(TWO.transpose(1, 2, 0), 10, 500)) <= 0.5
    shown, lines, display = picture.shown(InputChannels(), View(channel="1"))
    assert shown.mode == "L" and off(np.asarray(shown, float), formula(TWO[1], *ranges[1])) <= 0.5
    assert (display["least"], display["most"], display["channel"]) == (5, 795, "1") and len(lines) == 1
    with pytest.raises(UserError, match="^a.tif has no channel 'DAPI'; it has 0, 1.$"):
        picture.shown(InputChannels(), View(channel="DAPI"))


@pytest.mark.parametrize("view", [{}, {"low": 0.2, "high": 0.4}, {"low": 0.2, "high": 0.4, "invert": True}])
@pytest.mark.parametrize("as_picture", [False, True])
def test_what_is_no_number_is_black_and_no_extreme(view, as_picture):
    shown, _, display = seen(Image.fromarray(FLOAT) if as_picture else FLOAT[..., None], **view)
    finite = np.isfinite(FLOAT)
    assert (shown[~finite] == 0).all() and finite.sum() == 77
    assert (display["least"], display["most"]) == (FLOAT[0, 1], FLOAT[7, 7])
    asked = {"invert": view.get("invert", False)}
    assert off(shown[finite], formula(FLOAT[finite], display["low"], display["high"], **asked)) <= 0.51


def test_pixels_without_a_measurement_are_black_and_no_extremes():
    gaps = GRID < 8
    found = ReadImage(np.where(gaps, 9999, DEEP + 100)[..., None], "a.tif", gaps=gaps)
    shown, _, display = show(found, "a.tif", View(0, 70000, invert=True), InputChannels())
    assert not np.asarray(shown)[gaps].any() and (display["least"], display["most"]) == (6500, 63300)
    eight = ReadImage(Image.fromarray(GRID.astype(np.uint8)), "a.tif", gaps=gaps)
    shown, _, display = show(eight, "a.tif", View(), InputChannels())
    assert np.array_equal(np.asarray(shown), GRID) and (display["least"], display["most"]) == (8, 79)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0, 7, np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_a_picture_of_one_value_is_shown(value, dtype):
    if not np.isfinite(value) and dtype != "float32":
        return
    values = np.full((8, 10, 1), value, dtype)
    for view in ({}, {"gamma": 2.0}, {"low": 0, "high": 14}):
        shown, _, display = seen(values, **view)
        assert display["least"] == display["most"] == (value if np.isfinite(value) else None)
        if "low" in view:
            assert (shown == (128 if value == 7 else 0)).all()


TYPES = ["bool", "uint8", "int8", "uint16", "int16", ">u2", ">i2", "uint32", "int32", "float32", "float64"]


@given(
    dtype=st.sampled_from(TYPES),
    numbers=st.lists(st.integers(-40_000, 70_000), min_size=4, max_size=4),
    low=st.floats(-50_000, 70_000),
    width=st.floats(0.01, 70_000),
    gamma=st.floats(0.1, 10),
    invert=st.booleans(),
    count=st.integers(1, 4),
)
def test_every_type_of_value_is_shown_by_the_formula(dtype, numbers, low, width, gamma, invert, count):
    values = np.array(numbers).astype(dtype).reshape(2, 2)
    values = np.stack([np.roll(values, i) for i in range(count)], 2)
    view = {"low": low, "high": low + width, "gamma": gamma, "invert": invert}
    expected = formula(values, low, low + width, gamma, invert)
    shown = seen(values, **view)[0]
    assert (
        off(shown if count == 1 else shown[..., : min(count, 3)], expected[..., 0 if count == 1 else slice(3)]) < 0.51
    )
    if dtype == "uint8" and count in (1, 3):
        picture = Image.fromarray(values[..., 0] if count == 1 else values)
        assert np.array_equal(seen(picture, **view)[0], shown)


def test_gamma_and_inversion_are_told_of():
    (line,) = seen(Image.fromarray(RGB), gamma=2.2, invert=True)[1]
    assert line.startswith("Shown from 0 to 255 for display alone, gamma 2.2, inverted. For the model, 0 is black")
    (line,) = seen(DEEP[..., None], gamma=0.5)[1]
    assert line.startswith("Stretched for display alone, from percentile 0.5 to 99.5: 316 to 62,884, gamma 0.5. For")


@pytest.mark.parametrize(
    ("view", "sentence"),
    [
        ({"low": 3}, "only low was given"),
        ({"high": 3}, "only high was given"),
        ({"low": 3, "high": 3}, "a low and a greater high value, got 3 and 3"),
        ({"low": float("nan"), "high": 3}, "got nan and 3"),
        ({"low": 0, "high": float("inf")}, "got 0 and inf"),
        ({"gamma": 0.05}, "Gamma is a number from 0.1 to 10, got 0.05"),
        ({"gamma": float("nan")}, "got nan"),
    ],
)
def test_what_is_no_window_is_refused(view, sentence):
    with pytest.raises(UserError, match=sentence):
        View(**view)


def counted(monkeypatch):
    """Names of the pictures that are decoded from now on."""
    decoded = []
    real = pictures.read_image
    monkeypatch.setattr(pictures, "read_image", lambda *a: decoded.append(a[1]) or real(*a))
    return decoded


def test_a_picture_is_decoded_again_only_after_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    for name in ("a.png", "b.png"):
        Image.fromarray(RGB).save(tmp_path / name)
    found = find_pictures(tmp_path)[0]
    decoded, last, channels = counted(monkeypatch), LastRead(), InputChannels()
    first = last.read(found["a.png"], channels)
    assert last.read(found["b.png"], channels, keep=False) and last.read(found["a.png"], channels) is first
    assert decoded == ["a.png", "b.png"]
    Image.fromarray(RGB[::-1].copy()).save(path)
    os.utime(path, ns=(1, 1))
    assert np.array_equal(np.asarray(last.read(found["a.png"], channels).image), RGB[::-1])
    monkeypatch.setattr(pictures, "KEPT", 8 * 10 * 3)  # Pillow has four bytes for the three of a pixel
    for _ in range(2):
        last.read(found["b.png"], channels)
    assert decoded == ["a.png", "b.png", "a.png", "b.png", "b.png"]
    last.read(found["a.png"], channels)
    path.unlink()
    with pytest.raises(UserError, match="a.png"):
        last.read(found["a.png"], channels)


def test_a_kept_picture_that_became_a_link_out_of_the_folder_is_not_shown(tmp_path):
    inside, outside = tmp_path / "in" / "a.png", tmp_path / "a.png"
    inside.parent.mkdir()
    Image.fromarray(RGB).save(inside)
    picture, last = find_pictures(inside.parent)[0]["a.png"], LastRead()
    last.read(picture, InputChannels())
    inside.rename(outside)  # of the same size and time
    inside.symlink_to(outside)
    with pytest.raises(UserError, match="is a link by now"):
        last.read(picture, InputChannels())


@pytest.fixture
def get(tmp_path):
    """Asks the route for a picture of a folder of three."""
    Image.fromarray(RGB).resize((80, 64)).save(tmp_path / "rgb.png")
    tifffile.imwrite(tmp_path / "deep.tif", DEEP)
    tifffile.imwrite(tmp_path / "two.tif", TWO, photometric="minisblack", metadata={"axes": "CYX"})
    found = find_pictures(tmp_path)[0]
    pipe = SimpleNamespace(channels=InputChannels())
    session = SimpleNamespace(pictures=found, picture=found.__getitem__, pipe=pipe, folder=tmp_path)
    client = TestClient(create_app(session, None, None, None))
    return lambda picture, **params: client.get("/api/image", params={"picture": picture, **params})


def test_the_route_shows_a_window_and_tells_of_it(get):
    answer = get("deep.tif", low=4000, high=8000, gamma=2, invert=True)
    shown = np.asarray(Image.open(io.BytesIO(answer.content)), float)
    assert off(shown, formula(DEEP, 4000, 8000, 2, True)) <= 0.5
    expected = {"low": 4000, "high": 8000, "least": 0, "most": 63200, "automatic": False}
    assert json.loads(answer.headers["X-Display"]) == {**expected, "channels": ["gray"], "channel": None}
    assert "Shown from 4,000 to 8,000" in json.loads(answer.headers["X-Notes"])[0]
    assert json.loads(get("two.tif", channel="1").headers["X-Display"])["channel"] == "1"
    assert json.loads(get("deep.tif").headers["X-Display"])["automatic"]


def test_a_thumbnail_leaves_the_kept_picture_whole(get):
    for side, size in ((None, (80, 64)), (16, (16, 13)), (None, (80, 64))):
        answer = get("rgb.png", **({"side": side} if side else {}))
        assert Image.open(io.BytesIO(answer.content)).size == size


@pytest.mark.parametrize(
    ("params", "status", "sentence"),
    [
        ({"low": 3}, 400, "only low was given"),
        ({"low": 3, "high": 2}, 400, "got 3 and 2."),
        ({"low": "nan", "high": 2}, 400, "got nan and 2."),
        ({"gamma": 11}, 400, "from 0.1 to 10, got 11."),
        ({"channel": "DAPI"}, 400, "two.tif has no channel 'DAPI'; it has 0, 1."),
        ({"low": "dark", "high": 2}, 422, "The request does not fit: low: "),
    ],
)
def test_the_route_refuses_in_one_sentence(get, params, status, sentence):
    answer = get("two.tif", **params)
    assert answer.status_code == status and sentence in answer.json()["error"]


def test_the_route_shows_each_plane_of_a_stack(tmp_path):
    planes = np.stack([RGB[..., 0], RGB[::-1, :, 1]])
    tifffile.imwrite(tmp_path / "stack.tif", planes, photometric="minisblack", metadata={"axes": "ZYX"})
    found = find_pictures(tmp_path)[0]
    pipe = SimpleNamespace(channels=InputChannels())
    session = SimpleNamespace(pictures=found, picture=found.__getitem__, pipe=pipe, folder=tmp_path)
    client = TestClient(create_app(session, None, None, None))
    for z in (1, 2, 1):
        answer = client.get("/api/image", params={"picture": f"stack.tif, z {z}"})
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), planes[z - 1])
