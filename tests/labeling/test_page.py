# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The page in a real browser: from strokes to results."""

import json
import zipfile

import numpy as np
import pytest

from diffuseseg_diffusers.datasets.drawn_faces import LABEL_NAMES, SHIPPED_MODEL
from diffuseseg_diffusers.labeling.journal import Journal

from ..conftest import run
from .page import Page, write_faces


pytestmark = pytest.mark.slow


def test_from_strokes_to_a_dataset(tmp_path, browser, start):
    masks = write_faces(tmp_path / "faces")
    command = ["--model", SHIPPED_MODEL, "--images", tmp_path / "faces", "--session", tmp_path / "session"]
    command += ["--recipe", "fast"]
    server = start(*command, "--classes", *LABEL_NAMES)
    page = Page(browser, server.address)
    page.ready()

    # Strokes of every class in the suggested picture, with the mouse; the mask follows.
    first = page.picture
    assert page.page.locator("#pictures li").count() == 6
    present = [int(label) for label in np.unique(masks[first]) if label != 255]
    for count, label in enumerate(present, 1):
        page.page.keyboard.press("[") if label == present[0] else None
        page.paint(masks[first], label)
        page.wait_for(count)
    measured = page.page.evaluate("performance.getEntriesByName('stroke-to-mask').map((entry) => entry.duration)")
    assert len(measured) >= 1
    journal = Journal(tmp_path / "session" / "strokes.jsonl")
    drawn = journal.resolved(journal.labels(first, masks[first].shape).ids)
    labelled = drawn != 255
    assert set(np.unique(drawn[labelled])) == set(present)
    assert (drawn[labelled] == masks[first][labelled]).mean() > 0.6  # the brush is wider than eyes are

    # A region of the prediction is accepted, taken back, and taken again.
    page.page.keyboard.press("a")
    page.page.mouse.click(*page.at(2, 2, masks[first].shape))
    page.wait_for(len(present) + 1)
    page.page.keyboard.press("Control+z")
    page.wait_for(len(present))
    page.page.keyboard.press("Control+y")
    page.wait_for(len(present) + 1)
    assert [s.kind for s in Journal(tmp_path / "session" / "strokes.jsonl").active()][-1] == "accept"

    # The next picture, by keyboard alone.
    page.page.keyboard.press("n")
    page.until(f"decodeURIComponent(location.hash.slice(1)) !== {first!r}")
    page.page.locator("#places li").first.wait_for()
    assert page.page.evaluate("document.activeElement.id") == "view"
    page.page.keyboard.press("2")
    for key in ["+"] * 6 + ["ArrowRight"] * 12:  # the picture follows the cursor
        page.page.keyboard.press(key)
    page.page.wait_for_timeout(100)
    box = page.page.locator("#view").bounding_box()
    shown = page.page.screenshot(clip=box)
    page.page.keyboard.press("Enter")
    page.wait_for(len(present) + 2)
    page.page.wait_for_timeout(200)
    assert page.page.screenshot(clip=box) != shown  # the stroke is in the window
    page.page.keyboard.press("0")

    # A suggested place is one click away.
    page.page.locator("#places button").first.click()
    assert page.page.evaluate("document.activeElement.id") == "view"
    page.page.keyboard.press("0")

    # A second tab draws; both tabs' strokes stay.
    other = Page(browser, f"{server.address}#{page.picture}")
    second = [int(label) for label in np.unique(masks[page.picture]) if label != 255]
    other.paint(masks[other.picture], second[0])
    other.wait_for(len(present) + 3)
    page.wait_for(len(present) + 3)  # by itself
    page.paint(masks[page.picture], second[1])
    page.wait_for(len(present) + 4)
    assert len(Journal(tmp_path / "session" / "strokes.jsonl").active()) == len(present) + 4
    assert other.errors == []
    other.page.close()

    # A reload, a kill and a new start lose nothing.
    page.page.reload()
    page.wait_for(len(present) + 4)
    assert page.errors == []
    page.page.close()
    server.kill()
    server = start(*command)
    page = Page(browser, server.address)
    page.ready()
    page.wait_for(len(present) + 4)

    # What comes out is read by the other commands.
    page.page.click("#finish")
    page.until("document.querySelector('#finish-state').textContent.startsWith('Fitted in')", seconds=300)
    with page.page.expect_download() as waiting:
        page.page.click("#download")
    waiting.value.save_as(tmp_path / "labels.zip")
    assert page.errors == []
    page.page.close()
    server.kill()
    zipfile.ZipFile(tmp_path / "labels.zip").extractall(tmp_path / "out")
    evaluated = run(
        *("diffuseseg", "evaluate", "--model", tmp_path / "out" / "pipeline"),
        *("--dataset_name", tmp_path / "out" / "dataset", "--output_dir", tmp_path / "eval"),
    )
    assert "mean IoU" in evaluated.stdout
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["num_images"] == 2 and metrics["mean_iou"] > 0.3


def test_without_the_token_of_the_address_nothing_is_shown(tmp_path, browser, start):
    write_faces(tmp_path / "faces")
    server = start("--model", SHIPPED_MODEL, "--images", tmp_path / "faces", "--classes", "skin", "hair")
    wrong = browser.new_page()
    wrong.goto(server.address.split("?")[0])
    wrong.wait_for_selector("#message:not([hidden])")
    assert "open the address that the terminal shows" in wrong.inner_text("#message")
    assert wrong.locator("#pictures li").count() == 0


@pytest.mark.parametrize("size", [(1280, 800), (820, 1180)])
def test_nothing_overlaps_on_a_laptop_and_on_a_tablet(tmp_path, browser, start, size):
    write_faces(tmp_path / "faces")
    server = start("--model", SHIPPED_MODEL, "--images", tmp_path / "faces", "--classes", *LABEL_NAMES)
    page = Page(browser, server.address)
    page.page.set_viewport_size({"width": size[0], "height": size[1]})
    page.page.wait_for_timeout(300)
    wide = page.page.evaluate(
        "[...document.querySelectorAll('button, input, h2, footer')].filter((e) => e.scrollWidth > e.clientWidth + 1 "
        "&& !['color', 'range'].includes(e.type) && getComputedStyle(e).overflow === 'visible')"
        ".map((e) => e.id || e.textContent)"
    )
    assert wide == []
    assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    view = page.page.locator("#view").bounding_box()
    assert view["width"] > 0.45 * size[0] and view["height"] > 0.45 * size[1]
    unnamed = page.page.evaluate(
        "[...document.querySelectorAll('button, input, canvas[tabindex]')].filter((e) => "
        "!e.textContent.trim() && !e.getAttribute('aria-label') && !e.closest('label')).map((e) => e.outerHTML)"
    )
    assert unnamed == []
    assert page.errors == []
    server.kill()


def test_next_goes_through_the_list_and_a_list_without_masks_shows_none(tmp_path, browser, start):
    masks = write_faces(tmp_path / "faces")
    page = Page(
        browser, start("--model", SHIPPED_MODEL, "--images", tmp_path / "faces", "--classes", *LABEL_NAMES).address
    )
    page.ready()
    page.until("[...document.querySelectorAll('#pictures button')].every((b) => b.title.includes(': '))")  # all ranked
    seen = [page.picture]
    for _ in range(5):
        page.page.keyboard.press("n")
        page.until(f"decodeURIComponent(location.hash.slice(1)) !== {seen[-1]!r}")
        seen.append(page.picture)
    assert sorted(seen) == sorted(masks)
    pixels = "[...document.querySelectorAll('#pictures canvas')].map((c) => c.toDataURL()).join()"
    page.page.wait_for_timeout(300)
    bare = page.page.evaluate(pixels)
    for label in (0, 1):
        page.paint(masks[page.picture], label)
        page.wait_for(label + 1)
    page.until(f"{pixels} !== {bare!r}")
    for left in (1, 0):
        page.page.keyboard.press("Control+z")
        page.wait_for(left)
    page.until(f"{pixels} === {bare!r}")
    assert page.errors == []
