# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Labels images in the browser: `diffuseseg app`."""

import ipaddress
import os
import socket
import sys
import webbrowser
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..jobs.config import option
from ..jobs.errors import UserError
from ..jobs.files import output_folder
from ..jobs.install import missing_extra
from .options import ANNOTATION_FORMATS, MODEL, MODEL_ALIASES, CachesDownloads, RunsModel


LOCAL = "127.0.0.1"
LOOPBACK = ("localhost", LOCAL, "[::1]")  # as browsers write them
HUB = "https://huggingface.co"  # shows a Space in a frame


@dataclass(frozen=True, kw_only=True)
class AppConfig(RunsModel, CachesDownloads):
    """Label images in the browser."""

    title = "images"

    model: str | None = option(
        None, f"{MODEL[:-1]} (default: general).", aliases=MODEL_ALIASES, group="model", reads=True
    )
    images: Path = option(help="Folder with the images to label.", reads=True)
    classes: tuple[str, ...] = option((), "Classes of a new session (default: added on the page).")
    session: Path | None = option(
        None,
        "Folder of the session: strokes, features, results. The same folder resumes it (default: the folder of the "
        "images with -labels at its end).",
    )
    recipe: str = option("default", "Recipe of the head.")
    annotations: Path | None = option(
        None, "File or folder of annotations of the images, with which the session begins.", reads=True
    )
    annotation_format: str = option("auto", "Format of the annotations.", choices=ANNOTATION_FORMATS)
    axes: str | None = option(None, "Axes of TIFFs that do not state them: a letter each, such as CYX.")
    max_pixels: int | None = option(None, "Limit of pixels of images that are decoded whole.", minimum=1)
    host: str = option(LOCAL, "Address to listen at; 0.0.0.0 lets other machines in, unencrypted.", group="server")
    port: int = option(0, "Port to listen at; 0: the session's last one, or a free one.", group="server", maximum=65535)
    no_token: bool = option(
        False,
        "Serve without a token in the address: whoever reaches it may label; for a page behind a login.",
        group="server",
    )
    open: bool = option(False, "Open the page in the browser.", group="server")
    push_space: str | None = option(
        None,
        "Upload to a Space on the Hub, user/name, that runs the same page on these images; nothing runs here.",
        group="Space",
    )
    public: bool = option(False, "Make a new Space public: everyone can see all its images.", group="Space")

    def check(self) -> None:
        super().check()
        session = ("session", "annotations", "axes", "max_pixels", "device", "lora", "dtype")
        server = ("host", "port", "no_token", "open")
        unread = [name for name in session + server if getattr(self, name) != getattr(type(self), name)]
        if self.push_space and unread:
            raise UserError(f"--{unread[0]} is not for a Space, whose page begins without strokes; leave it out.")
        if self.annotation_format != "auto" and self.annotations is None:
            raise UserError("--annotation_format is of --annotations; give its file or folder.")
        if self.public and not self.push_space:
            raise UserError("--public is for a Space; give its name with --push_space.")


def app(config: AppConfig) -> None:
    """Serves the page on which images are labelled, until it is interrupted; or uploads a Space that does.

    Raises:
        UserError: Model, images, session or address cannot be used.

    Examples:
        >>> from diffuseseg_diffusers import AppConfig, app
        >>> app(AppConfig(model="google/ddpm-cat-256", images="photos", open=True))
    """
    if config.model is None:
        from ..pipelines.general import default_model

        model, line = default_model()
        print(line, file=sys.stderr)
        config = replace(config, model=model)
    if config.push_space:
        push_space(config)
        return
    try:
        import uvicorn

        from ..labeling.access import NOBODY
        from ..labeling.folder import keep_port, kept_port, kept_token
        from ..labeling.server import create_app
        from ..labeling.session import LabelSession
    except ModuleNotFoundError as error:
        raise missing_extra("app", error.name) from error
    from ..images.image_processor import limit_pixels
    from ..pipelines.general import suited_recipe
    from ..pipelines.loading import load_pipeline

    # 1. The inputs, then the session.
    limit_pixels(config.max_pixels)
    if not config.images.is_dir():
        raise UserError(f"There is no folder {config.images}.")
    images = config.images.resolve()
    if not images.name and not config.session:
        raise UserError("A session beside the root of the disk is not possible; give a folder for it with --session.")
    folder = config.session or images.with_name(f"{images.name}-labels")
    pipe: Any = load_pipeline(config.model, **config.loading())
    given = config.annotations, config.annotation_format, default_size(config, pipe)
    recipe = suited_recipe(config.recipe, config.model)
    session = LabelSession(pipe, config.images, folder, config.classes, recipe, config.axes, *given)
    for note in session.notes:
        print(note, file=sys.stderr)
    strokes = len(session.journal.active())
    print(f"{len(session.pictures)} pictures, {strokes} strokes; the session is in {folder}.")

    # 2. The page.
    token = None if config.no_token else kept_token(folder)
    listener = listen_again(config.host, config.port, kept_port(folder))
    bound, port = listener.getsockname()[:2]
    keep_port(folder, port)
    framed_by = HUB if "SPACE_ID" in os.environ else NOBODY  # it is set in every Space
    api = create_app(session, token, *savers(config, pipe), hosts(config, bound), framed_by)
    address = announce(bound, port, token)
    api.state.app.start()
    if config.open:
        webbrowser.open(address)
    served = uvicorn.Config(api, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(served).run(sockets=[listener])


def default_size(config: AppConfig, pipe: Any) -> tuple[int, int] | None:
    """Height and width at which a model of the package reads the pictures; `None` for others, which have their own."""
    from ..heads.views import whole_size
    from ..labeling.pictures import find_pictures
    from ..pipelines.general import comes_with_package

    if not comes_with_package(str(config.model)):
        return None
    pictures = find_pictures(config.images, axes=config.axes)[0]
    size = whole_size([picture.size for picture in pictures.values()], pipe.features())
    print(f"Pictures are read at {size[1]} x {size[0]}.", file=sys.stderr)
    return size


def savers(config: AppConfig, pipe: Any) -> tuple[Any, Any]:
    """Functions that save the fitted pipeline to a folder, and push a folder to the Hub."""
    from ..hub.push import push_folder
    from ..pipelines.loading import save_fitted

    def save(target: Path) -> None:
        with output_folder(target, overwrite=True, command="fit") as partial:
            save_fitted(pipe, partial, config.model, config.revision, config.cache_dir)

    def push(target: Path, repo_id: str, token: str, private: bool) -> str:
        return push_folder(target, repo_id, private=private, token=token)

    return save, push


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; raises [`UserError`] if the port is taken, or the address is none of this machine."""
    try:
        listener = socket.socket(socket.getaddrinfo(host, port)[0][0])
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened at ({error.strerror}); choose another --port or --host."
        ) from error
    return listener


def announce(bound: str, port: int, token: str | None) -> str:
    """Prints the address of the page and who may reach it; returns the address."""
    if not ipaddress.ip_address(bound).is_loopback:
        print(f"Other machines can reach this page at port {port}; what passes is not encrypted.", file=sys.stderr)
    shown = socket.gethostname() if bound in ("0.0.0.0", "::") else f"[{bound}]" if ":" in bound else bound
    address = f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
    if token is None:
        print("There is no token: whoever reaches this page may label.", file=sys.stderr)
    print(f"Label at {address}\nCtrl-C ends it; nothing is lost.", flush=True)
    return address


def listen_again(host: str, port: int, last: int | None) -> socket.socket:
    """A socket that listens at a port; for port 0 at the session's last one, or with a line at a free one."""
    if port or not last:
        return listen(host, port)
    try:
        return listen(host, last)
    except UserError:
        listener = listen(host, 0)
        print(f"The port {last}, which this page had last, is taken: its address has changed.", file=sys.stderr)
        return listener


def hosts(config: AppConfig, bound: str) -> set[str] | None:
    """Names under which a page without a token is served to this machine alone; `None` for any."""
    if not config.no_token or not ipaddress.ip_address(bound).is_loopback:
        return None
    own = f"[{bound}]" if ":" in bound else bound
    return {*LOOPBACK, own, config.host.lower(), socket.gethostname().lower()}


def push_space(config: AppConfig) -> None:
    from ..hub.space import push_labeling_space

    assert config.push_space is not None
    shared = {name: getattr(config, name) for name in ("classes", "recipe", "revision", "base_model")}
    url = push_labeling_space(config.push_space, config.model, config.images, private=not config.public, **shared)
    print(f"Pushed: {url}")
    if config.public:
        print("The Space is public: everyone can see its images.", file=sys.stderr)
