# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.

import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from diffuseseg_diffusers import LabeledImages, load_labeled_images
from diffuseseg_diffusers.datasets.crops import LabeledTiles, Pictures, RandomCrops, by_planes, measure_windows
from diffuseseg_diffusers.images.channels import InputChannels
from diffuseseg_diffusers.jobs.errors import UserError
from diffuseseg_diffusers.trainer.batches import ShuffledBatches

from ..images.formats.pictures import geotiff, ome_tiff, values


def rows(*paths) -> Dataset:
    return Dataset.from_dict(
        {"image": [str(p) for p in paths]}, features=Features({"image": ImageFeature(decode=False)})
    )


def crops(paths, size=(16, 16), channels=3, chosen=None, seed=0, **options) -> RandomCrops:
    return RandomCrops(Pictures(rows(*paths), "image"), size, channels, chosen or InputChannels(), seed, **options)


@pytest.fixture
def slide(tmp_path):
    """A picture whose first channel says the row and whose second says the column."""
    y, x = np.mgrid[:100, :140].astype(np.uint8)
    pixels = np.stack([y, x, np.zeros_like(y)])
    return ome_tiff(tmp_path / "slide.ome.tif", pixels), pixels


def test_crops_are_windows_of_the_picture_at_its_own_resolution(slide, tmp_path):
    path, pixels = slide
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "same.png")
    images = crops([path])
    assert len(images) == round(100 * 140 / 256)
    places = set()
    for epoch in range(4):
        for i in range(len(images)):
            crop, skipped = images[epoch * len(images) + i]
            top, left = int(crop[0, 0, 0]), int(crop[1, 0, 0])
            assert skipped == 0 and np.array_equal(crop.numpy(), pixels[:, top : top + 16, left : left + 16])
            places.add((top, left))
    assert len(places) > 3.5 * len(images)  # every epoch has places of its own
    assert max(y for y, _ in places) > 75 and max(x for _, x in places) > 110
    again = pickle.loads(pickle.dumps(images))  # as workers get it
    assert all(torch.equal(again[i][0], images[i][0]) for i in range(10))
    other = crops([tmp_path / "same.png"])
    assert torch.equal(other[5][0], images[5][0])


def test_larger_pictures_give_more_crops_and_planes_give_theirs(tmp_path):
    small = ome_tiff(tmp_path / "a.ome.tif", values(3, 32, 32), pyramid=False)
    large = ome_tiff(tmp_path / "b.ome.tif", values(3, 64, 96), pyramid=False)
    stack = ome_tiff(tmp_path / "c.ome.tif", values(3, 32, 32, planes=5), pyramid=False, axes="ZCYX")
    assert len(crops([small])) == 4 and len(crops([small, large])) == 4 + 24 and len(crops([stack])) == 20
    chosen = crops([small, large]).select([3, 10])
    assert len(chosen) == 2 and torch.equal(chosen[1][0], crops([small, large]).select([10])[0][0])


def test_a_scale_reads_larger_windows_and_a_small_picture_is_mirrored(slide):
    path, pixels = slide
    images = crops([path], scale=0.5)
    assert len(images) == round(100 * 140 / 32**2)
    crop = images[0][0].numpy().astype(int)
    assert crop[0, 15, 0] - crop[0, 0, 0] == pytest.approx(30, abs=2)  # twice as many rows of the picture
    by_size = crops([path], pixel_size=0.5)  # µm; the picture's pixels have 0.25 × 0.5
    assert by_size.size == (16, 16) and len(by_size) == round(100 * 140 / round(16 * np.sqrt(2)) ** 2)
    whole = crops([path], size=(128, 160))[0][0].numpy()
    assert np.array_equal(whole[:, :100, :140], pixels) and np.array_equal(whole[0, 100:, 0], pixels[0, :71:-1, 0])
    with pytest.raises(UserError, match="does not say how large its pixels are"):
        crops([path.parent / "same.png"] if (path.parent / "same.png").exists() else [png(path.parent)], pixel_size=1)


def png(folder):
    Image.fromarray(values(3).transpose(1, 2, 0)).save(folder / "plain.png")
    return folder / "plain.png"


def test_broken_pictures_are_named_or_left_out(slide, tmp_path):
    path, _ = slide
    (tmp_path / "broken.tif").write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="broken.tif cannot be read"):
        crops([path, tmp_path / "broken.tif"])
    images = crops([path, tmp_path / "broken.tif"], skip_unreadable=True)
    assert len(images) == len(crops([path])) and images.unreadable == 1


def test_batches_of_crops_see_other_places_each_epoch_and_the_same_after_resuming(slide):
    path, _ = slide

    def batches():
        return ShuffledBatches(crops([path], size=(32, 32)), batch_size=4, seed=3)

    stream = iter(batches())
    seen = [next(stream) for _ in range(12)]
    assert len({batch.numpy().tobytes() for batch in seen}) == 12
    resumed = batches()
    resumed.load_state_dict({"position": 4 * 7, "num_images": len(resumed.images)})
    assert torch.equal(next(iter(resumed)), seen[7])


def test_percentiles_are_those_of_the_chosen_channels_without_nodata(tmp_path):
    rng = np.random.default_rng(0)
    pixels = np.stack([rng.normal(1000, 50, (300, 300)), rng.normal(9000, 500, (300, 300))]).astype(np.uint16)
    pixels[:, :100] = 0
    path = geotiff(tmp_path / "a.tif", pixels, nodata=0)
    pictures = Pictures(rows(path), "image")
    found = measure_windows(pictures, ["band1", "band0"], (1, 99))
    assert found.names == ("band1", "band0")
    assert found.windows[0] == pytest.approx((9000 - 1163, 9000 + 1163), rel=0.03)
    assert found.windows[1] == pytest.approx((1000 - 116, 1000 + 116), rel=0.03)
    with pytest.raises(UserError, match="are two of 0 to 100, the low one first"):
        measure_windows(pictures, None, (99, 1))


@pytest.fixture
def labelled(tmp_path):
    """A large picture with a few labels, in a folder of images and masks."""
    for kind in ("images", "masks"):
        (tmp_path / "data" / "train" / kind).mkdir(parents=True)
    pixels, mask = values(3, 200, 300), np.full((200, 300), 255, np.uint8)
    mask[40:50, 70:90] = 1
    mask[190:200, 290:300] = 0
    ome_tiff(tmp_path / "data" / "train" / "images" / "a.ome.tif", pixels)
    Image.fromarray(mask).save(tmp_path / "data" / "train" / "masks" / "a.png")
    (tmp_path / "data" / "id2label.json").write_text('["dark", "bright"]')
    return tmp_path / "data", pixels, mask


def test_tiles_that_hold_labels_are_read_and_no_others(labelled, capsys):
    folder, pixels, mask = labelled
    tiles = LabeledTiles(load_labeled_images(folder), (32, 32))
    assert "3 tiles of 1 pictures hold labels." in capsys.readouterr().out
    # One cell of the grid holds the first label, two the second; those at the edge are moved into the picture.
    assert tiles.places == [(0, 0, 32, 64, 0, 0), (0, 0, 160, 268, 0, 20), (0, 0, 168, 268, 24, 20)]
    seen = np.zeros(mask.shape, int)
    for i in range(len(tiles)):
        (_, _, top, left, *_), row = tiles.places[i], tiles[i]
        place, own = (slice(top, top + 32), slice(left, left + 32)), row.mask != 255
        assert np.array_equal(row.mask[own], mask[place][own]) and own.any()
        seen[place] += own
        assert np.array_equal(row.image, pixels[(slice(None), *place)].transpose(1, 2, 0))
    assert np.array_equal(seen, mask != 255)  # a label is in one tile, though tiles overlap
    assert tiles.tiling == {"tiles": True, "scale": 1.0, "pixel_size": None}
    few = LabeledTiles(load_labeled_images(folder), (32, 32), max_tiles=2)
    assert len(few) == 2 and "2 are taken, 1 are left out (--max_tiles)" in capsys.readouterr().out
    assert {c for row in map(few.__getitem__, range(2)) for c in np.unique(row.mask)} == {0, 1, 255}  # both classes


def test_masks_of_slides_and_of_the_same_format_are_the_same(labelled):
    tifffile = pytest.importorskip("tifffile")
    folder, _, mask = labelled
    plain = LabeledTiles(load_labeled_images(folder), (32, 32))
    (folder / "train" / "masks" / "a.png").unlink()
    tifffile.imwrite(folder / "train" / "masks" / "a.tif", mask, tile=(64, 64))
    tiles = LabeledTiles(load_labeled_images(folder), (32, 32))
    assert tiles.places == plain.places
    assert all(np.array_equal(tiles[i].mask, plain[i].mask) for i in range(len(plain)))
    tifffile.imwrite(folder / "train" / "masks" / "a.tif", mask[:, :-1])
    with pytest.raises(UserError, match="Image and mask differ in size.*save the mask at the size"):
        LabeledTiles(load_labeled_images(folder), (32, 32))
    tifffile.imwrite(folder / "train" / "masks" / "a.tif", np.full_like(mask, 255))
    with pytest.raises(UserError, match="No tile of the 1 pictures holds a label"):
        LabeledTiles(load_labeled_images(folder), (32, 32))


def test_a_labelled_picture_smaller_than_a_tile_is_mirrored_without_labels(tmp_path):
    image, mask = values(3, 20, 40).transpose(1, 2, 0), np.ones((20, 40), np.uint8)
    dataset = LabeledImages(
        Dataset.from_dict({"image": [Image.fromarray(image)], "mask": [Image.fromarray(mask)]}), label_names=["a", "b"]
    )
    row = LabeledTiles(dataset, (32, 32))[0]
    assert row.image.shape == (32, 32, 3) and row.mask.shape == (32, 32)
    assert np.array_equal(row.image[20:], row.image[8:20][::-1]) and (row.mask[20:] == 255).all()


def test_planes_of_volumes_are_images_with_the_masks_of_their_own_planes(tmp_path):
    """Between them, an image of one plane stays as it is."""
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(0)
    volume, ids = rng.integers(0, 200, (30, 20, 3), np.uint8), rng.integers(0, 2, (30, 20, 3), np.uint8)  # x, y, z
    for folder, array in (("images", volume), ("masks", ids)):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(array, np.diag([0.5, 0.5, 2, 1])), tmp_path / folder / "a.nii.gz")
        Image.fromarray(array[..., 0].T.copy()).save(tmp_path / folder / "b.png")
    dataset = by_planes(load_labeled_images(tmp_path))
    assert len(dataset) == 4 and dataset.num_classes == 2
    for plane in range(3):
        assert np.array_equal(dataset[plane].image[..., 0], volume[..., plane].T)
        assert np.array_equal(dataset[plane].mask, ids[..., plane].T)
    assert np.array_equal(dataset[3].mask, ids[..., 0].T) and dataset[3].image.size == (30, 20)
    assert [dataset.select([1, 3])[i].name for i in (0, 1)] == [dataset[1].name, dataset[3].name]
