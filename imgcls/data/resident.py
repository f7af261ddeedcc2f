"""Images that live on the device: `--data.cache=device`."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from imgcls.data.batches import BatchDataset, label_tensor, loader
from imgcls.data.sampling import EvalBatches
from imgcls.errors import UserError
from imgcls.images.boxes import Box, BoxOf, scaled, whole
from imgcls.images.decode import stack
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
        frame = dataset.resize_crop
        super().__init__(dataset.source, dataset.index, frame, False, dataset.device, dataset.crop, dataset.seed)
        if self.crop is not None:
            if not (frame.bound or self.source.in_memory):
                raise UserError(
                    "--data.cache=device: RandomResizedCrop takes crops from whole files, which --data.decoder=cuda "
                    "does not bring to a common size; take --data.decoder=cpu, or --data.cache=memory"
                )
            loaded = replace(frame, crop=0, random=not self.source.in_memory)
            kind = BatchDataset if self.source.in_memory else _WholeImages
            dataset = kind(self.source, self.index, loaded, device=self.device)
        self.sizes: list[tuple[int, int]] = []  # width and height of whole images
        device = dataset.device or torch.device("cpu")
        number, label = torch.from_numpy(self.index), label_tensor(self.source.label[self.index])
        self.held = {"label": label.to(device), "index": number.to(device)}
        start = 0
        for batch in loader(dataset, EvalBatches(len(number), CHUNK), num_workers):
            image = batch["image"]
            if "image" not in self.held:
                self.held["image"] = self._room_for(image, device)
            self.held["image"][start : start + len(image)] = image
            start += len(image)
            self.sizes += batch["size"].tolist() if "size" in batch else [image.shape[:1:-1]] * len(image)
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
        _, boxes = self._asked(positions)
        batch = {"position": torch.tensor(positions) % len(self.index)}
        if boxes is not None:
            shape = torch.Size((len(boxes), *self.held["image"].shape[1:]))
            sizes = [self.sizes[position] for position in batch["position"].tolist()]
            kept = [(min(width, shape[3]), min(height, shape[2])) for width, height in sizes]
            drawn = [scaled(box_of(*size), size, to) for box_of, size, to in zip(boxes, sizes, kept, strict=True)]
            batch |= self.crop.plan({"box": torch.tensor(drawn)}, shape)  # type: ignore[union-attr]
        return batch

    def to_device(self, batch: Batch) -> Batch:  # noqa: D102
        batch = super().to_device(batch)
        found = {name: held[batch["position"]] for name, held in self.held.items()}  # in the layout of what is held
        if self.crop is not None:
            found["image"], _ = self.crop.transform_on_device(found["image"], found["label"], batch)
        return found


class _WholeImages(BatchDataset):
    """Whole images, each in the corner of a square of the frame's bound, and their sizes before they had one."""

    def _fetched(self, numbers: list[int], boxes: list[BoxOf] | None) -> Batch:
        sizes: list[tuple[int, int]] = []

        def all_of_it(width: int, height: int) -> Box:
            sizes.append((width, height))
            return whole(width, height)

        side = self.resize_crop.bound
        images = (self.source.crop(number, self.resize_crop, all_of_it) for number in numbers)
        squares = (pad(image, (0, side - image.shape[2], 0, side - image.shape[1])) for image in images)
        return {"image": stack(squares, len(numbers)), "size": torch.tensor(sizes)}
