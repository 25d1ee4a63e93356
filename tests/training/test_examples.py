# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""The examples of the training scripts and of docs/training.md run, with smaller models and fewer steps."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from diffuseseg_diffusers import fit_segmentation_head
from diffuseseg_diffusers.cli import main
from diffuseseg_diffusers.datasets.drawn_faces import write_drawn_faces
from diffuseseg_diffusers.datasets.drawn_pictures import write_drawn_pictures

from ..conftest import QUICK, ROOT, draw, drawn_dataset, make_pipeline


TRAININGS = ("train-ddpm", "train-autoencoder", "distil-features", "train-student")
SCRIPTS = {f"{name.replace('-', '_')}.py": name for name in TRAININGS}
SMALLER = {
    "train-ddpm": "--resolution 32 --train_batch_size 2 --max_train_steps 2 --num_samples 0 --mixed_precision no",
    "train-autoencoder": "--resolution 32 --train_batch_size 2 --max_train_steps 2 --num_samples 0 --base_channels 8",
    "distil-features": "--resolution 32 --train_batch_size 2 --max_train_steps 2 --mixed_precision no",
    "train-student": "--num_epochs 1 --images_per_epoch 8 --train_batch_size 4",
}


def commands(text: str) -> list[list[str]]:
    """The trainings among the commands of a text, as `diffuseseg` takes them."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        trains = re.search(r"^\s*\S*(diffuseseg|accelerate|torchrun|=\d+)\s.*(train|distil)", line)
        words = shlex.split(line) if trains else []
        script = next((i for i, word in enumerate(words) if Path(word).name in SCRIPTS), None)
        if script is not None:
            found.append([SCRIPTS[Path(words[script]).name], *words[script + 1 :]])
        elif words[:1] == ["diffuseseg"] and words[1] in SMALLER:
            found.append(words[1:])
    return found


def of_script(name: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / "training" / name).read_text())) or ""


PAGES = {name: commands(of_script(name)) for name in SCRIPTS}
PAGES["training.md"] = commands((ROOT / "docs" / "training.md").read_text())


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with what the examples name."""
    pipe = make_pipeline()
    pipe.segmentation_head = fit_segmentation_head(pipe, drawn_dataset(3), recipe=QUICK, num_members=2)
    pipe.save_pretrained(tmp_path / "MODEL")
    for place in ("DATA/train/images", "DATA/train/masks", "DATA/test/images", "DATA/test/masks", "IMAGES"):
        (tmp_path / place).mkdir(parents=True)
        for i in range(12):
            Image.fromarray(draw((32, 32), i)["masks" in place]).save(tmp_path / place / f"{i}.png")
    shutil.copytree(tmp_path / "IMAGES", tmp_path / "my" / "images")
    write_drawn_faces(tmp_path / "out" / "drawn-faces", 4)
    write_drawn_pictures(tmp_path / "out" / "drawn-pictures", 4)
    (tmp_path / "diffuseseg_diffusers").symlink_to(ROOT / "diffuseseg_diffusers")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_examples_run_as_they_stand(page, workplace, capsys):
    assert PAGES[page]
    for command, *words in PAGES[page]:
        further = SMALLER[command].split()
        if command == "train-ddpm" and not {"--model_config", "--pretrained"} & {*words}:
            further += ["--base_channels", "8"]
        for option in (word for word in further if word.startswith("--") and word in words):
            at = words.index(option)
            del words[at : at + 2]
        out = words[words.index("--output_dir") + 1]
        shutil.rmtree(workplace / out, ignore_errors=True)  # of another example
        AcceleratorState._reset_state(reset_partial_state=True)
        with pytest.raises(SystemExit) as end:
            main([command, *words, *further, "--dataloader_num_workers", "0"])
        assert not end.value.code, (command, capsys.readouterr().err)
