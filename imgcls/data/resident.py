"""Images that live on the device: `--data.cache=device`."""

import numpy as np
import torch
from torch import Tensor

from imgcls.data.batches import BatchDataset, loader
from imgcls.data.sampling import EvalBatches
from imgcls.errors import UserError
from imgcls.images.sources import Batch
from imgcls.system.resources import free_memory

CHUNK = 256  # images that are fetched together while the device is filled
GB = 1e9


class ResidentBatches(BatchDataset):
    """Batches of a part that is on the device as a whole: only positions travel, one copy (B,) int64 a batch.

    Args:
        dataset: The part, and its device. All of it is fetched now.
        num_workers: Processes that decode, see `loader`.

    Raises:
        UserError: The device has no room for it, or an image cannot be read.
    """

    resident = True

    def __init__(self, dataset: BatchDataset, num_workers: int | None) -> None:
        super().__init__(dataset.source, dataset.index, dataset.resize_crop, device=dataset.device)
        device = dataset.device or torch.device("cpu")
        number, label = torch.from_numpy(self.index), torch.from_numpy(self.source.label)
        self.held = {"label": label[number].to(device), "index": number.to(device)}
        start = 0
        for batch in loader(dataset, EvalBatches(len(number), CHUNK), num_workers):
            image = batch["image"]
            if "image" not in self.held:
                self.held["image"] = self._room_for(image, device)
            self.held["image"][start : start + len(image)] = image
            start += len(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # batches are picked on another stream

    def _room_for(self, image: Tensor, device: torch.device) -> Tensor:
        """A tensor like the first images (B, ...) for all of them, (N, ...), in their layout: layouts round apart."""
        count, shape = len(self.index), image.shape[1:]
        needed = count * image[0].nbytes
        torch.cuda.empty_cache()  # what this process gave back is free
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
        if 0 < free < needed:
            raise UserError(
                f"--data.cache=device: {count:,} images need {needed / GB:,.3g} GB, and {free / GB:,.3g} GB of the "
                f"memory of {device} are free; take --data.cache=memory, or a smaller --data.image_size"
            )
        layout = torch.contiguous_format if image.is_contiguous() else torch.channels_last
        return torch.empty((count, *shape), dtype=image.dtype, device=device, memory_format=layout)

    def holds(self, dataset: BatchDataset) -> bool:
        """Whether these are the images of a data set, on its device."""
        same = self.source is dataset.source and self.resize_crop == dataset.resize_crop
        return same and self.device == dataset.device and np.array_equal(self.index, dataset.index)

    def __getitem__(self, positions: list[int]) -> Batch:
        return {"position": torch.tensor(positions)}

    def to_device(self, batch: Batch) -> Batch:  # noqa: D102
        position = super().to_device(batch)["position"]
        return {name: held[position] for name, held in self.held.items()}  # in the layout of what is held
