# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import base64
import io
import json
import threading
import time
import zipfile

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from diffuseseg_diffusers import UserError, load_labeled_images, load_pipeline
from diffuseseg_diffusers.jobs.files import output_folder
from diffuseseg_diffusers.labeling import access, server
from diffuseseg_diffusers.labeling.folder import kept_token
from diffuseseg_diffusers.labeling.server import create_app
from diffuseseg_diffusers.labeling.session import LabelSession
from diffuseseg_diffusers.pipelines.loading import save_fitted

from ..conftest import QUICK, make_pipeline
from .conftest import NAMES, full_disk, label, true_runs


TOKEN = "a token"


def client_of(session, save=None, push=None, token=TOKEN, **kwargs) -> TestClient:
    api = create_app(session, token, save, push, **kwargs)
    client = TestClient(api, headers={"Authorization": f"Bearer {token}"} if token else {})
    client.app_state = api.state.app
    return client


@pytest.fixture
def client(session):
    return client_of(session)


def draw(client, name, runs, revision=0, **more):
    return client.post("/api/strokes", json={"picture": name, "runs": runs, "revision": revision, **more})


def label_all(client, masks, names=("0.png", "1.png")):
    for name in names:
        for own in np.unique(masks[name]):
            assert draw(client, name, true_runs(masks[name], int(own))).status_code == 200


def mask_of(client, name, shape):
    answer = client.get("/api/mask", params={"picture": name})
    assert answer.status_code == 200
    both = np.frombuffer(answer.content, np.uint8).reshape(2, *shape)
    return both[0], both[1], int(answer.headers["X-Revision"])


def test_strokes_become_masks(client, session, pictures):
    masks = pictures[1]
    assert client.get("/api/mask", params={"picture": "2.png"}).status_code == 204
    label_all(client, masks)
    mask, doubt, revision = mask_of(client, "2.png", masks["2.png"].shape)
    assert (mask == session.predict("2.png").mask).all() and revision == session.revision
    assert doubt.max() > doubt.min()
    state = client.get("/api/state").json()
    assert [c["name"] for c in state["classes"]] == NAMES and state["revision"] == revision
    assert {p["name"]: p["strokes"] for p in state["pictures"]}["0.png"] == 3
    small = client.post("/api/masks", json={"pictures": ["4.png", "none.png"]}).json()
    assert list(small["masks"]) == ["4.png"]
    ids = np.frombuffer(base64.b64decode(small["masks"]["4.png"]["ids"]), np.uint8)
    assert (ids == session.small_masks(["4.png"])["4.png"].ravel()).all()


def test_labels_come_back_as_they_were_drawn(client, session):
    answer = draw(client, "0.png", [[3, 4, 9, 2]]).json()
    assert answer == {"number": 1, "revision": 4, "stale": False, "strokes": 1}
    found = client.get("/api/labels", params={"picture": "0.png"})
    ids = np.frombuffer(found.content, np.uint8).reshape(24, 30)
    assert (ids[3, 4:9] == 2).all() and (ids != 255).sum() == 5 and found.headers["X-Strokes"] == "1"
    assert client.post("/api/strokes/1/undo").status_code == 200
    assert client.get("/api/labels", params={"picture": "0.png"}).headers["X-Strokes"] == ""
    client.post("/api/strokes/1/redo")
    assert client.get("/api/labels", params={"picture": "0.png"}).content == found.content


def test_classes_are_added_changed_and_merged(client, session):
    made = client.post("/api/classes", json={"name": "moon"}).json()
    assert made["id"] == 3 and len(made["color"]) == 3
    assert client.patch("/api/classes/3", json={"color": [1, 2, 3]}).json()["color"] == [1, 2, 3]
    assert client.post("/api/classes/3/merge", json={"into": 0}).status_code == 200
    assert [c.name for c in session.classes] == NAMES


def test_pictures_come_as_png(client, pictures):
    whole = Image.open(io.BytesIO(client.get("/api/image", params={"picture": "0.png"}).content))
    assert np.array_equal(np.asarray(whole), np.asarray(Image.open(pictures[0] / "0.png")))
    small = client.get("/api/image", params={"picture": "0.png", "side": 16})
    assert max(Image.open(io.BytesIO(small.content)).size) == 16


def test_what_was_left_out_guessed_or_stretched_is_told_to_the_page(open_session, pictures):
    values = np.arange(24 * 30, dtype=np.uint16).reshape(24, 30) * 2779 // 719
    Image.fromarray(values).save(pictures[0] / "dark.png")
    (pictures[0] / "broken.png").write_bytes(b"no picture")
    client = client_of(open_session())
    answer = client.get("/api/image", params={"picture": "dark.png"})
    shown = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert shown.min() == 0 and shown.max() == 255 and 120 < np.median(shown) < 135
    (line,) = json.loads(answer.headers["X-Notes"])
    assert line.startswith("Stretched for display") and "For the model, 0 is black and 65,535 white." in line
    assert json.loads(client.get("/api/image", params={"picture": "0.png"}).headers["X-Notes"]) == []
    state = client.get("/api/state").json()
    assert list(state["left_out"]) == ["broken.png"] and "1 of 8 pictures are left out" in state["notes"][0]
    page, script = client.get("/").text, client.get("/app.js").text
    for place in ("about", "notes"):
        assert f'id="{place}"' in page and f'$("{place}")' in script
    assert "COCO, CVAT, Label Studio, labelme and QuPath" in page


def test_a_region_is_accepted(client, session, pictures):
    label_all(client, pictures[1])
    region, own = session.accept("2.png", 12, 15)
    answer = client.post("/api/accept", json={"picture": "2.png", "y": 12, "x": 15, "revision": session.revision})
    assert answer.json()["number"] == 7 and sum(r[2] - r[1] for r in answer.json()["runs"]) == region.sum()
    assert (session.labels("2.png")[region] == own).all()


def test_suggestions_have_reasons_and_places(client, pictures):
    found = client.get("/api/suggestions").json()
    assert len(found["ranking"]) == 6 and all(own["reason"] for own in found["ranking"])
    assert list(found["places"]) == [found["ranking"][0]["picture"]]
    label_all(client, pictures[1])
    places = client.get("/api/suggestions", params={"picture": "5.png"}).json()["places"]["5.png"]
    assert 1 <= len(places) <= server.PLACES and set(places[0]) == {"y", "x", "reason"}


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"picture": "0.png", "runs": [[0, 0, 31, 0]], "revision": 0}, 400, "lies outside 0.png, which is 30 x 24"),
        ({"picture": "0.png", "runs": [[0, 0, 3, 2**80]], "revision": 0}, 400, "lists of four whole numbers"),
        ({"picture": "0.png", "runs": [], "revision": 0}, 422, "runs"),
        ({"picture": "../0.png", "runs": [[0, 0, 3, 1]], "revision": 0}, 400, "There is no picture '../0.png'"),
        ({"picture": "0.png", "runs": [[0, 0, 3, 1]], "revision": 99}, 409, "knows revision 99"),
        ({"picture": "0.png", "runs": [[0, 0, 3, 1]], "revision": -1}, 422, "revision"),
        ({"picture": "0.png", "runs": [[0, 0, 3, 1]]}, 422, "revision"),
        ({"picture": "0.png", "runs": [[0, 0, 3, 1]], "revision": 0, "more": 1}, 422, "more"),
        ({"picture": "0.png", "runs": [[0, 0, 3, 1]], "revision": 0, "key": ""}, 422, "key"),
        ({"picture": "0.png", "runs": [[0, 0, 3, 1]], "revision": 0, "key": "x" * 65}, 422, "key"),
        ({"picture": "0.png", "runs": [[0, 0, 3, 1]], "revision": 0, "key": "\n"}, 400, "1 to 64 printable"),
    ],
)
def test_strokes_that_do_not_fit_are_refused_in_one_sentence(client, session, body, status, said):
    before = session.journal.path.read_bytes()
    answer = client.post("/api/strokes", json=body)
    assert answer.status_code == status and said in answer.json()["error"]
    assert session.journal.path.read_bytes() == before


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_bodies_that_are_no_json_are_refused(client, session, content):
    answer = client.post("/api/strokes", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422) and answer.json()["error"] and session.revision == 3


def test_a_body_too_large_is_refused_before_it_is_read(client, session, monkeypatch):
    monkeypatch.setattr(access, "MAX_BODY", 1000)
    answer = draw(client, "0.png", [[0, 0, 3, 1]] * 200)
    assert answer.status_code == 413 and "1,000 bytes" in answer.json()["error"]

    def chunks():
        yield b"{}" * 2000

    assert client.post("/api/strokes", content=chunks()).status_code == 413
    assert session.revision == 3


def test_every_route_but_the_page_wants_the_token(session):
    client = client_of(session)
    routes = [r for r in client.app.routes if getattr(r, "path", "").startswith("/api")]
    assert len(routes) == 19
    for route in routes:
        path = route.path.format(number=1, label=1)
        for given in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}, {"Authorization": TOKEN}):
            answer = client.request(next(iter(route.methods)), path, headers=given, json={})
            assert answer.status_code == 401 and "open the address" in answer.json()["error"], path
        wrong = client.request(next(iter(route.methods)), path, headers={"Authorization": "Bearer ü".encode("latin-1")})
        assert wrong.status_code == 401
    assert session.revision == 3
    page = client.get("/", headers={"Authorization": ""})
    assert page.status_code == 200 and TOKEN not in page.text


@pytest.mark.parametrize(
    "path",
    [
        "/../session/strokes.jsonl",
        "/%2e%2e/%2e%2e/server.py",
        "/..%2fserver.py",
        "//etc/passwd",
        "/strokes.jsonl",
        "/%00",
    ],
)
def test_files_outside_the_page_cannot_be_read(client, path):
    answer = client.get(path)
    assert answer.status_code in (400, 404) and "create_app" not in answer.text and "stroke" not in answer.text


@pytest.mark.parametrize("name", ["../session/strokes.jsonl", "/etc/passwd", "..", "", "0.png/../1.png", "\0"])
def test_pictures_outside_the_folder_cannot_be_read(client, name):
    for route in ("image", "labels", "mask"):
        answer = client.get(f"/api/{route}", params={"picture": name})
        assert answer.status_code == 400 and "There is no picture" in answer.json()["error"]


def test_a_full_disk_is_said_and_the_stroke_not_taken(client, session):
    draw(client, "0.png", [[0, 0, 3, 1]])
    before = session.journal.path.read_bytes()
    with full_disk(len(before) + 10):
        answer = draw(client, "0.png", [[1, 0, 3, 1]])
    assert answer.status_code == 507 and "could not be written" in answer.json()["error"]
    assert session.journal.path.read_bytes() == before and (session.labels("0.png")[1] == 255).all()
    assert draw(client, "0.png", [[1, 0, 3, 1]]).json()["number"] == 2


def test_two_tabs_keep_each_others_strokes_and_are_told(session):
    first, second = client_of(session), client_of(session)
    known = session.revision
    assert not draw(first, "0.png", [[0, 0, 3, 1]], known).json()["stale"]
    late = draw(second, "0.png", [[1, 0, 3, 2]], known).json()
    assert late["stale"] and late["number"] == 2
    assert not draw(second, "1.png", [[1, 0, 3, 2]], known).json()["stale"]  # nobody else drew there
    labels = session.labels("0.png")
    assert (labels[0, :3] == 1).all() and (labels[1, :3] == 2).all()


def test_a_page_of_another_session_is_told_to_reload(client):
    answer = client.post("/api/accept", json={"picture": "0.png", "y": 0, "x": 0, "revision": 50})
    assert answer.status_code == 409 and "reload the page" in answer.json()["error"]


def test_answers_are_not_kept_and_load_nothing_from_elsewhere(client):
    page = client.get("/")
    assert (
        page.headers["Cache-Control"] == "no-store" and "default-src 'self'" in page.headers["Content-Security-Policy"]
    )
    for name in ("app.js", "api.js", "view.js", "panels.js", "style.css"):
        text = client.get(f"/{name}").text
        assert text and "http://" not in text and "https://" not in text and "//cdn" not in text


def finished(client):
    for _ in range(600):
        state = client.get("/api/state").json()["finish"]
        if state["state"] != "running":
            return state
        time.sleep(0.1)
    raise AssertionError("it did not end")


def test_finish_download_and_push(pictures, tmp_path):
    """The whole way out; the Hub's part has tests of its own."""
    make_pipeline().save_pretrained(tmp_path / "model")
    pipe = load_pipeline(str(tmp_path / "model"))
    session = LabelSession(pipe, pictures[0], tmp_path / "session", NAMES, QUICK)
    session.extract()
    pushed = []

    def save(target):
        with output_folder(target, overwrite=True, command="fit") as partial:
            save_fitted(pipe, partial, str(tmp_path / "model"))

    def push(folder, repo_id, token, private):
        pushed.append((folder, repo_id, token, private))
        return "https://hub.example/commit"

    client = client_of(session, save, push)
    given = {"repo_id": "alice/faces", "token": "hf_secret"}
    assert 'press "Finish" first' in client.post("/api/push", json=given).json()["error"]
    assert "Nothing is labelled yet" in client.get("/api/download").json()["error"]
    client.post("/api/finish")
    assert finished(client)["state"] == "failed" and "Nothing is labelled" in finished(client)["error"]

    label_all(client, pictures[1])
    go, real = threading.Event(), session.finish
    session.finish = lambda: go.wait(60) and real()
    assert client.post("/api/finish").json()["state"] == "running"
    busy = client.post("/api/finish")
    assert busy.status_code == 400 and "being fitted already" in busy.json()["error"]
    go.set()
    done = finished(client)
    assert done["state"] == "done", done
    assert not done["behind"]
    archive = zipfile.ZipFile(io.BytesIO(client.get("/api/download").content))
    assert "have changed since" not in archive.read("README.md").decode()
    archive.extractall(tmp_path / "out")
    assert len(load_labeled_images(tmp_path / "out" / "dataset")) == 2
    again = load_pipeline(str(tmp_path / "out" / "pipeline"))
    assert again.segmentation_head.config.label_names == NAMES
    assert client.post("/api/push", json=given).json() == {"url": "https://hub.example/commit"}
    assert pushed == [(session.folder / "pipeline", "alice/faces", "hf_secret", True)]
    # What is drawn later is not in the pipeline, and page and archive say so; another server too.
    draw(client, "2.png", [[0, 0, 3, 1]])
    for other in (client, client_of(session)):
        assert other.get("/api/state").json()["finish"]["behind"]
    later = zipfile.ZipFile(io.BytesIO(client.get("/api/download").content))
    assert "have changed since `pipeline/` was fitted" in later.read("README.md").decode()
    kept = [p for p in session.folder.rglob("*") if p.is_file() and b"hf_secret" in p.read_bytes()]
    assert kept == []


def test_a_push_that_is_refused_says_why(session, pipe, pictures):
    def push(*_):
        raise UserError("The token may only read; make one that may write.")

    pipe.save_pretrained(session.folder / "pipeline")
    client = client_of(session, push=push)
    answer = client.post("/api/push", json={"repo_id": "alice/faces", "token": "hf_secret"})
    assert answer.status_code == 400 and answer.json()["error"].startswith("The token may only read")


def test_features_are_extracted_while_the_page_is_open(open_session, pictures):
    session = open_session()
    client = client_of(session)
    assert client.get("/api/state").json()["progress"] == {"done": 0, "total": 6, "error": None}
    assert client.get("/api/suggestions").json()["ranking"] == []
    label(session, pictures[1], ["0.png"])
    assert client.get("/api/mask", params={"picture": "0.png"}).status_code == 204
    client.app_state.start().join()
    state = client.get("/api/state").json()
    assert state["progress"] == {"done": 6, "total": 6, "error": None} and all(p["ready"] for p in state["pictures"])
    assert client.get("/api/mask", params={"picture": "0.png"}).status_code == 200


def test_an_error_while_features_are_extracted_is_shown(open_session, pictures):
    session = open_session()
    for path in pictures[0].iterdir():
        path.write_bytes(b"no picture any more")
    client = client_of(session)
    client.app_state.start().join()
    assert "No picture in" in client.get("/api/state").json()["progress"]["error"]
    assert json.loads(client.get("/api/state").text)["pictures"] == []


def test_what_cannot_be_written_or_shown_breaks_nothing(client, session):
    for body in ('{"name": "x\\ud800"}', '{"name": "a\\u0000b"}'):
        answer = client.post("/api/classes", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and "characters that can be shown" in answer.json()["error"]
    assert client.get("/api/state").status_code == 200 and session.revision == 3


NO_RUNS = [[0] * 200_000, [[0, 0, 3, 1]] * 1001, [["0", "0", "3", "1"]], [[0, 0, 3, {}]]]


@pytest.mark.parametrize("runs", NO_RUNS, ids=range(len(NO_RUNS)))
def test_runs_that_are_none_are_one_sentence_at_once(client, session, runs):
    answer = draw(client, "0.png", runs)
    assert answer.status_code == 400 and "run" in answer.json()["error"] and len(answer.text) < 300
    assert session.revision == 3


def test_other_sites_cannot_act_where_there_is_no_token(session):
    client = client_of(session, token=None)
    assert draw(client, "0.png", [[0, 0, 3, 1]]).status_code == 200
    for site in ("cross-site", "same-site"):
        answer = client.post("/api/strokes/1/undo", headers={"Sec-Fetch-Site": site})
        assert answer.status_code == 403 and "Another site" in answer.json()["error"]
    assert client.post("/api/strokes/1/undo", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


def test_a_token_that_no_header_can_hold_is_a_sentence(session, pipe):
    pipe.save_pretrained(session.folder / "pipeline")
    answer = client_of(session).post("/api/push", json={"repo_id": "alice/faces", "token": "日本"})
    assert answer.status_code == 400 and "copy it again" in answer.json()["error"]


def test_a_stroke_whose_answer_got_lost_is_sent_again(client, session, open_session):
    first = draw(client, "0.png", [[3, 4, 9, 2]], 3, key="a key").json()
    assert first == {"number": 1, "revision": 4, "stale": False, "strokes": 1}
    draw(client, "0.png", [[4, 4, 9, 2]], 4)
    for other in (client, client_of(open_session())):  # the server may have been started again
        answer = draw(other, "0.png", [[3, 4, 9, 2]], 3, key="a key")
        assert answer.status_code == 200
        assert answer.json() == {"number": 1, "revision": 5, "stale": True, "strokes": 2}
    assert (session.labels("0.png") != 255).sum() == 10


def states_of(client):
    return {own["name"]: own["state"] for own in client.get("/api/state").json()["pictures"]}


def test_pictures_are_empty_started_approved_or_skipped(client, session):
    assert set(states_of(client).values()) == {"empty"}
    draw(client, "0.png", [[3, 4, 9, 2]])
    assert states_of(client)["0.png"] == "started"
    for name, state in (("0.png", "approved"), ("1.png", "skipped")):
        answer = client.post("/api/pictures/state", json={"picture": name, "state": state})
        assert answer.json() == {"revision": session.revision} and states_of(client)[name] == state
    client.post("/api/strokes/1/undo")
    assert states_of(client)["0.png"] == "empty"
    client.post("/api/pictures/state", json={"picture": "1.png", "state": None})
    assert states_of(client)["1.png"] == "empty"
    before = session.revision
    for body, status in (
        ({"picture": "9.png", "state": "approved"}, 400),
        ({"picture": "0.png", "state": "done"}, 422),
        ({"picture": "0.png"}, 422),
    ):
        answer = client.post("/api/pictures/state", json=body)
        assert answer.status_code == status and answer.json()["error"]
    assert session.revision == before


def test_classes_are_deleted_ordered_and_counted(client, session):
    draw(client, "0.png", [[3, 4, 9, 2], [4, 4, 9, 1]])
    draw(client, "1.png", [[3, 4, 6, 2]])
    assert client.post("/api/classes/order", json={"order": [2, 0, 1]}).json() == {"revision": session.revision}
    for order in ([2, 0], [2, 0, 1, 1], [2, 0, 9], [2, 0, 2**70]):
        answer = client.post("/api/classes/order", json={"order": order})
        assert answer.status_code == 400 and "each of the classes [0, 1, 2] once" in answer.json()["error"]
    classes = client.get("/api/state").json()["classes"]
    assert set(classes[0]) == {"id", "name", "color", "pixels", "pictures"}
    assert [(c["id"], c["pixels"], c["pictures"]) for c in classes] == [(2, 7, 2), (0, 0, 0), (1, 5, 1)]
    assert client.delete("/api/classes/2").json() == {"revision": session.revision}
    assert client.delete("/api/classes/2").status_code == 400
    classes = client.get("/api/state").json()["classes"]
    assert [(c["id"], c["pixels"]) for c in classes] == [(0, 0), (1, 5)]
    answer = draw(client, "0.png", [[5, 4, 9, 2]])
    assert answer.status_code == 400 and "was deleted; draw with another" in answer.json()["error"]
    assert client.post("/api/classes", json={"name": "bar"}).json()["id"] == 3


def test_a_journal_that_was_replaced_is_said(client, session):
    draw(client, "0.png", [[3, 4, 9, 2]])
    session.journal.path.write_bytes(session.journal.path.read_bytes().replace(b"0.png", b"1.png"))
    answer = draw(client, "0.png", [[5, 4, 9, 2]])
    assert answer.status_code == 507 and "was replaced by another version" in answer.json()["error"]
    archive = zipfile.ZipFile(io.BytesIO(client.get("/api/download").content))
    assert "strokes.jsonl" not in archive.namelist() and "dataset/masks/0.png" in archive.namelist()
    assert "was replaced by another version" in archive.read("README.md").decode()


def test_approved_pictures_are_downloaded_alone(client, session, pictures):
    label_all(client, pictures[1])
    answer = client.get("/api/download", params={"approved": True})
    assert answer.status_code == 400 and "No picture is approved yet" in answer.json()["error"]
    session.set_state("1.png", "approved")
    token = kept_token(session.folder).encode()
    for approved, names in ((True, {"1.png"}), (False, {"0.png", "1.png"})):
        answer = client.get("/api/download", params={"approved": approved})
        archive = zipfile.ZipFile(io.BytesIO(answer.content))
        assert set(json.loads(archive.read("dataset_of.json")).values()) == names
        assert not any(token in archive.read(file) for file in archive.namelist())


def test_states_of_pictures_do_not_put_the_pipeline_behind(client, session, pictures):
    label_all(client, pictures[1])
    (session.folder / "finished.json").write_text(json.dumps({"revision": session.revision}))
    session.set_state("1.png", "approved")
    assert not client.app_state.behind()
    session.order_classes([2, 1, 0])
    assert client.app_state.behind()
    (session.folder / "finished.json").write_text(json.dumps({"revision": session.revision + 5}))
    assert client.app_state.behind()  # the journal was put back


HOSTS = {"localhost", "127.0.0.1", "[::1]", "box"}


def test_other_names_of_this_machine_are_not_answered(session):
    """A page of evil.example whose name was given the address 127.0.0.1."""
    client = client_of(session, token=None, hosts=HOSTS)
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]", "box.", "box:80"):
        assert client.get("/api/state", headers={"Host": host}).status_code == 200, host
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.nip.io", "[::2]:80", ""):
        for path in ("/api/state", "/", "/api/image?picture=0.png"):
            answer = client.get(path, headers={"Host": host})
            assert answer.status_code == 403 and "not served under the name" in answer.json()["error"], host
    assert client_of(session, token=None).get("/api/state", headers={"Host": "evil.example"}).status_code == 200


def test_requests_of_other_origins_are_not_answered(session):
    client = client_of(session, token=None)
    draw(client, "0.png", [[0, 0, 3, 1]])
    calls = [("POST", "/api/strokes/1/undo"), ("PATCH", "/api/classes/0"), ("DELETE", "/api/classes/0")]
    before = session.revision
    for method, path in calls:
        for origin in ("http://evil.example", "http://localhost:3000", "null", "http://localhost:8000.evil.example"):
            given = {"Host": "localhost:8000", "Origin": origin}
            answer = client.request(method, path, headers=given, json={"name": "x"})
            assert answer.status_code == 403 and "Another site" in answer.json()["error"]
    assert session.revision == before
    # Behind a proxy that has another name, the browser's word counts.
    proxied = {"Host": "localhost:8000", "Origin": "https://label.example", "Sec-Fetch-Site": "same-origin"}
    for given in ({"Host": "localhost:8000", "Origin": "http://LOCALHOST:8000"}, {"Host": "localhost:8000"}, proxied):
        assert client.post("/api/strokes/1/undo", headers=given).status_code == 200


def test_no_other_site_shows_the_page_in_a_frame_but_the_hub_a_space(session):
    for path in ("/", "/api/state", "/none"):
        headers = client_of(session).get(path).headers
        assert headers["content-security-policy"].endswith("; frame-ancestors 'none'")
        assert headers["x-frame-options"] == "DENY"
    headers = client_of(session, framed_by="https://huggingface.co").get("/").headers
    assert headers["content-security-policy"].endswith("; frame-ancestors https://huggingface.co")
    assert "x-frame-options" not in headers
