# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Pushes models and datasets to the Hub, each in one commit.

Everything is prepared and checked before the repository is created, so that a refused push leaves none behind.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusers.utils import logging
from huggingface_hub import CommitOperationAdd, DatasetCard, HfApi, ModelCard, RepoCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import get_session, hf_raise_for_status, validate_repo_id

from ..features.noise import sees_no_noise
from ..heads.ensemble import PixelClassifierEnsemble
from ..images.image_files import encode_image
from ..jobs.errors import UserError
from ..jobs.files import read_object
from ..jobs.hub_errors import explain_hub_error, is_temporary
from ..pipelines.composed import HEAD
from ..pipelines.loading import load_pipeline
from ..pipelines.pixel import DiffuseSegPipeline
from .cards import CARD, SAMPLES, own_card
from .dataset_card import dataset_card, read_parts
from .files import RECORDS, STUDENT_RECORD, Upload, collect, without_local_paths
from .model_cards import head_card, pipeline_card, sample_sheet, segmenter_card, student_card


logger = logging.get_logger(__name__)


def push_pipeline(pipe: DiffuseSegPipeline, repo_id: str, variant: str | None = None, **kwargs) -> str:
    """Uploads a pipeline with its card in one commit; `pipe.push_to_hub` of diffusers uploads no card.

    Args:
        pipe ([`DiffuseSegPipeline`]): With or without a head; or an [`AveragedSegmenter`].
        repo_id (`str`): Repository, `user/name`; created if it does not exist.
        variant (`str`, *optional*): As in [`DiffuseSegPipeline.save_pretrained`].
        **kwargs: As in [`push_folder`].

    Returns:
        `str`: Address of the commit.

    Raises:
        UserError: The Hub refuses it; the repository is then unchanged.

    Examples:
        >>> push_pipeline(pipe, "user/faces-diffuseseg", license="apache-2.0")
    """
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {"variant": variant} if variant else {}  # which not all kinds take
        pipe.save_pretrained(folder, **given)
        return push_folder(folder, repo_id, pipe=pipe, **kwargs)


def push_folder(
    folder: str | os.PathLike,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    evaluations: Sequence[Mapping] = (),
    num_samples: int = 8,
    pipe: DiffuseSegPipeline | None = None,
    analysis: str | os.PathLike | None = None,
) -> str:
    """Uploads a folder with a pipeline, a head, a student, several models or a dataset, and its card, in one commit.

    A pipeline is uploaded with weights, configs and the code for them; a head on another pipeline with the name of
    that pipeline; a student, or several models that segment together, with weights and configs; a dataset with the
    files that `datasets` reads and the names of the classes. Hidden files, links that lead out of the folder and local
    paths are left out, and one line lists what is. An interrupted push resumes.

    Args:
        folder (`str` or path): Saved by [`DiffuseSegPipeline.save_pretrained`], `diffuseseg fit`, `train-ddpm` or
            `train-student`; or images that [`load_labeled_images`] or `datasets` reads; layouts that only the former
            knows go as Parquet.
        repo_id (`str`): Repository, `user/name`; created if it does not exist.
        commit_message (`str`, *optional*), create_pr (`bool`, defaults to `False`): As in `HfApi.create_commit`.
        private (`bool`, *optional*): Whether a new repository is private; the account's default if not given.
        token (`str`, *optional*): Access token; that of `hf auth login` if not given.
        license (`str`, *optional*): Identifier of the licence on the Hub; that of the folder's own README.md or
            "unknown" if not given.
        evaluations (sequence of `dict`): Metrics of `diffuseseg evaluate`, for the card of a pipeline.
        num_samples (`int`, defaults to 8): Images to generate for the card of a pipeline, in 50 steps of DDIM.
        pipe ([`DiffuseSegPipeline`], *optional*): The pipeline in the folder, if it is loaded already.
        analysis (`str` or path, *optional*): Output folder of `diffuseseg analyze`; the card shows its figures.

    Returns:
        `str`: Address of the commit.

    Raises:
        UserError: The folder holds nothing to push, or the Hub refuses it.

    Examples:
        >>> push_folder("out/model", "user/faces-diffuseseg", license="apache-2.0")
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    figures = sorted(Path(analysis).glob("*.png")) if analysis else []
    if analysis and not figures:
        raise UserError(f"There are no figures in {analysis}; `diffuseseg analyze` leaves them in its --output_dir.")
    with tempfile.TemporaryDirectory() as scratch:
        # 1. What goes up, loaded or read to see that it is whole; the Hub is not asked.
        upload = collect(folder, Path(scratch))
        loaded = pipe or _load(upload)
        if line := upload.describe_left_out():
            logger.warning(line)

        # 2. Where it goes, and its card with its images.
        repo_id = check_access(repo_id, token, create_pr, f"{folder} cannot be pushed to {repo_id}")
        if upload.kind == "pipeline":
            upload.files |= {f"analysis/{path.name}": path for path in figures}
            draws = num_samples > 0 and not sees_no_noise(loaded.scheduler)
            if draws and SAMPLES not in upload.files:
                upload.files[SAMPLES] = encode_image(sample_sheet(loaded, num_samples))
        card = _make_card(upload, folder, loaded, repo_id, license, evaluations)

        # 3. The repository, and the commit.
        message = commit_message or f"Upload {upload.kind}"
        what = f"{folder} cannot be pushed to {repo_id}"
        return commit_upload(HfApi(token=token), repo_id, upload, card, message, private, create_pr, what)


def check_access(repo_id: str, token: str | None, create_pr: bool, what: str) -> str:
    """Checks repository name and token against the Hub before the long work; returns the full name.

    Creates no repository. The rights of a fine-grained token only show when it pushes; a pull request (`create_pr`) may
    go to any repository. `what` fails, for the error.

    Raises:
        UserError: Invalid repository name; or the token is invalid, read-only or of another namespace.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{what}: {error}") from error
    with hub_refusals(what):
        user = HfApi(token=token).whoami()
    owner, _, name = repo_id.rpartition("/")
    owner = owner or user["name"]
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UserError(f"{what}: the token of {user['name']} may only read; make one that may write.")
    members = {user["name"].lower(), *(organisation["name"].lower() for organisation in user.get("orgs", []))}
    if role == "write" and not create_pr and owner.lower() not in members:
        raise UserError(
            f"{what}: the token is of {user['name']}, who is not {owner} and in no organisation of that name; choose a "
            f"repository of your own, or log in as {owner}."
        )
    return f"{owner}/{name}"


@contextmanager
def hub_refusals(what: str) -> Iterator[list[str]]:
    """Converts errors of the Hub's client to [`UserError`]: what failed, why, and what to do.

    Yields a list, to which the block may add sentences that follow the reason.
    """
    more: list[str] = []
    try:
        yield more
    except UserError:
        raise
    except Exception as error:
        reason = explain_hub_error(error) or (str(error) if isinstance(error, HfHubHTTPError) else None)
        if reason is None:
            raise
        raise UserError(" ".join([f"{what}: {reason}.", *more])) from error


def prepare_push(config: Any) -> None:
    """Checks name and token before the long work, for a configuration that pushes its output folder."""
    if config.push_to_hub:
        name = config.hub_id or config.output_dir.name
        check_access(name, None, False, f"{config.output_dir} cannot be pushed to {name}")


def finish_push(config: Any) -> None:
    """Uploads the output folder, if that was asked for; the folder stays complete if it fails."""
    if not config.push_to_hub:
        return
    name = config.hub_id or config.output_dir.name
    try:
        url = push_folder(config.output_dir, name, private=config.hub_private_repo or None, license=config.license)
    except UserError as error:
        raise UserError(
            f"{error} Nothing is lost: when it can be reached, `diffuseseg push {config.output_dir} {name}`."
        ) from error
    print(f"Pushed: {url}")


def _load(upload: Upload) -> Any:
    """Loads the content of an upload for its card: a pipeline, a head, a student, or the parts of a dataset."""
    if upload.kind in ("pipeline", "student", "segmenter"):
        return load_pipeline(os.fspath(upload.root), device="cpu", dtype="float32")
    if upload.kind == "head":
        return PixelClassifierEnsemble.from_pretrained(upload.root, subfolder=HEAD)
    return read_parts(upload.root)


def _make_card(
    upload: Upload, folder: Path, loaded: Any, repo_id: str, license: str | None, evaluations: Sequence[Mapping]
) -> ModelCard | DatasetCard:
    """The card for what [`_load`] returned; that of a dataset adds a page of images to the upload."""
    own = own_card(folder, DatasetCard if upload.kind == "dataset" else ModelCard)
    given: dict[str, Any] = {"repo_id": repo_id, "license": license, "own": own}
    if upload.kind == "dataset":
        return dataset_card(upload.root, upload.files, loaded, **given)
    records = (STUDENT_RECORD,) if upload.kind == "student" else RECORDS
    try:
        if upload.kind == "student":
            return student_card(folder, **given)
        paths = [folder / name for name in records]
        training, fitting = (without_local_paths(read_object(path)) if path.is_file() else {} for path in paths)
        if upload.kind == "head":
            return head_card(loaded, fitting, evaluations, **given)
        if upload.kind == "segmenter":
            return segmenter_card(loaded, fitting, evaluations, **given)
        return pipeline_card(loaded, upload.files, training, fitting, evaluations, **given)
    except UserError:  # which is a ValueError, and says itself what is wrong
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{' or '.join(records)} in {folder} is no record of a training, or --evaluation holds no metrics "
            f"({type(error).__name__}: {error}); repair or remove it."
        ) from error


def commit_upload(
    api: HfApi,
    repo_id: str,
    upload: Upload,
    card: RepoCard,
    message: str,
    private: bool | None,
    create_pr: bool,
    what: str,
) -> str:
    """Creates the repository if needed, and uploads everything in one commit; returns its address.

    If the Hub refuses the commit, a repository that was created here and is empty is removed, except after temporary
    errors, where the next push resumes.

    Raises:
        UserError: The Hub refuses it; says `what` failed, why, and what became of the repository.
    """
    with hub_refusals(what) as more:
        _validate_card(api, repo_id, card, upload.repo_type)
        upload.files[CARD] = str(card).encode()
        operations = [CommitOperationAdd(name, content) for name, content in sorted(upload.files.items())]
        is_new = _make_repository(api, repo_id, upload.repo_type, private)
        try:
            options = {"commit_message": message, "repo_type": upload.repo_type, "create_pr": create_pr}
            commit = api.create_commit(repo_id, operations, **options)
        except Exception as error:
            if is_new and is_temporary(error):
                more.append(f"The repository {repo_id} was made and is still empty; the next push resumes there.")
            elif is_new:
                more.append(_remove_empty(api, repo_id, upload.repo_type))
            raise
    return commit.pr_url or commit.commit_url


def _validate_card(api: HfApi, repo_id: str, card: RepoCard, repo_type: str) -> None:
    """Validates a card on the Hub before anything is created there.

    `RepoCard.validate` of huggingface_hub 1 ignores `HF_ENDPOINT`.
    """
    body = {"repoType": repo_type, "content": str(card)}
    response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=body, headers={"Accept": "text/plain"})
    if response.status_code == 400:
        raise UserError(f"The Hub does not take the card for {repo_id}: {response.text}")
    hf_raise_for_status(response)


def _make_repository(api: HfApi, repo_id: str, repo_type: str, private: bool | None) -> bool:
    """Creates the repository; returns whether it is new."""
    try:
        api.create_repo(
            repo_id, private=private, repo_type=repo_type, space_sdk="docker" if repo_type == "space" else None
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        # Who may not make repositories there may still write to one.
        if status == 409 or (status in (401, 402, 403) and api.repo_exists(repo_id, repo_type=repo_type)):
            return False
        raise
    return True


def _remove_empty(api: HfApi, repo_id: str, repo_type: str) -> str:
    """Removes a new repository, unless something is in it; returns a sentence about it."""
    try:
        if set(api.list_repo_files(repo_id, repo_type=repo_type)) <= {".gitattributes"}:
            api.delete_repo(repo_id, repo_type=repo_type)
            return "The new repository was removed again."
    except Exception as error:  # the refusal itself is what the user has to see
        reason = explain_hub_error(error) or error
        return f"The new repository {repo_id} is empty and could not be removed ({reason}); remove it on its page."
    return f"The repository {repo_id} is new, and not empty: look at what is in it."
