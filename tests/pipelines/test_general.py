# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The models that come with the package: their names, and what stands in where weights are missing."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel

from diffuseseg_diffusers import DiffuseSegPipeline, FitConfig, load_pipeline, recipe_extractor
from diffuseseg_diffusers.factory.sampling import doubt_samples
from diffuseseg_diffusers.features.noise import clean_scheduler
from diffuseseg_diffusers.fitting.setup import usual_recipe
from diffuseseg_diffusers.heads.recipes import find_recipe
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.pipelines import general
from diffuseseg_diffusers.pipelines.general import suited_recipe
from diffuseseg_diffusers.pipelines.loading import save_fitted

from ..conftest import drawn_dataset, make_head, make_pipeline


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
    pipe = make_pipeline()

    def usual(pipe=pipe, names=None, **options):
        config = FitConfig(**{"model": "general", **common, **options})
        recipe, line = usual_recipe(config, pipe, drawn_dataset(1, label_names=names))
        choice = {"share_noise": config.noise != "fresh", "clean": None if config.noise is None else False}
        return recipe_extractor(pipe, recipe, **choice), line

    for model, noise, timesteps, how in (
        ("general", None, (200,), "without noise at timestep 200;"),
        ("general", "shared", (100,), "with shared noise at timestep 100;"),
        ("out/model", None, (25,), "without noise at timestep 25;"),
        ("out/model", "fresh", (10, 600), "with fresh noise at timestep 10 600;"),
    ):
        extractor, line = usual(model=model, noise=noise)
        assert (extractor.timesteps, extractor.clean) == (timesteps, noise is None) and f"Read {how}" in line
    assert "without noise at timestep 5 7;" in usual(timesteps=(5, 7))[1]
    assert usual(timesteps=("auto",))[1] == "Read without noise; --noise sets it.\n"
    assert "at timestep 200, of the mirror image too;" in usual(mirror=True)[1]
    with pytest.raises(UserError, match="left from right, so images are not mirrored; leave --mirror out"):
        usual(mirror=True, names=["background", "left lung"])
    assert "with shared noise at noise level 0.3;" in usual(noise_levels=(0.3,))[1]
    extractor, line = usual(recipe="fast")
    assert (extractor.timesteps, extractor.clean, line) == ((50, 150, 250), False, "")
    distilled = make_pipeline()
    distilled.register_modules(scheduler=clean_scheduler())
    assert usual(distilled)[0].timesteps == (0,) and usual(distilled)[1] == ""
