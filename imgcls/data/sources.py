"""Where the images of one part of a data set lie: in memory, in files, or behind a data set's indexing."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from imgcls.data.decode import Frame, decode, decode_file, frame_batch
from imgcls.errors import UserError

Batch = dict[str, Tensor]


class Source(ABC):
    """The images of one part of a data set, with their labels and names.

    Args:
        label: Class of each image, (N,) int64; -1 where it is not known.
        names: Name of each image, as the prediction table shows it: a path, or a part and a number.
    """

    in_memory = False

    def __init__(self, label: np.ndarray, names: Sequence[str]) -> None:
        self.label = np.asarray(label, dtype=np.int64)
        self.names = names

    def __len__(self) -> int:
        return len(self.label)

    @abstractmethod
    def images(self, index: Sequence[int], frame: Frame) -> Tensor:
        """Images number `index` (B,) as one uint8 tensor (B, C, H, W).

        Raises:
            UserError: An image cannot be read; the text names it.
        """

    def inputs(self, index: Sequence[int], frame: Frame) -> Tensor:
        """What a batch holds of them: the images, unless something computed from them takes their place."""
        return self.images(index, frame)

    def fingerprint(self) -> str:
        """Hash of labels and names; the same on every machine that has the same data."""
        digest = hashlib.blake2b(self.label.tobytes(), digest_size=8)
        for name in self.names:
            digest.update(f"{name}\n".encode())
        return digest.hexdigest()


class ArraySource(Source):
    """Decoded images of one shape, held as one uint8 tensor (N, C, H, W) and fetched by whole batches."""

    in_memory = True

    def __init__(self, image: Tensor, label: np.ndarray, part: str) -> None:
        super().__init__(label, NumberedNames(part, len(image)))
        self.image = image

    def images(self, index: Sequence[int], frame: Frame) -> Tensor:  # noqa: D102
        return frame_batch(self.image[torch.as_tensor(index)], frame)

    def fingerprint(self) -> str:  # noqa: D102
        return hashlib.blake2b(self.image.numpy().tobytes() + self.label.tobytes(), digest_size=8).hexdigest()


class FileSource(Source):
    """Image files, decoded when they are fetched. `names` are the paths relative to `root`."""

    def __init__(self, root: Path, names: Sequence[str], label: np.ndarray) -> None:
        super().__init__(label, names)
        self.root = root

    def fingerprint(self) -> str:
        """Hash of labels, names and file sizes; files are not read."""
        sizes = "\n".join(str((self.root / name).stat().st_size) for name in self.names)
        return hashlib.blake2b(f"{super().fingerprint()}\n{sizes}".encode(), digest_size=8).hexdigest()

    def images(self, index: Sequence[int], frame: Frame) -> Tensor:  # noqa: D102
        return torch.stack([decode_file(self.root / self.names[i], frame) for i in index])


class Items(Protocol):
    """What torchvision's data sets have in common."""

    def __getitem__(self, index: int) -> tuple[Image.Image, object]: ...  # noqa: D105


class ItemSource(Source):
    """A data set that yields (PIL image, label) by number."""

    def __init__(self, items: Items, label: np.ndarray, part: str) -> None:
        super().__init__(label, NumberedNames(part, len(label)))
        self.items = items

    def images(self, index: Sequence[int], frame: Frame) -> Tensor:  # noqa: D102
        return torch.stack([decode(self.items[int(i)][0], frame) for i in index])


class JoinedSource(Source):
    """Two sources one after the other: the pool from which folds are cut."""

    def __init__(self, first: Source, second: Source) -> None:
        super().__init__(np.concatenate([first.label, second.label]), [*first.names, *second.names])
        self.first, self.second = first, second
        self.in_memory = first.in_memory and second.in_memory

    def images(self, index: Sequence[int], frame: Frame) -> Tensor:  # noqa: D102
        number = np.asarray(index)
        in_second = number >= len(self.first)
        parts = [self.first.images(number[~in_second].tolist(), frame)] if not in_second.all() else []
        parts += [self.second.images((number[in_second] - len(self.first)).tolist(), frame)] if in_second.any() else []
        joined = torch.cat(parts)
        return joined[torch.from_numpy(np.argsort(np.argsort(in_second, kind="stable"), kind="stable"))]

    def fingerprint(self) -> str:  # noqa: D102
        return f"{self.first.fingerprint()}+{self.second.fingerprint()}"


class FeatureSource(Source):
    """Images of which features are known.

    Args:
        source: The images.
        index: Which of them, (N,).
        feature: (N, V, F) float32, V versions of each.
    """

    in_memory = True

    def __init__(self, source: Source, index: np.ndarray, feature: Tensor) -> None:
        super().__init__(source.label, source.names)
        self.source, self.feature = source, feature
        self.row = np.full(len(source), -1)
        self.row[index] = np.arange(len(index))

    def inputs(self, index: Sequence[int], frame: Frame) -> Tensor:
        """Features (B, V, F)."""
        return self.feature[torch.from_numpy(self.row[list(index)])]

    def images(self, index: Sequence[int], frame: Frame) -> Tensor:  # noqa: D102
        return self.source.images(index, frame)

    def fingerprint(self) -> str:  # noqa: D102
        return self.source.fingerprint()


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


class BatchDataset(Dataset):
    """Whole batches of a part: a list of positions in, a batch with uint8 images out."""

    def __init__(self, source: Source, index: np.ndarray, frame: Frame) -> None:
        self.source, self.index, self.frame = source, index, frame

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, positions: list[int]) -> Batch | UserError:
        index = self.index[positions]
        try:
            image = self.source.inputs(index.tolist(), self.frame)
        except UserError as error:  # raised in the main process, see on_before_batch_transfer
            return error
        return {
            "image": image,
            "label": torch.from_numpy(self.source.label[index]),
            "index": torch.from_numpy(index),
        }
