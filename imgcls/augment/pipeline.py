from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import kornia.augmentation as K  # noqa: N812
import torch
from kornia.augmentation.container.base import ImageSequentialBase
from torch import Tensor, nn

from imgcls.augment.base import Augmentation, ByImage, soft
from imgcls.augment.color import ColorJitter
from imgcls.augment.erasing import RandomErasing
from imgcls.augment.warp import Warp
from imgcls.system.allocator import keep_freed_memory

PART = 5 << 19  # bytes: float images that stay in a processor's cache while several operations go over them


class Several(Augmentation):
    """Holds other augmentations and configures them with itself."""

    def __init__(self, operations: Sequence[Augmentation]) -> None:
        super().__init__()
        self.operations = nn.ModuleList(operations)

    def configure(self, size: int, num_classes: int) -> None:  # noqa: D102
        super().configure(size, num_classes)
        for operation in self.operations:
            operation.configure(size, num_classes)  # type: ignore[operator]


class Pipeline(Several):
    """Operations one after the other, on the device: our own and Kornia's.

    Kornia's are carried out faster where we know how, with Kornia's own parameters and results: neighbouring
    geometric operations with one interpolation (see Warp), colour and erasing in fewer passes. Making a pipeline sets
    the process's allocator (see `imgcls.system.allocator`, also for how to leave it).

    Args:
        operations: Applied in this order. Those that only index (crop, flip) come first on uint8 images; the
            batch turns to float32 in [0, 1] before the first that computes.
        margin: Training images are loaded this much larger than the model expects, for a crop to choose from.
    """

    on_uint8 = True

    def __init__(
        self, operations: Sequence[Augmentation | K.AugmentationBase2D | ImageSequentialBase] = (), margin: float = 1.0
    ) -> None:
        super().__init__(fused(operations))
        keep_freed_memory()
        self.margin = margin

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) uint8 or float32; float32 in [0, 1] if an operation computed, else unchanged."""
        return self.normalized(image, label, nn.Identity())

    def normalized(  # noqa: D102
        self, image: Tensor, label: Tensor, normalize: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        done = False
        for by_image, group in groupby(self.operations, lambda operation: isinstance(operation, ByImage)):
            operations: list[Any] = list(group)
            if by_image:
                done = operations[-1] is self.operations[-1]  # then a part is normalised while it is in the cache
                image = in_parts(image, operations, normalize if done else nn.Identity())
            else:
                for operation in operations:
                    image, label = operation(image if operation.on_uint8 else _to_float(image), label)
        return image if done else normalize(image), label


def in_parts(image: Tensor, operations: Sequence[ByImage], normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply operations, then `normalize`, to images (B, C, H, W), uint8 or float32; on a CPU part by part.

    Random parameters are sampled once for the whole batch.
    """
    shape, changes = image.shape, []
    for operation in operations:
        change, shape = operation.sample(shape)
        changes.append(change)
    computes = not all(operation.on_uint8 for operation in operations)
    size = max(1, PART // (4 * image[:1].numel())) if image.device.type == "cpu" else len(image)
    result = torch.empty(0)
    for start in range(0, len(image), size):
        here = slice(start, start + size)
        # a copy even of float images, which may be overwritten: reading them in order also brings them into the cache
        part = _to_float(image[here]) if computes and image.dtype == torch.uint8 else image[here].clone()
        for change in changes:
            part = change(part, here)
        part = normalize(part)
        if len(part) == len(image):
            return part
        if start == 0:
            order = torch.channels_last if part.stride(1) == 1 else torch.contiguous_format
            result = torch.empty(shape, dtype=part.dtype, memory_format=order)
        result[here] = part
    return result


def _to_float(image: Tensor) -> Tensor:
    """In [0, 1]; channel by channel, as colour operations go."""
    return image.float().contiguous().mul_(1 / 255) if image.dtype == torch.uint8 else image


class Kornia(Augmentation):
    """An operation of Kornia's, unchanged."""

    def __init__(self, operation: K.AugmentationBase2D | ImageSequentialBase) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32 in [0, 1]."""
        return self.operation(image), label


FASTER: dict[type, Callable[[Any], Augmentation]] = {
    K.ColorJitter: ColorJitter.like,
    K.RandomErasing: RandomErasing.like,
}


def fused(operations: Sequence[Augmentation | K.AugmentationBase2D | ImageSequentialBase]) -> list[Augmentation]:
    """The same operations in fewer steps: neighbouring geometric ones of Kornia's are one."""
    steps: list[Augmentation] = []
    for geometric, group in groupby(operations, Warp.takes):
        if geometric:
            steps.append(Warp(list(group)))  # type: ignore[arg-type]
        else:
            steps += [o if isinstance(o, Augmentation) else FASTER.get(type(o), Kornia)(o) for o in group]
    return steps


class OneOf(Several):
    """Each image takes one of several operations, with equal probability; images with the same one go together.

    Args:
        operations: The augmentations to choose from.
    """

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32, label (B,) or (B, K); returns labels (B, K)."""
        choice = torch.randint(len(self.operations), (len(image),))
        image, label = image.clone(), soft(label, self.num_classes).clone()
        for number, operation in enumerate(self.operations):
            chosen = (choice == number).nonzero()[:, 0].to(image.device)
            if len(chosen):
                image[chosen], label[chosen] = operation(image[chosen], label[chosen])
        return image, label
