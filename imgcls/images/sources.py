"""Where the images of one part of a data set lie: in memory, in files, or behind a data set's indexing."""

import copy
import hashlib
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imgcls.errors import printable
from imgcls.images.boxes import BoxOf, crop, crop_bytes, crop_resize
from imgcls.images.decode import (
    Original,
    ResizeCrop,
    decode,
    decode_bytes,
    encode,
    has_pages,
    opened,
    original,
    original_bytes,
    read_file,
    reading,
    resize_crop_batch,
    stack,
)
from imgcls.images.depth import ValueRange, deep_values

Batch = dict[str, Tensor]
Part = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Blocks:
    """Positions that are read together, such as those of one shard.

    Attributes:
        start: First position of each block, ascending, (S,) int64.
        window: Number of blocks among which an epoch's order mixes.
        ahead: Called with the number of the block that is needed next, while the one before is.
    """

    start: np.ndarray
    window: int
    ahead: Callable[[int], None] = lambda block: None


class Source(ABC):
    """The images of one part of a data set, with their labels and names.

    Args:
        label: Class of each image, (N,) int64, or whether it is of each class, (N, K) int8; -1 where it is not known.
        names: Name of each image, as the prediction table shows it: a path, or a part and a number.

    Attributes:
        columns: What else is known of the images, N values by the column's name: test results are shown by value.
        read_as: What decides on pixels beside files and `ResizeCrop`, in words, for caches.
        group: Images of one number, in whichever part of the data set, show the same thing, such as a patient: no split
            puts them into two parts, (N,) int64; -1: an image of its own. None: all are.
        in_memory: Whether no file is read for them.
        verified: Whether all images were read when they were put there, so that it need not be done again.
    """

    in_memory = False
    verified = False
    read_as = ""
    columns: Mapping[str, Sequence[str]] = {}
    group: np.ndarray | None = None

    def __init__(self, label: np.ndarray, names: Sequence[str]) -> None:
        label = np.asarray(label)
        self.label = label if label.ndim == 2 else label.astype(np.int64, copy=False)
        self.names = names

    def __len__(self) -> int:
        return len(self.label)

    @abstractmethod
    def images(self, index: Sequence[int], resize_crop: ResizeCrop) -> Tensor:
        """Images number `index` (B,) as one uint8 tensor (B, C, H, W).

        Raises:
            BrokenImage: An image cannot be read.
        """

    def encoded(self, number: int) -> bytes:
        """An image as a file holds it, unchanged if it comes from one, else as PNG."""
        pixels = self.images([number], ResizeCrop(3, 1 << 16, 0))[0]
        return encode(Image.fromarray(pixels.permute(1, 2, 0).numpy()))

    def blocks(self, index: np.ndarray) -> Blocks | None:
        """Which of the images `index` (N,), ascending, are best read together; None where it does not matter."""
        return None

    def original(self, number: int, value_range: ValueRange | None = None) -> Original:
        """An image as it is stored, of one deeper than 8 bits what `value_range` makes of it.

        Raises:
            BrokenImage: It cannot be read.
        """
        with reading(self.describe, number):
            return original_bytes(self.encoded(number), value_range)

    def deep_values(self, number: int) -> np.ndarray | None:
        """Values of an image that is deeper than 8 bits, as it is stored; None for one of 8 bits.

        Raises:
            BrokenImage: It cannot be read.
        """
        return None

    def has_pages(self, number: int) -> bool:
        """Whether an image has further pages or frames, which are not used."""
        return False

    def relabelled(self, label: np.ndarray) -> "Source":
        """The same images with other labels."""
        other = copy.copy(self)
        other.label = label
        return other

    def stamps(self) -> np.ndarray | None:
        """A number for each image that changes when its file does, (N,) uint64; None where that cannot be told."""
        return None

    def file(self, number: int) -> Path | None:
        """The file of an image, where it has one of its own."""
        return None

    def describe(self, number: int) -> str:
        """Name of an image, with where it was named if that is elsewhere."""
        return self.names[number]

    def inputs(self, index: Sequence[int], resize_crop: ResizeCrop, boxes: Sequence[BoxOf] | None = None) -> Tensor:
        """What a batch holds of them: images or crops, unless something computed from them takes their place."""
        if boxes is None:
            return self.images(index, resize_crop)
        crops = (self.crop(number, resize_crop, box_of) for number, box_of in zip(index, boxes, strict=True))
        return stack(crops, len(index))

    def crop(self, number: int, resize_crop: ResizeCrop, box_of: BoxOf) -> Tensor:
        """A box of the whole image, resized to the square of `resize_crop`, (C, crop, crop) uint8.

        Raises:
            BrokenImage: It cannot be read.
        """
        whole = self.images([number], replace(resize_crop, crop=0))[0]
        return crop_resize(whole, resize_crop, box_of(whole.shape[2], whole.shape[1]))

    def fingerprint(self) -> str:
        """Hash of labels and names; the same on every machine that has the same data."""
        return self._fingerprint(self.names)

    def _fingerprint(self, names: Sequence[str]) -> str:
        digest = hashlib.blake2b(self.label.tobytes(), digest_size=8)
        for name in names:
            digest.update(f"{name}\n".encode())
        return digest.hexdigest()


class ArraySource(Source):
    """Decoded images of one shape, held as one uint8 tensor (N, C, H, W) and fetched by whole batches."""

    in_memory = True

    def __init__(self, image: Tensor, label: np.ndarray, part: str) -> None:
        super().__init__(label, NumberedNames(part, len(image)))
        self.image = image

    def images(self, index: Sequence[int], resize_crop: ResizeCrop) -> Tensor:  # noqa: D102
        return resize_crop_batch(self.image[torch.as_tensor(index)], resize_crop).contiguous()

    def encoded(self, number: int) -> bytes:  # noqa: D102
        pixels = self.image[number].numpy()
        return encode(Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)))

    def fingerprint(self) -> str:  # noqa: D102
        return hashlib.blake2b(self.image.numpy().tobytes() + self.label.tobytes(), digest_size=8).hexdigest()


class EncodedSource(Source):
    """Images of which `encoded` reads the bytes, as an image file holds them; decoded when they are fetched."""

    @abstractmethod
    def encoded(self, number: int) -> bytes: ...  # noqa: D102

    def images(self, index: Sequence[int], resize_crop: ResizeCrop) -> Tensor:  # noqa: D102
        return stack((self._image(number, resize_crop) for number in index), len(index))

    def crop(self, number: int, resize_crop: ResizeCrop, box_of: BoxOf) -> Tensor:  # noqa: D102
        with reading(self.describe, number):
            return crop_bytes(self.encoded(number), resize_crop, box_of)

    def deep_values(self, number: int) -> np.ndarray | None:  # noqa: D102
        with reading(self.describe, number), opened(self.file(number) or self.encoded(number)) as image:
            return _values(image)

    def _image(self, number: int, resize_crop: ResizeCrop) -> Tensor:
        with reading(self.describe, number):
            return decode_bytes(self.encoded(number), resize_crop)


def _values(image: Image.Image) -> np.ndarray | None:
    found = deep_values(image)
    return None if found is None else found[0]


class FileSource(EncodedSource):
    """Image files.

    Args:
        root: Folder of the files.
        paths: Relative to `root`, or absolute; a name that is no valid text (bytes from another system) is shown with
            escapes.
        label: Class of each image, (N,) int64.
        origins: Where each file was named, such as a table's line, for messages.
    """

    def __init__(
        self, root: Path, paths: Sequence[str], label: np.ndarray, origins: Sequence[str] | None = None
    ) -> None:
        super().__init__(label, [printable(path) for path in paths])
        self.root, self.paths, self.origins = root, paths, origins

    @cached_property
    def sizes(self) -> np.ndarray:
        """Bytes and time of the last change (ns) of each file, (N, 2) int64; -1, 0 for what is no file."""
        return np.array([_size_and_time(self.root / path) for path in self.paths], dtype=np.int64).reshape(-1, 2)

    def fingerprint(self) -> str:
        """Hash of labels, names (absolute ones from their common folder on) and file sizes; files are not read."""
        names = self.names
        if len(names) and all(map(os.path.isabs, names)):
            folder = os.path.commonpath(names)
            names = [os.path.relpath(name, folder) for name in names]
        sizes = "\n".join(map(str, self.sizes[:, 0].tolist()))
        return hashlib.blake2b(f"{self._fingerprint(names)}\n{sizes}".encode(), digest_size=8).hexdigest()

    def encoded(self, number: int) -> bytes:  # noqa: D102
        return read_file(self.file(number))

    def file(self, number: int) -> Path:  # noqa: D102
        return self.root / self.paths[number]

    def has_pages(self, number: int) -> bool:  # noqa: D102
        with reading(self.describe, number):
            return has_pages(self.file(number))

    def stamps(self) -> np.ndarray:
        """Of each file's place, size and time of change."""
        root = os.path.abspath(self.root)
        texts = (f"{root}/{p}\n{size}\n{t}" for p, (size, t) in zip(self.paths, self.sizes.tolist(), strict=True))
        hashes = (hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest() for text in texts)
        return np.frombuffer(b"".join(hashes), dtype=np.uint64)

    def describe(self, number: int) -> str:  # noqa: D102
        return f"{self.origins[number]}: {self.names[number]}" if self.origins else self.names[number]


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except (OSError, ValueError):  # ValueError: a zero byte in a table's path
        return -1, 0
    return (found.st_size, found.st_mtime_ns) if stat.S_ISREG(found.st_mode) else (-1, 0)


class ItemSource(EncodedSource):
    """A data set that yields (PIL image, label) by number."""

    def __init__(self, items: Dataset[tuple[Image.Image, Any]], label: np.ndarray, part: str) -> None:
        super().__init__(label, NumberedNames(part, len(label)))
        self.items = items

    def encoded(self, number: int) -> bytes:  # noqa: D102
        return encode(self.items[number][0])

    def stamps(self) -> np.ndarray:
        """Of the data set's own description, which names its folder and part, and the number of the image."""
        digest = hashlib.blake2b(f"{self.items!r}\n{self.fingerprint()}".encode(), digest_size=8).digest()
        return np.frombuffer(digest, dtype=np.uint64) + np.arange(len(self), dtype=np.uint64)

    def original(self, number: int, value_range: ValueRange | None = None) -> Original:  # noqa: D102
        with reading(self.describe, number):
            return original(self.items[number][0], value_range)

    def crop(self, number: int, resize_crop: ResizeCrop, box_of: BoxOf) -> Tensor:  # noqa: D102
        with reading(self.describe, number):
            return crop(self.items[number][0], resize_crop, box_of)

    def deep_values(self, number: int) -> np.ndarray | None:  # noqa: D102
        with reading(self.describe, number):
            return _values(self.items[number][0])

    def _image(self, number: int, resize_crop: ResizeCrop) -> Tensor:
        with reading(self.describe, number):
            return decode(self.items[number][0], resize_crop)


def spread(index: np.ndarray, count: int) -> list[int]:
    """At most `count` of some numbers (N,), evenly spread over them."""
    return index[np.linspace(0, len(index) - 1, min(count, len(index))).round().astype(int)].tolist()


class NumberedNames(Sequence[str]):
    """`part/0`, `part/1` … for images without a file of their own, without a list in memory."""

    def __init__(self, part: str, count: int) -> None:
        self.part, self.length = part, count

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        if not -self.length <= index < self.length:
            raise IndexError(index)
        return f"{self.part}/{index % self.length}"
