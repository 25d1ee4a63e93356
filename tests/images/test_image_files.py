# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
from diffuseseg_diffusers.images.image_files import find_images


def test_images_are_found_anywhere_below_a_folder_and_hidden_files_are_none(tmp_path):
    wanted = ["a.PNG", "b.jpeg", "deep/er/c.tif"]
    for name in [*wanted, "._a.png", ".cache/d.png", "notes.txt", "deep/e.npy"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.relative_to(tmp_path).as_posix() for p in find_images(tmp_path)] == wanted
