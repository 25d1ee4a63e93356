# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The models that come with the package: their names, and what stands in where weights are missing."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel

from diffuseseg_diffusers import DiffuseSegPipeline, FitConfig, load_pipeline
from diffuseseg_diffusers.factory.sampling import doubt_samples
from diffuseseg_diffusers.features.noise import clean_scheduler
from diffuseseg_diffusers.fitting.setup import usual_recipe
from diffuseseg_diffusers.heads.recipes import find_recipe
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.pipelines import general
from diffuseseg_diffusers.pipelines.general import suited_recipe
from diffuseseg_diffusers.pipelines.loading import save_fitted

from ..conftest import make_head


def test_a_local_folder_does_not_become_the_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert general.default_model()[0] == "general"
    (tmp_path / "general").mkdir()
    with pytest.raises(UserError, match="local folder general hides"):
        general.default_model()


@pytest.fixture
def build(tmp_path, monkeypatch):
    """A build of the package with other, small weights; returns its folder."""
    folder = tmp_path / "general_ddpm"
    shutil.copytree(general.SHIPPED_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = UNet2DModel.load_config(folder, subfolder="unet")
    config |= {"block_out_channels": [8, 8, 16, 16], "attention_head_dim": 8}
    UNet2DModel.from_config(config).save_config(folder / "unet")
    monkeypatch.setattr(general, "SHIPPED_MODEL", str(folder))
    monkeypatch.chdir(tmp_path)
    general._say_once.cache_clear()
    return folder


def load(name: str | Path) -> DiffuseSegPipeline:
    return load_pipeline(name, dtype="float32")


def weights(pipe: DiffuseSegPipeline) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in pipe.unet.parameters()])


def test_general_is_the_folder_in_the_package_and_untrained_its_network_from_a_seed(build, caplog):
    trained = DDPMPipeline.from_pretrained(build, unet=load("untrained").unet)
    with torch.no_grad():
        for p in trained.unet.parameters():
            p.add_(1)
    trained.to(torch.float16).save_pretrained(build)
    found, twin = load("general"), load("untrained")
    assert type(found) is type(twin) is DiffuseSegPipeline and found.unet.dtype == torch.float32
    assert torch.allclose(weights(found), weights(twin) + 1, atol=2e-3)
    torch.manual_seed(5)
    assert torch.equal(weights(load("untrained")), weights(twin))
    assert load_pipeline("untrained", dtype="bfloat16").unet.dtype == torch.bfloat16
    assert general.logger.name not in {record.name for record in caplog.records}


def test_a_build_without_weights_falls_back_to_the_twin_and_says_so(build, caplog):
    assert torch.equal(weights(load("general")), weights(load("untrained")))
    assert [r.getMessage() for r in caplog.records] == [
        "This build has no weights of the general denoiser: its untrained twin is used."
    ]


def test_a_local_folder_of_that_name_wins_with_a_line(build, caplog):
    pipe = load("untrained")
    with torch.no_grad():
        pipe.unet.conv_in.bias.fill_(7)
    pipe.save_pretrained("general")
    assert (load("general").unet.conv_in.bias == 7).all()
    assert "general is the local folder of that name" in caplog.text
    assert not general.comes_with_package("general") and general.find_model("general") == "general"


def test_a_head_on_it_is_saved_with_its_weights(build, tmp_path):
    pipe = load("untrained")
    pipe.segmentation_head = make_head(pipe)
    save_fitted(pipe, tmp_path / "out", "untrained")
    assert torch.equal(weights(load(tmp_path / "out")), weights(pipe))
    assert general.hub_name("untrained") is None and general.hub_name("user/model") == "user/model"


def test_the_shipped_model_is_as_small_as_promised():
    files = [p for p in Path(general.SHIPPED_MODEL).rglob("*") if p.is_file()]
    assert {p.relative_to(general.SHIPPED_MODEL).as_posix() for p in files} >= {
        *("model_index.json", "unet/config.json", "scheduler/scheduler_config.json")
    }
    assert sum(p.stat().st_size for p in files) <= 14_000_000


def test_what_is_fitted_on_it_says_how_few_images_it_saw_and_on_its_twin_nothing(tmp_path):
    for name, doubted in (("general", True), ("untrained", False)):
        save_fitted(load_pipeline(name), tmp_path / name, name)
        assert bool(doubt_samples(str(tmp_path / name))) == doubted


def test_the_default_recipe_reads_models_of_the_package_at_their_own_timesteps():
    assert tuple(suited_recipe("default", "general").timesteps) == tuple(
        suited_recipe("default", "untrained").timesteps
    )
    assert tuple(suited_recipe("default", "general").timesteps) != tuple(find_recipe("default").timesteps)
    assert suited_recipe("default", "out/model") == find_recipe("default")
    assert suited_recipe("paper", "general") == find_recipe("paper")  # as published


def test_fit_says_how_it_reads_them_unless_that_is_given(tmp_path):
    common = dict(dataset_name="DATA", output_dir=tmp_path, recipe="default")
    recipe, line = usual_recipe(FitConfig(model="general", **common), None)
    assert (recipe.timesteps, recipe.clean, recipe.mirror) == ((200,), True, False)
    assert "Read without noise at timestep 200" in line
    recipe, line = usual_recipe(FitConfig(model="general", noise="shared", **common), None)
    assert (recipe.timesteps, recipe.clean, recipe.mirror) == ((100,), False, True)
    assert "with shared noise and mirror images at timestep 100" in line
    recipe, line = usual_recipe(FitConfig(model="general", timesteps=(5, 7), **common), None)
    assert recipe.clean and "without noise at timestep 5 7" in line
    for given in ({"recipe": "fast"}, {"model": "out/model"}):
        config = FitConfig(**{"model": "general", **common, **given})
        assert usual_recipe(config, None) == (find_recipe(config.recipe), "")
    distilled = SimpleNamespace(scheduler=clean_scheduler())
    recipe, line = usual_recipe(FitConfig(model="out/model", **common), distilled)
    assert not recipe.mirror and "in one pass" in line
