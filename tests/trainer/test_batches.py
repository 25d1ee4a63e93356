# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
from itertools import islice
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuseseg_diffusers.datasets.unlabeled import UnlabeledImages, load_unlabeled
from diffuseseg_diffusers.trainer.batches import ShuffledBatches, StreamedBatches

from ..conftest import draw


@pytest.fixture(autouse=True)
def quick_shutdown(monkeypatch):
    """`datasets` waits five seconds for its threads at the end of each epoch of a stream."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1, raising=False)


def numbered(count: int) -> torch.Tensor:
    """Images of one pixel, so that a batch says which images are in it."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None]


def write_parquet(folder, count, files, broken=()):
    """Grey images of 8 × 8 whose value is their number, in so many files."""
    (folder / "data").mkdir(parents=True)
    features = Features({"image": ImageFeature()})
    for k in range(files):
        cells = []
        for i in range(k * count // files, (k + 1) * count // files):
            path = folder / "one.png"
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(path)
            cells.append({"bytes": b"broken" if i in broken else path.read_bytes(), "path": f"{i}.png"})
        path.unlink()
        name = f"train-{k:05d}-of-{files:05d}.parquet"
        Dataset.from_dict({"image": cells}, features=features).to_parquet(folder / "data" / name)


def stream(folder, batch_size=3, **options):
    dataset, column = load_unlabeled(str(folder), streaming=True)
    return StreamedBatches(dataset, column, (8, 8), 1, batch_size, seed=0, buffer_size=5, **options)


def read(batches, count):
    return [batch[:, 0, 0, 0].tolist() for batch in islice(iter(batches), count)]


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    processes=st.integers(1, 4),
    steps=st.integers(1, 12),
    first=st.integers(0, 5),
)
def test_processes_together_read_every_epoch_once_from_wherever_they_resume(count, batch_size, processes, steps, first):
    total = batch_size * processes
    position = first * total

    def rows(processes, batch_size, position, steps):
        read = []
        for p in range(processes):
            batches = ShuffledBatches(numbered(count), batch_size, seed=7)
            batches.position = position
            read.append(islice(batches._rows(SimpleNamespace(process_index=p, num_processes=processes)), steps))
        return [row for step in zip(*read) for batch in step for row in batch]

    together = rows(processes, batch_size, position, steps)
    alone = rows(1, 1, 0, position + steps * total)
    assert together == alone[position:]
    for epoch in range(len(alone) // count):
        assert sorted(alone[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_epochs_and_seeds_differ():
    orders = {tuple(read(ShuffledBatches(numbered(20), 20, seed), 2)[epoch]) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_workers_read_what_memory_holds(tmp_path):
    for i in range(7):
        Image.fromarray(draw((20, 26), i)[0]).save(tmp_path / f"{i}.png")
    dataset, column = load_unlabeled(data_dir=str(tmp_path))
    images = UnlabeledImages(dataset, column, (16, 16), 1)
    pixels, unreadable = images.load()
    assert pixels.shape == (7, 1, 16, 16) and unreadable == 0
    assert images.fits_in_memory() and not images.fits_in_memory(0) and images.fits_in_memory(7 * 256 / 2**30)
    cached, decoded = ShuffledBatches(pixels, 4, 0), ShuffledBatches(images, 4, 0, num_workers=2)
    for a, b in zip(islice(iter(cached), 5), islice(iter(decoded), 5)):
        assert torch.equal(a, b)
    assert cached.position == decoded.position == 20


def test_a_checkpoint_of_another_dataset_is_refused():
    batches = ShuffledBatches(numbered(5), 2, 0)
    state = batches.state_dict()
    with pytest.raises(ValueError, match="made with 5 training images, and now there are 6"):
        ShuffledBatches(numbered(6), 2, 0).load_state_dict(state)
    with pytest.raises(ValueError, match="streamed training images"):
        ShuffledBatches(numbered(6), 2, 0).load_state_dict({"position": 4, "read": [0, 1], "num_processes": 1})


@pytest.mark.parametrize("files", [1, 3])
def test_a_stream_reads_every_epoch_once_and_resumes_where_it_was(files, tmp_path):
    write_parquet(tmp_path, 10, files)
    alone = read(stream(tmp_path), 10)
    epochs = np.array(alone).reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 3  # shuffled anew
    for stop in (1, 4, 7):
        before = stream(tmp_path)
        assert read(before, stop) == alone[:stop]
        after = stream(tmp_path, num_threads=3)
        after.load_state_dict(before.state_dict())
        assert read(after, 10 - stop) == alone[stop:]
        assert after.position == 30


def test_a_stream_leaves_out_what_is_held_out_and_what_cannot_be_read(tmp_path):
    write_parquet(tmp_path, 12, 2, broken=(4, 9))
    dataset, _ = load_unlabeled(str(tmp_path), streaming=True)
    held_out = [row["image"] for row in dataset.take(3)]
    batches = stream(tmp_path, batch_size=7, held_out=held_out, skip_unreadable=True)
    assert [sorted(b) for b in read(batches, 2)] == [[3, 5, 6, 7, 8, 10, 11]] * 2
    assert batches.unreadable in (2, 3, 4)  # those of the second epoch may come after its last batch
    with pytest.raises(ValueError, match=r"(4|9)\.png.*cannot be read.*--skip_unreadable"):
        read(stream(tmp_path, batch_size=12), 1)
    with pytest.raises(ValueError, match="no training images for this process"):
        read(stream(tmp_path, held_out=[row["image"] for row in dataset]), 1)


def test_a_stream_of_broken_images_ends(tmp_path):
    write_parquet(tmp_path, 4, 1, broken=range(4))
    with pytest.raises(ValueError, match="None of the images"):
        read(stream(tmp_path, skip_unreadable=True), 1)
