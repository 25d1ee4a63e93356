# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A changed byte is noticed, wherever it is."""

import hashlib
import logging

from diffuseseg_diffusers.jobs import contents
from diffuseseg_diffusers.jobs.contents import BY_NAME, bytes_contents, contents_of, differences, file_contents


def test_files_and_all_files_below_folders_are_known_by_name_size_and_hash(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "a").write_bytes(b"first")
    (tmp_path / "deep" / "er" / "b").write_bytes(b"second")
    (tmp_path / "deep" / "again").symlink_to(tmp_path / "deep")  # a circle
    found = contents_of([tmp_path / "a", tmp_path / "deep", None, "org/model"])
    first = f"5 bytes, sha256 {hashlib.sha256(b'first').hexdigest()}"
    deep = {"er/b": bytes_contents(b"second")}
    assert found == {str(tmp_path / "a"): first, str(tmp_path / "deep"): deep, "org/model": BY_NAME}
    assert file_contents(tmp_path / "a") == bytes_contents(b"first")


def test_every_byte_of_a_large_file_counts(tmp_path):
    size, found = 3 * 2**20, set()
    for place in (0, size // 2, size - 1):
        data = bytearray(size)
        data[place] = 1
        (tmp_path / "x").write_bytes(data)
        found.add(file_contents(tmp_path / "x"))
    assert len(found) == 3


def test_addresses_are_known_by_name_and_it_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        assert contents_of(["https://x/a.tif", "https://x/b.tif"]) == dict.fromkeys(
            ("https://x/a.tif", "https://x/b.tif"), BY_NAME
        )
    assert caplog.messages == [
        f"https://x/a.tif and 1 more are {BY_NAME}: changes there do not keep a run from being resumed."
    ]


def test_of_many_files_one_hash_is_kept_which_knows_each(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "LISTED", 2)
    for name in "abc":
        (tmp_path / name).write_text(name)
    first = contents_of([tmp_path])[str(tmp_path)]
    (tmp_path / "b").write_text("B")
    assert list(first) == ["all 3 together"] and contents_of([tmp_path])[str(tmp_path)] != first


def test_differences_are_named_from_the_outside_in():
    there, now = {"unet": {"a": 1, "b": 2}, "x": 1, "gone": None}, {"unet": {"a": 1, "b": 3}, "x": 1, "new": {}}
    assert differences(there, now) == ["unet.b", "new", "gone"]
    assert differences(there, there) == differences("a", "b") == []
