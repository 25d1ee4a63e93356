# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Loading from a folder and from a Hub, with the package and without it; nothing that a repository brings is run."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from huggingface_hub import HfApi, constants, snapshot_download
from safetensors.torch import load, load_file, save, save_file
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from diffuseseg_diffusers import (
    AutoDiffuseSegPipeline,
    BackbonePipeline,
    DiffuseSegPipeline,
    PixelClassifierEnsemble,
    UserError,
)
from diffuseseg_diffusers.heads.ensemble import FORMAT_VERSION
from diffuseseg_diffusers.heads.fit import fit_segmentation_head
from diffuseseg_diffusers.hub.push import push_pipeline
from diffuseseg_diffusers.pipelines.loading import load_pipeline
from diffuseseg_diffusers.students.export import OnnxStudent, export_onnx
from diffuseseg_diffusers.students.student import StudentSegmenter
from diffuseseg_diffusers.students.unets import UNetStudent, new_unet, unet_from_denoiser

from ..conftest import QUICK, TOKENS, clean_environment, draw, drawn_dataset, make_head, make_pipeline, make_unet
from ..hub.common import saved_student


HEAD_WEIGHTS = "segmentation_head/diffusion_pytorch_model.safetensors"


# Bits are compared with those of other processes, which run with one thread.
pytestmark = pytest.mark.usefixtures("one_thread")


def made(seed: int = 0) -> DiffuseSegPipeline:
    pipe = make_pipeline(seed=seed)
    pipe.segmentation_head = make_head(pipe, seed=seed)
    return pipe


def picture() -> torch.Tensor:
    return torch.from_numpy(draw((21, 33), seed=5)[0])


def outputs(pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    """What the pipeline generates and how it segments a picture."""
    pipe.set_progress_bar_config(disable=True)
    generated = pipe(2, num_inference_steps=4, generator=torch.Generator().manual_seed(3), output_type="pt")
    segmented = pipe.segment(picture(), output_type="pt")
    return {
        "images": generated.images,
        "masks": generated.masks,
        "uncertainty": generated.uncertainty,
        "segmented": segmented.masks[0],
    }


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def push(repo_id: str, pipe: DiffuseSegPipeline, **kwargs) -> str:
    return push_pipeline(pipe, repo_id, num_samples=0, **kwargs)


def change(hub, repo_id: str, **files) -> None:
    """Commits files, `None` to delete; `__` in a name stands for `/`."""
    files = {name.replace("__", "/").replace("_DOT_", "."): content for name, content in files.items()}
    deleted = [name for name, content in files.items() if content is None]
    hub.commit("models", repo_id, "main", "changed", {n: c for n, c in files.items() if c is not None}, deleted)


def python(code: str, folder, expect: int = 0, **env: str) -> subprocess.CompletedProcess:
    """Runs code in a fresh process that has diffusers and torch, but not this package."""
    packages = folder / "packages"
    if not packages.exists():
        packages.mkdir()
        clean_environment(packages)
    wanted = {"PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", **env}
    ours = (
        "HF_",
        "PATH",
        "HOME",
        "LD_",
        "TMP",
        "ATEN_",
        "ONEDNN_",
    )  # the last two: the same kernels, for the same bits
    kept = {k: v for k, v in os.environ.items() if k.startswith(ours)}
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=folder, capture_output=True, text=True, timeout=300, env=kept | wanted
    )
    assert result.returncode == expect, result.stdout + result.stderr
    return result


OUTPUTS = """
import importlib.util, shutil, sys, torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

def outputs(pipe):
    pipe.set_progress_bar_config(disable=True)
    generated = pipe(2, num_inference_steps=4, generator=torch.Generator().manual_seed(3), output_type="pt")
    segmented = pipe.segment(load_file("picture.safetensors")["picture"], output_type="pt")
    return {"images": generated.images, "masks": generated.masks, "uncertainty": generated.uncertainty,
            "segmented": segmented.masks[0]}
"""


WITHOUT_THE_PACKAGE = OUTPUTS + "assert importlib.util.find_spec('diffuseseg_diffusers') is None\n"


def test_with_the_package_the_round_trip_is_exact_and_no_code_is_fetched(hub, tmp_path):
    pipe = made()
    expected = outputs(pipe)
    push("alice/round-trip", pipe)
    hub.requests.clear()
    cold = DiffuseSegPipeline.from_pretrained("alice/round-trip", cache_dir=tmp_path)
    assert same(outputs(cold), expected)
    assert type(cold.segmentation_head) is PixelClassifierEnsemble
    assert cold.config._name_or_path == "alice/round-trip"
    assert hub.asked("GET", "/cdn/") and not hub.asked("GET|HEAD", r"\.py$")
    hub.requests.clear()
    warm = DiffuseSegPipeline.from_pretrained("alice/round-trip", cache_dir=tmp_path)
    assert same(outputs(warm), expected)
    assert not hub.asked("GET", "/cdn/|/resolve/")
    pipe.save_pretrained(tmp_path / "folder")
    assert same(outputs(DiffuseSegPipeline.from_pretrained(tmp_path / "folder")), expected)


def test_a_saved_pipeline_without_a_head_and_one_of_an_older_layout_load(hub, tmp_path):
    pipe = make_pipeline()
    push("alice/headless", pipe)
    loaded = DiffuseSegPipeline.from_pretrained("alice/headless", cache_dir=tmp_path)
    assert loaded.segmentation_head is None
    push("alice/older", made())
    index = json.loads(hub.files("models", "alice/older")["model_index.json"])
    index["_class_name"] = "DiffuseSegPipeline"
    index["segmentation_head"] = ["diffuseseg_diffusers.segmentation_head", "PixelClassifierEnsemble"]
    change(
        hub,
        "alice/older",
        model_index_DOT_json=json.dumps(index).encode(),
        pipeline_diffuseseg_DOT_py=None,
        segmentation_head__pixel_classifier_ensemble_DOT_py=None,
    )
    assert same(outputs(DiffuseSegPipeline.from_pretrained("alice/older", cache_dir=tmp_path)), outputs(made()))


def test_a_revision_is_the_one_that_was_asked_for(hub, tmp_path):
    first, second = made(0), made(1)
    push("alice/revisions", first)
    HfApi().create_tag("alice/revisions", tag="v1")
    old = hub.refs("models", "alice/revisions")["branches"]["main"]
    push("alice/revisions", second)
    load_from = DiffuseSegPipeline.from_pretrained
    assert same(outputs(load_from("alice/revisions", cache_dir=tmp_path)), outputs(second))
    for revision in ("v1", old):
        assert same(outputs(load_from("alice/revisions", revision=revision, cache_dir=tmp_path)), outputs(first))
    with pytest.raises(ValueError, match="no such revision"):
        load_pipeline("alice/revisions", revision="v2", device="cpu")


def test_a_private_repository_needs_a_token_of_somebody_who_may_see_it(hub, tmp_path, monkeypatch):
    push("alice/private", made(), private=True)
    assert hub.settings("models", "alice/private")["private"]
    for token in (TOKENS["bob"], None):
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        else:
            monkeypatch.delenv("HF_TOKEN")
        with pytest.raises(ValueError, match="alice/private cannot be loaded: the Hub has none .* HF_TOKEN"):
            load_pipeline("alice/private", device="cpu")
    given = DiffuseSegPipeline.from_pretrained("alice/private", token=TOKENS["alice"], cache_dir=tmp_path)
    assert same(outputs(given), outputs(made()))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ValueError, match="does not take the token"):
        load_pipeline("alice/private", device="cpu")
    monkeypatch.setenv("HF_TOKEN", TOKENS["alice"])
    assert load_pipeline("alice/private", device="cpu").segmentation_head is not None


@pytest.mark.slow
def test_without_the_package_the_round_trip_is_exact(hub, tmp_path):
    pipe = made()
    push("alice/stand-alone", pipe, private=True)
    pipe.save_pretrained(tmp_path / "folder")
    save_file({"picture": picture()}, tmp_path / "picture.safetensors")
    (tmp_path / "broken.bin").write_bytes((tmp_path / "folder" / HEAD_WEIGHTS).read_bytes()[:-50])
    code = WITHOUT_THE_PACKAGE + (
        'for i, name in enumerate(("alice/stand-alone", "alice/stand-alone", "folder")):\n'
        "    pipe = DiffusionPipeline.from_pretrained(name, trust_remote_code=True)\n"
        "    save_file(outputs(pipe), f'{i}.safetensors')\n"
        "pipe.save_pretrained('again')\n"
        "save_file(outputs(DiffusionPipeline.from_pretrained('again', trust_remote_code=True)), '3.safetensors')\n"
        "own = type(pipe).from_pretrained('alice/stand-alone')\n"
        "save_file(outputs(own), '4.safetensors')\n"
        "for name in ('alice/stand-alone', 'folder'):\n"
        "    try:\n"
        "        DiffusionPipeline.from_pretrained(name)\n"
        "    except ValueError as error:\n"
        "        assert 'trust_remote_code=True' in str(error), error\n"
        "    else:\n"
        "        raise SystemExit('code was run without a word')\n"
        "pipe.push_to_hub('alice/pushed-without')\n"
        f"shutil.copytree('folder', 'broken'); shutil.copy('broken.bin', 'broken/{HEAD_WEIGHTS}')\n"
        "try:\n"
        "    DiffusionPipeline.from_pretrained('broken', trust_remote_code=True)\n"
        "except ValueError as error:\n"
        "    assert 'not a whole safetensors file' in str(error), error\n"
        "else:\n"
        "    raise SystemExit('a broken head was loaded')\n"
    )
    home = {"HF_HOME": str(tmp_path / "home")}
    result = python(code, tmp_path, HF_TOKEN=TOKENS["alice"], **home)
    assert "Expected types" not in result.stderr and "newly initialized" not in result.stderr
    expected = outputs(pipe)
    for i in range(5):
        assert same(load_file(tmp_path / f"{i}.safetensors"), expected), i
    for name in ("pipeline_diffuseseg.py", "model_index.json"):  # its code makes the same code
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    pushed = DiffuseSegPipeline.from_pretrained("alice/pushed-without", cache_dir=tmp_path / "cache")
    assert same(outputs(pushed), expected)
    # Offline, from what is in the cache.
    code = WITHOUT_THE_PACKAGE + (
        "import os.path, huggingface_hub\n"
        "folder = os.path.dirname(huggingface_hub.hf_hub_download('alice/stand-alone', 'model_index.json'))\n"
        "save_file(outputs(DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)), '5.safetensors')\n"
    )
    hub.requests.clear()
    python(code, tmp_path, HF_HUB_OFFLINE="1", **home)
    assert same(load_file(tmp_path / "5.safetensors"), expected)
    assert hub.requests == []


@pytest.mark.slow
def test_one_loader_takes_whatever_segments_from_a_folder_and_from_the_hub(hub, tmp_path):
    made().save_pretrained(tmp_path / "ours")
    DDPMPipeline(make_unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    torch.manual_seed(0)
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = ViTModel(ViTConfig(**config, image_size=16, patch_size=4)).eval()
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    backbone = BackbonePipeline(vision, processor)
    dataset = drawn_dataset(channels=3)
    backbone.segmentation_head = fit_segmentation_head(backbone, dataset, recipe=QUICK, num_members=2)
    backbone.save_pretrained(tmp_path / "backbone")
    for part in (vision, processor):
        part.save_pretrained(tmp_path / "vision")
    saved_student(tmp_path / "student")
    kinds = {"ours": DiffuseSegPipeline, "ddpm": DiffuseSegPipeline}
    unet_from_denoiser(make_unet(), ["sky", "disc", "bar"]).save_pretrained(tmp_path / "unet-student")
    kinds |= {"backbone": BackbonePipeline, "student": StudentSegmenter, "unet-student": UNetStudent}
    kinds |= {"vision": BackbonePipeline}
    for name, kind in kinds.items():
        HfApi().create_repo(f"alice/kind-{name}")
        HfApi().upload_folder(repo_id=f"alice/kind-{name}", folder_path=tmp_path / name)
        masks = []
        for one_loader in (load_pipeline, AutoDiffuseSegPipeline.from_pretrained):
            for where in (str(tmp_path / name), tmp_path / name, f"alice/kind-{name}"):
                loaded = one_loader(where, device="cpu", dtype="float32", cache_dir=tmp_path / "cache")
                assert type(loaded) is kind
                if name not in ("ddpm", "vision"):
                    masks.append(loaded.segment(picture(), output_type="np").masks[0])
        assert all((mask == masks[0]).all() for mask in masks)
    assert not (tmp_path / "home").exists() and len(list((tmp_path / "cache").glob("models--alice--kind-*"))) == 6
    export_onnx(loaded_student := load_pipeline(tmp_path / "student", dtype="float32"), tmp_path / "student.onnx")
    exported = AutoDiffuseSegPipeline.from_pretrained(tmp_path / "student.onnx")
    assert type(exported) is OnnxStudent and exported.label_names == loaded_student.label_names
    half = AutoDiffuseSegPipeline.from_pretrained(tmp_path / "backbone", dtype=torch.float16)
    assert half.backbone.dtype == half.segmentation_head.dtype == torch.float16
    named = AutoDiffuseSegPipeline.from_pretrained(tmp_path / "backbone", dtype="float16")
    assert (named.backbone.dtype, named.segmentation_head.dtype) == (torch.float16, torch.float32)


@pytest.mark.parametrize("one_loader", [load_pipeline, AutoDiffuseSegPipeline.from_pretrained])
def test_the_only_variant_that_is_there_is_loaded_and_said(hub, tmp_path, caplog, one_loader):
    pipe = made()
    pipe.save_pretrained(tmp_path / "fp16", variant="fp16")
    pipe.save_pretrained(tmp_path / "plain")
    expected = outputs(one_loader(tmp_path / "plain", device="cpu", dtype="float32"))
    new_unet(["sky", "disc"], (16, 16), 3).model.save_pretrained(tmp_path / "unet", variant="fp16")
    (tmp_path / "unet" / "student.json").write_text('{"label_names": ["sky", "disc"], "timestep": 0, "palette": null}')
    repo_id = f"alice/fp16-{one_loader.__name__}"
    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=tmp_path / "fp16")
    for name in (tmp_path / "fp16", repo_id):
        caplog.clear()
        loaded = one_loader(name, device="cpu", dtype="float32", cache_dir=tmp_path / "cache")
        said = f"{name}: loading the variant fp16; weights without a variant are missing."
        assert [m for m in caplog.messages if "variant" in m] == [said]
        assert same(outputs(loaded), expected)
    assert one_loader(tmp_path / "unet", device="cpu", dtype="float32").label_names == ["sky", "disc"]
    with pytest.raises(UserError, match="variant=bf16"):  # what is named is what is loaded
        AutoDiffuseSegPipeline.from_pretrained(tmp_path / "fp16", variant="bf16")
    # Of two variants, none is chosen.
    for variant in ("fp16", "bf16"):
        pipe.save_pretrained(tmp_path / "two", variant=variant)
    with pytest.raises(UserError, match="no weights in the safetensors format|cannot be loaded"):
        one_loader(tmp_path / "two", device="cpu", dtype="float32")


def test_ddpm_pipeline_of_diffusers_says_what_loads_a_folder_of_ours_and_does_so(tmp_path):
    pipe = made()
    pipe.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`trust_remote_code=True`"):
        DDPMPipeline.from_pretrained(tmp_path)
    loaded = DDPMPipeline.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded).__name__ == "DiffuseSegPipeline" and same(outputs(loaded), outputs(pipe))


def test_the_precision_is_float32_where_masks_in_the_faster_one_were_others(hub, tmp_path, fast_bfloat16, caplog):
    saved_student(tmp_path / "first")
    pipe, student = made(), load_pipeline(tmp_path / "first", device="cpu", dtype="float32")
    unet = unet_from_denoiser(make_unet(), ["sky", "disc", "bar"])
    for share, expected in ((0.99, torch.float32), (0.9995, torch.bfloat16)):
        pipe.segmentation_head.register_to_config(agreement={"bfloat16": share})
        student.agreement = unet.agreement = {"bfloat16": share}
        for name, model in (("pipe", pipe), ("student", student), ("unet", unet)):
            folder = tmp_path / f"{name}-{share}"
            model.save_pretrained(folder)
            HfApi().create_repo(f"alice/{folder.name}")
            HfApi().upload_folder(repo_id=f"alice/{folder.name}", folder_path=folder)
            for where in (str(folder), f"alice/{folder.name}"):
                caplog.clear()
                found = load_pipeline(where, device="cpu", cache_dir=tmp_path / "cache")
                own = found.unet if name == "pipe" else found.model
                assert own.dtype == expected
                said = [m for m in caplog.messages if m.startswith(f"{where}: float32; bfloat16 is faster, but")]
                assert len(said) == (expected == torch.float32)
                if name != "pipe":
                    assert found.agreement == {"bfloat16": share}


@pytest.mark.parametrize("index", ["model_index.json", "config.json"])
def test_what_is_of_an_unknown_kind_or_broken_is_a_sentence(tmp_path, index):
    with pytest.raises(UserError, match="There is no folder"):
        load_pipeline(tmp_path / "nowhere", device="cpu")
    with pytest.raises(UserError, match="holds no pipeline: it has no model_index.json"):
        load_pipeline(tmp_path, device="cpu")
    content = {"_class_name": "NoPipeline", "architectures": ["BertModel"]}
    (tmp_path / index).write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be loaded: .*NoPipeline|holds a BertModel; what can be loaded is"):
        load_pipeline(tmp_path, device="cpu")
    (tmp_path / index).write_text("{")
    with pytest.raises(UserError, match="is no JSON file"):
        load_pipeline(tmp_path, device="cpu")
    made().save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="broken cannot be loaded: .*diffusion_pytorch_model"):
        load_pipeline(tmp_path / "broken", device="cpu")


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_offline_a_pipeline_comes_from_the_cache_or_a_sentence_says_how_it_could(
    hub, tmp_path, fast_bfloat16, monkeypatch, dtype
):
    push("alice/offline", made())
    settings = {"device": "cpu", "dtype": dtype, "cache_dir": tmp_path / "cache"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1 sets it
    with pytest.raises(UserError, match="alice/offline cannot be loaded: offline mode is on"):
        load_pipeline("alice/offline", **settings)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    online = outputs(load_pipeline("alice/offline", **settings))
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert same(outputs(load_pipeline("alice/offline", **settings)), online)
    assert hub.requests == []


def test_offline_what_has_no_head_to_say_how_precisions_agree_comes_from_the_cache_too(
    hub, tmp_path, fast_bfloat16, monkeypatch
):
    unfitted = made()
    unfitted.segmentation_head = None
    push("alice/unfitted", unfitted)
    DDPMPipeline(make_unet(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    HfApi().create_repo("alice/plain", exist_ok=True)
    HfApi().upload_folder(repo_id="alice/plain", folder_path=tmp_path / "ddpm")
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        for name in ("alice/unfitted", "alice/plain"):
            assert load_pipeline(name, device="cpu", cache_dir=tmp_path / "cache").unet.dtype == torch.bfloat16


@pytest.mark.parametrize("wrong", ['"0.5"', "true", "NaN", "-5", "99.9", "1e400", '{"a": 1}', "[]", "null"])
def test_an_agreement_that_is_no_share_says_nothing(wrong, tmp_path, fast_bfloat16, caplog):
    made().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "segmentation_head" / "config.json"
    config = path.read_text()
    for agreement in (wrong, f'{{"bfloat16": {wrong}}}'):
        path.write_text(config.replace('"agreement": null', f'"agreement": {agreement}'))
        assert load_pipeline(tmp_path / "model", device="cpu").unet.dtype == torch.bfloat16
    assert not caplog.messages


def test_a_hub_that_cannot_be_reached_is_a_sentence_with_the_offline_options(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    for name in ("HUGGINGFACE_CO_URL_TEMPLATE", "ENDPOINT"):  # as HF_ENDPOINT sets them
        changed = getattr(constants, name).replace(constants.ENDPOINT, "http://127.0.0.1:9")
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", changed)
    with pytest.raises(UserError, match="cannot be reached at http://127.0.0.1:9: .* HF_HUB_OFFLINE=1"):
        load_pipeline("alice/x", device="cpu", cache_dir=tmp_path)


CELEBAHQ = dict(  # as published in google/ddpm-celebahq-256, with a quarter of the channels
    act_fn="silu",
    attention_head_dim=None,
    block_out_channels=[32, 32, 64, 64, 128, 128],
    center_input_sample=False,
    down_block_types=["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    in_channels=3,
    layers_per_block=2,
    mid_block_scale_factor=1,
    norm_eps=1e-06,
    norm_num_groups=32,
    out_channels=3,
    sample_size=256,
    time_embedding_type="positional",
    up_block_types=["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
)
CELEBAHQ_SCHEDULER = dict(
    beta_end=0.02,
    beta_schedule="linear",
    beta_start=0.0001,
    clip_sample=True,
    num_train_timesteps=1000,
    trained_betas=None,
    variance_type="fixed_small",
)


@pytest.mark.parametrize("flat", [False, True], ids=["folders", "flat"])
def test_a_plain_ddpm_repository_loads(hub, tmp_path, flat):
    unet = UNet2DModel(**CELEBAHQ)
    DDPMPipeline(unet.half(), DDPMScheduler(**CELEBAHQ_SCHEDULER)).save_pretrained(tmp_path / "ddpm")
    folder = tmp_path / "ddpm"
    if flat:  # as the first repositories have it
        for part in ("unet", "scheduler"):
            for path in (folder / part).iterdir():
                path.rename(folder / path.name)
            (folder / part).rmdir()
    name = f"alice/ddpm-{'flat' if flat else 'folders'}"
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path=folder)
    pipe = DiffuseSegPipeline.from_pretrained(name, cache_dir=tmp_path / "cache", dtype=torch.float16)
    assert pipe.segmentation_head is None and pipe.scheduler.config.variance_type == "fixed_small"
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), unet.parameters()))


def test_a_plain_ddpm_from_before_safetensors_loads_but_not_beside_a_head(hub, tmp_path):
    unet = make_unet()
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm", safe_serialization=False)
    assert list((tmp_path / "ddpm" / "unet").glob("*.bin"))
    HfApi().create_repo("alice/pickled")
    HfApi().upload_folder(repo_id="alice/pickled", folder_path=tmp_path / "ddpm")
    pipe = DiffuseSegPipeline.from_pretrained("alice/pickled", cache_dir=tmp_path / "cache")
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), unet.parameters()))
    push("alice/half-pickled", made())
    safe = ["unet/diffusion_pytorch_model.safetensors"]
    pickled = (tmp_path / "ddpm" / "unet" / "diffusion_pytorch_model.bin").read_bytes()
    hub.commit("models", "alice/half-pickled", "main", "pickled", {"unet/diffusion_pytorch_model.bin": pickled}, safe)
    with pytest.raises(ValueError, match="not loaded beside a segmentation head"):
        DiffuseSegPipeline.from_pretrained("alice/half-pickled", cache_dir=tmp_path / "cache")


def test_a_head_alone_loads_onto_any_unet_that_fits(hub, tmp_path):
    pipe = made()
    push("alice/head", pipe)
    head = PixelClassifierEnsemble.from_pretrained(
        "alice/head", subfolder="segmentation_head", cache_dir=tmp_path / "cache"
    )
    other = make_pipeline()
    other.segmentation_head = head
    assert same(outputs(other), outputs(pipe))
    narrow = DiffuseSegPipeline(make_unet(block_out_channels=(4, 8, 12)), DDPMScheduler())
    narrow.segmentation_head = head
    with pytest.raises(ValueError, match="channels"):
        narrow.segment(picture())


class Payload:
    """Pickled, it makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_head_that_is_broken_newer_or_pickled_is_refused_and_nothing_is_run(hub, tmp_path):
    push("alice/broken", made())
    good = hub.files("models", "alice/broken")
    config, weights = json.loads(good["segmentation_head/config.json"]), load(good[HEAD_WEIGHTS])
    first = next(iter(weights))
    tripped = tmp_path / "tripped"
    trap = f"import os\nos.mkdir({str(tripped)!r})\n".encode()
    change(hub, "alice/broken", pipeline_diffuseseg_DOT_py=trap)
    change(hub, "alice/broken", segmentation_head__pixel_classifier_ensemble_DOT_py=trap)
    head_file = HEAD_WEIGHTS.replace("/", "__").replace(".", "_DOT_")
    config_file = "segmentation_head__config_DOT_json"
    pickled = "segmentation_head__diffusion_pytorch_model_DOT_bin"
    broken = {
        "not a whole safetensors": {head_file: good[HEAD_WEIGHTS][:-100]},
        "missing, of another shape": {head_file: save({k: v for k, v in weights.items() if k != first})},
        "not finite": {head_file: save({**weights, first: weights[first] * float("nan")})},
        "newer": {config_file: json.dumps(config | {"format_version": FORMAT_VERSION + 1}).encode()},
        "shape|size": {config_file: json.dumps(config | {"num_members": 7}).encode()},
        "cannot be read": {config_file: json.dumps({k: v for k, v in config.items() if k != "blocks"}).encode()},
        "valid JSON": {config_file: b"{"},
        "safetensors format; pickled": {head_file: None, pickled: pickle.dumps(Payload(tripped))},
    }
    for reason, files in broken.items():
        change(hub, "alice/broken", **{head_file: good[HEAD_WEIGHTS], config_file: json.dumps(config).encode()})
        change(hub, "alice/broken", **files)
        with pytest.raises((ValueError, OSError), match=reason):
            DiffuseSegPipeline.from_pretrained("alice/broken", cache_dir=tmp_path / "cache")
        folder = snapshot_download("alice/broken", cache_dir=tmp_path / "snapshots")
        with pytest.raises((ValueError, OSError), match=reason):
            DiffuseSegPipeline.from_pretrained(folder)
        with pytest.raises((ValueError, OSError), match=reason):
            PixelClassifierEnsemble.from_pretrained(folder, subfolder="segmentation_head")
        assert not tripped.exists(), reason
    index = json.loads(good["model_index.json"])
    for part in ("unet", "scheduler"):  # a part that says it is code of the repository
        change(hub, "alice/broken", **{head_file: good[HEAD_WEIGHTS], pickled: None, f"{part}__trap_DOT_py": trap})
        changed = json.dumps(index | {part: ["trap", "Trap"]}).encode()
        change(hub, "alice/broken", model_index_DOT_json=changed)
        with pytest.raises(ValueError, match="contains custom code"):
            DiffuseSegPipeline.from_pretrained("alice/broken", cache_dir=tmp_path / "cache")
    assert not tripped.exists()
    change(hub, "alice/broken", model_index_DOT_json=good["model_index.json"])
    assert same(outputs(DiffuseSegPipeline.from_pretrained("alice/broken", cache_dir=tmp_path)), outputs(made()))
    assert not tripped.exists()


def test_a_download_resumes_after_errors_and_where_a_connection_was_cut(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    pipe = made()
    push("alice/shaky", pipe)
    hub.requests.clear()
    hub.fail("HEAD", "/resolve/", status=500, times=2)
    hub.fail("GET", "/cdn/", status=429, headers={"Retry-After": "1"})
    hub.fail("GET", "/cdn/", cut=True)
    assert same(outputs(DiffuseSegPipeline.from_pretrained("alice/shaky", cache_dir=tmp_path)), outputs(pipe))
    assert not any(f.times for f in hub.failures)
    assert len(hub.asked("GET", "/cdn/")) == 4  # two files; one was refused first, one was cut
    # What the client does not wait out is a sentence, and the next call goes on.
    push("alice/shaky", made(1))
    for method, path in (("GET", "/cdn/"), ("GET", "/api/models/alice/shaky")):
        hub.fail(method, path, status=500, times=9)
        with pytest.raises(ValueError, match="alice/shaky cannot be loaded: .*(error 500|try again)"):
            load_pipeline("alice/shaky", device="cpu")
        hub.failures.clear()
    loaded = load_pipeline("alice/shaky", device="cpu", dtype="float32")
    assert all(torch.equal(a, b) for a, b in zip(loaded.unet.parameters(), made(1).unet.parameters()))
