# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Unlabelled images as a stream of training batches that any number of processes share and that can resume.

A position in the stream is a number of images since the start. What stands at a position depends on the seed alone,
so a run that resumes at a position trains as if it had never stopped.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import torch
from accelerate import PartialState
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from ..datasets.unlabeled import SKIP_HINT, UnlabeledImages, decode_pixels
from ..jobs.errors import UserError
from ..jobs.seeds import mixed_seed


class ShuffledBatches:
    """Training batches from images that can be had in any order: each epoch a permutation of all, one after another.

    Position `i` of the stream is image `i mod N` of the permutation of epoch `i // N`. Processes take turns, a batch
    each, so all of them together read the stream in order: no image is skipped or repeated within an epoch, for any
    number of processes and any place to resume from.

    Args:
        images ([`UnlabeledImages`] or `torch.Tensor`):
            Images to decode in `num_workers` processes, or all of them decoded, `[N, C, H, W]` uint8.
        batch_size (`int`): Images in a batch of one process.
        seed (`int`): Of the permutations.
        num_workers (`int`, defaults to 0): Processes that decode ahead.
    """

    def __init__(self, images: UnlabeledImages | torch.Tensor, batch_size: int, seed: int, num_workers: int = 0):
        self.images, self.batch_size, self.seed, self.num_workers = images, batch_size, seed, num_workers
        self.position = 0
        self.unreadable = 0
        self._epoch: int | None = None
        self._order: list[int] = []

    def state_dict(self) -> dict:
        return {"position": self.position, "num_images": len(self.images)}

    def load_state_dict(self, state: dict) -> None:
        """Resumes at a checkpoint; raises [`UserError`] if it was made with another number of images."""
        if state.get("num_images") != len(self.images):
            raise UserError(
                f"The checkpoint was made with {state.get('num_images', 'streamed')} training images, and now there "
                f"are {len(self.images)}; resume with the same data and --num_validation_images, or start a new run "
                f"with --pretrained."
            )
        self.position = state["position"]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yields `[batch_size, C, H, W]` uint8, without end."""
        state = PartialState()
        if isinstance(self.images, torch.Tensor):
            batches = ((self.images[rows], 0) for rows in self._rows(state))
        else:
            batches = DataLoader(
                self.images,
                batch_sampler=self._rows(state),
                num_workers=self.num_workers,
                collate_fn=_collate,
                pin_memory=state.device.type == "cuda",
            )
        for pixels, unreadable in batches:
            self.position += self.batch_size * state.num_processes
            self.unreadable += unreadable
            yield pixels

    def _rows(self, state: PartialState) -> Iterator[list[int]]:
        step = self.batch_size * state.num_processes
        for start in count(self.position + self.batch_size * state.process_index, step):
            yield [self._row(i) for i in range(start, start + self.batch_size)]

    def _row(self, position: int) -> int:
        epoch, place = divmod(position, len(self.images))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.images), generator=generator).tolist()
        if getattr(self.images, "fresh", False):  # each epoch has crops of its own
            return epoch * len(self.images) + self._order[place]
        return self._order[place]


def _collate(items: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, int]:
    return torch.stack([pixels for pixels, _ in items]), sum(skipped for _, skipped in items)


class StreamedBatches:
    """Training batches from a dataset that is read while training, and may be larger than the disk.

    Processes share it by `datasets.distributed.split_dataset_by_node`; each reads its share again and again, shuffled
    within a buffer and by files. To resume, a process passes over what it has read in its current epoch, undecoded.

    Args:
        dataset (`datasets.IterableDataset`), column (`str`): From [`load_unlabeled`].
        size, channels, resize_mode, skip_unreadable: As in [`UnlabeledImages`].
        batch_size (`int`): Images in a batch of one process.
        seed (`int`): Of the shuffling.
        held_out (sequence, *optional*): Cells of the column that are left out, such as the validation images.
        buffer_size (`int`, defaults to 1000): Undecoded images in the shuffling buffer.
        num_threads (`int`, defaults to 1): Threads of the process that reads ahead, at least one.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        column: str,
        size: tuple[int, int],
        channels: int,
        batch_size: int,
        seed: int,
        resize_mode: str = "crop",
        skip_unreadable: bool = False,
        held_out: Sequence = (),
        buffer_size: int = 1000,
        num_threads: int = 1,
    ):
        state = PartialState()
        dataset = split_dataset_by_node(dataset, state.process_index, state.num_processes)
        self.dataset = dataset.shuffle(seed=seed, buffer_size=buffer_size)
        self.column, self.size, self.channels, self.resize_mode = column, size, channels, resize_mode
        self.skip_unreadable, self.batch_size, self.num_threads = skip_unreadable, batch_size, num_threads
        self.held_out = {_content(cell) for cell in held_out}
        self.position = 0
        self.read = (0, 0)  # the epoch that is read, and how many rows of it are in batches that were used
        self.unreadable = 0

    def state_dict(self) -> dict:
        return {"position": self.position, "read": self.read, "num_processes": PartialState().num_processes}

    def load_state_dict(self, state: dict) -> None:
        """Resumes at a checkpoint; raises [`UserError`] if another number of processes made it, which share the stream
        in another way."""
        processes = PartialState().num_processes
        if state.get("num_processes") != processes:
            raise UserError(
                f"The checkpoint is not of a stream that {processes} processes share (it says "
                f"{state.get('num_processes')}); resume with as many processes as before, and --streaming."
            )
        self.position, self.read = state["position"], tuple(state["read"])

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yields `[batch_size, C, H, W]` uint8, without end."""
        state = PartialState()
        batches = DataLoader(
            _DecodedStream(self),
            batch_size=None,
            num_workers=1,  # always: `datasets` shuffles otherwise in a worker than outside of one
            pin_memory=state.device.type == "cuda",
        )
        for pixels, self.read, unreadable in batches:
            self.position += self.batch_size * state.num_processes
            self.unreadable += unreadable
            yield pixels


class _DecodedStream(torch.utils.data.IterableDataset):
    """What [`StreamedBatches`] reads ahead: batches, each with how far it read and how many images were unreadable."""

    def __init__(self, stream: StreamedBatches):
        self.stream = stream

    def __iter__(self):
        s = self.stream
        batch, unreadable, last_good = [], 0, s.read[0]
        with ThreadPoolExecutor(max(1, s.num_threads)) as pool:
            for cells in self._cells():
                # Epoch and row of each cell travel with it; an unreadable one is replaced by what comes next.
                for pixels, read in pool.map(self._decode, *zip(*cells)):
                    if pixels is None:
                        unreadable += 1
                        if read[0] > last_good + 1:
                            raise UserError("None of the images of a whole epoch can be read.")
                        continue
                    last_good = read[0]
                    batch.append(pixels)
                    if len(batch) == s.batch_size:
                        yield torch.stack(batch), read, unreadable
                        batch, unreadable = [], 0

    def _cells(self) -> Iterator[list]:
        """Chunks of cells with their places, epoch after epoch."""
        s = self.stream
        first, passed = s.read
        for epoch in count(first):
            s.dataset.set_epoch(epoch)
            chunk, any_left = [], False
            for row, cells in enumerate(s.dataset):
                if s.held_out and _content(cells[s.column]) in s.held_out:
                    continue
                any_left = True
                if epoch == first and row < passed:
                    continue
                chunk.append((cells[s.column], (epoch, row + 1)))
                if len(chunk) == s.batch_size:
                    yield chunk
                    chunk = []
            if chunk:
                yield chunk
            if not any_left:
                raise UserError(
                    "The stream has no training images for this process: it has fewer images than there are processes "
                    "and validation images (`--num_validation_images`)."
                )

    def _decode(self, cell, place: tuple[int, int]) -> tuple[torch.Tensor | None, tuple[int, int]]:
        s, (epoch, row) = self.stream, place
        where = f"row {row - 1} of the stream (shuffled, epoch {epoch})"
        try:
            return decode_pixels(cell, where, s.size, s.channels, s.resize_mode), place
        except ValueError as error:
            if not s.skip_unreadable:
                raise UserError(f"{error} {SKIP_HINT}") from error
            return None, place


def _content(cell):
    """What tells a cell from others: the bytes of its file, or its path."""
    if isinstance(cell, Mapping):
        return cell.get("bytes") or cell.get("path")
    return cell if isinstance(cell, str) else id(cell)
