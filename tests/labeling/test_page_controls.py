# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The page in a real browser: tools, keys, classes, lists, window and level."""

import numpy as np
import pytest
from PIL import Image

from diffuseseg_diffusers.datasets.drawn_faces import LABEL_NAMES, SHIPPED_MODEL
from diffuseseg_diffusers.labeling.journal import Journal

from .page import Page, write_faces


pytestmark = pytest.mark.slow
SIZE = (64, 64)


@pytest.fixture
def page(tmp_path, browser, start):
    write_faces(tmp_path / "faces")
    command = ("--model", SHIPPED_MODEL, "--images", tmp_path / "faces", "--classes", *LABEL_NAMES)
    page = Page(browser, start(*command).address)
    page.ready()
    yield page
    assert page.errors == []


def journal(tmp_path) -> Journal:
    return Journal(tmp_path / "faces-labels" / "strokes.jsonl")


def drawn(tmp_path, page) -> np.ndarray:
    found = journal(tmp_path)
    return found.resolved(found.labels(page.picture, SIZE).ids)


def test_tools_draw_what_they_say(tmp_path, page):
    mouse, keyboard = page.page.mouse, page.page.keyboard

    # A polygon, of which the double click is the end; no second stroke.
    keyboard.press("2")
    keyboard.press("p")
    for x, y in ((10, 10), (40, 10), (40, 30)):
        mouse.click(*page.at(x, y, SIZE))
    mouse.dblclick(*page.at(10, 30, SIZE))
    page.wait_for(1)
    found = drawn(tmp_path, page)
    assert (found[11:30, 11:40] == 1).all() and (found == 1).sum() <= 21 * 31
    # Fill: all around it, and not inside.
    keyboard.press("3")
    keyboard.press("f")
    mouse.click(*page.at(60, 60, SIZE))
    page.wait_for(2)
    filled = drawn(tmp_path, page)
    assert (filled[found == 255] == 2).all() and (filled[found == 1] == 1).all()
    # The right button erases, with the brush's size, which Ctrl and the wheel change.
    keyboard.press("b")
    before = int(page.page.input_value("#size"))
    mouse.move(*page.at(20, 20, SIZE))
    keyboard.down("Control")
    mouse.wheel(0, -100)
    keyboard.up("Control")
    assert int(page.page.input_value("#size")) == before + 1
    mouse.down(button="right")
    mouse.move(*page.at(30, 20, SIZE), steps=4)
    mouse.up(button="right")
    page.wait_for(3)
    assert (drawn(tmp_path, page)[20, 20:31] == 255).all()
    # A double click of the brush is one stroke, and one that changes nothing is none.
    mouse.dblclick(*page.at(50, 50, SIZE))
    page.page.keyboard.press("1")
    mouse.dblclick(*page.at(5, 50, SIZE))
    page.wait_for(4)
    assert len(journal(tmp_path).active()) == 4
    # A stroke that is being drawn survives the keys for tools, classes and pictures.
    mouse.move(*page.at(50, 40, SIZE))
    mouse.down()
    mouse.move(*page.at(56, 40, SIZE), steps=3)
    name = page.picture
    keyboard.press("2")
    keyboard.press("n")
    page.until(f"decodeURIComponent(location.hash.slice(1)) !== {name!r}")
    mouse.up()
    page.wait_for(5)
    last = journal(tmp_path).active()[-1]
    assert last.picture == name and set(last.runs[:, 3]) == {0}


def test_by_the_keyboard_alone(tmp_path, page):
    keyboard = page.page.keyboard
    page.page.locator("#skip").focus()
    keyboard.press("Enter")
    assert page.page.evaluate("document.activeElement.id") == "view"
    # From where the brush is put down to where it is lifted is one stroke.
    keyboard.press("d")
    for _ in range(5):
        keyboard.press("ArrowRight")
    keyboard.press("d")
    page.wait_for(1)
    (stroke,) = journal(tmp_path).active()
    assert stroke.runs[:, 2].max() - stroke.runs[:, 1].min() >= 6
    keyboard.press("ArrowUp")
    page.until("document.querySelector('#spoken').textContent.startsWith('column 37, row 31: ')")
    keyboard.press("Enter")
    page.wait_for(2)
    assert f"label {LABEL_NAMES[0]}" in page.page.inner_text("#readout"), "of what was drawn there just now"
    # Tools are one stop of Tab, with arrows between them.
    page.page.locator("#tool-brush").focus()
    keyboard.press("ArrowRight")
    assert page.page.evaluate("document.activeElement.id") == "tool-erase"
    assert (
        page.page.evaluate("[...document.querySelectorAll('#tools button')].filter((b) => b.tabIndex === 0).length")
        == 1
    )
    # The keys are listed.
    page.page.locator("#view").focus()
    keyboard.press("?")
    assert page.page.locator("#help").is_visible()
    keyboard.press("Escape")
    # Enter in the dialog pushes: the server, which has fitted nothing, says so.
    page.page.evaluate("document.querySelector('#push').disabled = false")
    page.page.locator("#push").focus()
    keyboard.press("Enter")
    page.page.fill("#push-repo", "me/labels")
    page.page.fill("#push-token", "hf_x")
    keyboard.press("Enter")
    page.page.wait_for_selector("#message:not([hidden])")
    assert 'press "Finish" first' in page.page.inner_text("#message")
    page.errors.clear()  # the browser's line about the answer 400


def test_classes_are_renamed_moved_and_deleted(tmp_path, page):
    masks_of = page.page.locator("#classes .name")
    page.page.keyboard.press("3")
    page.page.mouse.click(*page.at(30, 30, SIZE))
    page.wait_for(1)
    page.until("document.querySelectorAll('#classes .pick')[2].title.includes('pixels in 1 of the pictures')", 10)
    page.page.locator("#classes .more").nth(2).click()
    page.page.fill("#class-rename", "curls")
    page.page.keyboard.press("Enter")
    page.until("document.querySelectorAll('#classes .name')[2].textContent === 'curls'")
    page.page.locator("#classes .more").nth(2).click()
    page.page.fill("#class-rename", LABEL_NAMES[0])
    page.page.keyboard.press("Enter")
    page.until("document.querySelector('#class-error').textContent.includes('merge the two')")
    page.errors.clear()  # the browser's line about the answer 400
    page.page.click("#class-up")
    page.until("document.querySelectorAll('#classes .name')[1].textContent === 'curls'")
    page.page.locator("#class-dialog .close").click()
    page.page.once("dialog", lambda dialog: dialog.accept())
    page.page.locator("#classes .more").nth(1).click()
    page.page.click("#class-delete")
    page.until(f"document.querySelectorAll('#classes .name').length === {len(LABEL_NAMES) - 1}")
    assert "curls" not in masks_of.all_inner_texts()
    assert (drawn(tmp_path, page) == 255).all() and len(journal(tmp_path).strokes) == 1


def test_drawing_without_a_class_asks_for_one(tmp_path, browser, start):
    write_faces(tmp_path / "faces")
    page = Page(browser, start("--model", SHIPPED_MODEL, "--images", tmp_path / "faces").address, classes=False)
    page.page.mouse.click(*page.at(30, 30, SIZE))
    assert page.page.inner_text("#message-text") == "Name a class first, then draw."
    assert page.page.evaluate("document.activeElement.id") == "class-name"


def test_pictures_are_approved_skipped_searched_and_found_again(tmp_path, page):
    names = lambda: page.page.evaluate(  # noqa: E731
        "[...document.querySelectorAll('#pictures li')].map((li) => li.dataset.picture)"
    )
    first = page.picture
    page.page.mouse.click(*page.at(30, 30, SIZE))
    page.wait_for(1)
    page.page.keyboard.press("y")
    page.until(f"decodeURIComponent(location.hash.slice(1)) !== {first!r}")
    second = page.picture
    page.page.keyboard.press("s")
    page.until(f"decodeURIComponent(location.hash.slice(1)) !== {second!r}")
    for state, expected in (("approved", [first]), ("skipped", [second]), ("started", [])):
        page.page.select_option("#only", state)
        page.until(f"document.querySelectorAll('#pictures li').length === {len(expected)}")
        assert names() == expected
    page.page.select_option("#only", "")
    page.page.select_option("#sort", "name")
    assert names() == sorted(names()) and len(names()) == 6
    page.page.fill("#search", first)
    assert names() == [first] and page.page.inner_text("#count") == "(1 OF 6)"
    page.page.locator("#pictures button").click()
    page.until(f"decodeURIComponent(location.hash.slice(1)) === {first!r}")
    page.page.fill("#search", "")
    # The one that is open is in view, wherever it lies.
    page.page.set_viewport_size({"width": 1280, "height": 560})
    page.page.locator("#view").focus()
    for name in names()[names().index(first) + 1 :]:
        page.page.keyboard.press("PageDown")
        page.until(f"decodeURIComponent(location.hash.slice(1)) === {name!r}")
    page.page.keyboard.press("PageDown")
    page.page.wait_for_timeout(500)
    assert page.picture == names()[-1]
    assert page.page.evaluate(
        "(() => { const [a, b] = ['#pictures [aria-current=true]', '#pictures'].map((s) => "
        "document.querySelector(s).getBoundingClientRect()); "
        "return a.top >= b.top - 1 && a.bottom <= b.bottom + 1; })()"
    )
    if first != names()[-1]:
        page.page.go_back()
        page.until(f"decodeURIComponent(location.hash.slice(1)) === {names()[-2]!r}")
    # A stroke takes an approval back.
    page.page.evaluate(f"location.hash = {first!r}")
    page.until("document.querySelector('#set-approved').getAttribute('aria-pressed') === 'true'")
    page.page.keyboard.press("2")
    page.page.mouse.click(*page.at(10, 10, SIZE))
    page.until("document.querySelector('#set-approved').getAttribute('aria-pressed') === 'false'")


def test_window_and_level_change_the_picture_and_stay(tmp_path, browser, start):
    (tmp_path / "scans").mkdir()
    values = np.tile(np.linspace(1000, 3000, 64), (64, 1)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "scans" / "a.png")
    Image.fromarray(np.ascontiguousarray(values.T)).save(tmp_path / "scans" / "b.png")
    page = Page(browser, start("--model", SHIPPED_MODEL, "--images", tmp_path / "scans", "--classes", "a", "b").address)
    page.ready()
    shown = lambda: page.page.evaluate(  # noqa: E731
        "(() => { const v = document.querySelector('#view'), c = v.getContext('2d'); "
        "const f = (x) => c.getImageData(Math.round(v.width / 2 + x * v.height), v.height >> 1, 1, 1).data[0]; "
        "return [f(-0.4), f(0.4)]; })()"
    )
    page.page.evaluate("location.hash = 'a.png'")
    page.until("decodeURIComponent(location.hash.slice(1)) === 'a.png'")
    page.page.wait_for_timeout(500)
    dark, light = shown()
    assert dark < 60 and light > 190, "sixteen bits are not black"
    page.page.click("details[aria-label='Window and level'] summary")
    page.page.check("#display-invert")
    page.page.wait_for_timeout(500)
    dark, light = shown()
    assert dark > 190 and light < 60
    page.page.evaluate(
        "(() => { const e = document.querySelector('#display-high'); e.value = 1500; "
        "e.dispatchEvent(new Event('input')); })()"
    )
    page.page.wait_for_timeout(500)
    assert shown()[1] < 5 and page.page.input_value("#display-high-value") == "1500"
    page.page.reload()
    page.page.wait_for_timeout(1500)
    assert shown()[1] < 5, "it is kept for the session"
    page.page.click("details[aria-label='Window and level'] summary")
    page.page.click("#display-reset")
    page.page.wait_for_timeout(500)
    assert shown()[0] < 60
    assert page.errors == []


def test_at_any_size_the_picture_has_room_and_stays_where_it_is(page):
    page.page.locator("#view").focus()
    for _ in range(4):
        page.page.keyboard.press("+")
    zoomed = page.page.inner_text("#readout")
    for size in ((390, 844), (640, 400), (320, 256)):  # a phone; a laptop at two and four hundred per cent
        page.page.set_viewport_size({"width": size[0], "height": size[1]})
        page.page.wait_for_timeout(300)
        view = page.page.locator("#view").bounding_box()
        assert view["width"] > 0.9 * size[0] and view["height"] > 0.4 * size[1]
        assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("ArrowLeft")
    assert page.page.inner_text("#readout").split("zoom")[1] == zoomed.split("zoom")[1]
    page.page.locator("#next").scroll_into_view_if_needed()
    page.page.click("#next")


def test_axe_finds_nothing(page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page.page.mouse.click(*page.at(30, 30, SIZE))
    page.wait_for(1)
    for state in ("", "#help", "#class-dialog"):
        if state == "#help":
            page.page.keyboard.press("?")
        elif state:
            page.page.keyboard.press("Escape")
            page.page.locator("#classes .more").first.click()
        found = axe.Axe().run(page.page)
        assert found.violations_count == 0, found.generate_report()
