# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
import json

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image, ImageOps

from diffuseseg_diffusers import LabeledImages, load_labeled_images
from diffuseseg_diffusers.datasets.crops import LabeledTiles
from diffuseseg_diffusers.datasets.label_names import read_label_file
from diffuseseg_diffusers.images.image_processor import warn_once
from diffuseseg_diffusers.jobs.errors import UserError

from ..conftest import dataset_of, draw, drawn_dataset, shared


def write_pairs(images, masks, count=3, mask_suffix=".png", size=(16, 20)):
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        image, mask = draw(size, i)
        Image.fromarray(image).save(images / f"p{i}.png")
        if mask_suffix == ".npy":
            np.save(masks / f"p{i}.npy", mask)
        else:
            Image.fromarray(mask).save(masks / f"p{i}{mask_suffix}")


def same(labeled, i, seed, size=(16, 20)):
    image, mask = draw(size, seed)
    return np.array_equal(labeled[i].image, image) and np.array_equal(labeled[i].mask, mask)


@pytest.mark.parametrize("split_folder", [False, True])
def test_the_published_layout_of_images_beside_npy_masks(split_folder, tmp_path):
    folder = tmp_path / "train" if split_folder else tmp_path
    write_pairs(folder, folder, mask_suffix=".npy")
    labeled = load_labeled_images(tmp_path, split="train")
    assert len(labeled) == 3 and labeled.num_classes == 3 and all(same(labeled, i, i) for i in range(3))
    (folder / "p1.npy").unlink()
    with pytest.raises(ValueError, match="p1.png has no mask of the same name in .*npy masks beside"):
        load_labeled_images(tmp_path, split="train")


@pytest.mark.parametrize("split_folder", [False, True])
def test_two_folders_of_images_and_masks(split_folder, tmp_path):
    folder = tmp_path / "train" if split_folder else tmp_path
    write_pairs(folder / "images", folder / "masks")
    (tmp_path / "id2label.json").write_text('{"0": "sky", "1": "disc", "2": "bar"}')
    labeled = load_labeled_images(tmp_path, split="train")
    assert labeled.label_names == ["sky", "disc", "bar"] and all(same(labeled, i, i) for i in range(3))
    (folder / "masks" / "p2.png").unlink()
    with pytest.raises(ValueError, match="p2.png has no mask of the same name in .*masks"):
        load_labeled_images(tmp_path, split="train")


def test_a_folder_without_splits_says_that_it_gives_all_of_its_images(tmp_path, caplog):
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for i in range(2):
            Image.fromarray(draw((16, 16), i)[folder == "masks"]).save(tmp_path / folder / f"{i}.png")
    train = load_labeled_images(tmp_path, split="train")
    assert not caplog.messages
    test = load_labeled_images(tmp_path, split="test")
    assert "has no splits: all of its images are taken for 'test'" in caplog.text
    assert test.same_images(train) and not test.select([1, 0]).same_images(train)
    assert test.select([0]).same_images(train.select([0])) and not test.select([0]).same_images(train.select([1]))


def test_image_folders_with_metadata(tmp_path):
    write_pairs(tmp_path / "data" / "train", tmp_path / "data" / "train" / "m")
    rows = ["file_name,mask_file_name"] + [f"p{i}.png,m/p{i}.png" for i in range(3)]
    (tmp_path / "data" / "train" / "metadata.csv").write_text("\n".join(rows))
    labeled = load_labeled_images(tmp_path / "data", split="train", cache_dir=str(tmp_path / "cache"))
    assert len(labeled) == 3 and all(same(labeled, i, i) for i in range(3))


@pytest.mark.parametrize("column", ["mask", "label", "annotation", "labels"])
def test_parquet_with_the_usual_names_of_columns(column, tmp_path):
    images, masks = zip(*[draw((16, 20), i) for i in range(3)])
    data, cache = tmp_path / "faces" / "data", str(tmp_path / "cache")
    data.mkdir(parents=True)
    dataset = dataset_of(images, masks)
    dataset = dataset if column == "mask" else dataset.rename_column("mask", column)
    dataset.to_parquet(data / "train-00000-of-00001.parquet")
    labeled = load_labeled_images(tmp_path / "faces", split="train", cache_dir=cache)
    assert labeled.num_classes == 3 and all(same(labeled, i, i) for i in range(3))
    with pytest.raises(ValueError, match=f"no column 'scan'; it has 'image', '{column}'"):
        load_labeled_images(tmp_path / "faces", split="train", cache_dir=cache, image_column="scan")


def test_a_dataset_in_memory_needs_no_files():
    images, masks = zip(*[draw((8, 8), i) for i in range(2)])
    arrays = Dataset.from_dict({"image": [Image.fromarray(i) for i in images], "mask": [m.tolist() for m in masks]})
    assert np.array_equal(LabeledImages(arrays)[1].mask, masks[1])


def test_what_is_not_one_dataset_is_refused_and_formats_do_not_matter():
    images, masks = zip(*[draw((8, 8), i) for i in range(2)])
    dataset = dataset_of(images, masks)
    with pytest.raises(ValueError, match=r"such as dataset\['train'\]; it has several"):
        LabeledImages(DatasetDict(train=dataset, test=dataset))
    with pytest.raises(ValueError, match="not streamed; got IterableDataset"):
        LabeledImages(dataset.to_iterable_dataset())
    with pytest.raises(ValueError, match="is empty"):
        LabeledImages(dataset.select([]))
    assert np.array_equal(LabeledImages(dataset.with_format("torch"))[1].mask, masks[1])


def test_the_shared_datasets_load_with_their_names():
    faces = load_labeled_images(shared("data/faces64"), "labeled", "train")
    assert (len(faces), faces.num_classes, faces.label_names[2]) == (20, 6, "hair")
    assert faces[0].image.size == (64, 64) and faces[0].mask.max() == 5
    camvid = load_labeled_images(shared("data/camvid-96x128"), "labeled", "validation")
    assert (len(camvid), camvid.num_classes) == (101, 11)
    assert camvid[0].mask.shape == (96, 128) and camvid[0].mask.max() == 255


def test_binary_masks_are_converted_if_asked_and_else_refused_with_a_hint():
    image, mask = draw((8, 8), 0)
    dataset = dataset_of([image], [(mask > 0).astype(np.uint8) * 255])
    with pytest.raises(ValueError, match="only 0 and 255, which looks like binary masks.*--mask_format binary"):
        LabeledImages(dataset)
    binary = LabeledImages(dataset, mask_format="binary")
    assert binary.num_classes == 2 and np.array_equal(binary[0].mask, mask > 0)
    with pytest.raises(ValueError, match=r"mask value 255 in the mask of row 0 .*classes 0 to 1.*looks like a binary"):
        LabeledImages(dataset, num_classes=2, ignore_index=254)[0]


def test_masks_in_colour_are_converted_by_a_palette_and_else_refused():
    image, mask = draw((8, 8), 0)
    palette = [[0, 0, 0], [255, 0, 0], [0, 0, 255]]
    dataset = dataset_of([image], [np.array(palette, np.uint8)[mask]])
    with pytest.raises(ValueError, match="has 3 channels, but masks have one.*--mask_format rgb"):
        LabeledImages(dataset)
    assert np.array_equal(LabeledImages(dataset, mask_format="rgb", palette=palette)[0].mask, mask)
    with pytest.raises(ValueError, match=r"fit no class: #0000ff \("):
        LabeledImages(dataset, mask_format="rgb", palette=palette[:2])[0]
    partly = LabeledImages(dataset, mask_format="rgb", palette={"0": "#000000", "1": [255, 0, 0], "255": "#0000ff"})
    assert np.array_equal(partly[0].mask == 255, mask == 2) and partly.num_classes == 2
    with pytest.raises(ValueError, match=r"100.0% of the pixels of the mask of row 0 fit no class: #000000 \("):
        LabeledImages(dataset, mask_format="rgb", palette=[[1, 1, 1], [2, 2, 2]])[0]
    with pytest.raises(ValueError, match="need the palette"):
        LabeledImages(dataset, mask_format="rgb")
    for wrong in ([[0, 0]], ["black"], [[0, 0, 256]], [3]):
        with pytest.raises(UserError, match="A palette is a colour"):
            LabeledImages(dataset, mask_format="rgb", palette=wrong)


def test_palette_images_are_masks_of_their_indices(tmp_path):
    image, mask = draw((8, 8), 0)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "a.jpg")
    indexed = Image.fromarray(mask)
    indexed.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    indexed.save(tmp_path / "masks" / "a.png")
    assert np.array_equal(load_labeled_images(tmp_path)[0].mask, mask)


def test_a_value_outside_the_classes_is_named_with_its_file(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks")
    mask = draw((16, 20), 1)[1]
    mask[0, 0] = 9
    Image.fromarray(mask).save(tmp_path / "masks" / "p1.png")
    labeled = load_labeled_images(tmp_path, label_names=["a", "b", "c"])
    labeled[0]
    with pytest.raises(ValueError, match=r"mask value 9 in .*masks/p1.png is outside of the classes 0 to 2"):
        labeled[1]


def test_values_that_are_no_class_ids_are_refused():
    image, mask = draw((8, 8), 0)
    with pytest.raises(ValueError, match="the values 0, 60, 120, which are not class ids"):
        LabeledImages(dataset_of([image], [mask * 60]))
    arrays = Dataset.from_dict({"image": [Image.fromarray(image)], "mask": [(mask * 0.5).tolist()]})
    with pytest.raises(ValueError, match="class ids are integers 0 to 255"):
        LabeledImages(arrays)


def test_image_and_mask_of_different_sizes_are_refused_with_both_sizes(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks")
    Image.fromarray(draw((16, 16), 0)[1]).save(tmp_path / "masks" / "p0.png")
    with pytest.raises(ValueError, match=r"p0.png is 20 × 16, but .*masks/p0.png is 16 × 16"):
        load_labeled_images(tmp_path)[0]


def test_broken_images_are_named_by_path_or_row(tmp_path):
    write_pairs(tmp_path / "images", tmp_path / "masks")
    path = tmp_path / "images" / "p1.png"
    path.write_bytes(path.read_bytes()[:100])
    labeled = load_labeled_images(tmp_path)
    with pytest.raises(ValueError, match="images/p1.png cannot be read as an image"):
        labeled[1]
    rows = dataset_of(*zip(*[draw((8, 8), i) for i in range(2)]))
    data = [dict(r) for r in LabeledImages(rows).dataset]
    data[1]["image"]["bytes"] = data[1]["image"]["bytes"][:50]
    broken = Dataset.from_list(data, features=LabeledImages(rows).dataset.features)
    with pytest.raises(ValueError, match="The image in row 1 cannot be read"):
        LabeledImages(broken, num_classes=3)[1]
    (tmp_path / "b").mkdir()
    write_pairs(tmp_path / "b", tmp_path / "b", mask_suffix=".npy")
    (tmp_path / "b" / "p0.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="p0.npy cannot be read as a NumPy array"):
        load_labeled_images(tmp_path / "b")


def test_pickled_arrays_are_not_run(tmp_path):
    write_pairs(tmp_path, tmp_path, mask_suffix=".npy")
    np.save(tmp_path / "p0.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="p0.npy cannot be read"):
        load_labeled_images(tmp_path)


def test_folders_that_are_missing_or_empty_are_refused(tmp_path):
    with pytest.raises(ValueError, match="There is no folder .*nowhere"):
        load_labeled_images(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no images in it"):
        load_labeled_images(tmp_path / "empty")
    write_pairs(tmp_path / "d" / "images", tmp_path / "d" / "masks", count=0)
    with pytest.raises(ValueError, match="d has no images in it"):
        load_labeled_images(tmp_path / "d")


def test_a_split_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match="cannot be loaded: .*train.*test"):
        load_labeled_images(shared("data/faces64"), "labeled", "training")


def test_a_split_folder_that_does_not_exist_never_means_all_of_them(tmp_path):
    for split in ("train", "test"):
        write_pairs(tmp_path / split, tmp_path / split, mask_suffix=".npy")
    with pytest.raises(ValueError, match="no split 'validation'; it has 'test', 'train'"):
        load_labeled_images(tmp_path, split="validation")


def test_a_column_of_class_numbers_is_no_mask():
    image = Image.fromarray(draw((8, 8), 0)[0])
    with pytest.raises(ValueError, match="column 'label' holds a class for each whole image"):
        LabeledImages(Dataset.from_dict({"image": [image], "label": [3]}))


def test_a_row_without_its_image_or_mask_is_named():
    image, mask = draw((8, 8), 0)
    rows = {"image": [Image.fromarray(image), None], "mask": [Image.fromarray(mask)] * 2}
    labeled = LabeledImages(Dataset.from_dict(rows), num_classes=3)
    with pytest.raises(UserError, match="There is no image in row 1, but None"):
        labeled[1]


def test_a_broken_data_file_is_named_with_what_is_wrong(tmp_path):
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "train-00000-of-00001.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="faces cannot be loaded: .*[Pp]arquet"):
        load_labeled_images(tmp_path / "faces", cache_dir=str(tmp_path / "cache"))


def test_holding_out_a_fraction_is_deterministic_and_keeps_the_settings():
    labeled = drawn_dataset(10, ignore_index=9)
    train, held_out = labeled.split(0.3, seed=1)
    assert (len(train), len(held_out)) == (7, 3) and held_out.ignore_index == 9
    names = lambda part: [p.image.tobytes() for p in part]  # noqa: E731
    assert not set(names(train)) & set(names(held_out))
    assert names(held_out) == names(labeled.split(0.3, seed=1)[1]) != names(labeled.split(0.3, seed=2)[1])
    for fraction in (0, 1, 0.99):
        with pytest.raises(ValueError, match="Cannot hold out"):
            labeled.split(fraction)


def test_label_files_must_name_every_class(tmp_path):
    path = tmp_path / "id2label.json"
    path.write_text(json.dumps({"0": "a", "2": "c"}))
    with pytest.raises(ValueError, match=r"name the classes 0 to 1, found the ids 0, 2"):
        read_label_file(path)
    for wrong in (3, [], {"a": "b"}, [0, 1], {"0": [0, 0, 0]}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="id2label.json must"):
            read_label_file(path)
    path.write_text(json.dumps(["a", "b"]))
    assert read_label_file(path) == ["a", "b"]


def oriented(folder, orientation, stored, image):
    """An image with a tag of EXIF, and its mask as `stored`."""
    exif = Image.Exif()
    exif[274] = orientation
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    Image.fromarray(image).save(folder / "images" / "a.jpg", exif=exif)
    Image.fromarray(stored).save(folder / "masks" / "a.png")
    return load_labeled_images(folder, num_classes=3)[0].mask


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_that_fits_only_as_its_image_was_turned_is_turned(tmp_path, orientation):
    """Cameras turn photographs by a tag of EXIF; tools that ignore it save masks as the sensor was."""
    image, mask = draw((16, 20), 0)
    exif = Image.Exif()
    exif[274] = orientation
    tagged = Image.fromarray(mask)
    tagged.info["exif"] = exif.tobytes()
    upright = np.asarray(ImageOps.exif_transpose(tagged))
    assert np.array_equal(oriented(tmp_path / "sensor", orientation, mask, image), upright)
    assert np.array_equal(oriented(tmp_path / "upright", orientation, upright, image), upright)


def test_a_mask_that_fits_either_way_is_taken_as_upright_and_one_line_says_so(tmp_path, caplog):
    image, mask = draw((16, 20), 0)
    warn_once.cache_clear()
    assert np.array_equal(oriented(tmp_path / "3", 3, mask, image), mask)
    assert sum("their masks fit either way: those are taken as upright" in r.getMessage() for r in caplog.records) == 1


@pytest.mark.parametrize("kind", ["map", "float"])
def test_nothing_is_learnt_where_nothing_was_measured(tmp_path, kind):
    """A GeoTIFF with a mask band, and a TIFF of floating point with NaN."""
    image, mask = draw((16, 20), 0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    path, valid = tmp_path / "images" / "a.tif", np.ones((16, 20), bool)
    valid[:, :7] = False
    if kind == "map":
        rasterio = pytest.importorskip("rasterio")
        place = rasterio.transform.from_origin(4e5, 5e6, 1, 1)
        how = dict(driver="GTiff", count=1, height=16, width=20, dtype="uint8", crs="EPSG:32633", transform=place)
        with rasterio.open(path, "w", **how) as file:
            file.write(image[None])
            file.write_mask(valid)
    else:
        pytest.importorskip("tifffile").imwrite(path, np.where(valid, image / 255, np.nan).astype(np.float32))
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    labeled = load_labeled_images(tmp_path, num_classes=3)
    assert np.array_equal(labeled[0].mask, np.where(valid, mask, 255))
    tiles = LabeledTiles(labeled, (16, 20))
    assert np.array_equal(tiles[0].mask, np.where(valid, mask, 255))


@pytest.mark.parametrize("how", [{}, {"mask_format": "instances"}, {"label_names": ["a", "b", "c"]}])
def test_ids_in_jpeg_files_are_refused(tmp_path, how):
    image, mask = draw((16, 20), 0)
    for name, values, suffix in (("images", image, "png"), ("masks", mask, "jpg")):
        (tmp_path / name).mkdir()
        Image.fromarray(values).save(tmp_path / name / f"a.{suffix}")
    with pytest.raises(UserError, match="is a JPEG file|outside of the classes"):
        load_labeled_images(tmp_path, **how)[0]


def test_an_array_that_no_memory_holds_is_one_sentence(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (20, 16)).save(tmp_path / "images/a.png")
    np.save(tmp_path / "masks/a.npy", np.zeros((1, 1)))
    content = (tmp_path / "masks/a.npy").read_bytes()
    huge = content.replace(b"(1, 1), }" + b" " * 14, b"(10000000, 10000000), }")
    assert len(huge) == len(content) and huge != content
    (tmp_path / "masks/a.npy").write_bytes(huge)
    with pytest.raises(UserError, match="cannot be read as a NumPy array"):
        load_labeled_images(tmp_path)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_opacity_does_not_say_what_is_white(tmp_path, mode):
    image, mask = draw((16, 20), 0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    Image.fromarray(image).save(tmp_path / "images/a.png")
    Image.fromarray((mask > 0).astype(np.uint8)).convert(mode).save(tmp_path / "masks/a.png")
    assert np.array_equal(load_labeled_images(tmp_path, mask_format="binary")[0].mask, mask > 0)
