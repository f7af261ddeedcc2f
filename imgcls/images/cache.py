"""Decoded images, kept after they were decoded once: in memory, or in a folder that ranks and runs share."""

import hashlib
import mmap
import multiprocessing
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imgcls.errors import UserError
from imgcls.images.boxes import Box, BoxOf, bounded, crop_resize, scaled, whole
from imgcls.images.decode import ResizeCrop
from imgcls.images.sources import Source
from imgcls.system.resources import free_memory

SHARE = 0.25  # of the memory that is free now; the rest is for the model and for others


class CachedSource(Source):
    """A source whose images are decoded when they are first asked for, and then read from one block of uint8.

    For random crops it keeps whole images, of which no side is longer than the frame's `bound`: a crop is the same
    whether the image was there or not.

    The block is shared by all processes that load for this one, and filled by whichever comes first. In a folder, it
    is shared by all processes of the machine and by later runs with the same images and resize_crop.

    Args:
        source: Where images come from.
        index: Which of its images are asked for, (N,).
        resize_crop: How they are resized and cropped; other frames go to the source.
        folder: Folder of caches; None keeps the block in memory.
    """

    def __init__(self, source: Source, index: np.ndarray, resize_crop: ResizeCrop, folder: Path | None) -> None:
        super().__init__(source.label, source.names)
        self.source, self.resize_crop, self.group = source, resize_crop, source.group
        self.row = np.full(len(source), -1)
        self.row[index] = np.arange(len(index))
        image = ("image", np.uint8, (resize_crop.kept, resize_crop.kept, resize_crop.channels))
        # of a whole image its width and height; whether an image is there is set after its pixels were written
        record = np.dtype([image, ("size", "<i4", 2), ("there", np.uint8)])
        needed = record.itemsize * len(index)
        block = (
            mmap.mmap(-1, needed) if folder is None else _open(folder, _key(source, index, resize_crop, record), needed)
        )
        content = np.frombuffer(block, record)
        self.image, self.size, self.there = (content[name] for name in ("image", "size", "there"))

    def images(self, index: Sequence[int], resize_crop: ResizeCrop) -> Tensor:  # noqa: D102
        rows: np.ndarray = self.row[list(index)]
        if resize_crop.random or resize_crop != self.resize_crop or (rows < 0).any():
            return self.source.images(index, resize_crop)
        missing = np.flatnonzero(self.there[rows] == 0)
        if len(missing):
            decoded = self.source.images([index[k] for k in missing.tolist()], resize_crop)
            self.image[rows[missing]] = decoded.permute(0, 2, 3, 1).numpy()
            self.there[rows[missing]] = 1
        return torch.from_numpy(self.image[rows]).permute(0, 3, 1, 2)

    def crop(self, number: int, resize_crop: ResizeCrop, box_of: BoxOf) -> Tensor:  # noqa: D102
        row = self.row[number]
        if row < 0 or replace(resize_crop, crop=self.resize_crop.crop) != self.resize_crop:
            return self.source.crop(number, resize_crop, box_of)
        if not self.there[row]:

            def all_of_it(width: int, height: int) -> Box:
                self.size[row] = width, height
                return whole(width, height)

            image = self.source.crop(number, replace(resize_crop, crop=0), all_of_it)
            self.image[row, : image.shape[1], : image.shape[2]] = image.permute(1, 2, 0).numpy()
            self.there[row] = 1
        width, height = self.size[row].tolist()
        across, down = kept = bounded((width, height), resize_crop.bound)
        image = torch.from_numpy(self.image[row, :down, :across]).permute(2, 0, 1)
        return crop_resize(image, resize_crop, scaled(box_of(width, height), (width, height), kept))

    def has_pages(self, number: int) -> bool:  # noqa: D102
        return self.source.has_pages(number)

    def fingerprint(self) -> str:  # noqa: D102
        return self.source.fingerprint()


class Caches:
    """The caches of a data module.

    Args:
        where: `memory`, `device`, `none`, or a folder. What the device will hold is decoded into memory first, if it
            fits there: the check of all images is then the only time that they are decoded.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.made: list[CachedSource] = []

    def cached(self, source: Source, index: np.ndarray, resize_crop: ResizeCrop) -> Source:
        """The source with a cache for the images of that index and resize_crop, where one is wanted and has room."""
        for made in self.made:
            if made.source is source and made.resize_crop == resize_crop and (made.row[index] >= 0).all():
                return made
        in_memory = self.where in ("memory", "device")
        if source.in_memory or not resize_crop.kept or self.where == "none":
            return source
        if in_memory and not fits(len(index), resize_crop):
            return source
        folder = None if in_memory else Path(self.where).expanduser()
        self.made.append(CachedSource(source, index, resize_crop, folder))
        return self.made[-1]


def fits(count: int, resize_crop: ResizeCrop) -> bool:
    """Whether so many images may be kept in memory, for processes that are forked from this one."""
    if multiprocessing.get_start_method(allow_none=True) not in (None, "fork") or not hasattr(os, "fork"):
        return False
    needed = count * resize_crop.channels * resize_crop.kept**2
    return needed <= SHARE * free_memory()


def _key(source: Source, index: np.ndarray, resize_crop: ResizeCrop, record: np.dtype) -> str:
    numbers = hashlib.blake2b(index.tobytes(), digest_size=8).hexdigest()
    text = f"{record} {source.fingerprint()} {resize_crop} {numbers}{source.read_as}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _open(folder: Path, key: str, size: int) -> mmap.mmap:
    """The cache file of that key, made if it is not there; several processes may come at once."""
    path = folder / f"{key}.images"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.stat().st_size != size:
            path.unlink(missing_ok=True)
            fresh = path.with_suffix(f".{os.getpid()}")
            try:
                with open(fresh, "wb") as file:
                    _reserve(file.fileno(), size)
                with suppress(FileExistsError):  # another process was faster
                    os.link(fresh, path)
            finally:
                fresh.unlink()
        with open(path, "r+b") as file:
            return mmap.mmap(file.fileno(), size)
    except OSError as error:
        raise UserError(f"--data.cache {folder}: cannot be used ({error}); name another folder, or none") from error


def _reserve(file: int, size: int) -> None:
    """Make a file of that many zero bytes, with room for them: writing to a map on a full disk kills the process."""
    if hasattr(os, "posix_fallocate"):  # macOS has none
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)
