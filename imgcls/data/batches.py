"""Whole batches of images, and the loader that fetches them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from imgcls.errors import UserError
from imgcls.images.decode import BrokenImage, ResizeCrop, stack
from imgcls.images.sources import Batch, Source
from imgcls.system.resources import cores


class BatchDataset(Dataset):
    """Whole batches of a part: a list of positions in, a batch with uint8 images out.

    Args:
        source: Where the images are.
        index: Which of them, (N,).
        resize_crop: How they are resized and cropped.
        go_on: For an image that cannot be read, put a blank one into the batch and the reason into its `broken`, a
            list of (number, reason); else the batch is the error.
    """

    def __init__(self, source: Source, index: np.ndarray, resize_crop: ResizeCrop, go_on: bool = False) -> None:
        self.source, self.index, self.resize_crop, self.go_on = source, index, resize_crop, go_on

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, positions: list[int]) -> Batch | UserError:
        index = self.index[positions]
        broken: list[tuple[int, str]] = []
        try:
            image = self.source.inputs(index.tolist(), self.resize_crop)
        except UserError as error:  # raised in the main process, see on_before_batch_transfer
            if not (self.go_on and isinstance(error, BrokenImage)):
                return error
            image = stack([self._image(number, broken) for number in index.tolist()])
        batch = {
            "image": image,
            "label": torch.from_numpy(self.source.label[index]),
            "index": torch.from_numpy(index),
        }
        return {**batch, "broken": broken} if broken else batch  # type: ignore[dict-item]

    def _image(self, number: int, broken: list[tuple[int, str]]) -> Tensor:
        try:
            return self.source.images([number], self.resize_crop)[0]
        except BrokenImage as error:
            broken.append((number, error.reason))
            channels, side = self.resize_crop.channels, self.resize_crop.crop
            return torch.zeros(channels, side, side, dtype=torch.uint8)


def loader(dataset: BatchDataset, batches: Sampler, num_workers: int | None) -> DataLoader:
    """A loader of a part's batches.

    Args:
        dataset: The part.
        batches: Positions of each batch.
        num_workers: Processes that decode. None: none for images in memory, else one per spare core, at most 8.
    """
    spare = 0 if dataset.source.in_memory else min(8, max(1, cores() - 1))
    workers = spare if num_workers is None else num_workers
    return Loader(
        dataset,
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


class Loader(DataLoader):
    """Begins to fetch when the first batch is asked for.

    Lightning asks for the iterator of a resumed run before it tells the sampler which epoch it is; processes that fetch
    ahead would take the images of another.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        yield from super().__iter__()
