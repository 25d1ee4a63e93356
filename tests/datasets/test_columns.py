# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import io
import json
import shutil

import pytest
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as Pictures

from diffuseseg_diffusers.datasets.columns import dataset_contents, load_split, split_names
from diffuseseg_diffusers.datasets.find_labeled import load_labeled_images
from diffuseseg_diffusers.datasets.unlabeled import load_unlabeled
from diffuseseg_diffusers.jobs.contents import differences
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import draw


def test_contents_tell_other_images_names_and_orders_but_not_another_folder(tmp_path):
    (tmp_path / "a").mkdir()
    for i in range(3):
        Pictures.fromarray(draw((16, 16), i)[0]).save(tmp_path / "a" / f"{i}.png")
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    def found(folder, names=("0", "1", "2"), bytes_too=False) -> str:
        cells = [{"path": str(folder / f"{n}.png"), "bytes": None} for n in names]
        if bytes_too:
            cells = [{"path": f"{n}.png", "bytes": (folder / f"{n}.png").read_bytes()} for n in names]
        return str(dataset_contents(Dataset.from_dict({"x": cells}, Features({"x": Image(decode=False)})), "x"))

    first = found(tmp_path / "a")
    assert found(tmp_path / "b") == first == found(tmp_path / "b", bytes_too=True)
    assert len({first, found(tmp_path / "a", "021"), found(tmp_path / "a", "01")}) == 3
    whole = (tmp_path / "b" / "2.png").read_bytes()
    rows = [{"x": whole, "y": [1, 2]}, {"x": whole, "y": [1, 2]}]
    known = dataset_contents(Dataset.from_list(rows), "x", "y")
    rows[1]["y"] = [1, 3]  # a mask that was corrected
    assert dataset_contents(Dataset.from_list(rows), "x", "y") != known
    negative = io.BytesIO()
    Pictures.fromarray(255 - draw((16, 16), 1)[0]).save(negative, "PNG")
    (tmp_path / "b" / "1.png").write_bytes(negative.getvalue())
    assert found(tmp_path / "b") != first


@pytest.mark.parametrize("index", ["model_index.json", "student.json", "student_training.json"])
def test_the_folder_of_a_model_is_not_read_as_a_dataset(tmp_path, index):
    for name in (index, "config.json"):
        (tmp_path / name).write_text('{"members": [{"folder": "heads/0"}]}')
    with pytest.raises(UserError, match="holds a model, not images; give the folder of the images"):
        load_split(str(tmp_path), None, "train")
    with pytest.raises(UserError, match="holds a model, not images; give the folder of the images"):
        split_names(str(tmp_path), None)
    (tmp_path / "samples").mkdir()
    Pictures.fromarray(draw((16, 16), 0)[0]).save(tmp_path / "samples" / "step-000010.png")
    for where in ({"name": str(tmp_path)}, {"name": None, "data_dir": str(tmp_path)}):
        with pytest.raises(UserError, match="holds a model, not images"):
            load_unlabeled(**where)
    with pytest.raises(UserError, match="holds a model, not images"):
        load_labeled_images(tmp_path)


def test_every_cell_of_a_dataset_counts_and_is_named(tmp_path):
    def found(*data: bytes) -> dict:
        cells = [{"path": f"{i}.png", "bytes": one} for i, one in enumerate(data)]
        features = Features({"x": Image(), "y": Sequence(Value("int64"))})
        return dataset_contents(
            Dataset.from_dict({"x": cells, "y": [[i] for i in range(len(data))]}, features), "x", "y"
        )

    middle = bytearray(200_000)  # of a large file, too
    first = found(b"a", bytes(middle))
    middle[len(middle) // 2] = 1
    assert differences(first, found(b"a", bytes(middle))) == ["row 1 1.png"]
    assert first == found(b"a", bytes(200_000)) != found(b"a")
    for name in ("raster.zarr", "mask.npy"):  # a folder, and a file that datasets know by name
        path = tmp_path / name / "c" / "0" if name.endswith("zarr") else tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = Dataset.from_list([{"x": str(tmp_path / name)}])
        contents = []
        for text in ("one", "two", "one"):
            path.write_text(text)
            contents.append(dataset_contents(rows, "x", None))
        assert contents[0] == contents[2] != contents[1]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_of_several_configurations_says_which_and_how_one_is_named(tmp_path, streaming):
    parts = []
    for name in ("few", "many"):
        (tmp_path / name).mkdir()
        Dataset.from_dict({"x": [1]}).to_parquet(tmp_path / name / "train.parquet")
        parts.append({"config_name": name, "data_files": f"{name}/*.parquet"})
    (tmp_path / "README.md").write_text("---\nconfigs: " + json.dumps(parts) + "\n---\n")
    with pytest.raises(UserError, match=r"several configurations \(few, many\).*--dataset_config_name"):
        load_split(str(tmp_path), None, "train", streaming=streaming)
