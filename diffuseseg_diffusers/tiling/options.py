# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""How images of any size are read for segmentation, and which objects are counted in their masks."""

from dataclasses import dataclass

from ..images.lengths import micrometres
from ..jobs.config import Config, exclusive, option
from ..jobs.errors import UserError


BLENDS = ("gaussian", "crop")
METHODS = ("components", "watershed")
EXPORTS = ("geojson", "coco", "gpkg", "labelme", "cvat", "label_studio")


@dataclass(frozen=True, kw_only=True)
class CountsObjects(Config):
    """Which objects are counted, and what is written of them."""

    title = "objects"

    instances: str | None = option(
        None,
        "Count objects: connected pixels of a class (components), also split where they narrow (watershed).",
        choices=METHODS,
    )
    object_classes: tuple[str, ...] | None = option(None, "Names of the classes to count (default: all but the first).")
    min_area: int = option(0, "Minimum size of an object in pixels.")
    min_distance: int = option(5, "Pixels between the centres of split objects.")
    export: tuple[str, ...] = option((), "Further formats of the objects.", choices=EXPORTS)

    def check(self) -> None:
        super().check()
        if not self.instances and (self.export or self.object_classes):
            raise UserError("--export and --object_classes need --instances.")


@dataclass(frozen=True, kw_only=True)
class StatesAxes(Config):
    """What the axes of stacks and volumes are."""

    title = "reading"

    axes: str | None = option(None, "Axes of TIFFs that do not state them: a letter each, such as CYX or ZYX.")
    slice_axis: str = option("z", "Axis along which volumes are sliced.", choices=("z", "y", "x"))


@dataclass(frozen=True, kw_only=True)
class StatesScale(Config):
    """At which scale large images are read."""

    title = "reading"

    scale: float | None = option(None, "Model pixels per image pixel (default: as the head was fitted, or 1).", above=0)
    pixel_size: float | None = option(
        None, "Side of a model pixel, in µm or with a unit: 10m.", parse=micrometres, above=0
    )

    def check(self) -> None:
        super().check()
        exclusive(self, "scale", "pixel_size")


@dataclass(frozen=True, kw_only=True)
class ReadsRasters(StatesAxes, StatesScale):
    """What of large images, volumes and images of many channels is read, and at which scale."""

    title = "reading"

    input_channels: tuple[str, ...] | None = option(
        None, "Names or numbers of channels, in the model's order (default: as the head was fitted, or all)."
    )


@dataclass(frozen=True, kw_only=True)
class Reading(ReadsRasters, CountsObjects):
    """How images are shown to a model, and what is written of their masks."""

    title = "reading"

    batch_size: int = option(8, "Images or tiles per forward pass.", minimum=1)
    tile: bool | None = option(
        None,
        "Segment by tiles at a stated scale, or the whole image at once, resized (default: as the head was fitted; "
        "by tiles where images are much larger than the model's).",
        negative="--whole",
    )
    tile_overlap: float = option(0.25, "Fraction of a tile that the next one covers too.", maximum=0.75)
    blend: str = option("gaussian", "Blending of overlapping tiles.", choices=BLENDS)
    max_memory: float = option(1.0, "Memory limit in GiB for a block of a large image and its tiles.", above=0)
    mask_size: tuple[int, int] | None = option(
        None, "Height and width of the masks in pixels (default: those of the images).", minimum=1
    )
    alpha: float = option(0.5, "Opacity of overlays.", maximum=1)

    def check(self) -> None:
        super().check()
        if self.tile and self.mask_size:
            raise UserError("Masks of tiles have the size of the image; leave --mask_size out.")
