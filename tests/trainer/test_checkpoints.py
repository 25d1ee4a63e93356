# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler
from safetensors.torch import load_file

from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.trainer import checkpoints
from diffuseseg_diffusers.trainer.batches import ShuffledBatches
from diffuseseg_diffusers.trainer.checkpoints import load_checkpoint, remove_leftovers, save_checkpoint, save_pipeline

from ..conftest import make_unet


@pytest.fixture
def accelerator():
    accelerator = Accelerator(cpu=True)
    yield accelerator
    accelerator.free_memory()


def batches(count: int = 8) -> ShuffledBatches:
    return ShuffledBatches(torch.zeros(count, 1, 16, 16, dtype=torch.uint8), 4, seed=0)


def weights(folder: Path) -> torch.Tensor:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]


@pytest.mark.slow
def test_the_newest_checkpoints_stay_and_folders_of_others_too(tmp_path, accelerator):
    unet = make_unet()
    (tmp_path / "checkpoint-000001").mkdir()
    (tmp_path / "checkpoint-000001" / "mine.txt").write_text("mine")
    (tmp_path / "checkpoint-best").mkdir()
    for step in (2, 3, 4, 4):
        save_checkpoint(accelerator, tmp_path, {"step": step}, unet, None, batches().state_dict(), limit=2)
    assert [p.name for p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-000003", "checkpoint-000004"]
    assert (tmp_path / "checkpoint-000001" / "mine.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir())[-1] == "checkpoint-best"


def test_what_does_not_fit_a_checkpoint_is_named(tmp_path, accelerator):
    path = save_checkpoint(accelerator, tmp_path, {"step": 1}, make_unet(), None, batches().state_dict())
    for unet, data, sentence in (
        (make_unet(block_out_channels=(8, 16, 32)), batches(), r"block_out_channels is \[8, 16, 24\] there and"),
        (make_unet(), batches(9), "8 training images, and now there are 9"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_checkpoint(accelerator, path, unet, None, data)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text("{}")
    for folder in ("other", "nowhere"):
        with pytest.raises(UserError, match="is no checkpoint, or one of another version"):
            load_checkpoint(accelerator, tmp_path / folder, make_unet(), None, batches())
    assert load_checkpoint(accelerator, path, make_unet(), None, batches())["step"] == 1


def test_a_save_that_fails_leaves_the_last_good_one_and_says_so(tmp_path, accelerator, monkeypatch):
    def full(*args, **kwargs):
        raise RuntimeError("no space left")

    unet, scheduler = make_unet(), DDPMScheduler()
    save_checkpoint(accelerator, tmp_path, {"step": 1}, unet, None, batches().state_dict())
    save_pipeline(tmp_path, DDPMPipeline(unet, scheduler))
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(checkpoints, "flush_to_disk", full)
    monkeypatch.setattr(accelerator, "save_state", full)
    with pytest.raises(UserError, match="checkpoint of step 2 cannot be saved.*no space left.*checkpoint-000001"):
        save_checkpoint(accelerator, tmp_path, {"step": 2}, unet, None, batches().state_dict())
    with pytest.raises(UserError, match="pipeline cannot be saved.*no space left"):
        save_pipeline(tmp_path, DDPMPipeline(unet, scheduler))
    assert sorted(tmp_path.rglob("*")) == before


def test_leftovers_of_killed_saves_are_removed_and_nothing_else(tmp_path):
    for name in (".checkpoint-000007.partial", ".checkpoint-mine.partial", "checkpoint-000005"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".checkpoint-mine.partial", "checkpoint-000005"]


def test_a_pipeline_is_there_whole_wherever_its_replacement_is_cut_off(tmp_path, monkeypatch):
    old, new = (make_unet(seed) for seed in range(2))
    save_pipeline(tmp_path, DDPMPipeline(old, DDPMScheduler()))
    (tmp_path / "unet" / "notes.txt").write_text("mine")
    replace, found = Path.replace, []
    for cut_after in range(5):
        left = iter(range(cut_after))

        def replace_or_die(path, target, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace_or_die)
            try:
                save_pipeline(tmp_path, DDPMPipeline(new, DDPMScheduler()))
            except KeyboardInterrupt:
                found.append(torch.equal(weights(tmp_path), new.conv_in.weight))
        DDPMPipeline.from_pretrained(tmp_path)
        assert found[-1] or torch.equal(weights(tmp_path), old.conv_in.weight)
    assert not found[0] and found[-1] and len(found) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model_index.json", "scheduler", "unet"]
    assert (tmp_path / "unet" / "notes.txt").read_text() == "mine"


def test_what_somebody_put_into_a_checkpoint_stays(tmp_path, accelerator):
    unet = make_unet()
    for step in (1, 2):
        save_checkpoint(accelerator, tmp_path, {"step": step}, unet, None, batches().state_dict(), limit=1)
        if step == 1:
            (tmp_path / "checkpoint-000001" / "notes.txt").write_text("mine")
    assert [p.name for p in (tmp_path / "checkpoint-000001").iterdir()] == ["notes.txt"]
    for name in ("notes.txt", "unet_ema/notes.txt"):
        (tmp_path / "checkpoint-000002" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "checkpoint-000002" / name).write_text("mine")
    save_checkpoint(
        accelerator, tmp_path, {"step": 2}, unet, None, batches().state_dict(), limit=1
    )  # the same step again
    for name in ("notes.txt", "unet_ema/notes.txt"):
        assert (tmp_path / "checkpoint-000002" / name).read_text() == "mine"
    assert [p.name for p in checkpoints.checkpoints(tmp_path)] == ["checkpoint-000002"]
