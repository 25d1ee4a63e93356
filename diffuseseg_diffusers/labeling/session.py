# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""A labelling session, independent of the server: pictures, strokes, live masks and suggestions."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Image
from torch import nn
from tqdm import tqdm

from ..datasets.annotations.reading import AUTO
from ..datasets.labeled import LabeledImages
from ..heads.ensemble import PixelClassifierEnsemble
from ..heads.fit import fit_segmentation_head, recipe_extractor
from ..heads.recipes import Recipe, find_recipe
from ..images.image_files import encode_image
from ..images.image_processor import DiffuseSegImageProcessor
from ..jobs.errors import UserError
from ..jobs.files import check_output_folder
from ..pipelines.identity import sketch
from ..pipelines.segmenter import HeadSegmenter, Segmenter
from .export import export_session
from .features import FeatureStore, PictureFeatures, model_key, places, sample_pixels
from .folder import FEATURES, open_folder
from .importing import import_annotations, offered_annotations
from .journal import JOURNAL, UNLABELED, Journal, LabelClass
from .live import PIXELS, LiveHead, Sampled
from .pictures import CELL, Picture, find_pictures
from .regions import connected_region, sparse_pixels
from .states import Statistics, begin_classes, checked_names, set_aside
from .suggestions import Advice, Rule, Suggestion, finished_last


KEPT = 2**29  # bytes of features that are kept in memory
KEPT_GAPS = 16  # pictures


@dataclass
class Prediction:
    """A live prediction."""

    mask: np.ndarray  # [H,W] uint8, class ids
    uncertainty: np.ndarray  # [H,W] float32 in nats, see `LiveHead.predict`
    revision: int  # of the session that it was made from


class LabelSession:
    """A labelling session over a folder of pictures. Thread-safe.

    Args:
        pipe ([`HeadSegmenter`]): The frozen model; a head that it has is left alone until [`~LabelSession.finish`].
        images (path): Folder with the pictures, of any format that `segment` reads.
        folder (path): Of the session: strokes, features, results. The same folder is the same session again.
        class_names (sequence of `str`, *optional*): Classes to begin with, in a session that has none.
        recipe (`str` or [`Recipe`]): Which features are read, and how [`~LabelSession.finish`] fits.
        axes (`str`, *optional*): Of TIFFs that do not state them; see [`open_raster`].
        annotations (path, *optional*): File or folder of annotations of the pictures, to begin with; see
            [`import_annotations`].
        annotation_format (`str`, defaults to `"auto"`): Their format; by content if `"auto"`.
        size (two `int`, *optional*): Height and width at which pictures are read; the model's own if not given.

    Raises:
        UserError: There are no pictures, the folder holds something else or another process is at work in it, the
            model has no features, or the annotations do not fit.
    """

    def __init__(
        self,
        pipe: Segmenter,
        images: str | os.PathLike,
        folder: str | os.PathLike,
        class_names: Sequence[str] = (),
        recipe: str | Recipe = "default",
        axes: str | None = None,
        annotations: str | os.PathLike | None = None,
        annotation_format: str = AUTO,
        size: tuple[int, int] | None = None,
    ):
        if not isinstance(pipe, HeadSegmenter):
            raise UserError("The model is a student or several, with no features to learn; give a diffusion model.")
        self.pipe, self.recipe, self.folder, self.images = pipe, find_recipe(recipe), Path(folder), Path(images)
        self.axes = axes
        self.extractor = recipe_extractor(pipe, self.recipe, size=size)
        self.pictures, self.left_out, self.notes = find_pictures(self.images, self.extractor.size, axes)
        names = checked_names(class_names)
        open_folder(self.folder)
        self.journal = Journal(self.folder / JOURNAL)
        changed, notes = set_aside(self.journal, self.pictures)
        self.left_out |= changed
        self.notes += notes
        if not self.pictures:
            raise UserError(f"There are no pictures in {self.images} of the size that they were labelled at.")
        if annotations is not None:
            given = Path(annotations), annotation_format, names
            self.notes += import_annotations(self.journal, self.pictures, self.images, *given)
        elif not self.journal.strokes:
            self.notes += offered_annotations(self.images)
        self.notes += begin_classes(self.journal, names)
        self.processor = DiffuseSegImageProcessor(self.extractor.in_channels, pipe.channels)

        models = [m for m in getattr(pipe, "components", {}).values() if isinstance(m, nn.Module)]
        frozen = [m for m in models if not isinstance(m, PixelClassifierEnsemble)]
        key = model_key(pipe, self.extractor, sketch(*frozen, adapters=True))
        self.store = FeatureStore(
            self.extractor,
            self.folder / FEATURES / key,
            lambda name: self.picture(name).pixels(self.processor, self.extractor.size),
            lambda name: self.picture(name).stamp(),
        )
        self.ready: dict[str, PictureFeatures] = {}  # of pictures whose features are there, without their grids
        self.head: LiveHead | None = None
        self.head_revision, self._learnt_from = -1, (-1, 0)  # the latter: of the labels, and pictures that were ready
        self._statistics = Statistics(self.journal)
        self._grids: dict[str, torch.Tensor] = {}
        self._gaps: dict[str, np.ndarray | None] = {}  # of the last pictures
        self._rule: tuple[tuple[str, ...], Rule] | None = None
        self._samples: dict[str, tuple[int, Sampled]] = {}
        self.lock = threading.RLock()
        self._model = threading.Lock()  # hooks are of the model: one pass at a time

    def picture(self, name: str) -> Picture:
        """A picture by its name.

        Raises:
            UserError: There is no picture of that name.
        """
        if name not in self.pictures:
            raise UserError(f"There is no picture {name!r} in this session.")
        return self.pictures[name]

    # Features.

    def extract(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Extracts the features of all pictures, unless they are there; `left_out` says which cannot be decoded.

        Args:
            progress (`Callable`, *optional*): Called with how many pictures are done, and how many there are; a
                progress bar if not given.

        Raises:
            UserError: No picture can be decoded.
        """
        order = list(self.pictures)
        total = len(order)
        for done, name in enumerate(tqdm(order, "Extracting features", unit="picture", disable=progress is not None)):
            if progress:
                progress(done, total)
            if name in self.ready or name not in self.pictures:
                continue
            try:
                if not self.store.has(name):
                    with self._model:
                        self.store.extract(name, [*self.pictures])
                parts = {part: self.store.read(name, part) for part in ("small", "pixels", "probes")}
            except UserError as error:
                with self.lock:
                    self.left_out[name] = str(error)
                    del self.pictures[name]
                continue
            with self.lock:
                self.ready[name] = PictureFeatures(None, **parts)
        if not self.pictures:
            raise UserError(f"No picture in {self.images} can be used: {next(iter(self.left_out.values()))}")
        if progress:
            progress(total, total)

    def grid(self, name: str) -> torch.Tensor:
        """Features of a picture, `[D, h, w]` float16."""
        with self.lock:
            if name not in self._grids:
                self.picture(name)
                if name not in self.ready:
                    raise UserError(f"The features of {name} are not extracted yet; wait for it, or call `extract()`.")
                new = self.store.read(name, "grid")
                while self._grids and sum(g.nbytes for g in self._grids.values()) + new.nbytes > KEPT:
                    self._grids.pop(next(iter(self._grids)))
                self._grids[name] = new
            return self._grids[name]

    def _without_gaps(self, name: str, ids: np.ndarray) -> np.ndarray:
        """Class ids `[H, W]` with 255 where a picture holds no measurement, as `segment` and `fit` have them."""
        if not self.picture(name).has_gaps:
            return ids
        with self.lock:
            if name not in self._gaps:
                if len(self._gaps) >= KEPT_GAPS:
                    self._gaps.pop(next(iter(self._gaps)))
                self._gaps[name] = self.picture(name).read(self.pipe.channels).gaps
            gaps = self._gaps[name]
        return ids if gaps is None else np.where(gaps, np.uint8(UNLABELED), ids)

    # Labels.

    @property
    def classes(self) -> list[LabelClass]:
        """The classes, in their order."""
        return list(self.journal.classes.values())

    @property
    def revision(self) -> int:
        """Counts all changes of strokes, classes and states of pictures."""
        return self.journal.revision

    def labels(self, name: str) -> np.ndarray:
        """The labels of a picture, `[H, W]` uint8 class ids, 255 where there is none."""
        with self.lock:
            return self.journal.resolved(self.journal.labels(name, self.picture(name).size).ids)

    def statistics(self) -> dict[int, tuple[int, int]]:
        """By class id, how many pixels are labelled now, and in how many pictures."""
        return self._statistics.count({name: picture.size for name, picture in list(self.pictures.items())})

    def draw(self, name: str, runs: Sequence[Sequence[int]], kind: str = "stroke", key: str | None = None) -> int:
        """Adds a stroke to a picture, on the disk before it returns; see [`Journal.draw`]."""
        with self.lock:
            return self.journal.draw(name, self.picture(name).extent, runs, kind, key)

    def undo(self, number: int) -> None:
        """Undoes a stroke."""
        with self.lock:
            self.journal.set_undone(number)

    def redo(self, number: int) -> None:
        """Redoes a stroke."""
        with self.lock:
            self.journal.set_undone(number, False)

    def set_state(self, name: str, state: str | None) -> None:
        """Marks a picture as `"approved"` or `"skipped"`, or as neither, until a stroke in it changes."""
        with self.lock:
            self.picture(name)
            self.journal.set_state(name, state)

    def add_class(self, name: str, color: Sequence[int] | None = None) -> LabelClass:
        """Adds a class; see [`Journal.add_class`]."""
        with self.lock:
            return self.journal.add_class(name, color)

    def change_class(self, label: int, name: str | None = None, color: Sequence[int] | None = None) -> LabelClass:
        """Renames or recolours a class."""
        with self.lock:
            return self.journal.change_class(label, name, color)

    def merge_classes(self, label: int, into: int) -> None:
        """Merges a class into another."""
        with self.lock:
            self.journal.merge_classes(label, into)

    def delete_class(self, label: int) -> None:
        """Deletes a class, and with it what was labelled."""
        with self.lock:
            self.journal.delete_class(label)

    def order_classes(self, order: Sequence[int]) -> None:
        """Puts the classes into another order, that of all their ids."""
        with self.lock:
            self.journal.order_classes(order)

    # The live head.

    def fit_live(self) -> LiveHead | None:
        """Fits the live head on all strokes, unless it is up to date; `None` while there are fewer than two classes."""
        with self.lock:
            learnt_from = (self.journal.content, len(self.ready))
            if self._learnt_from != learnt_from:
                known = self._labelled()
                if len(known.labels.unique()) < 2 or not self.ready:
                    self.head = None
                else:
                    each = max(8, 4096 // len(self.ready))
                    unlabeled = torch.cat([kept.pixels[:each] for kept in self.ready.values()]).float()
                    self.head = LiveHead.fit(known, unlabeled)
                self._learnt_from = learnt_from
            self.head_revision = self.revision
            return self.head

    def predict(self, name: str) -> Prediction | None:
        """The mask of a picture from the strokes on all of them; `None` while there are fewer than two classes."""
        with self.lock:
            head, revision, size = self.fit_live(), self.head_revision, self.picture(name).size
            grid = self.grid(name) if head else None
        if head is None:
            return None
        mean, uncertainty = head.predict(grid.flatten(1).T)
        maps = torch.cat([mean.T, uncertainty[None]]).unflatten(1, grid.shape[1:])[None]  # [1,C+1,h,w]
        if maps.shape[-2:] != size:
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=False)
        ids = torch.tensor(head.classes, dtype=torch.uint8)[maps[0, :-1].max(0).indices]
        return Prediction(self._without_gaps(name, ids.numpy()), maps[0, -1].numpy(), revision)

    def small_masks(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Masks of pictures at 32 pixels a side at most, uint8 class ids; without those that are not ready."""
        with self.lock:
            head = self.fit_live()
            maps = {name: self.ready[name].small for name in names if name in self.ready}
        if head is None or not maps:
            return {}
        ids = torch.tensor(head.classes, dtype=torch.uint8)
        mean, _ = head.predict(torch.cat([m.flatten(1).T for m in maps.values()]))
        parts = ids[mean.max(1).indices].split([m[0].numel() for m in maps.values()])
        return {name: part.view(m.shape[1:]).numpy() for (name, m), part in zip(maps.items(), parts)}

    def accept(self, name: str, y: int, x: int) -> tuple[np.ndarray, int]:
        """The connected region of the prediction around a pixel without what is labelled, to be drawn.

        Returns:
            Boolean `[H, W]`, and its class id.

        Raises:
            UserError: There is no prediction, the pixel is outside or holds no measurement, or all of the region is
                labelled.
        """
        height, width = self.picture(name).size
        if not (0 <= y < height and 0 <= x < width):
            raise UserError(f"The pixel {x}, {y} lies outside {name}, which is {width} x {height} pixels.")
        found = self.predict(name)
        if found is None:
            raise UserError("There is no prediction yet; draw strokes of two classes first.")
        if found.mask[y, x] == UNLABELED:
            raise UserError("This pixel holds no measurement, and is of no class.")
        # What the hand has labelled stays.
        region = connected_region(found.mask, y, x) & (self.labels(name) == UNLABELED)
        if not region.any():
            raise UserError("All of this region is labelled by hand already.")
        return region, int(found.mask[y, x])

    def finish(self, num_members: int | None = None) -> PixelClassifierEnsemble:
        """Fits the head of the full recipe on all strokes, without those drawn meanwhile: `pipe.segmentation_head`.

        Raises:
            UserError: Fewer than two classes are labelled.
        """
        with self.lock:
            dataset = self.labeled_images()
        with self._model:
            recipe, size = self.recipe, self.extractor.size
            head = fit_segmentation_head(
                self.pipe, dataset, recipe=recipe, num_members=num_members, size=size, sparse_labels=True
            )
        self.pipe.segmentation_head = head
        return head

    def export(
        self, folder: str | os.PathLike, pipeline: str | os.PathLike | None = None, approved: bool = False
    ) -> None:
        """Writes labels as a dataset, masks of all pictures and the strokes into a folder; see its `README.md`.

        Args:
            folder (path): Where to: a new folder, or an empty one.
            pipeline (path, *optional*): Folder of a fitted pipeline that goes with it.
            approved (`bool`, defaults to `False`): Whether pictures that are not approved are left out.

        Raises:
            UserError: Nothing is labelled or approved, or the folder holds something.
        """
        folder = Path(folder)
        check_output_folder(folder, overwrite=False)
        folder.mkdir(parents=True, exist_ok=True)
        export_session(self, folder, Path(pipeline) if pipeline is not None else None, approved=approved)

    def labelled_names(self) -> list[str]:
        """Names of the pictures in which something is labelled, in their order."""
        with self.lock:
            drawn = {stroke.picture for stroke in self.journal.active()}
            return [name for name in self.pictures if name in drawn and (self.labels(name) != UNLABELED).any()]

    def labeled_images(self) -> LabeledImages:
        """The labelled pictures as [`fit_segmentation_head`] and all others read them; ids have no gaps.

        Raises:
            UserError: Nothing is labelled.
        """
        rows: dict[str, list] = {"image": [], "mask": []}
        for name in self.labelled_names():
            mask = encode_image(PIL.Image.fromarray(self.compact_ids(self.labels(name))))
            rows["image"].append(self.picture(name).cell)
            rows["mask"].append({"bytes": mask, "path": None})
        if not rows["image"]:
            raise UserError("Nothing is labelled yet; draw strokes first.")
        columns = Features({"image": CELL, "mask": Image(decode=False)})
        names, palette = [c.name for c in self.classes], [c.color for c in self.classes]
        dataset = Dataset.from_dict(rows, features=columns)
        return LabeledImages(dataset, label_names=names, palette=palette, channels=self.pipe.channels, axes=self.axes)

    def compact_ids(self, ids: np.ndarray) -> np.ndarray:
        """Maps class ids of the session to contiguous ids 0, 1, 2, …; 255 is kept."""
        table = np.full(256, UNLABELED, np.uint8)
        for number, own in enumerate(self.classes):
            table[own.id] = number
        return table[ids]

    def _labelled(self) -> Sampled:
        """The labelled pixels to fit on."""
        parts = []
        for name in dict.fromkeys(stroke.picture for stroke in self.journal.active()):
            if name not in self.ready:
                continue
            version = self.journal.changed[name]
            if name not in self._samples or self._samples[name][0] != version:
                self._samples[name] = (version, self._sampled(name))
            parts.append(self._samples[name][1])
        return Sampled.together(parts)

    def _sampled(self, name: str) -> Sampled:
        size, grid = self.pictures[name].size, self.grid(name)
        labels = self.journal.labels(name, size)
        drawn = self._without_gaps(name, self.journal.resolved(labels.ids))
        chosen, ids, strokes = sparse_pixels(drawn, labels.strokes, PIXELS)
        pixels = torch.from_numpy(chosen)
        around = sample_pixels(places(grid), pixels, size)
        return Sampled(sample_pixels(grid, pixels, size), torch.from_numpy(ids), torch.from_numpy(strokes), around)

    # What to label next.

    def suggest(self, places_of: str | None = None, count: int = 5) -> list[Suggestion]:
        """Ranks the pictures whose features are there by the expected gain of labelling them, best first; approved
        and skipped ones are last, while there are others.

        Args:
            places_of (`str`, *optional*): Name of the picture whose places are wanted; the best picture's if not given.
            count (`int`, defaults to 5): Places to begin at.
        """
        with self.lock:
            names = tuple(self.ready)
            if not names:
                return []
            known = len(self._rule[0]) if self._rule else 0
            if known == 0 or (known != len(names) and (len(names) == len(self.pictures) or len(names) > 1.5 * known)):
                self._rule = (names, Rule([self.ready[name].probes for name in names]))
            names = self._rule[0]
            done = torch.tensor([names.index(name) for name in self.labelled_names() if name in names])
            classes = {c.id: c.name for c in self.classes}
            advice = Advice(self._rule[1], self.fit_live(), self._labelled(), done.long(), classes)
            states = dict(self.journal.states)
        found = finished_last(advice.pictures(names), states)
        chosen = next((s for s in found if s.picture == (places_of or found[0].picture)), None)
        if chosen is not None and count > 0:
            with self.lock:
                grid, labels = self.grid(chosen.picture), self.labels(chosen.picture)
                gaps = self._without_gaps(chosen.picture, np.zeros_like(labels)) == UNLABELED
            chosen.places = advice.places(places(grid), (labels != UNLABELED) | gaps, count)
        return found
