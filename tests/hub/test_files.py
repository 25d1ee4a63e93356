# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""What of a folder goes to the Hub: no file and no path of this machine that nobody asked for."""

import json
import shutil

import numpy as np
import pytest
from datasets import Dataset, load_dataset
from diffusers import DDPMScheduler
from PIL import Image

from diffuseseg_diffusers import AveragedSegmenter, DiffuseSegPipeline, UserError, load_pipeline
from diffuseseg_diffusers.hub.files import collect, without_local_paths
from diffuseseg_diffusers.hub.push import push_folder, push_pipeline
from diffuseseg_diffusers.jobs.files import write_json, write_record
from diffuseseg_diffusers.students.unets import new_unet, plain_unet

from ..conftest import draw, make_head
from .common import NAMES, PIPELINE_FILES, fitted, saved, saved_student, write_images


SCHEDULER = "scheduler/scheduler_config.json"
DATASET_FILES = {".gitattributes", "README.md", "samples.png", "id2label.json", "data/train-00000-of-00001.parquet"}
GENERATION = {  # as the version before wrote it
    "settings": {
        "weights": "0123456789abcdef",
        "scheduler": "DDIMScheduler",
        "dtype": "float32",
        "num_samples": 8,
        "num_inference_steps": 50,
        "masks_while_sampling": False,
        "seed": 0,
        "drop_uncertain": 0.1,
        "drop_common": 0.0,
        "min_distance": 0.0,
        "train_dataset_name": "/home/alice/patients/scans",
    },
    "result": {
        "model": {"name": "model", "on_hub": False},
        "num_kept": 6,
        "nearest_neighbours": {},
        "seconds_per_image": 0.1,
        "hardware": "A machine",
        "num_processes": 1,
    },
}


@pytest.fixture
def secret(tmp_path):
    """A file outside of what is pushed."""
    path = tmp_path / "elsewhere" / "secret.png"
    path.parent.mkdir()
    Image.fromarray(draw((16, 16), 9)[0]).save(path)
    return path


def add_what_nobody_asked_for(folder, secret) -> None:
    for name in ("notes.txt", ".env", ".git/config", "patients.csv", "other/scan.json"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("private")
    (folder / "link.png").symlink_to(secret)
    (folder / "linked").symlink_to(secret.parent, target_is_directory=True)


@pytest.mark.parametrize("kind", ["pipeline", "student", "dataset"])
def test_of_each_kind_of_folder_only_what_is_listed_goes_and_one_line_says_what_does_not(
    hub, tmp_path, secret, kind, caplog
):
    make = {"pipeline": saved, "student": saved_student, "dataset": write_images}[kind]
    folder = make(tmp_path / "folder")
    listed = {
        "pipeline": PIPELINE_FILES,
        "student": {".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"},
        "dataset": DATASET_FILES,
    }
    add_what_nobody_asked_for(folder, secret)
    (tmp_path / "scratch").mkdir()
    line = collect(folder, tmp_path / "scratch").describe_left_out()
    assert line == f"Not pushed, because no part of the {kind}: .env, .git/config, link.png and 4 more."
    push_folder(folder, f"alice/listed-{kind}", num_samples=0)
    assert set(hub.files("datasets" if kind == "dataset" else "models", f"alice/listed-{kind}")) == listed[kind]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (saved, "unet/config.json"),
        (saved, "unet/diffusion_pytorch_model.safetensors"),
        (saved, "unet"),
        (saved_student, "model.safetensors"),
        (write_images, "data/train-00000-of-00001.parquet"),
        (write_images, "data"),
    ],
)
def test_a_part_that_leads_out_of_the_folder_is_refused_before_the_first_request(hub, tmp_path, make, name):
    folder = make(tmp_path / "folder")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder / name, tmp_path / "elsewhere" / "it")
    (folder / name).symlink_to(tmp_path / "elsewhere" / "it")
    with pytest.raises(UserError, match="leads out of .* put a copy of what it leads to in its place"):
        push_folder(folder, "alice/leads-out")
    assert hub.requests == []


def test_optional_files_that_lead_out_of_the_folder_are_left_out(hub, tmp_path, secret):
    folder = saved(tmp_path / "folder")
    (secret.parent / "README.md").write_text("top secret")
    for name, target in (("samples.png", secret), ("README.md", secret.parent / "README.md")):
        (folder / name).symlink_to(target)
    push_folder(folder, "alice/optional", num_samples=0)
    files = hub.files("models", "alice/optional")
    assert set(files) == PIPELINE_FILES and b"top secret" not in files["README.md"]


def test_images_and_masks_that_lead_out_of_the_folder_or_are_hidden_are_not_converted(hub, tmp_path, secret):
    image, mask = draw((16, 16), 0)
    for part, content in (("images", image), ("masks", mask)):
        (tmp_path / "mine" / part).mkdir(parents=True)
        Image.fromarray(content).save(tmp_path / "mine" / part / "0.png")
    (tmp_path / "mine" / "images" / ".thumbnails").mkdir()
    shutil.copy(secret, tmp_path / "mine" / "images" / ".thumbnails" / "0.png")
    push_folder(tmp_path / "mine", "alice/mine-visible")
    assert load_dataset("alice/mine-visible", split="train", cache_dir=tmp_path / "cache").num_rows == 1
    (tmp_path / "mine" / "images" / "1.png").symlink_to(secret)
    Image.fromarray(mask).save(tmp_path / "mine" / "masks" / "1.png")
    hub.requests.clear()
    with pytest.raises(UserError, match="leads out of"):
        push_folder(tmp_path / "mine", "alice/mine")
    assert hub.requests == []


@pytest.mark.parametrize("kind", ["empty", "texts", "table", "numbers", "figures of a run", "another pipeline"])
def test_a_folder_that_is_nothing_of_ours_is_refused_before_the_first_request(hub, tmp_path, kind):
    folder = tmp_path / "home"
    folder.mkdir()
    if kind == "texts":
        (folder / "diary.txt").write_text("Dear diary\n")
        (folder / "data.json").write_text('[{"image": "/home/alice/private.png"}]')
    elif kind == "table":
        (folder / "patients.csv").write_text("image,name\nscan.png,Bob\n")
    elif kind == "numbers":
        Dataset.from_dict({"label": [1, 2]}).to_parquet(folder / "train.parquet")
    elif kind == "figures of a run":
        Image.new("RGB", (8, 8)).save(folder / "examples.png")
        write_record(folder, "evaluate", ["examples.png"])
    elif kind == "another pipeline":
        write_json(folder / "model_index.json", {"_class_name": "X", "text_encoder": ["transformers", "CLIPTextModel"]})
    with pytest.raises(UserError, match="no images that|no pipeline .*no dataset|with the parts text_encoder"):
        push_folder(folder, "alice/home")
    assert hub.requests == [] and not hub.has("datasets", "alice/home")


def test_no_path_of_this_machine_is_in_what_goes_up(hub, tmp_path):
    folder = saved(tmp_path / "folder")
    for part in ("unet", "segmentation_head", "scheduler"):
        path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        write_json(path, {**json.loads(path.read_text()), "_name_or_path": "/home/alice/patients"})
    index = json.loads((folder / "model_index.json").read_text())
    write_json(folder / "model_index.json", {**index, "_name_or_path": "../patients/model"})
    push_folder(folder, "alice/paths", num_samples=0)
    assert not any(b"patients" in content for content in hub.files("models", "alice/paths").values())
    folder = write_images(tmp_path / "generated")
    write_json(folder / "generation.json", GENERATION)
    Image.new("RGB", (8, 8)).save(folder / "uncertainty.png")
    push_folder(folder, "alice/generated")
    files = hub.files("datasets", "alice/generated")
    assert set(files) == DATASET_FILES | {"generation.json", "uncertainty.png"}
    assert json.loads(files["generation.json"])["settings"]["train_dataset_name"] == "scans"
    assert not any(b"patients" in content for content in files.values())
    assert "## How it was made" in files["README.md"].decode()


def test_of_a_local_path_the_last_part_stays_and_other_texts_do_not_change(tmp_path, monkeypatch):
    (tmp_path / "alice" / "faces").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for typed, kept in (
        ("/data/patients/", "patients"),
        ("~/patients", "patients"),
        ("../data/patients", "patients"),
        ("data/of/patients", "patients"),
        (r"C:\data\patients", "patients"),
        ("alice/faces", "faces"),  # a folder of that name is there
        ("alice/on-the-hub", "alice/on-the-hub"),
        ("drawn-faces", "drawn-faces"),
        (None, None),
    ):
        assert without_local_paths({"train_dataset_name": typed}) == {"train_dataset_name": kept}
    config = {"act_fn": "silu", "id2label": {"0": "/m/01g317"}, "betas": [0.1, "a/b/c"], "nested": {"x": 1}}
    assert without_local_paths(config) == config
    nested = {"vision_config": {"_name_or_path": "/home/alice", "files": ["/home/alice/x.bin"]}}
    assert without_local_paths(nested) == {"vision_config": {"files": ["x.bin"]}}


def test_images_in_folders_come_back_as_they_were_without_the_page_of_the_card(hub, tmp_path):
    for number, label in enumerate(("cat", "dog")):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(draw((16, 16), 2 * number + i, channels=3)[0]).save(tmp_path / "pets" / label / f"{i}.png")
    push_folder(tmp_path / "pets", "alice/pets")
    files = set(hub.files("datasets", "alice/pets"))
    assert files == {
        ".gitattributes",
        "README.md",
        ".samples.png",
        *(f"{c}/{i}.png" for c in ("cat", "dog") for i in (0, 1)),
    }
    loaded = load_dataset("alice/pets", split="train", cache_dir=tmp_path / "cache")
    assert loaded.num_rows == 4 and set(loaded["label"]) == {0, 1}
    assert np.asarray(loaded[0]["image"]).shape == (16, 16, 3)


def test_what_was_pushed_is_what_was_saved(hub, tmp_path):
    folder = saved(tmp_path / "folder")
    push_folder(folder, "alice/same", num_samples=0)
    files = hub.files("models", "alice/same")
    for name in PIPELINE_FILES - {".gitattributes", "README.md"}:
        assert files[name] == (folder / name).read_bytes(), name
    loaded = load_pipeline("alice/same", device="cpu", dtype="float32", cache_dir=tmp_path / "cache")
    assert isinstance(loaded.scheduler, DDPMScheduler)


CHOICE = {
    "num_pieces": 12,
    "piece": [32, 48],
    "within": False,
    "estimate": {"mean_iou": 0.7, "low": 0.6, "high": 0.8, "units": 3, "per_class_iou": [0.9, 0.5, None]},
}
FITTING = {"recipe": "best", "dtype": "float32", "seed": 0, "seconds": 5.0, "hardware": "A machine"}


@pytest.mark.parametrize("chosen", [True, False])
def test_a_unet_of_the_recipe_best_is_pushed_and_not_taken_for_a_dataset(hub, tmp_path, chosen):
    student, folder = plain_unet(["sky", "disc"], (16, 16), 3), tmp_path / "model"
    student.save_pretrained(folder)
    if chosen:
        write_json(folder / "head_training.json", FITTING | {"choice": CHOICE})
        write_record(folder, "fit", ["config.json"])
    push_folder(folder, "alice/network")
    files = hub.files("models", "alice/network")
    own = {"config.json", "diffusion_pytorch_model.safetensors", "student.json"}
    assert set(files) == own | {".gitattributes", "README.md"}
    card = files["README.md"].decode()
    assert "This network segments images into 2 classes." in card and "PlainUNet, 0.5 million" in card
    for sentence in (
        "chosen from several",
        "0.7000 over 2 of 3 classes (95 % interval 0.6000 to 0.8000)",
        "12 of 48 × 32 pixels",
    ):
        assert (sentence in card) == chosen
    assert "library_name" not in card and "of the mean" not in card
    loaded = load_pipeline("alice/network", device="cpu", dtype="float32", cache_dir=tmp_path / "cache")
    assert loaded.identity() == student.identity()


def averaged(folder, *more):
    """Heads on one U-Net, a student and more in a folder."""
    pipe = fitted()
    pipe.unet.register_to_config(_name_or_path="/home/alice/patients/unet")
    other = DiffuseSegPipeline(pipe.unet, pipe.scheduler, make_head(pipe, seed=1, label_names=NAMES))
    student = new_unet(NAMES, (16, 16), pipe.in_channels)
    models = [pipe, other, student, *more]
    AveragedSegmenter(dict(zip("abcdef", models)), [2, 1, 1, 1][: len(models)]).save_pretrained(folder)
    return folder


def test_several_models_are_pushed_and_loaded_by_name_without_code(hub, tmp_path, caplog):
    elsewhere = fitted(seed=3)  # on a U-Net of its own
    both = averaged(tmp_path / "both", elsewhere)
    (both / "notes.txt").write_text("patients")
    choice = CHOICE | {"within": True}
    dataset = {"name": "/home/alice/patients/scans", "on_hub": False, "config": None, "split": "train"}
    write_json(both / "head_training.json", FITTING | {"choice": choice, "dataset": dataset})
    push_folder(both, "alice/both")
    assert "Not pushed, because no part of the segmenter: notes.txt." in caplog.text
    files = hub.files("models", "alice/both")
    names = {"config.json", "diffusion_pytorch_model.safetensors"}
    weights = ("base/unet", "heads/0", "heads/1", "students/0", "heads/2/unet", "heads/2/segmentation_head")
    assert set(files) == {
        *(".gitattributes", "README.md", "model_index.json", "students/0/student.json"),
        *(f"{place}/{name}" for place in ("base", "heads/2") for name in ("model_index.json", SCHEDULER)),
        *(f"{place}/{name}" for place in weights for name in names),
    }
    assert not any(b"alice/patients" in content for content in files.values())
    card = files["README.md"].decode()
    for sentence in ("These 4 models", "40% of the mean", "pieces of the same images, which flatters"):
        assert sentence in card
    loaded = load_pipeline("alice/both", device="cpu", dtype="float32", cache_dir=tmp_path / "cache")
    assert loaded.identity() == load_pipeline(both, device="cpu", dtype="float32").identity()
    push_pipeline(loaded, "alice/both-again")
    same = {name for name in files if name not in ("README.md", ".gitattributes") and name.count(".json") == 0}
    assert all(hub.files("models", "alice/both-again")[name] == files[name] for name in same)


def test_several_models_of_which_one_is_missing_or_a_link_are_not_pushed(tmp_path):
    both = averaged(tmp_path / "both")
    (both / "heads/1/config.json").unlink()
    with pytest.raises(UserError, match="incomplete: its config or its weights are missing"):
        collect(both, tmp_path / "scratch")
    linked = averaged(tmp_path / "linked")
    (linked / "base").rename(tmp_path / "private")
    with pytest.raises(UserError, match="lacks its member base; restore the folder"):
        collect(linked, tmp_path / "scratch")
    (linked / "base").symlink_to(tmp_path / "private")
    for read in (lambda: collect(linked, tmp_path / "scratch"), lambda: load_pipeline(linked)):
        with pytest.raises(UserError, match="lists no members in heads/ and students/"):
            read()


def test_the_channels_of_a_denoiser_go_with_it(hub, tmp_path):
    pipe = fitted()
    channels = {"names": ["DAPI"], "low": [0.0], "high": [4095.0]}
    DiffuseSegPipeline(pipe.unet, pipe.scheduler, None, channels).save_pretrained(tmp_path / "ddpm")
    push_folder(tmp_path / "ddpm", "alice/scans", num_samples=0)
    index = json.loads(hub.files("models", "alice/scans")["model_index.json"])
    assert index["channels"] == json.loads((tmp_path / "ddpm/model_index.json").read_text())["channels"] == channels


@pytest.mark.parametrize("content", ["[]", "1", '"x"', "null", '{"unet": []}', '{"_class_name": "AveragedSegmenter"}'])
def test_an_index_that_is_none_is_a_sentence(tmp_path, content):
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(UserError, match="holds no JSON object|lists no members|names no parts of a pipeline") as found:
        collect(tmp_path, tmp_path / "scratch")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "record",
    [[], "x", {"choice": "x"}, {"choice": CHOICE | {"estimate": None}}, {"seconds": 5.0}, {"dataset": "scans"}],
)
def test_a_record_that_is_none_is_a_sentence(hub, tmp_path, record):
    plain_unet(["sky", "disc"], (16, 16), 3).save_pretrained(tmp_path)
    (tmp_path / "head_training.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="head_training.json.* (is no record of a training|holds no JSON object)"):
        push_folder(tmp_path, "alice/network")


@pytest.mark.parametrize("record", [[], {}, {"parameters": "x"}])
def test_a_record_of_a_student_that_is_none_is_a_sentence(hub, tmp_path, record):
    (saved_student(tmp_path) / "student_training.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="student_training.json.* (is no record of a training|holds no JSON object)"):
        push_folder(tmp_path, "alice/network")


def test_names_of_classes_are_text_and_no_markup(hub, tmp_path):
    names = ["a|b", "<script>alert(1)</script>", "sky\n# Heading", "[click](http://evil) `code`"]
    plain_unet(names, (16, 16), 3).save_pretrained(tmp_path / "model")
    push_folder(tmp_path / "model", "alice/names")
    card = hub.files("models", "alice/names")["README.md"].decode()
    for shown in (r"a\|b", "&lt;script>alert(1)&lt;/script>", "| sky # Heading |", r"\[click\](http://evil) \`code\`"):
        assert shown in card
    assert "\n# Heading" not in card and "<script" not in card
