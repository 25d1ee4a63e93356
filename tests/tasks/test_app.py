# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from diffuseseg_diffusers import UserError
from diffuseseg_diffusers.labeling.journal import Journal
from diffuseseg_diffusers.tasks.app import listen

from ..conftest import run


def test_the_page_is_served_to_whoever_knows_the_token(drawn, tmp_path):
    """The command in a fresh process; strokes over HTTP, a mask, and Ctrl-C."""
    command = [str(Path(sys.executable).parent / "diffuseseg"), "app", "--model", str(drawn / "ddpm")]
    command += ["--images", str(drawn / "data" / "train" / "images"), "--session", str(tmp_path / "session")]
    process = subprocess.Popen(
        [*command, "--classes", "sky", "disc"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        first, second = process.stdout.readline(), process.stdout.readline()
        assert first.startswith("6 pictures, 0 strokes; the session is in ")
        root, token = re.fullmatch(r"Label at (http://127\.0\.0\.1:\d+/)\?token=([\w-]{32})\n", second).groups()

        def ask(path, body=None):
            data = None if body is None else json.dumps(body).encode()
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            with urllib.request.urlopen(urllib.request.Request(root + path, data, headers)) as answer:
                return answer.status, answer.read()

        for _ in range(300):
            state = json.loads(ask("api/state")[1])
            if all(p["ready"] for p in state["pictures"]):
                break
            time.sleep(0.1)
        assert state["progress"] == {"done": 6, "total": 6, "error": None}
        for row, label in ((2, 0), (12, 1)):
            ask("api/strokes", {"picture": "0.png", "runs": [[row, 12, 18, label]], "revision": 2})
        status, content = ask("api/mask?picture=1.png")
        assert status == 200 and len(content) == 2 * 24 * 30
        process.send_signal(2)
        assert process.wait(20) in (0, 130, -2)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    assert len(Journal(tmp_path / "session" / "strokes.jsonl").active()) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--images", "{empty}"), "There are no pictures in"),
        (("--images", "{empty}/none"), "There is no folder"),
        (("--images", "{images}", "--port", "70000"), "--port must lie in 0 to 65535, got 70000"),
        (("--images", "{images}", "--host", "203.0.113.7"), "203.0.113.7:0 cannot be listened at"),
        (("--images", "{images}", "--session", "{data}"), "holds files that are no session"),
        (("--images", "{images}", "--recipe", "none"), "recipe"),
        (("--images", "{images}", "--annotations", "{empty}"), "There are no annotations in"),
        (("--images", "{images}", "--annotation_format", "coco"), "--annotation_format is of --annotations"),
    ],
)
def test_what_cannot_be_served_is_said(drawn, tmp_path, arguments, said):
    (tmp_path / "empty").mkdir()
    places = {"empty": tmp_path / "empty", "images": drawn / "data" / "train" / "images", "data": drawn / "data"}
    if "--session" not in arguments:
        arguments = (*arguments, "--session", str(tmp_path / "session"))
    found = run("diffuseseg", "app", "--model", drawn / "ddpm", *(a.format(**places) for a in arguments), expect=1)
    assert said in found.stderr and "Traceback" not in found.stderr


def test_a_student_is_refused(drawn, student, tmp_path):
    images = drawn / "data" / "train" / "images"
    found = run("diffuseseg", "app", "--model", student, "--images", images, "--session", tmp_path / "s", expect=1)
    assert "The model is a student" in found.stderr and not (tmp_path / "s").exists()


def test_a_port_that_is_taken_and_a_host_that_is_none_are_said():
    with listen("127.0.0.1", 0) as first, pytest.raises(UserError, match="cannot be listened at"):
        listen("127.0.0.1", first.getsockname()[1])
    with pytest.raises(UserError, match="cannot be listened at"):
        listen("no.such.host.invalid", 0)


def test_what_a_space_does_not_read_is_refused(drawn, tmp_path):
    given = ("diffuseseg", "app", "--model", drawn / "ddpm", "--images", drawn / "data" / "train" / "images")
    result = run(*given, "--push_space", "alice/labels", "--session", tmp_path / "session", expect=1)
    assert "--session is not for a Space" in result.stderr
    result = run(*given, "--push_space", "alice/labels", "--lora", "user/style", expect=1)
    assert "--lora is not for a Space" in result.stderr
    assert "give its name with --push_space" in run(*given, "--public", expect=1).stderr
