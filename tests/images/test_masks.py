# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
# ruff: noqa: E501 (rows of tables)
"""Masks as programs save them: what they mean, and where that is written."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diffuseseg_diffusers import load_labeled_images
from diffuseseg_diffusers.images.masks import MaskReader, looks_like_instances
from diffuseseg_diffusers.images.palettes import read_palette
from diffuseseg_diffusers.jobs.errors import UserError


HEIGHT, WIDTH = 32, 36
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
DISC = ((ROWS - 15) ** 2 + (COLUMNS - 20) ** 2 < 64).astype(np.uint8)
IDS = DISC.copy()
IDS[:5, :8], IDS[26:, 20:] = 2, 3
WHITE = DISC * np.uint8(255)
NONE = np.where(IDS == 2, 255, IDS)  # class 2 without a label
VOC = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
GRAYS = [[50 * i] * 3 for i in range(4)]
COLORS = np.array(VOC, np.uint8)[IDS]
B, R = {"mask_format": "binary"}, {"mask_format": "rgb", "palette": VOC}


def png(pixels, mode=None):
    return lambda path: (Image.fromarray(pixels) if mode is None else Image.fromarray(pixels).convert(mode)).save(path)


def indexed(indices, palette, **how):
    def write(path):
        image = Image.frombytes("P", indices.shape[::-1], indices.astype(np.uint8).tobytes())
        image.putpalette([x for color in palette for x in color])
        image.save(path, **how)

    return write


def few_bits(ids, bits):
    """A grey PNG of two or four bits, which Pillow does not write."""

    def write(path):
        per = 8 // bits
        parts = ids.reshape(HEIGHT, WIDTH // per, per)
        packed = sum(parts[..., i].astype(int) << (8 - bits * (i + 1)) for i in range(per)).astype(np.uint8)
        rows = b"".join(b"\0" + row.tobytes() for row in packed)
        chunk = lambda kind, data: (  # noqa: E731
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )
        head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0)
        data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)

    return write


def white_first(path):
    """A bitmap of one bit whose colour table is white, black."""
    file = io.BytesIO()
    Image.fromarray(255 - WHITE).convert("1").save(file, "bmp")
    data = bytearray(file.getvalue())
    data[54:58], data[58:62] = data[58:62], data[54:58]
    path.write_bytes(data)


def tiff(values, **how):
    return lambda path: pytest.importorskip("tifffile").imwrite(path, values, **how)


def array(values):
    return lambda path: np.save(path, values)


def jpeg(pixels, quality):
    return lambda path: Image.fromarray(pixels).save(path, quality=quality)


# name, how it is written, suffix, options, right ids, source of the rule
READ = [
    ("0 and 255", png(WHITE), "png", B, DISC, "OpenCV: masks are 0 and 255"),
    ("0 and 1", png(DISC), "png", B, DISC, "NumPy: bool masks saved as numbers"),
    ("0 and 65535", png(DISC.astype(np.uint16) * 65535), "png", B, DISC, "PNG, 13.12: white is the highest value"),
    ("one bit", png(WHITE, "1"), "png", B, DISC, "PNG 11.2.2: grey of one bit"),
    ("indexed, white first", indexed(1 - DISC, [[255] * 3, [0] * 3]), "png", B, DISC, "PNG 11.2.3: PLTE gives colours"),
    ("quantized", lambda p: Image.fromarray(WHITE).convert("RGB").quantize(2).save(p), "png", B, DISC, "PNG 11.2.3"),
    ("GIF", lambda p: Image.fromarray(WHITE).convert("RGB").quantize(2).save(p), "gif", B, DISC, "GIF89a, 19"),
    ("BMP of one bit", png(WHITE, "1"), "bmp", B, DISC, "BITMAPINFO: bmiColors"),
    ("BMP, white first", white_first, "bmp", B, DISC, "BITMAPINFO: bmiColors"),
    ("JPEG of quality 75", jpeg(WHITE, 75), "jpg", B, DISC, "skimage threshold: half of the range"),
    ("JPEG of quality 95", jpeg(WHITE, 95), "jpg", B, DISC, "skimage threshold: half of the range"),
    ("background 1, object 254", png(np.where(DISC, 254, 1).astype(np.uint8)), "png", B, DISC, "half of the range"),
    ("RGB", png(np.dstack([WHITE] * 3)), "png", B, DISC, "grey saved in colour"),
    ("LA", png(np.dstack([WHITE, np.full_like(WHITE, 255)])), "png", B, DISC, "PNG: alpha of 255 is opaque"),
    ("RGBA, black transparent", png(np.dstack([WHITE] * 4)), "png", B, DISC, "opacity"),
    ("white, in alpha alone", png(np.dstack([np.full_like(COLORS, 255), WHITE])), "png", B, DISC, "opacity"),
    ("bool TIFF", tiff(DISC.astype(bool), photometric="minisblack"), "tif", B, DISC, "TIFF 6.0: BlackIsZero"),
    ("float TIFF", tiff(DISC.astype(np.float32)), "tif", B, DISC, "ImageJ: 32-bit masks, 0 and 1"),
    ("TIFF of one bit, inverted", tiff(DISC == 0, photometric="miniswhite"), "tif", B, DISC, "TIFF 6.0: WhiteIsZero"),
    ("TIFF of 8 bits, inverted", tiff(255 - WHITE, photometric="miniswhite"), "tif", B, DISC, "TIFF 6.0: WhiteIsZero"),
    ("fax TIFF", lambda p: Image.fromarray(WHITE).convert("1").save(p, compression="group4", tiffinfo={262: 0}), "tif",
     B, DISC, "TIFF 6.0: WhiteIsZero"),
    ("palette TIFF, white first", indexed(1 - DISC, [[255] * 3, [0] * 3]), "tif", B, DISC, "TIFF 6.0: ColorMap"),
    ("bool array", array(DISC.astype(bool)), "npy", B, DISC, "NumPy"),
    ("no label at 128", png(np.where(IDS == 2, 128, WHITE).astype(np.uint8)), "png", B | {"ignore_index": 128},
     np.where(IDS == 2, 128, DISC), "trimaps: 0, 128, 255"),
    ("class ids", png(IDS), "png", {}, IDS, "Cityscapes' labelTrainIds"),
    ("indexed", indexed(IDS, VOC), "png", {}, IDS, "VOC devkit 5: indexed PNG"),
    ("indexed, few colours", indexed(IDS, VOC, optimize=True), "png", {}, IDS, "PNG 11.2.2: fewer bits"),
    ("indexed GIF", indexed(IDS, VOC), "gif", {}, IDS, "GIF89a"),
    ("borders of VOC", indexed(NONE, [*VOC, *[[0] * 3] * 251, [224, 224, 192]]), "png", {}, NONE, "VOC devkit: void"),
    ("greys in another order", indexed(np.argsort([2, 0, 3, 1])[IDS], [[2] * 3, [0] * 3, [3] * 3, [1] * 3]), "png", {},
     IDS, "PNG 11.2.3: the order of a palette is free"),
    ("palette TIFF", indexed(IDS, VOC), "tif", {}, IDS, "TIFF 6.0: ColorMap"),
    ("inverted TIFF", tiff(255 - IDS, photometric="miniswhite"), "tif", {}, IDS, "TIFF 6.0: WhiteIsZero"),
    ("two bits", few_bits(IDS, 2), "png", {}, IDS, "PNG 13.12: samples are 0 to 3"),
    ("four bits", few_bits(IDS, 4), "png", {}, IDS, "PNG 13.12: samples are 0 to 15"),
    ("grey RGBA", png(np.dstack([IDS] * 3 + [np.full_like(IDS, 255)])), "png", {}, IDS, "grey saved in colour"),
    ("grey and alpha", png(np.dstack([IDS, np.full_like(IDS, 255)])), "png", {}, IDS, "grey saved with alpha"),
    ("16 bits", png(IDS.astype(np.uint16)), "png", {}, IDS, "Cityscapes' tools"),
    ("32-bit TIFF", tiff(IDS.astype(np.uint32)), "tif", {}, IDS, "ImageJ: labels of 32 bits"),
    ("big-endian TIFF", tiff(IDS.astype(np.uint16), byteorder=">"), "tif", {}, IDS, "TIFF 6.0: MM"),
    ("float TIFF of ids", tiff(IDS.astype(np.float32)), "tif", {}, IDS, "ImageJ"),
    ("NaN", tiff(np.where(IDS == 2, np.nan, IDS).astype(np.float32)), "tif", {}, NONE, "NumPy: not a number"),
    ("-1", tiff(np.where(IDS == 2, -1, IDS).astype(np.int8)), "tif", {}, NONE, "Cityscapes: license plate is -1"),
    ("65535", tiff(np.where(IDS == 2, 65535, IDS).astype(np.uint16)), "tif", {}, NONE, "ADE20K-full: 65535 is void"),
    ("colours", png(COLORS), "png", R, IDS, "CamVid"),
    ("colours, opaque", png(np.dstack([COLORS, np.full_like(IDS, 255)])), "png", R, IDS, "CamVid"),
    ("colours, indexed", indexed(IDS, VOC), "png", R, IDS, "PNG 11.2.3"),
    ("colours of a TIFF", tiff(COLORS, photometric="rgb"), "tif", R, IDS, "TIFF 6.0: RGB"),
    ("colours in planes", tiff(COLORS.transpose(2, 0, 1).copy(), photometric="rgb", planarconfig="separate"), "tif", R,
     IDS, "TIFF 6.0: PlanarConfiguration 2"),
    ("colours of 16 bits", tiff(COLORS.astype(np.uint16) * 257, photometric="rgb"), "tif", R, IDS, "white is 65535"),
    ("colours of a palette TIFF", indexed(IDS, VOC), "tif", R, IDS, "TIFF 6.0: ColorMap"),
    ("four bands", tiff(np.dstack([COLORS, np.full_like(IDS, 255)]), photometric="rgb", extrasamples=["unassalpha"]),
     "tif", R, IDS, "TIFF 6.0: ExtraSamples"),
    ("VOC's borders in colour", png(np.where(IDS[..., None] == 2, [224, 224, 192], COLORS).astype(np.uint8)), "png", R,
     NONE, "VOC devkit: void is (224, 224, 192)"),
    ("JPEG colours, the nearest", jpeg(COLORS * np.uint8(1), 95), "jpg", R | {"nearest_color": True}, None, "option"),
    ("off by one, the nearest", png((COLORS - (COLORS > 0)).astype(np.uint8)), "png", R | {"nearest_color": True}, IDS,
     "by option"),
    ("grey colours", png(IDS * np.uint8(50)), "png", {"mask_format": "rgb", "palette": GRAYS},
     IDS, "grey is a colour"),
    ("grey TIFF of colours", tiff(IDS * np.uint8(50)), "tif",
     {"mask_format": "rgb", "palette": GRAYS}, IDS, "grey is a colour"),
    ("numbers of objects", png(IDS * np.uint8(7)), "png", {"mask_format": "instances"}, IDS > 0, "Cellpose"),
    ("objects of 16 bits", png(IDS * np.uint16(700)), "png", {"mask_format": "instances"}, IDS > 0, "Cellpose"),
    ("objects in colours", png(COLORS), "png", {"mask_format": "instances"}, IDS > 0, "VOC's SegmentationObject"),
]  # fmt: skip

# name, how it is written, suffix, options, what is said
REFUSED = [
    ("a trimap 1, 2, 3", png(DISC + np.uint8(1) + (IDS == 2)), "png", B, r"from 1 to 2, none of them white"),
    ("flat grey", png(np.where(IDS > 1, 128, WHITE).astype(np.uint8)), "png", B, r"fit no class: 128 \(1\d"),
    ("a photo", png(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)), "png", B, "7\\d% of .* no binary mask"),
    ("NaN", tiff(np.where(DISC, 1, np.nan).astype(np.float32)), "tif", B, r"fit no class: nan \(8\d"),
    ("colours as binary", png(COLORS), "png", B, "binary masks are black and white; .*--mask_format rgb"),
    ("coloured palette as binary", indexed(DISC, VOC), "png", B, "--mask_format rgb"),
    ("black ink on nothing", png(np.dstack([WHITE * np.uint8(0)] * 3 + [WHITE])), "png", B, "save it in black"),
    ("another palette", png(COLORS[..., ::-1].copy()), "png", R, r"fit no class: #000080 \("),
    ("off by one", png((COLORS - (COLORS > 0)).astype(np.uint8)), "png", R, r"#7f0000 .*--nearest_color"),
    ("JPEG colours", jpeg(COLORS, 90), "jpg", R, "fit no class: .*--nearest_color"),
    ("ids as colours", tiff(IDS), "tif", R, r"#030303 \("),
    ("an array as colours", array(IDS), "npy", R, r"#030303 \("),
    ("transparent in parts", png(np.dstack([COLORS, WHITE])), "png", R, r"fit no class"),
    ("transparent ids", png(np.dstack([IDS, WHITE])), "png", {}, "transparent in parts"),
    ("colours as ids", png(COLORS), "png", {}, "3 channels.*--mask_format rgb --palette FILE"),
    ("halves", array(IDS / 2), "npy", {}, "class ids are integers 0 to 255"),
    ("grey edges", jpeg(WHITE, 75), "jpg", {}, r"grey edges.*--mask_format binary"),
    ("0 and 255", png(WHITE), "png", {}, "only 0 and 255.*--mask_format binary"),
    ("0 and 255 of named classes", png(WHITE), "png", {"label_names": ["a", "b"]}, "only 0 and 255.*--mask_format bin"),
    ("numbers of objects", png((ROWS // 4 * 9 + COLUMNS // 4).astype(np.uint8)), "png", {}, "--mask_format instances"),
    ("many objects", png((ROWS * WIDTH + COLUMNS).astype(np.uint16)), "png", {}, "--mask_format instances"),
    ("pages of one class each", tiff(np.stack([IDS == i for i in range(4)]).astype(np.uint8), photometric="minisblack"),
     "tif", {}, "axes QYX"),
    ("white and black of an index", indexed(1 - DISC, [[255] * 3, [0] * 3]), "png", {}, "--mask_format binary"),
    ("a bitmap that Pillow misreads", indexed(DISC, [[0] * 3, [255] * 3]), "bmp", B, "bitmap of 8 bits"),
]  # fmt: skip


def folder_of(tmp_path, write, suffix):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir(exist_ok=True)
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(tmp_path / "images" / "a.png")
    write(tmp_path / "masks" / f"a.{suffix}")
    return tmp_path


@pytest.mark.parametrize(("write", "suffix", "how", "right"), [row[1:5] for row in READ], ids=[row[0] for row in READ])
def test_what_is_read_is_right(write, suffix, how, right, tmp_path):
    mask = load_labeled_images(folder_of(tmp_path, write, suffix), **how)[0].mask
    if right is None:  # smooth edges may go to either side
        assert (mask == IDS).mean() > 0.95
    else:
        assert np.array_equal(mask, right)


@pytest.mark.parametrize(("write", "suffix", "how", "said"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_cannot_be_known_is_refused_with_what_to_type(write, suffix, how, said, tmp_path):
    with pytest.raises(UserError, match=f"(?s){said}"):
        load_labeled_images(folder_of(tmp_path, write, suffix), **how)[0]


def test_classes_of_converted_masks_have_names_of_their_own_number(tmp_path):
    folder = folder_of(tmp_path, png(WHITE), "png")
    assert load_labeled_images(folder, **B, label_names=["background", "crack"]).label_names == ["background", "crack"]
    for how, number in ((B, 2), ({"mask_format": "instances"}, 2), (R, 4)):
        with pytest.raises(UserError, match=f"have {number} classes, but 3 are named: a, b, c"):
            load_labeled_images(folder, **how, label_names=["a", "b", "c"])


@pytest.mark.parametrize("ignore_index", [-1, 256])
def test_the_id_of_pixels_without_a_label_is_one_that_masks_hold(ignore_index):
    with pytest.raises(UserError, match=f"is 0 to 255, got {ignore_index}"):
        MaskReader(ignore_index=ignore_index)


def test_a_few_pixels_that_fit_no_class_get_no_label_and_a_line(tmp_path, caplog):
    few = COLORS.copy()
    few[0, 0] = 9, 9, 9
    mask = load_labeled_images(folder_of(tmp_path, png(few), "png"), **R)[0].mask
    assert mask[0, 0] == 255 and (mask != IDS).sum() == 1
    assert "0.1% of the pixels of" in caplog.text and "fit no class: #090909 (0.1%)" in caplog.text


def test_a_third_value_of_binary_masks_gets_no_label_up_to_its_border(tmp_path):
    mask = load_labeled_images(folder_of(tmp_path, png(np.where(IDS == 2, 128, WHITE).astype(np.uint8)), "png"), **B)[
        0
    ].mask
    assert np.array_equal(mask, np.where(IDS == 2, 255, DISC))


def test_white_is_the_same_in_all_masks_of_a_dataset(tmp_path):
    folder = folder_of(tmp_path, png(np.where(DISC, 254, 1).astype(np.uint8)), "png")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "images" / "b.png")
    Image.fromarray(np.ones((4, 4), np.uint8)).save(folder / "masks" / "b.png")  # as the background of the other
    assert not load_labeled_images(folder, **B)[1].mask.any()
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(folder / "masks" / "b.png")
    with pytest.raises(UserError, match="from 0 to 1, none of them white, which is 255"):
        load_labeled_images(folder, **B)[1]


def test_classes_of_many_parts_are_no_objects():
    rng = np.random.default_rng(0)
    scattered = rng.integers(0, 20, (3, 40, 40))
    assert not looks_like_instances(list(scattered))
    cells = ROWS // 4 * 9 + COLUMNS // 4
    assert looks_like_instances([cells, np.where(cells > 40, 0, cells)])
    assert not looks_like_instances([cells, cells])  # every class in every picture, as the parts of faces


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(
    "palette",
    [
        VOC,
        ["#000000", "#800000", "#008000", "#808000"],
        {str(i): c for i, c in enumerate(VOC)},
        {**dict(enumerate(VOC))},
    ],
)
def test_palettes_have_the_same_forms_in_files_and_in_python(palette, as_file, tmp_path):
    if as_file:
        (tmp_path / "palette.json").write_text(json.dumps(palette))
        palette = tmp_path / "palette.json"
    assert read_palette(palette) == (VOC, [])


def test_palettes_name_colours_without_a_label():
    assert read_palette({"0": [0, 0, 0], "1": [1, 1, 1], "255": "#ffffff"}) == ([[0] * 3, [1] * 3], [[255] * 3])
    assert read_palette({0: [0, 0, 0], 7: [[2, 2, 2], "#030303"]}, 7) == ([[0] * 3], [[2] * 3, [3] * 3])
    reader = MaskReader("rgb", [[0, 0, 0]], [[255, 255, 255]])
    assert reader.ids(np.full((2, 2, 3), 255, np.uint8), "a").tolist() == [[255] * 2] * 2
    for wrong, said in (
        ({"0": [0, 0, 0], "2": [1, 1, 1]}, "classes 0 to 1, found the ids 0, 2"),
        ([[0, 0, 0], [0, 0, 0]], "the colour #000000 twice"),
        (["black"], "is a colour for each class"),
        ([[0, 0, 256]], "is a colour for each class"),
        ({"0": 7}, "is a colour for each class"),
    ):
        with pytest.raises(UserError, match=said):
            read_palette(wrong)


WAYS = {
    "png": ["L", "P", "RGB", "RGBA", "LA", "uint16", "1"],
    "tif": ["uint8", "uint16", "uint32", "int16", "int32", "float32", "RGB", "RGBA"],
    "bmp": ["L", "RGB", "P", "1"],
    "gif": ["P"],
    "npy": ["uint8", "int64", "float64", "bool", "RGB"],
}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_accepted_is_right(data, tmp_path):
    """Every way of saving, over every type and format of masks: the ids come back, or it is refused."""
    mask_format = data.draw(st.sampled_from(["index", "binary", "rgb"]))
    suffix = data.draw(st.sampled_from(sorted(WAYS)))
    way = data.draw(st.sampled_from(WAYS[suffix]))
    count = 2 if mask_format == "binary" or way in ("1", "bool") else data.draw(st.integers(2, 5))
    seed = data.draw(st.integers(0, 99))
    ids = np.random.default_rng(seed).integers(0, count, (7, 6)).astype(np.uint8)
    ids.flat[:count] = range(count)
    top = 1
    if mask_format == "binary":
        tops = {"uint8": [1, 255], "bool": [1], "L": [1, 255], "1": [1], "P": [255], "LA": [1, 255]}
        top = data.draw(st.sampled_from(tops.get(way, [1, 255, 65535] if way[-2:] in ("16", "32", "64") else [255])))
        top = 255 if way == "int16" and top == 65535 else top
    values = ids.astype(np.int64) * top
    colors = np.random.default_rng(seed).permutation([[0, 0, 0], [255, 0, 0], [0, 9, 0], [7, 7, 7], [1, 2, 3]])[:count]
    shown = colors[ids].astype(np.uint8) if mask_format == "rgb" else np.dstack([values] * 3).astype(np.uint8)
    how = {"mask_format": mask_format} | ({"palette": colors.tolist()} if mask_format == "rgb" else {})
    if way == "P":  # numbers in any order with their colours, unless the numbers are the ids
        order = np.arange(count) if mask_format == "index" else np.random.default_rng(seed).permutation(count)
        table = np.zeros((count, 3), np.uint8)
        own = (
            colors
            if mask_format == "rgb"
            else np.array([[top * i if count == 2 else 40 * i] * 3 for i in range(count)])
        )
        table[order] = own
        picture = Image.frombytes("P", (6, 7), order.astype(np.uint8)[ids].tobytes())
        picture.putpalette(table.ravel().tolist())
    elif way in ("RGB", "RGBA"):
        picture = np.dstack([shown, np.full((7, 6), 255, np.uint8)]) if way == "RGBA" else shown
    elif way == "1":
        picture = Image.fromarray(values > 0)
    elif way in ("L", "LA"):
        picture = Image.fromarray(values.astype(np.uint8)).convert(way)
    else:
        picture = values.astype(way)
    path = tmp_path / f"mask.{suffix}"
    if suffix == "npy":
        np.save(path, picture)
    elif suffix == "tif":
        tiff(picture, photometric="rgb" if picture.ndim == 3 else "minisblack")(path)
    else:
        (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
    Image.fromarray(np.zeros((7, 6), np.uint8)).save(tmp_path / "image.png")
    try:
        read = load_pair(tmp_path / "image.png", path, how)
    except UserError as error:
        known = ("look like", "not class ids", "bitmap of 8 bits", "fit no class", "--mask_format binary")
        assert any(one in str(error) for one in known), error
        assert mask_format == "rgb" or way in ("P", "L", "RGB") or "binary" in str(error), error
    else:
        assert np.array_equal(read, ids)


def load_pair(image, mask, how):
    from datasets import Dataset

    from diffuseseg_diffusers import LabeledImages

    return LabeledImages(Dataset.from_dict({"image": [str(image)], "mask": [str(mask)]}), **how)[0].mask


@pytest.mark.parametrize("none", [np.float32("nan"), np.int16(-1), np.int32(-1), np.uint16(65535)])
def test_what_is_no_label_is_no_object_either(none):
    mask = np.where(IDS == 2, none, IDS.astype(none.dtype))
    found = MaskReader("instances").ids(mask, "a mask")
    assert np.array_equal(found, np.where(IDS == 2, 255, IDS > 0))


def test_ids_of_half_precision_are_read_without_a_warning(recwarn):
    assert np.array_equal(MaskReader().ids(IDS.astype(np.float16), "a mask"), IDS) and not recwarn.list
