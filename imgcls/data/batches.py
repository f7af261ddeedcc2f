"""Whole batches of images, and the loader that fetches them."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from imgcls.augment.base import LoadingCrop
from imgcls.data.prefetch import ahead, side_stream
from imgcls.errors import UserError
from imgcls.images.boxes import Box, BoxOf
from imgcls.images.decode import BrokenImage, ResizeCrop, stack
from imgcls.images.sources import Batch, Source
from imgcls.system.resources import cores

Device = torch.device | None  # where batches go; None: they stay where they were fetched


def label_tensor(label: np.ndarray) -> Tensor:
    """Labels of a batch: classes (B,) int64, or of several labels an image (B, K) float32."""
    return torch.from_numpy(label.astype(np.float32) if label.ndim == 2 else label)


class BatchDataset(Dataset):
    """Whole batches of a part: a list of positions in, a batch with uint8 images out.

    Workers fetch a batch; the main process brings it to the device, and what it still lacks is made there.

    Attributes:
        resident: Whether the images are on the device already, so that there is nothing to fetch.

    Args:
        source: Where the images are.
        index: Which of them, (N,).
        resize_crop: How they are resized and cropped.
        go_on: For an image that cannot be read, put a blank one into the batch and the reason into its `broken`, a
            list of (number, reason); else the batch is the error.
        device: Where batches go. None: they stay where they were fetched.
        crop: Draws boxes, where the frame is random.
        seed: Of the boxes, with the number of an image in the source and that of the draw.
    """

    resident = False

    def __init__(
        self,
        source: Source,
        index: np.ndarray,
        resize_crop: ResizeCrop,
        go_on: bool = False,
        device: Device = None,
        crop: LoadingCrop | None = None,
        seed: int = 0,
    ) -> None:
        self.source, self.index, self.resize_crop, self.go_on = source, index, resize_crop, go_on
        self.device, self.crop, self.seed = device, crop if resize_crop.random else None, seed

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, positions: list[int]) -> Batch | UserError:
        index, boxes = self._asked(positions)
        broken: list[tuple[int, str]] = []
        try:
            fetched = self._fetched(index.tolist(), boxes)
        except UserError as error:  # raised in the main process, see Loader
            if not (self.go_on and isinstance(error, BrokenImage)):
                return error
            fetched = {"image": stack((self._image(number, broken) for number in index.tolist()), len(index))}
        batch = {**fetched, "label": label_tensor(self.source.label[index]), "index": torch.from_numpy(index)}
        return {**batch, "broken": broken} if broken else batch  # type: ignore[dict-item]

    def _asked(self, positions: list[int]) -> tuple[np.ndarray, list[BoxOf] | None]:
        """Numbers in the source (B,), and what draws a box of each; positions beyond N are further draws."""
        draw, position = np.divmod(np.asarray(positions), len(self.index))
        index = self.index[position]
        if self.crop is None:
            return index, None
        return index, [partial(self._box, *key) for key in zip(index.tolist(), draw.tolist(), strict=True)]

    def _box(self, number: int, draw: int, width: int, height: int) -> Box:
        assert self.crop is not None
        return self.crop.box(width, height, np.random.default_rng((self.seed, number, draw)))

    def _fetched(self, numbers: list[int], boxes: list[BoxOf] | None) -> Batch:
        return {"image": self.source.inputs(numbers, self.resize_crop, boxes)}

    def to_device(self, batch: Batch) -> Batch:
        """A fetched batch, complete and on the device."""
        return batch if self.device is None or self.device.type == "cpu" else move_data_to_device(batch, self.device)

    def _image(self, number: int, broken: list[tuple[int, str]]) -> Tensor:
        try:
            return self.source.images([number], self.resize_crop)[0]
        except BrokenImage as error:
            broken.append((number, error.reason))
            channels, side = self.resize_crop.channels, self.resize_crop.crop
            return torch.zeros(channels, side, side, dtype=torch.uint8)


def loader(dataset: BatchDataset, batches: Sampler, num_workers: int | None, every_core: bool = False) -> DataLoader:
    """A loader of a part's batches.

    Args:
        dataset: The part.
        batches: Positions of each batch.
        num_workers: Processes that decode. None: none for images in memory, else one per spare core, at most 8.
        every_core: The main process has little to do: one per core.
    """
    spare = 0 if dataset.source.in_memory else cores() if every_core else min(8, max(1, cores() - 1))
    workers = 0 if dataset.resident else spare if num_workers is None else num_workers
    return Loader(
        dataset,
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


class Loader(DataLoader):
    """Batches on the data set's device, fetched from when the first is asked for.

    Lightning asks for the iterator of a resumed run before it tells the sampler which epoch it is; processes that fetch
    ahead would take the images of another.

    Raises:
        UserError: What a worker met, so that the user sees one line and not a worker's traceback.
    """

    dataset: BatchDataset

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        yield from ahead(map(_checked, super().__iter__()), self.dataset.to_device, side_stream(self.dataset.device))


def _checked(batch: Batch | UserError) -> Batch:
    if isinstance(batch, UserError):
        raise batch
    return batch
