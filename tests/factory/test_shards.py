# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import errno
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuseseg_diffusers.factory.shards import PART_SCHEMA, Samples, part_path, write_shards, write_table
from diffuseseg_diffusers.jobs.seeds import mixed_seed

from ..conftest import draw


def png(array: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": None}


def write_parts(folder, count: int, batch_size: int) -> Samples:
    """Batches of drawn images, as a run leaves them."""
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
        write_table(part_path(folder, batch), pa.table(columns, schema=PART_SCHEMA))
    return Samples(folder, count, batch_size)


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


def test_a_shard_that_is_there_stays_and_one_that_is_not_is_written(tmp_path):
    samples = write_parts(tmp_path, 12, 4)
    shards = write_shards(tmp_path, samples, np.arange(12), 1500)
    assert len(shards) > 2
    first, second = (tmp_path / s["file"] for s in shards[:2])
    stamp = first.stat().st_mtime_ns
    second.unlink()
    assert write_shards(tmp_path, samples, np.arange(12), 1500) == shards
    assert first.stat().st_mtime_ns == stamp


def test_a_disk_that_is_full_in_the_middle_of_a_shard_costs_that_shard_alone(tmp_path, monkeypatch):
    samples = write_parts(tmp_path, 12, 4)
    whole = write_shards(tmp_path, samples, np.arange(12), 1500)
    for shard in whole[1:]:
        (tmp_path / shard["file"]).unlink()
    close = pq.ParquetWriter.close

    def full(writer):
        close(writer)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "close", full)
    with pytest.raises(OSError, match="train-00001-of-.* could not be written .No space left") as raised:
        write_shards(tmp_path, samples, np.arange(12), 1500)
    assert raised.value.errno == errno.ENOSPC
    assert [p.name for p in (tmp_path / "data").iterdir()] == [Path(whole[0]["file"]).name]
    monkeypatch.undo()
    assert write_shards(tmp_path, samples, np.arange(12), 1500) == whole
