# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuseseg_diffusers.generation import (
    FEATURES,
    Samples,
    check_settings,
    distances,
    fingerprint,
    generate_batch,
    keep_balanced,
    keep_certain,
    keep_distinct,
    part_path,
    scheduler_for,
    thumbnail,
    write_shards,
    write_table,
)
from diffuseseg_diffusers.unlabeled_data import mixed_seed

from .conftest import draw, make_head, make_pipeline


def pipeline(**config):
    pipe = make_pipeline(**config)
    pipe.segmentation_head = make_head(pipe)
    pipe.scheduler = scheduler_for("ddim", pipe.scheduler)
    return pipe


def opened(cell: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(cell["bytes"])))


def write_parts(folder, count: int, batch_size: int) -> Samples:
    """Batches of drawn pictures, as a run leaves them."""

    def png(array):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "png")
        return {"bytes": buffer.getvalue(), "path": None}

    schema = FEATURES.arrow_schema.append(pa.field("pixels", pa.list_(pa.int64())))
    for batch in range(-(-count // batch_size)):
        indices = range(batch * batch_size, (batch + 1) * batch_size)
        drawn = [draw((16, 16), i) for i in indices]
        columns = {
            "image": [png(image) for image, _ in drawn],
            "mask": [png(mask) for _, mask in drawn],
            "uncertainty": [(i * 37 % 101) / 100 for i in indices],
            "seed": [mixed_seed(0, i) for i in indices],
            "index": list(indices),
            "pixels": [np.bincount(mask.ravel(), minlength=3).tolist() for _, mask in drawn],
        }
        write_table(part_path(folder, batch), pa.table(columns, schema=schema))
    return Samples(folder, count, batch_size)


# Sampling


def test_a_sample_depends_on_the_seed_and_its_index_alone():
    pipe = pipeline()
    first = generate_batch(pipe, 0, 4, seed=7, num_inference_steps=3)
    second = generate_batch(pipe, 1, 4, seed=7, num_inference_steps=3)
    assert generate_batch(pipe, 1, 4, seed=7, num_inference_steps=3).equals(second)
    assert first["index"].to_pylist() + second["index"].to_pylist() == list(range(8))
    assert second["seed"].to_pylist() == [mixed_seed(7, i) for i in range(4, 8)]
    whole = generate_batch(pipe, 0, 8, seed=7, num_inference_steps=3)
    for a, b in zip(whole["image"].to_pylist(), [*first["image"].to_pylist(), *second["image"].to_pylist()]):
        assert np.abs(opened(a).astype(int) - opened(b)).max() <= 1  # another batch size changes rounding
    alone = pipe(1, 3, generator=torch.Generator().manual_seed(second["seed"][2].as_py()), output_type="pil").images[0]
    assert np.abs(np.asarray(alone).astype(int) - opened(second["image"][2].as_py())).max() <= 1
    other = generate_batch(pipe, 0, 4, seed=8, num_inference_steps=3)
    assert opened(other["image"][0].as_py()).tolist() != opened(first["image"][0].as_py()).tolist()


def test_a_batch_holds_masks_their_pixels_and_scores():
    table = generate_batch(pipeline(), 0, 3, seed=0, num_inference_steps=2)
    for row in table.to_pylist():
        mask = opened(row["mask"])
        assert mask.shape == (16, 16) and np.bincount(mask.ravel(), minlength=3).tolist() == row["pixels"]
        assert 0 <= row["uncertainty"] <= np.log(4)
    jpeg = generate_batch(pipeline(in_channels=3, out_channels=3), 0, 1, 0, 2, image_format="jpeg")
    assert Image.open(io.BytesIO(jpeg["image"][0].as_py()["bytes"])).format == "JPEG"
    assert Image.open(io.BytesIO(jpeg["mask"][0].as_py()["bytes"])).format == "PNG"


def test_masks_while_sampling_read_the_activations_of_the_steps_nearest_to_the_heads_timesteps():
    pipe = pipeline()
    noise = torch.Generator().manual_seed(1)
    seen = {}

    def watch(pipe, i, t, given):
        seen[t] = given["sample"]
        return {}

    passes = []
    handle = pipe.unet.register_forward_hook(lambda *_: passes.append(1))
    got = pipe(2, 20, generator=noise, masks_while_sampling=True, output_type="pt", callback_on_step_end=watch)
    handle.remove()
    assert len(passes) == 20  # and none for the masks
    # Plainly: the samples before the steps at 51 and 151, through the U-Net at these timesteps.
    timesteps = pipe.scheduler.timesteps.tolist()
    nearest = [min(timesteps, key=lambda t: abs(t - wanted)) for wanted in pipe.segmentation_head.config.timesteps]
    extractor = pipe.feature_extractor_for_head()
    activations = []
    with torch.no_grad(), extractor.tapped() as tapped:
        for t in nearest:
            pipe.unet(seen[timesteps[timesteps.index(t) - 1]], t)
            activations += [tapped[block] for block in extractor.blocks]
    expected = pipe.segmentation_head.predict(activations)
    assert torch.equal(got.masks, expected.labels)
    torch.testing.assert_close(got.uncertainty, expected.uncertainty)
    usual = pipe(2, 20, generator=torch.Generator().manual_seed(1), output_type="pt")
    assert torch.equal(usual.images, got.images) and not torch.equal(usual.uncertainty, got.uncertainty)
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler scales samples"):
        pipe(1, 2, masks_while_sampling=True)


def test_samplers_keep_the_noise_schedule():
    scheduler = make_pipeline().scheduler
    assert scheduler_for("ddpm", scheduler) is scheduler
    assert isinstance(scheduler_for("ddim", scheduler), DDIMScheduler)
    solver = scheduler_for("dpmsolver++", scheduler)
    assert isinstance(solver, DPMSolverMultistepScheduler) and solver.config.algorithm_type == "dpmsolver++"
    assert torch.equal(solver.alphas_cumprod, scheduler.alphas_cumprod)


# What is left out


def test_the_most_uncertain_are_left_out(tmp_path):
    samples = write_parts(tmp_path, 10, 4)
    kept = keep_certain(samples, np.arange(10), 0.3)
    assert len(kept) == 7 and (np.diff(kept) > 0).all()
    left_out = np.setdiff1d(np.arange(10), kept)
    assert samples.uncertainty[left_out].min() >= samples.uncertainty[kept].max()
    assert keep_certain(samples, np.arange(10), 0).tolist() == list(range(10))


def test_those_with_the_least_of_rare_classes_are_left_out(tmp_path):
    samples = write_parts(tmp_path, 12, 4)
    before = samples.pixels.sum(0) / samples.pixels.sum()
    kept = keep_balanced(samples, np.arange(12), 0.5)
    after = samples.pixels[kept].sum(0) / samples.pixels[kept].sum()
    assert len(kept) == 6 and after.min() > before.min()


def test_copies_are_left_out_of_each_other_mirrored_and_of_training_images(tmp_path):
    pictures = [Image.fromarray(draw((16, 16), i)[0]) for i in range(4)]
    pictures += [pictures[1], pictures[2].transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    images = np.stack([thumbnail(p, "L") for p in pictures])
    assert keep_distinct(images, np.arange(6), 0.01).tolist() == [0, 1, 2, 3]
    assert keep_distinct(images, np.arange(6), 0.01, images[:1]).tolist() == [1, 2, 3]


@given(st.integers(2, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_distances_are_the_plain_formula(n, m, seed):
    rng = np.random.default_rng(seed)
    queries, references = rng.random((n, 256), np.float32), rng.random((m, 256), np.float32)

    def plain(q, r):
        mirrored = r.reshape(16, 16)[:, ::-1].ravel()
        return min(np.sqrt(((q - x) ** 2).mean()) for x in (r, mirrored))

    expected = [min(plain(q, r) for r in references) for q in queries]
    np.testing.assert_allclose(distances(queries, references), expected, atol=1e-3)
    if n > 1:
        others = [min(plain(q, r) for j, r in enumerate(queries) if j != i) for i, q in enumerate(queries)]
        np.testing.assert_allclose(distances(queries, queries, skip_self=True), others, atol=1e-3)


# Files


@given(st.integers(1, 30), st.integers(1, 7), st.floats(0.2, 1), st.integers(300, 4000))
@settings(max_examples=10, deadline=None)
def test_shards_hold_every_kept_row_once_and_in_order(tmp_path_factory, count, batch_size, share, shard_bytes):
    folder = tmp_path_factory.mktemp("run")
    samples = write_parts(folder, count, batch_size)
    kept = np.flatnonzero(np.random.default_rng(count).random(count) < share)
    kept = kept if len(kept) else np.array([count - 1])
    shards = write_shards(folder, samples, kept, shard_bytes)
    tables = [pq.read_table(folder / s["file"]) for s in shards]
    assert np.concatenate([t["index"].to_numpy() for t in tables]).tolist() == kept.tolist()
    assert [s["rows"] for s in shards] == [len(t) for t in tables]
    for table in tables:
        sizes = [
            len(i["bytes"]) + len(m["bytes"]) for i, m in zip(table["image"].to_pylist(), table["mask"].to_pylist())
        ]
        assert sum(sizes[:-1]) < shard_bytes + max(sizes)
    again = write_shards(folder, samples, kept, shard_bytes)  # nothing is written twice
    assert again == shards


def test_a_shard_that_is_there_stays_and_one_that_was_begun_is_written_anew(tmp_path):
    samples = write_parts(tmp_path, 12, 4)
    shards = write_shards(tmp_path, samples, np.arange(12), 1500)
    assert len(shards) > 2
    first, second = (tmp_path / s["file"] for s in shards[:2])
    stamp = first.stat().st_mtime_ns
    second.rename(second.with_name(second.name + ".partial"))
    assert write_shards(tmp_path, samples, np.arange(12), 1500) == shards
    assert first.stat().st_mtime_ns == stamp and not list(tmp_path.rglob("*.partial"))


def test_a_folder_with_another_run_is_refused_by_what_differs(tmp_path):
    made = {"seed": 0, "weights": "abc", "num_samples": 8}
    assert check_settings(tmp_path / "run", made) is None
    assert check_settings(tmp_path / "run", made) is None
    with pytest.raises(ValueError, match=r"seed 0 \(now 1\), weights abc \(now def\)"):
        check_settings(tmp_path / "run", made | {"seed": 1, "weights": "def"})
    (tmp_path / "run" / "generation.json").write_text(json.dumps({"settings": made, "result": {"num_kept": 7}}))
    assert check_settings(tmp_path / "run", made) == {"num_kept": 7}


def test_a_fingerprint_is_that_of_the_weights():
    a, b = pipeline(), pipeline(seed=1)
    assert fingerprint(a.unet, a.segmentation_head) == fingerprint(pipeline().unet, pipeline().segmentation_head)
    assert fingerprint(a.unet) != fingerprint(b.unet)
