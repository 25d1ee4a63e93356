# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from diffuseseg_diffusers import AppConfig, UserError, app
from diffuseseg_diffusers.jobs.files import read_record, write_record
from diffuseseg_diffusers.labeling.folder import keep_port, kept_port, kept_token, open_folder
from diffuseseg_diffusers.labeling.journal import Journal
from diffuseseg_diffusers.tasks.app import hosts, listen, listen_again

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


@pytest.fixture
def serve(drawn, tmp_path, monkeypatch, capsys):
    """Starts the command up to where it serves, and ends it; returns its address and what it says besides."""
    import uvicorn

    from diffuseseg_diffusers.labeling.server import App

    served = []
    monkeypatch.setattr(App, "start", lambda self: None)
    monkeypatch.setattr(
        uvicorn.Server, "run", lambda self, sockets: served.append((self.config.app, sockets[0].close()))
    )

    def started(**kwargs):
        images = drawn / "data" / "train" / "images"
        app(AppConfig(model=str(drawn / "ddpm"), images=images, session=tmp_path / "session", **kwargs))
        said = capsys.readouterr()
        return re.search(r"Label at (\S+)", said.out)[1], said.err

    started.served = served
    return started


def test_the_address_is_the_same_after_a_restart(serve, tmp_path):
    folder = tmp_path / "session"
    address, _ = serve()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)
    assert serve() == (address, "")
    assert os.stat(folder / "token").st_mode & 0o777 == 0o600
    # Another program has its port.
    port = kept_port(folder)
    with socket.create_server(("127.0.0.1", port)):
        other, said = serve()
    assert f"The port {port}, which this page had last, is taken: its address has changed." in said
    assert other.split("?")[1] == address.split("?")[1] and kept_port(folder) != port
    assert serve()[0] == other


def test_without_a_token_the_address_has_none_and_that_of_the_session_stays(serve, tmp_path):
    address, said = serve(no_token=True)
    assert "token" not in address and "There is no token" in said
    before = kept_token(tmp_path / "session")
    serve(no_token=True)
    assert kept_token(tmp_path / "session") == before and serve()[0].endswith(before)


def test_a_page_without_a_token_is_served_to_names_of_this_machine_alone(serve, monkeypatch):
    from fastapi.testclient import TestClient

    serve(no_token=True)
    serve()
    monkeypatch.setenv("SPACE_ID", "alice/labels")
    serve(no_token=True)
    found = []
    for api, _ in serve.served:
        answers = [TestClient(api).get("/", headers={"Host": host}) for host in ("evil.example", "localhost:80")]
        frames = answers[1].headers["content-security-policy"].partition("frame-ancestors ")[2]
        found.append(([answer.status_code for answer in answers], frames))
    hub = "https://huggingface.co"
    assert found == [([403, 200], "'none'"), ([200, 200], "'none'"), ([403, 200], hub)]


def test_names_of_this_machine():
    given = {"model": "m", "images": Path("i"), "no_token": True}
    own = {"localhost", "127.0.0.1", "[::1]", socket.gethostname().lower()}
    assert hosts(AppConfig(**given), "127.0.0.1") == own
    assert hosts(AppConfig(**given, host="Alias"), "127.0.0.2") == {*own, "alias", "127.0.0.2"}
    assert hosts(AppConfig(**given, host="::1"), "::1") == {*own, "::1"}
    assert hosts(AppConfig(**given, host="0.0.0.0"), "0.0.0.0") is None
    assert hosts(AppConfig(model="m", images=Path("i")), "127.0.0.1") is None


def test_the_token_is_readable_by_its_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        token = kept_token(tmp_path)
    finally:
        os.umask(before)
    assert os.stat(tmp_path / "token").st_mode & 0o777 == 0o600
    os.chmod(tmp_path / "token", 0o644)
    assert kept_token(tmp_path) == token and os.stat(tmp_path / "token").st_mode & 0o777 == 0o600
    (tmp_path / "token").write_text("")  # what a kill left
    new = kept_token(tmp_path)
    assert re.fullmatch(r"[\w-]{32}", new) and new != token and kept_token(tmp_path) == new
    (tmp_path / "token").unlink()
    (tmp_path / "elsewhere").write_text(token)
    (tmp_path / "token").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is no file, and the token of the page is kept there"):
        kept_token(tmp_path)
    assert (tmp_path / "elsewhere").read_text() == token


@pytest.mark.parametrize("text", ["", "x", "0", "70000", "-1", "80 81", "\udcff"])
def test_a_port_that_is_none_is_not_kept(tmp_path, text):
    keep_port(tmp_path, 43210)
    assert kept_port(tmp_path) == 43210
    (tmp_path / "port").write_bytes(text.encode(errors="surrogateescape"))
    assert kept_port(tmp_path) is None


def test_a_port_that_is_asked_for_comes_before_the_last_one(capsys):
    with listen("127.0.0.1", 0) as first:
        taken = first.getsockname()[1]
        with pytest.raises(UserError, match="cannot be listened at"):
            listen_again("127.0.0.1", taken, None)
        with listen_again("127.0.0.1", 0, taken) as other:
            assert other.getsockname()[1] != taken and f"The port {taken}" in capsys.readouterr().err
    with listen_again("127.0.0.1", 0, taken) as again:
        assert again.getsockname()[1] == taken and capsys.readouterr().err == ""
    with listen("127.0.0.1", 0) as spare:
        free = spare.getsockname()[1]
    with listen_again("127.0.0.1", free, taken) as asked:
        assert asked.getsockname()[1] == free


def test_sessions_of_earlier_versions_own_the_files_of_the_address_too(tmp_path):
    write_record(tmp_path / "session", "app", ["finished.json", "features/*", "pipeline/*"])
    open_folder(tmp_path / "session")
    assert {"token", "port", "finished.json"} < set(read_record(tmp_path / "session")["owns"])
    assert "strokes.jsonl" not in read_record(tmp_path / "session")["owns"]
