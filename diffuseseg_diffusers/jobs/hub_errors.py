# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What the Hub's errors mean, in a sentence that says what to do."""

import re
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
OFFLINE = (
    "without a connection, give a local folder, or set HF_HUB_OFFLINE=1 to use what was downloaded before "
    "(`hf download` fetches a repository where there is a connection)"
)
_HTTP_CLIENTS = ("httpx", "httpx2", "requests", "urllib3")


def explain_hub_error(error: BaseException) -> str | None:
    """What kept the Hub from answering, and what to do, as a clause; `None` if the error does not come from the Hub.

    Libraries wrap each other's errors, so those that led to this one are looked at too.
    """
    found = list(_chain(error))
    for kind, meaning in (
        (GatedRepoError, f"it is gated: ask for access on its page, then {LOG_IN}"),
        (RevisionNotFoundError, "the Hub has no such revision of it"),
        (RepositoryNotFoundError, f"the Hub has none of that name that you may see; for a private one, {LOG_IN}"),
        (LocalTokenNotFoundError, f"that needs a token: {LOG_IN}"),
    ):
        if any(isinstance(e, kind) for e in found):
            return meaning
    for e in found:
        if isinstance(e, EntryNotFoundError) and not isinstance(e, LocalEntryNotFoundError):
            file = re.search(r"/resolve/[^/\s]+/([^\s?]*[^\s?.])", str(e))
            return f"it has no file {file[1]} on the Hub" if file else "a file of it is not on the Hub"
    for e in found:
        status = e.response.status_code if isinstance(e, HfHubHTTPError) and e.response is not None else None
        if status == 401:
            return f"the Hub does not take the token, or needs one: {LOG_IN}"
        if status == 403:
            return "the Hub forbids that with this token: it needs the right to write there"
        if status == 429:
            return "the Hub takes no more requests for now: try again in a few minutes"
        if status is not None:
            return f"the Hub answered with error {status}: try again later"
    missing = any(isinstance(e, (FileNotFoundError, ConnectionError)) for e in found)
    if any(isinstance(e, OfflineModeIsEnabled) for e in found) or (missing and constants.HF_HUB_OFFLINE):
        return "offline mode is on (HF_HUB_OFFLINE=1), and it was not downloaded before: give a local folder"
    if any(_is_network_error(e) for e in found):
        return f"the Hub cannot be reached at {constants.ENDPOINT}: {OFFLINE}"
    if any(isinstance(e, LocalEntryNotFoundError) for e in found):
        return f"the Hub did not give it: {OFFLINE}"
    return None


def is_temporary(error: BaseException) -> bool:
    """Whether the same request may succeed later: the Hub is overloaded or broken, or cannot be reached."""
    found = list(_chain(error))
    answers = [e.response.status_code for e in found if isinstance(e, HfHubHTTPError) and e.response is not None]
    if answers:
        return answers[0] in (408, 429) or answers[0] >= 500
    return any(_is_network_error(e) for e in found)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_network_error(error: BaseException) -> bool:
    # By name, because huggingface_hub changes its HTTP client between versions.
    return isinstance(error, ConnectionError) or type(error).__module__.split(".")[0] in _HTTP_CLIENTS
