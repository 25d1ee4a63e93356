# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The web server of a labelling session: routes and access control.

No part of a request is used as a path: pictures are looked up by name. Every route except the page's static files
requires the token of the address before anything else is read. Class ids travel as bytes and numbers, never as
colours.
"""

import base64
import hmac
import json
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
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
from .export import export_session
from .folder import FINISHED, PIPELINE
from .regions import to_runs
from .session import LabelSession


STATIC = Path(__file__).parent / "static"
MAX_BODY = 2**24  # bytes
PNG = "image/png"
PLACES = 5  # that are suggested in a picture
HEADERS = {
    "cache-control": "no-store",  # an address may be reused by another session
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Strict(BaseModel):
    """A request body; unknown fields and numbers sent as text are refused."""

    model_config = ConfigDict(strict=True, extra="forbid")


class StrokeBody(Strict):
    picture: str
    runs: list[Any] = Field(min_length=1)  # of four numbers each, which the session checks at once
    revision: int = Field(ge=0)


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
        self.finishing: dict[str, Any] = {"state": "idle"}
        self._busy = threading.Lock()

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
        pictures = []
        for name, picture in list(session.pictures.items()):
            height, width = picture.size
            known = {"strokes": counts[name], "ready": name in session.ready}
            pictures.append({"name": name, "height": height, "width": width, **known})
        return {
            "revision": revision,
            "classes": [vars(c) for c in session.classes],
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
        """Whether strokes or classes have changed since the pipeline was fitted; `None` if unknown."""
        path = self.session.folder / FINISHED
        return path.is_file() and read_json(path).get("revision") != self.session.revision

    def pipeline(self) -> Path | None:
        """Folder of the fitted pipeline, if there is one."""
        folder = self.session.folder / PIPELINE
        return folder if folder.is_dir() and not self._busy.locked() else None


def _refusal(request: Request, token: str | None) -> tuple[int, str] | None:
    """Why a request is refused before its body is read: without the token, from another site, or oversized."""
    if "\0" in request.scope["path"]:
        return 404, "Not Found"
    if request.scope["path"].startswith("/api/"):
        given = request.headers.get("authorization", "").encode("latin-1")
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            return 401, "The token is missing or wrong; open the address that the terminal shows."
        if request.method != "GET" and request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "Another site sent this request; it is not answered."
    length = request.headers.get("content-length") or "0"
    if not length.isdecimal() or int(length) > MAX_BODY or "transfer-encoding" in request.headers:
        return 413, f"A request may have {MAX_BODY:,} bytes, and has to say how many it has."
    return None


def create_app(
    session: LabelSession,
    token: str | None,
    save: Callable[[Path], None],
    push: Callable[[Path, str, str, bool], str],
) -> FastAPI:
    """The page of a session, for uvicorn; the [`App`] is its `state.app`.

    Args:
        session ([`LabelSession`]), save (`Callable`), push (`Callable`): See [`App`].
        token (`str`, *optional*): The token that every request must carry; without one, the address alone suffices.
    """
    app = App(session, save, push)
    api = FastAPI(title="DiffuseSeg", docs_url=None, redoc_url=None, openapi_url=None)
    api.state.app = app
    _add_errors(api)
    _add_label_routes(api, app)
    _add_view_routes(api, app)
    _add_result_routes(api, app)
    api.mount("/", StaticFiles(directory=STATIC, html=True))
    api.add_middleware(GZipMiddleware)

    @api.middleware("http")
    async def guard(request: Request, call_next: Callable) -> Response:
        refusal = _refusal(request, token)
        response = JSONResponse({"error": refusal[1]}, refusal[0]) if refusal else await call_next(request)
        response.headers.update(HEADERS)
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

    def answer(body: StrokeBody | AcceptBody, runs: Sequence[Sequence[int]], kind: str) -> dict:
        """Draws a stroke; reports whether another page has changed the picture since the given revision."""
        with session.lock:
            stale = session.journal.changed.get(body.picture, 0) > body.revision
            number = session.draw(body.picture, runs, kind)
            strokes = len(session.journal.active(body.picture))
            return {"number": number, "revision": session.revision, "stale": stale, "strokes": strokes}

    @api.post("/api/strokes")
    def draw(body: StrokeBody) -> dict:
        known(body.revision)
        return answer(body, body.runs, "stroke")

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


def _add_view_routes(api: FastAPI, app: App) -> None:
    session = app.session

    @api.get("/api/state")
    def state() -> dict:
        return app.state()

    @api.get("/api/image")
    def image(picture: str, side: Annotated[int | None, Query(ge=16, le=1024)] = None) -> Response:
        """The picture for display, and in a header what has to be said of it, as a list of JSON."""
        shown, lines = session.picture(picture).shown(session.pipe.channels)
        if side is not None:
            shown.thumbnail((side, side))
        return Response(encode_image(shown, compress_level=1), headers={"X-Notes": json.dumps(lines)}, media_type=PNG)

    @api.get("/api/labels")
    def labels(picture: str) -> Response:
        numbers = ",".join(str(s.number) for s in session.journal.active(picture))
        headers = {"X-Revision": str(session.revision), "X-Strokes": numbers}
        return Response(session.labels(picture).tobytes(), media_type="application/octet-stream", headers=headers)

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
        doubt = (prediction.uncertainty / most * 255).clip(0, 255).astype(np.uint8)
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
    def download(background: BackgroundTasks) -> FileResponse:
        scratch = Path(tempfile.mkdtemp(prefix="diffuseseg-export-"))
        try:
            export_session(session, scratch / "labels", app.pipeline(), app.behind())
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
