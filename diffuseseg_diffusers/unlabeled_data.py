# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Unlabelled images as a stream of training batches that any number of processes share and that can be continued.

A position in the stream is a number of images since the start. What stands at a position depends on the seed alone,
so a run that is continued at a position goes on as if it had never stopped.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import psutil
import torch
from accelerate import PartialState
from accelerate.utils import gather
from datasets import Dataset, Features, Image, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .data import IMAGE_COLUMNS, decode_picture, find_column, find_pictures, load_split
from .image_processor import to_eight_bit


RESIZE_MODES = ("crop", "pad")
PEEK = 16  # images that are looked at to tell grey-scale from colour
_GATHER_ROWS = 4096
_SKIP_HINT = "`--skip_unreadable` goes on without such pictures."


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers; neighbouring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def to_pixels(image: PIL.Image.Image, size: tuple[int, int], channels: int, resize_mode: str = "crop") -> torch.Tensor:
    """A picture of any size and mode as `[channels, height, width]` uint8.

    Args:
        image (`PIL.Image.Image`): The picture.
        size (`tuple[int, int]`): Height and width in pixels.
        channels (`int`): 1 for grey-scale, 3 for RGB.
        resize_mode (`str`, defaults to `"crop"`):
            `"crop"` scales until the picture covers the size and cuts the middle out; `"pad"` scales until it fits
            inside and fills the rest with black.
    """
    image = to_eight_bit(image).convert("L" if channels == 1 else "RGB")
    if image.size != size[::-1]:
        fit = PIL.ImageOps.fit if resize_mode == "crop" else PIL.ImageOps.pad
        image = fit(image, size[::-1], method=PIL.Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image))  # [H,W] or [H,W,3]
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()


def load_unlabeled(
    name: str | None = None,
    config_name: str | None = None,
    split: str = "train",
    data_dir: str | None = None,
    image_column: str | None = None,
    streaming: bool = False,
    **kwargs,
) -> tuple[Dataset | IterableDataset, str]:
    """Unlabelled images by Hub name, from anything `datasets` loads, or from a folder of pictures.

    Args:
        name (`str`, *optional*): Hub dataset or local folder, for `datasets.load_dataset`.
        config_name (`str`, *optional*), split (`str`, defaults to `"train"`): Which part of it.
        data_dir (`str`, *optional*): In place of `name`, a folder with pictures anywhere below it.
        image_column (`str`, *optional*): Column of images; the usual names are found.
        streaming (`bool`, defaults to `False`): Read while training, without a copy on disk.
        **kwargs: `cache_dir`, `token`, `revision`, as in `datasets.load_dataset`.

    Returns:
        The dataset, whose images are not decoded yet, and the name of its column of images.

    Raises:
        ValueError: There is no such dataset, it has no images, or no such column (its columns are named).
    """
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise ValueError(f"There is no folder {data_dir}.")
        paths = find_pictures(Path(data_dir))
        if not paths:
            raise ValueError(f"The folder {data_dir} has no pictures in it.")
        features = Features({"image": Image(decode=False)})
        return Dataset.from_dict({"image": [str(p) for p in paths]}, features=features), "image"
    dataset = load_split(name, config_name, split, streaming=streaming, **kwargs)
    if streaming:
        features = dataset.features or (next(iter(dataset.take(1)), {}))
        if not features:
            raise ValueError(f"The dataset {name} is empty: it has no images.")
    else:
        dataset = dataset.with_format(None)  # decoding and conversion are ours
        features = dataset.features
        if len(dataset) == 0:
            raise ValueError(f"The dataset {name} is empty: it has no images.")
    column = find_column(list(features), image_column, IMAGE_COLUMNS, "image")
    if isinstance(features[column], Image):
        dataset = dataset.cast_column(column, Image(decode=False))  # so that errors can say where
    return dataset.select_columns([column]), column


def count_channels(dataset: Dataset | IterableDataset, column: str) -> int:
    """1 if the first images are all grey-scale, else 3; images that cannot be read do not count."""
    modes = set()
    for i, row in enumerate(dataset.take(PEEK)):
        try:
            modes.add(to_eight_bit(decode_picture(row[column], f"row {i}")[0]).mode)
        except ValueError:
            continue
    return 1 if modes == {"L"} else 3


class UnlabeledImages(torch.utils.data.Dataset):
    """Images of a `datasets.Dataset`, decoded one at a time to uint8 tensors of one size.

    Args:
        dataset (`datasets.Dataset`), column (`str`): From [`load_unlabeled`].
        size (`tuple[int, int]`): Height and width in pixels.
        channels (`int`): 1 or 3.
        resize_mode (`str`, defaults to `"crop"`): See [`to_pixels`].
        skip_unreadable (`bool`, defaults to `False`):
            An image that cannot be read gives the next one that can in place of an error.
    """

    def __init__(
        self,
        dataset: Dataset,
        column: str,
        size: tuple[int, int],
        channels: int,
        resize_mode: str = "crop",
        skip_unreadable: bool = False,
    ):
        self.dataset, self.column, self.size, self.channels = dataset, column, size, channels
        self.resize_mode, self.skip_unreadable = resize_mode, skip_unreadable

    def __len__(self) -> int:
        return len(self.dataset)

    def decode(self, index: int) -> torch.Tensor:
        """Image `index`, `[C, H, W]` uint8.

        Raises:
            ValueError: It cannot be read; names its path or row.
        """
        return _decode(self.dataset[index][self.column], f"row {index}", self.size, self.channels, self.resize_mode)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Image `index`, or the next that can be read, and how many could not."""
        for skipped in range(len(self)):
            try:
                return self.decode((index + skipped) % len(self)), skipped
            except ValueError as error:
                if not self.skip_unreadable:
                    raise ValueError(f"{error} {_SKIP_HINT}") from error
        raise ValueError("None of the pictures can be read.")

    def select(self, indices: Sequence[int]) -> "UnlabeledImages":
        """The images at these indices."""
        return UnlabeledImages(
            self.dataset.select(indices), self.column, self.size, self.channels, self.resize_mode, self.skip_unreadable
        )

    def fits_in_memory(self, limit_gb: float | None = None) -> bool:
        """Whether all images, decoded, fit into `limit_gb` GiB (default: half of the free memory) on each process."""
        free = psutil.virtual_memory().available / 2 if limit_gb is None else limit_gb * 2**30
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # on this machine
        return len(self) * self.channels * self.size[0] * self.size[1] * processes <= free

    def load(self) -> tuple[torch.Tensor, int]:
        """Decodes all images; processes share the work.

        Returns:
            `[N, C, H, W]` uint8, without the images that could not be read, and their number.

        Raises:
            ValueError: An image cannot be read, and `skip_unreadable` is off; or none can.
        """
        state = PartialState()
        mine = range(state.process_index, len(self), state.num_processes)
        rows = -(-len(self) // state.num_processes)
        pixels = torch.zeros(rows, self.channels, *self.size, dtype=torch.uint8)
        readable = torch.zeros(rows, dtype=torch.bool)

        def load(row: int) -> None:
            try:
                pixels[row] = self.decode(mine[row])
                readable[row] = True
            except ValueError as error:
                if not self.skip_unreadable:
                    raise ValueError(f"{error} {_SKIP_HINT}") from error

        # Pillow decodes and scales outside of Python's lock, so threads do.
        with ThreadPoolExecutor() as pool:
            done = pool.map(load, range(len(mine)))
            for _ in tqdm(done, "Decoding", len(mine), unit="image", disable=not state.is_main_process, leave=False):
                pass
        if state.num_processes > 1:
            pixels, readable = _gather_rows(pixels, state), _gather_rows(readable, state)
        pixels, readable = pixels[: len(self)], readable[: len(self)]
        unreadable = int((~readable).sum())
        if unreadable == len(self):
            raise ValueError("None of the pictures can be read.")
        return (pixels[readable] if unreadable else pixels), unreadable


def _decode(value, where: str, size: tuple[int, int], channels: int, resize_mode: str) -> torch.Tensor:
    image, where = decode_picture(value, where)
    try:
        return to_pixels(image, size, channels, resize_mode)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow reads the pixels only now
        raise ValueError(f"The picture in {where} cannot be read ({error}); repair or remove it.") from error


def _gather_rows(mine: torch.Tensor, state: PartialState) -> torch.Tensor:
    """Row `i` of process `p` becomes row `i * P + p`; in chunks, because NCCL needs them on the GPU."""
    chunks = []
    for chunk in mine.split(_GATHER_ROWS):
        gathered = gather(chunk.to(state.device)).cpu()  # [P*rows,...], process after process
        chunks.append(gathered.unflatten(0, (state.num_processes, -1)).transpose(0, 1).flatten(0, 1))
    return torch.cat(chunks)


class ShuffledBatches:
    """Training batches from images that can be had in any order: each epoch a permutation of all, one after another.

    Position `i` of the stream is image `i mod N` of the permutation of epoch `i // N`. Processes take turns, a batch
    each, so all of them together read the stream in order: no image is skipped or repeated within an epoch, for any
    number of processes and any place to continue from.

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
        self._epoch, self._order = None, None

    def state_dict(self) -> dict:
        return {"position": self.position, "num_images": len(self.images)}

    def load_state_dict(self, state: dict) -> None:
        """Continues at a checkpoint.

        Raises:
            ValueError: It was made with another number of images.
        """
        if state.get("num_images") != len(self.images):
            raise ValueError(
                f"The checkpoint was made with {state.get('num_images', 'streamed')} training images, and now there "
                f"are {len(self.images)}; continue with the same data, or start a new run with --pretrained."
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
        return self._order[place]


def _collate(items: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, int]:
    return torch.stack([pixels for pixels, _ in items]), sum(skipped for _, skipped in items)


class StreamedBatches:
    """Training batches from a dataset that is read while training, and may be larger than the disk.

    Processes share it by `datasets.distributed.split_dataset_by_node`; each reads its share again and again, shuffled
    within a buffer and by files. To continue, a process passes over what it has read in its current epoch, undecoded.

    Args:
        dataset (`datasets.IterableDataset`), column (`str`): From [`load_unlabeled`].
        size, channels, resize_mode, skip_unreadable: As in [`UnlabeledImages`].
        batch_size (`int`): Images in a batch of one process.
        seed (`int`): Of the shuffling.
        held_out (sequence, *optional*): Cells of the column that are left out, such as the validation images.
        buffer_size (`int`, defaults to 1000): Undecoded images in the shuffling buffer.
        num_threads (`int`, defaults to 1): A process of its own reads ahead, and decodes in so many threads.
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
        """Continues at a checkpoint.

        Raises:
            ValueError: It was made by another number of processes, which share the stream in another way.
        """
        processes = PartialState().num_processes
        if state.get("num_processes") != processes:
            raise ValueError(
                f"The checkpoint is not of a stream that {processes} processes share (it says "
                f"{state.get('num_processes')}); go on as the run was begun, with as many processes and --streaming."
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
                            raise ValueError("None of the pictures of a whole epoch can be read.")
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
                raise ValueError(
                    "The stream has no training images for this process: it has fewer images than there are processes "
                    "and validation images (`--num_validation_images`)."
                )

    def _decode(self, cell, place: tuple[int, int]) -> tuple[torch.Tensor | None, tuple[int, int]]:
        s, (epoch, row) = self.stream, place
        where = f"row {row - 1} of the stream (shuffled, epoch {epoch})"
        try:
            return _decode(cell, where, s.size, s.channels, s.resize_mode), place
        except ValueError as error:
            if not s.skip_unreadable:
                raise ValueError(f"{error} {_SKIP_HINT}") from error
            return None, place


def _content(cell):
    """What tells a cell from others: the bytes of its file, or its path."""
    if isinstance(cell, Mapping):
        return cell.get("bytes") or cell.get("path")
    return cell if isinstance(cell, str) else id(cell)
