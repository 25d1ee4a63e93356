# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The web server of a labelling session: routes and access control.

No part of a request is used as a path: pictures are looked up by name. Every route except the page's static files
requires the token of the address before anything else is read. Class ids travel as bytes and numbers, never as
colours.
"""

import base64
import json
import shutil
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from fastapi import BackgroundTasks, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware

from ..images.image_files import encode_image
from ..jobs.errors import UserError
from ..jobs.files import read_json, write_json
from ..pipelines.identity import digest
from .access import NOBODY, answer_headers, refusal
from .checks import MAX_KEY
from .display import View
from .export import export_session
from .folder import FINISHED, PIPELINE, kept_token
from .pictures import LastRead
from .regions import to_runs
from .session import LabelSession
from .states import picture_state


STATIC = Path(__file__).parent / "static"
PNG = "image/png"
PLACES = 5  # that are suggested in a picture


class Strict(BaseModel):
    """A request body; unknown fields and numbers sent as text are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class StrokeBody(Strict):
    picture: str
    runs: list[Any] = Field(min_length=1)  # of four numbers each, which the session checks at once
    revision: int = Field(ge=0)
    session: str | None = None  # in whose page it was drawn
    key: str | None = Field(None, min_length=1, max_length=MAX_KEY)  # the same for a stroke that is sent again


class AcceptBody(Strict):
    picture: str
    y: int
    x: int
    revision: int = Field(ge=0)


class ClassBody(Strict):
    name: str | None = None
    color: list[int] | None = None


class MergeBody(Strict):
    into: int


class OrderBody(Strict):
    order: list[int]


class StateBody(Strict):
    picture: str
    state: Literal["approved", "skipped"] | None


class MasksBody(Strict):
    pictures: list[str] = Field(max_length=10_000)


class PushBody(Strict):
    repo_id: str
    token: str
    private: bool = True


class App:
    """A session with its background work.

    Args:
        session ([`LabelSession`]): What is labelled.
        save (`Callable`): Saves the fitted pipeline into an empty folder.
        push (`Callable`): Uploads a folder: called with it, the repository, the token, and whether it is private;
            returns an address.
    """

    def __init__(
        self, session: LabelSession, save: Callable[[Path], None], push: Callable[[Path, str, str, bool], str]
    ):
        self.session, self.save, self.push = session, save, push
        self.progress: tuple[int, ...] = (0, len(session.pictures))  # pictures that are done, and all
        self.error: str | None = None  # that ended the extraction
        self.name = digest(kept_token(session.folder))  # the same after a restart, another for another session
        self._busy = threading.Lock()
        fitted = self.pipeline()
        self.finishing: dict[str, Any] = {"state": "done", "folder": str(fitted)} if fitted else {"state": "idle"}

    def start(self) -> threading.Thread:
        """Extracts features in the background."""

        def show(*progress: int) -> None:
            self.progress = progress

        def work() -> None:
            try:
                self.session.extract(show)
            except Exception as error:  # shown on the page and in the terminal
                self.error = str(error)
                print(f"error: {error}", flush=True)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread

    def state(self) -> dict[str, Any]:
        """The state that the page shows beside the picture."""
        session = self.session
        revision = session.revision  # before what follows from it: what is told is at least as new
        counts = Counter(stroke.picture for stroke in session.journal.active())
        statistics, classes = session.statistics(), []
        for own in session.classes:
            pixels, where = statistics.get(own.id, (0, 0))
            classes.append({**vars(own), "pixels": pixels, "pictures": where})
        pictures = []
        for name, picture in list(session.pictures.items()):
            height, width = picture.size
            known = {"strokes": counts[name], "ready": name in session.ready}
            how_far = picture_state(session.journal, name, counts[name])
            pictures.append({"name": name, "height": height, "width": width, **known, "state": how_far})
        return {
            "session": self.name,
            "revision": revision,
            "classes": classes,
            "pictures": pictures,
            "left_out": dict(session.left_out),
            "notes": session.notes,
            "progress": {**dict(zip(("done", "total"), self.progress)), "error": self.error},
            "finish": {**self.finishing, "behind": self.behind()},
        }

    def finish(self) -> None:
        """Starts fitting the full recipe and saving the pipeline in the background, one at a time."""
        if not self._busy.acquire(blocking=False):
            raise UserError("The head is being fitted already; wait for it.")
        revision, began = self.session.revision, time.perf_counter()
        self.finishing = {"state": "running"}

        def work() -> None:
            try:
                self.session.finish()
                self.save(self.session.folder / PIPELINE)
                write_json(self.session.folder / FINISHED, {"revision": revision})
                seconds = round(time.perf_counter() - began, 1)
                self.finishing = {"state": "done", "seconds": seconds, "folder": str(self.session.folder / PIPELINE)}
            except Exception as error:
                self.finishing = {"state": "failed", "error": str(error)}
            finally:
                self._busy.release()

        threading.Thread(target=work, daemon=True).start()

    def behind(self) -> bool:
        """Whether strokes or classes have changed since the pipeline was fitted; `False` if it was not."""
        path = self.session.folder / FINISHED
        if not path.is_file():
            return False
        fitted = read_json(path).get("revision")
        return not (isinstance(fitted, int) and self.session.journal.content <= fitted <= self.session.revision)

    def pipeline(self) -> Path | None:
        """Folder of the fitted pipeline, if there is one."""
        folder = self.session.folder / PIPELINE
        return folder if folder.is_dir() and not self._busy.locked() else None


def create_app(
    session: LabelSession,
    token: str | None,
    save: Callable[[Path], None],
    push: Callable[[Path, str, str, bool], str],
    hosts: Collection[str] | None = None,
    framed_by: str = NOBODY,
) -> FastAPI:
    """The page of a session, for uvicorn; the [`App`] is its `state.app`.

    Args:
        session ([`LabelSession`]), save (`Callable`), push (`Callable`): See [`App`].
        token (`str`, *optional*): The token that every request must carry; without one, the address alone suffices.
        hosts (collection of `str`, *optional*): Names under which the page is served, see [`refusal`]; any if not
            given.
        framed_by (`str`, defaults to `"'none'"`): Sites that may show the page in a frame.
    """
    app = App(session, save, push)
    api = FastAPI(title="DiffuseSeg", docs_url=None, redoc_url=None, openapi_url=None)
    api.state.app = app
    _add_errors(api)
    _add_label_routes(api, app)
    _add_class_routes(api, app)
    _add_view_routes(api, app)
    _add_result_routes(api, app)
    api.mount("/", StaticFiles(directory=STATIC, html=True))
    api.add_middleware(GZipMiddleware, compresslevel=1)  # 9 takes longer than what it saves on the way
    headers = answer_headers(framed_by)

    @api.middleware("http")
    async def guard(request: Request, call_next: Callable) -> Response:
        refused = refusal(request, token, hosts)
        response = JSONResponse({"error": refused[1]}, refused[0]) if refused else await call_next(request)
        response.headers.update(headers)
        return response

    return api


def _add_errors(api: FastAPI) -> None:
    """Every error is answered with one sentence."""

    def answer(status: int | None, sentence: Callable[[Any], str] = str) -> Callable:
        return lambda _, error: JSONResponse({"error": sentence(error)}, status or error.status_code)

    def unfit(error: RequestValidationError) -> str:
        first = error.errors()[0]
        return f"The request does not fit: {'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}."

    api.add_exception_handler(HTTPException, answer(None, lambda error: error.detail))
    api.add_exception_handler(UserError, answer(400))
    api.add_exception_handler(OSError, answer(507, lambda error: error.strerror or str(error)))
    api.add_exception_handler(RequestValidationError, answer(422, unfit))


def _add_label_routes(api: FastAPI, app: App) -> None:
    session = app.session

    def known(revision: int) -> None:
        if revision > session.revision:
            what = f"This page knows revision {revision}, but the session is at {session.revision}"
            raise HTTPException(409, f"{what}: it is another session, or was put back; reload the page.")

    def answer(body: StrokeBody | AcceptBody, runs: Sequence[Sequence[int]], kind: str, key: str | None = None) -> dict:
        """Draws a stroke; reports whether another page has changed the picture since the given revision."""
        with session.lock:
            stale = session.journal.changed.get(body.picture, 0) > body.revision
            number = session.draw(body.picture, runs, kind, key)
            strokes = len(session.journal.active(body.picture))
            return {"number": number, "revision": session.revision, "stale": stale, "strokes": strokes}

    @api.post("/api/strokes")
    def draw(body: StrokeBody) -> dict:
        if body.session not in (None, app.name):
            raise HTTPException(409, "This stroke was drawn in another session; reload the page.")
        known(body.revision)
        return answer(body, body.runs, "stroke", body.key)

    @api.post("/api/accept")
    def accept(body: AcceptBody) -> dict:
        known(body.revision)
        region, label = session.accept(body.picture, body.y, body.x)
        runs = to_runs(region, label)
        return {**answer(body, runs, "accept"), "runs": runs}

    @api.post("/api/strokes/{number}/undo")
    def undo(number: int) -> dict:
        session.undo(number)
        return {"revision": session.revision}

    @api.post("/api/strokes/{number}/redo")
    def redo(number: int) -> dict:
        session.redo(number)
        return {"revision": session.revision}

    @api.post("/api/pictures/state")
    def set_state(body: StateBody) -> dict:
        session.set_state(body.picture, body.state)
        return {"revision": session.revision}


def _add_class_routes(api: FastAPI, app: App) -> None:
    session = app.session

    @api.post("/api/classes")
    def add_class(body: ClassBody) -> dict:
        return vars(session.add_class(body.name or "", body.color))

    @api.patch("/api/classes/{label}")
    def change_class(label: int, body: ClassBody) -> dict:
        return vars(session.change_class(label, body.name, body.color))

    @api.post("/api/classes/{label}/merge")
    def merge(label: int, body: MergeBody) -> dict:
        session.merge_classes(label, body.into)
        return {"revision": session.revision}

    @api.delete("/api/classes/{label}")
    def delete(label: int) -> dict:
        session.delete_class(label)
        return {"revision": session.revision}

    @api.post("/api/classes/order")
    def order(body: OrderBody) -> dict:
        session.order_classes(body.order)
        return {"revision": session.revision}


def _add_view_routes(api: FastAPI, app: App) -> None:
    session = app.session

    @api.get("/api/state")
    def state() -> dict:
        return app.state()

    last = LastRead()

    @api.get("/api/image")
    def image(
        picture: str,
        side: Annotated[int | None, Query(ge=16, le=1024)] = None,
        low: float | None = None,
        high: float | None = None,
        gamma: float = 1.0,
        invert: bool = False,
        channel: str | None = None,
    ) -> Response:
        """The picture for display, and in headers what has to be said of it and how it is shown, as JSON."""
        view, asked, channels = View(low, high, gamma, invert, channel), session.picture(picture), session.pipe.channels
        shown, lines, display = asked.shown(channels, view, last.read(asked, channels, keep=side is None))
        if side is not None:
            shown = shown.copy()
            shown.thumbnail((side, side))
        headers = {"X-Notes": json.dumps(lines), "X-Display": json.dumps(display)}
        content = encode_image(shown, compress_level=1, compress_type=zlib.Z_RLE)  # the fastest, and smaller on photos
        return Response(content, headers=headers, media_type=PNG)

    @api.get("/api/labels")
    def labels(picture: str) -> Response:
        with session.lock:
            numbers = ",".join(str(s.number) for s in session.journal.active(picture))
            headers = {"X-Revision": str(session.revision), "X-Strokes": numbers}
            ids = session.labels(picture).tobytes()
        return Response(ids, media_type="application/octet-stream", headers=headers)

    @api.get("/api/mask")
    def mask(picture: str) -> Response:
        """Class ids, then uncertainty from 0 to 255, each a byte a pixel."""
        began = time.perf_counter()
        prediction = session.predict(picture) if picture in session.ready else None
        if prediction is None:
            session.picture(picture)
            return Response(status_code=204, headers={"X-Revision": str(session.revision)})
        head = session.head
        most = max(float(np.log(len(head.classes) * len(head.weight))), 1e-6) if head else 1.0
        doubt = torch.from_numpy(prediction.uncertainty).mul(255 / most).clamp_(0, 255).byte().numpy()
        headers = {
            "X-Revision": str(prediction.revision),
            "X-Milliseconds": f"{1000 * (time.perf_counter() - began):.0f}",
        }
        content = prediction.mask.tobytes() + doubt.tobytes()
        return Response(content, media_type="application/octet-stream", headers=headers)

    @api.post("/api/masks")
    def masks(body: MasksBody) -> dict:
        found = session.small_masks(body.pictures)
        return {
            "revision": session.head_revision,
            "masks": {
                name: {"height": m.shape[0], "width": m.shape[1], "ids": base64.b64encode(m.tobytes()).decode()}
                for name, m in found.items()
            },
        }

    @api.get("/api/suggestions")
    def suggestions(picture: str | None = None) -> dict:
        found = session.suggest(picture, PLACES)
        return {
            "revision": session.revision,
            "ranking": [{"picture": s.picture, "gain": s.gain, "reason": s.reason} for s in found],
            "places": {
                s.picture: [{"y": y, "x": x, "reason": why} for y, x, why in s.places] for s in found if s.places
            },
        }


def _add_result_routes(api: FastAPI, app: App) -> None:
    session = app.session

    @api.post("/api/finish")
    def finish() -> dict:
        app.finish()
        return app.finishing

    @api.get("/api/download")
    def download(background: BackgroundTasks, approved: bool = False) -> FileResponse:
        scratch = Path(tempfile.mkdtemp(prefix="diffuseseg-export-"))
        try:
            export_session(session, scratch / "labels", app.pipeline(), app.behind(), approved)
            archive = shutil.make_archive(str(scratch / "labels"), "zip", scratch / "labels")
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        background.add_task(shutil.rmtree, scratch, ignore_errors=True)
        return FileResponse(archive, filename="labels.zip", background=background)

    @api.post("/api/push")
    def push(body: PushBody) -> dict:
        """Uploads the pipeline; the token is not stored."""
        folder = app.pipeline()
        if folder is None:
            raise UserError('There is no fitted pipeline yet; press "Finish" first.')
        if not (body.token.isascii() and body.token.isprintable()):
            raise UserError("The token has characters that no token of the Hub has; copy it again.")
        return {"url": app.push(folder, body.repo_id, body.token, body.private)}
