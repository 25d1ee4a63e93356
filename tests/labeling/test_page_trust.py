# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The page in a real browser: what is drawn is never lost, and what did not change stays."""

import numpy as np
import pytest

from diffuseseg_diffusers.datasets.drawn_faces import LABEL_NAMES, SHIPPED_MODEL
from diffuseseg_diffusers.labeling.journal import Journal

from .page import Page, write_faces


pytestmark = pytest.mark.slow


def test_strokes_wait_for_a_server_that_was_killed_and_arrive_once(tmp_path, browser, start):
    masks = write_faces(tmp_path / "faces")
    command = ["--model", SHIPPED_MODEL, "--images", tmp_path / "faces", "--classes", *LABEL_NAMES]
    journal = tmp_path / "faces-labels" / "strokes.jsonl"
    server = start(*command)
    page = Page(browser, server.address)
    page.ready()
    name = page.picture
    page.paint(masks[name], 0)
    page.wait_for(1)
    assert page.page.inner_text("#saved") == "saved"

    # Three strokes while the server is away; the last is taken back in the page.
    server.kill()
    for label in (1, 2, 3):
        page.paint(masks[name], label)
    page.until("document.querySelector('#saved').textContent.includes('3 strokes kept in this browser')")
    assert "Start `diffuseseg app` again" in page.page.inner_text("#message")
    page.page.keyboard.press("Control+z")
    page.until("document.querySelector('#saved').textContent.includes('2 strokes kept')")
    assert len(Journal(journal).active()) == 1

    # It is back under the same address: the page goes on by itself.
    again = start(*command)
    assert again.address == server.address
    page.until("document.querySelector('#saved').textContent === 'saved'")
    page.until("document.querySelector('#message').hidden")
    page.wait_for(3)
    assert len(Journal(journal).active()) == 3
    drawn = Journal(journal).labels(name, masks[name].shape).ids
    assert set(np.unique(drawn)) == {0, 1, 2, 255}

    # The page is closed before the server is back: another one sends what it kept.
    again.kill()
    page.paint(masks[name], 3)
    page.until("document.querySelector('#saved').textContent.includes('1 stroke kept')")
    context = page.page.context
    page.page.close()
    start(*command)
    page = Page(browser, server.address, context=context)
    page.wait_for(4)
    assert len(Journal(journal).active()) == 4 and page.errors == []


def test_undo_goes_back_to_other_pictures_and_leaves_other_tabs_alone(tmp_path, browser, start):
    masks = write_faces(tmp_path / "faces")
    server = start("--model", SHIPPED_MODEL, "--images", tmp_path / "faces", "--classes", *LABEL_NAMES)
    page = Page(browser, server.address)
    page.ready()
    first = page.picture
    page.paint(masks[first], 0)
    page.wait_for(1)
    page.page.keyboard.press("PageDown")
    page.until(f"decodeURIComponent(location.hash.slice(1)) !== {first!r}")
    page.paint(masks[page.picture], 1)
    page.wait_for(2)
    other = Page(browser, f"{server.address}#{page.picture}")
    other.paint(masks[other.picture], 2)
    other.wait_for(3)
    page.wait_for(3)
    for left, where in ((2, other.picture), (1, first)):
        page.page.keyboard.press("Control+z")
        page.wait_for(left)
        assert page.picture == where
    (kept,) = Journal(tmp_path / "faces-labels" / "strokes.jsonl").active()
    assert set(kept.runs[:, 3]) == {2}, "the other tab's"
    page.page.keyboard.press("Control+y")
    page.wait_for(2)
    assert page.errors == [] and other.errors == []


def test_undo_waits_for_the_stroke_before_it_and_two_tabs_keep_all_of_theirs(tmp_path, browser, start):
    masks = write_faces(tmp_path / "faces")
    command = ["--model", SHIPPED_MODEL, "--images", tmp_path / "faces", "--classes", *LABEL_NAMES]
    journal = tmp_path / "faces-labels" / "strokes.jsonl"
    server = start(*command)
    page = Page(browser, server.address)
    page.ready()
    name = page.picture
    page.paint(masks[name], 0)
    page.wait_for(1)
    # The answer to the second comes late: undo takes that one, not the first.
    held = []
    page.page.route("**/api/strokes", lambda route: held.append(route))
    page.paint(masks[name], 1)
    page.until("document.querySelector('#saved').textContent === 'sending …'")
    page.page.keyboard.press("Control+z")
    page.page.wait_for_timeout(200)
    held[0].continue_()
    page.page.unroute("**/api/strokes")
    for _ in range(200):
        if {1} == {stroke.number for stroke in Journal(journal).active()} and len(Journal(journal).strokes) == 2:
            break
        page.page.wait_for_timeout(50)
    else:
        pytest.fail(f"{[stroke.number for stroke in Journal(journal).active()]} are left, and 1 alone should be.")

    # A page that is no answer of the server loses nothing.
    page.page.route("**/api/strokes", lambda route: route.fulfill(status=200, body="<p>Log in</p>"))
    page.paint(masks[name], 1)
    page.until("document.querySelector('#saved').textContent.includes('1 stroke kept')")
    page.page.unroute("**/api/strokes")
    page.until("document.querySelector('#saved').textContent === 'saved'")
    page.wait_for(2)

    # Both tabs draw while it is away; one is closed, and a third finds what it left.
    other = Page(browser, f"{server.address}#{name}", context=page.page.context)
    server.kill()
    page.paint(masks[name], 2)
    page.until("document.querySelector('#saved').textContent.includes('1 stroke kept')")
    other.paint(masks[name], 3)
    other.until("document.querySelector('#saved').textContent.includes('1 stroke kept')")
    page.page.close()
    start(*command)
    other.until("document.querySelector('#saved').textContent === 'saved'")
    third = Page(browser, f"{server.address}#{name}", context=other.page.context)
    third.wait_for(4)
    assert len(Journal(journal).active()) == 4


def test_a_stroke_that_the_server_refuses_is_named_until_the_message_is_closed(tmp_path, browser, start):
    masks = write_faces(tmp_path / "faces")
    page = Page(
        browser, start("--model", SHIPPED_MODEL, "--images", tmp_path / "faces", "--classes", *LABEL_NAMES).address
    )
    page.ready()
    answer = {"status": 400, "content_type": "application/json", "body": '{"error": "There is no class 9."}'}
    page.page.route("**/api/strokes", lambda route: route.fulfill(**answer))
    page.paint(masks[page.picture], 0)
    page.page.wait_for_selector("#message:not([hidden])")
    page.page.unroute("**/api/strokes")
    page.paint(masks[page.picture], 1)
    page.wait_for(1)
    page.page.wait_for_timeout(3500)  # a look at the server
    said = page.page.inner_text("#message-text")
    assert said == f"A stroke in {page.picture} was dropped: There is no class 9."
    page.page.click("#message-close")
    assert page.page.locator("#message").is_hidden()
    (kept,) = Journal(tmp_path / "faces-labels" / "strokes.jsonl").active()
    assert set(kept.runs[:, 3]) == {1}


def test_a_look_at_the_server_that_finds_nothing_new_changes_nothing(tmp_path, browser, start):
    write_faces(tmp_path / "faces")
    page = Page(
        browser, start("--model", SHIPPED_MODEL, "--images", tmp_path / "faces", "--classes", *LABEL_NAMES).address
    )
    page.ready()
    page.page.wait_for_timeout(1000)
    page.page.evaluate(
        "window.changes = []; "
        "new MutationObserver((all) => window.changes.push(...all.map((m) => m.target.id || m.type)))"
        ".observe(document.body, { subtree: true, childList: true, attributes: true, characterData: true })"
    )
    page.page.locator("#classes .more").nth(2).focus()
    with page.page.expect_response(lambda response: "api/state" in response.url):
        pass
    page.page.wait_for_timeout(300)
    assert page.page.evaluate("window.changes") == []
    assert page.page.evaluate("document.activeElement.title") == f"Change {LABEL_NAMES[2]}"
