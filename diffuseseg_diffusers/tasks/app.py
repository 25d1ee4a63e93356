# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Labels pictures in the browser: `diffuseseg app`."""

import argparse
import ipaddress
import secrets
import socket
import sys
import webbrowser
from pathlib import Path

from ..arguments import add_cache_argument, add_model_arguments, folder_path
from ..hub.push import push_folder
from ..images.image_processor import limit_pixels
from ..jobs.errors import UserError
from ..jobs.files import output_folder
from ..jobs.install import missing_extra
from ..pipelines.loading import load_pipeline, save_fitted


LOCAL = "127.0.0.1"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_cache_argument(parser)
    group = parser.add_argument_group("pictures")
    group.add_argument(
        "--images", type=folder_path, required=True, metavar="FOLDER", help="Folder with the pictures to label."
    )
    group.add_argument(
        "--classes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="Classes of a new session (default: added on the page).",
    )
    group.add_argument(
        "--session",
        type=folder_path,
        metavar="FOLDER",
        help="Folder of the session: strokes, features, results. The same folder is the same session again (default: "
        "the folder of the pictures with -labels at its end).",
    )
    group.add_argument("--recipe", default="default", help="Recipe of the head (default: default).")
    group.add_argument("--max_pixels", type=int, help="Limit of pixels of an image file that is decoded.")
    server = parser.add_argument_group("server")
    server.add_argument(
        "--host",
        default=LOCAL,
        help="Address to listen at; 0.0.0.0 lets other machines in, unencrypted (default: 127.0.0.1).",
    )
    server.add_argument("--port", type=int, default=0, help="Port to listen at; 0: a free one (default: 0).")
    server.add_argument(
        "--no_token",
        action="store_true",
        help="No token in the address: whoever reaches it may label; for a page behind a login.",
    )
    server.add_argument("--open", action="store_true", help="Opening of the page in the browser.")
    space = parser.add_argument_group("Space")
    space.add_argument(
        "--push_space",
        metavar="REPO",
        help="Upload to a Space on the Hub, user/name, that runs the same page on these pictures; nothing runs here.",
    )
    space.add_argument(
        "--public", action="store_true", help="Publicity of a new Space: all its pictures can be seen by everyone."
    )


def main(args: argparse.Namespace) -> None:
    if args.push_space:
        alone = {"session": None, "max_pixels": None, "device": None, "port": 0, "no_token": False, "open": False}
        if unread := [name for name, default in alone.items() if getattr(args, name) != default]:
            raise UserError(f"--{unread[0]} is not for a Space, whose page begins without strokes; leave it out.")
        push_space(args)
        return
    if args.public:
        raise UserError("--public is for a Space; give its name with --push_space.")
    try:
        import uvicorn

        from ..labeling.server import create_app
        from ..labeling.session import LabelSession
    except ModuleNotFoundError as error:
        raise missing_extra("app", error.name) from error
    # 1. The inputs, then the session.
    limit_pixels(args.max_pixels)
    if not args.images.is_dir():
        raise UserError(f"There is no folder {args.images}.")
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port is 0 to 65535, got {args.port}.")
    images = args.images.resolve()
    if not images.name and not args.session:
        raise UserError("A session beside the root of the disk is not possible; give a folder for it with --session.")
    folder = args.session or images.with_name(f"{images.name}-labels")
    pipe = load_pipeline(args.model, args.revision, args.device, args.dtype, args.cache_dir, args.base_model)
    session = LabelSession(pipe, args.images, folder, args.classes, args.recipe)
    for note in session.notes:
        print(note, file=sys.stderr)
    strokes = len(session.journal.active())
    print(f"{len(session.pictures)} pictures, {strokes} strokes; the session is in {folder}.")

    # 2. The page.
    def save(target: Path) -> None:
        with output_folder(target, overwrite=True, command="fit") as partial:
            save_fitted(pipe, partial, args.model, args.revision, args.cache_dir)

    def push(target: Path, repo_id: str, token: str, private: bool) -> str:
        return push_folder(target, repo_id, private=private, token=token)

    token = None if args.no_token else secrets.token_urlsafe(24)
    api = create_app(session, token, save, push)
    listener = listen(args.host, args.port)
    bound, port = listener.getsockname()[:2]
    if not ipaddress.ip_address(bound).is_loopback:
        print(f"Other machines can reach this page at port {port}; what passes is not encrypted.", file=sys.stderr)
    shown = socket.gethostname() if bound in ("0.0.0.0", "::") else f"[{bound}]" if ":" in bound else bound
    address = f"http://{shown}:{port}/" + (f"?token={token}" if token else "")
    if token is None:
        print("There is no token: whoever reaches this page may label.", file=sys.stderr)
    print(f"Label at {address}\nCtrl-C ends it; nothing is lost.", flush=True)
    api.state.app.start()
    if args.open:
        webbrowser.open(address)
    config = uvicorn.Config(api, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: The port is taken, or the address is none of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened at ({error.strerror}); choose another --port or --host."
        ) from (error)
    return listener


def push_space(args: argparse.Namespace) -> None:
    """Uploads the Space."""
    from ..hub.space import push_labeling_space

    given = dict(classes=args.classes, recipe=args.recipe, private=not args.public)
    given |= dict(revision=args.revision, base_model=args.base_model)
    url = push_labeling_space(args.push_space, args.model, args.images, **given)
    print(f"Pushed: {url}")
    if args.public:
        print("The Space is public: everyone can see its pictures.", file=sys.stderr)
