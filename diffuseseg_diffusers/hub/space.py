# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Makes a Space on the Hub that runs the labelling page of `diffuseseg app`.

A Docker Space: the page is an own server, and the package travels with it, because it is in no registry yet.
"""

import importlib.metadata
import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, SpaceCard, SpaceCardData

from ..jobs.errors import UserError
from ..jobs.install import requirements_of
from ..labeling.pictures import find_pictures
from ..pipelines.general import hub_name
from .files import Upload, collect
from .push import check_access, commit_upload


PACKAGE = "diffuseseg_diffusers"
TOP_LEVEL = ("training", "hub_cards")  # subpackages that stand beside the package in a clone
PORT = 7860

DOCKERFILE = f"""FROM python:{sys.version_info.major}.{sys.version_info.minor}-slim
RUN useradd --create-home --uid 1000 user
USER user
ENV PATH=/home/user/.local/bin:$PATH
WORKDIR /home/user/app
COPY --chown=user requirements.txt .
RUN pip install --no-cache-dir --user --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt
COPY --chown=user . .
CMD ["python", "app.py"]
"""

APP = '''"""Runs `diffuseseg app` where the Space expects a server. Who may see the Space is up to the Hub: no token."""

from diffuseseg_diffusers.cli import main


if __name__ == "__main__":
    main({arguments})
'''


def push_labeling_space(
    repo_id: str,
    model: str,
    images: Path,
    classes: Sequence[str] = (),
    recipe: str = "default",
    private: bool = True,
    revision: str | None = None,
    base_model: str | None = None,
    token: str | None = None,
) -> str:
    """Uploads a Space with the labelling page, its pictures and, if it is not on the Hub, its model; in one commit.

    Args:
        repo_id (`str`): Space, `user/name`; made if it is not there.
        model (`str`), revision (`str`, *optional*), base_model (`str`, *optional*): As in [`load_pipeline`]; the folder
            of a pipeline is uploaded.
        images (`Path`): Folder with the pictures.
        classes (sequence of `str`, *optional*), recipe (`str`, defaults to `"default"`): As in `diffuseseg app`.
        private (`bool`, defaults to `True`): Whether a new Space is private; who sees it sees its pictures.
        token (`str`, *optional*): The one that you logged in with if not given.

    Returns:
        `str`: The address of the commit.

    Raises:
        UserError: There are no pictures or no model, or the Hub does not take it.
    """
    what = f"The Space {repo_id} cannot be made"
    local = Path(model).is_dir()
    found, left_out, notes = find_pictures(images)
    for name, reason in left_out.items():
        raise UserError(f"{what}: {name} {reason}.")
    for note in notes:
        print(note, file=sys.stderr)
    arguments = ["app", "--model", "model" if local else model, "--images", "images", "--session", "session"]
    arguments += ["--recipe", recipe, "--host", "0.0.0.0", "--port", str(PORT), "--no_token"]
    arguments += ["--revision", revision] if revision and not local else []
    arguments += ["--base_model", base_model] if base_model else []
    arguments += ["--classes", *classes] if classes else []
    files: dict[str, Path | bytes] = {
        "app.py": APP.format(arguments=json.dumps(arguments)).encode(),
        "Dockerfile": DOCKERFILE.encode(),
        "requirements.txt": "".join(f"{line}\n" for line in pinned_requirements()).encode(),
    }
    files |= package_files()
    for picture in found.values():  # planes of one file share it
        name = picture.path.relative_to(images).as_posix()
        inside = sorted(p for p in picture.path.rglob("*") if p.is_file()) if picture.path.is_dir() else [picture.path]
        files |= {f"images/{name}{p.as_posix()[len(picture.path.as_posix()) :]}": p for p in inside}
    with TemporaryDirectory() as scratch:
        if local:
            upload = collect(Path(model), Path(scratch))
            if upload.kind not in ("pipeline", "head"):
                raise UserError(f"{what}: {model} holds a {upload.kind}; give the folder of a diffusion model.")
            files |= {f"model/{name}": content for name, content in upload.files.items()}
        repo_id = check_access(repo_id, token, False, what)
        card = space_card(repo_id, hub_name(model), len(found))
        upload, message = Upload("space", images, files), "Upload labelling page"
        return commit_upload(HfApi(token=token), repo_id, upload, card, message, private, False, what)


def space_card(repo_id: str, model: str | None, num_pictures: int) -> SpaceCard:
    """The README.md of a Space, with what the Hub needs to run it."""
    data = SpaceCardData(
        title=repo_id.split("/")[-1],
        emoji="🖌️",
        colorFrom="indigo",
        colorTo="green",
        sdk="docker",
        app_port=PORT,
        models=[model] if model else None,
        short_description="Label pictures by a few strokes",
        tags=["diffuseseg"],
    )
    text = resources.files("diffuseseg_diffusers.hub_cards") / "space_card.md"
    return SpaceCard.from_template(
        data, template_str=text.read_text(encoding="utf-8"), title=data.title, model=model, num_pictures=num_pictures
    )


def pinned_requirements() -> list[str]:
    """What the page needs, `name==version`, in the versions that are installed here."""
    names = sorted(one.name for one in requirements_of("app", base=True))
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in names]  # no "+cpu"


def package_files() -> dict[str, Path | bytes]:
    """This package, as it is installed: path in a repository to a file."""
    roots = {PACKAGE: PACKAGE} | {f"{PACKAGE}/{name}": f"{PACKAGE}.{name}" for name in TOP_LEVEL}
    files: dict[str, Path | bytes] = {}
    for target, module in roots.items():
        root = Path(str(resources.files(module)))
        own = (p for p in sorted(root.rglob("*")) if p.is_file() and "__pycache__" not in p.parts)
        files |= {f"{target}/{p.relative_to(root).as_posix()}": p for p in own}
    return files
