# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import OfflineModeIsEnabled

from diffuseseg_diffusers.jobs.hub_errors import explain_hub_error

from ..conftest import TOKENS


def error_of(function, *args, **kwargs) -> Exception:
    with pytest.raises(Exception) as caught:
        function(*args, **kwargs)
    return caught.value


def test_what_the_hub_answers_becomes_a_clause_that_says_what_to_do(hub, tmp_path):
    hub.create("models", "alice/there")
    hub.create("datasets", "alice/gated", gated=True)
    api, bob = HfApi(), HfApi(token=TOKENS["bob"])
    into = {"cache_dir": tmp_path}
    cases = [
        (error_of(api.model_info, "alice/not-there"), "HF_TOKEN"),
        (error_of(api.model_info, "alice/there", revision="v9"), "no such revision"),
        (error_of(hf_hub_download, "alice/there", "x.json", **into), "it has no file x.json on the Hub"),
        (
            error_of(bob.hf_hub_download, "alice/gated", ".gitattributes", repo_type="dataset", **into),
            "gated: ask for access",
        ),
        (error_of(bob.create_repo, "alice/mine"), "forbids"),
        (error_of(HfApi(token="hf_wrong").whoami), "does not take the token"),
        (error_of(HfApi(endpoint="http://127.0.0.1:9").model_info, "alice/there"), "HF_HUB_OFFLINE=1"),
        (OfflineModeIsEnabled("off"), "offline mode is on"),
    ]
    for status, clause in ((429, "a few minutes"), (503, "error 503")):
        hub.fail("GET", "/api/models/alice/there", status=status)
        cases.append((error_of(api.model_info, "alice/there"), clause))
    for error, clause in cases:
        assert clause in explain_hub_error(error), error


def test_an_error_that_led_to_another_is_found_and_those_of_others_are_not_ours(hub):
    try:
        try:
            HfApi().model_info("alice/not-there")
        except Exception as cause:
            raise OSError("wrapped") from cause
    except OSError as error:
        assert "HF_TOKEN" in explain_hub_error(error)
    assert explain_hub_error(ValueError("a bug")) is None
    assert explain_hub_error(OSError("disk full")) is None
