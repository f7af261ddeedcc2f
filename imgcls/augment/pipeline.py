from collections.abc import Callable, Sequence
from itertools import groupby

import torch
from kornia.augmentation import AugmentationBase2D
from kornia.augmentation import ColorJitter as KorniaColorJitter
from kornia.augmentation import RandomErasing as KorniaRandomErasing
from kornia.augmentation.container.base import ImageSequentialBase
from torch import Tensor, nn

from imgcls.augment.base import Augmentation, ByImage, soft
from imgcls.augment.color import ColorJitter
from imgcls.augment.erasing import RandomErasing
from imgcls.augment.warp import Warp
from imgcls.system.allocator import keep_freed_memory

PART = 5 << 19  # bytes: float images that stay in a processor's cache while several operations go over them


class Pipeline(Augmentation):
    """Operations one after the other, on the device: our own and Kornia's.

    Kornia's are carried out faster where we know how, with Kornia's own parameters and results: neighbouring
    geometric operations with one interpolation (see Warp), colour and erasing in fewer passes. Making a pipeline sets
    the process's allocator (see `imgcls.system.allocator`, also for how to leave it).

    Args:
        operations: Applied in this order. Those that only index (crop, flip) come first on uint8 images; the
            batch turns to float32 in [0, 1] before the first that computes.
        margin: Training images are loaded this much larger than the model expects, for a crop to choose from.
        compile: Compile what gains by it, the rotation of hue; that takes seconds, on a CPU a C++ compiler, and gains
            little there. Results differ by rounding from those without, so a run is resumed with the same setting.
    """

    on_uint8 = True

    def __init__(
        self,
        operations: Sequence[Augmentation | AugmentationBase2D | ImageSequentialBase] = (),
        margin: float = 1.0,
        compile: bool = False,
    ) -> None:
        super().__init__()
        keep_freed_memory()
        self.operations = nn.ModuleList(fused(operations))
        self.margin = margin
        if compile:
            self.compile_kernels()

    def configure(self, size: int, num_classes: int) -> None:  # noqa: D102
        super().configure(size, num_classes)
        for operation in self.operations:
            operation.configure(size, num_classes)  # type: ignore[operator]

    def compile_kernels(self) -> None:  # noqa: D102
        for operation in self.operations:
            operation.compile_kernels()  # type: ignore[operator]

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) uint8 or float32; float32 in [0, 1] if an operation computed, else unchanged."""
        return self._run(image, label, None)

    def normalized(  # noqa: D102
        self, image: Tensor, label: Tensor, normalize: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        return self._run(image, label, normalize)

    def _run(self, image: Tensor, label: Tensor, normalize: Callable[[Tensor], Tensor] | None) -> tuple[Tensor, Tensor]:
        for by_image, group in groupby(self.operations, lambda operation: isinstance(operation, ByImage)):
            operations = list(group)
            if by_image:
                is_last = operations[-1] is self.operations[-1]
                image = in_parts(image, operations, normalize if is_last else None)  # type: ignore[arg-type]
                normalize = None if is_last else normalize
                continue
            for operation in operations:
                image, label = operation(image if operation.on_uint8 else _to_float(image), label)
        return (image if normalize is None else normalize(image)), label


def in_parts(
    image: Tensor, operations: Sequence[ByImage], normalize: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Images (B, C, H, W), uint8 or float32, after operations, sampled once for all of them, and normalisation."""
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
        part = part if normalize is None else normalize(part)
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
    """An operation of Kornia's as it is."""

    def __init__(self, operation: AugmentationBase2D | ImageSequentialBase) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32 in [0, 1]."""
        return self.operation(image), label


def fused(operations: Sequence[Augmentation | AugmentationBase2D | ImageSequentialBase]) -> list[Augmentation]:
    """The same operations in fewer steps: neighbouring geometric ones of Kornia's are one."""
    steps: list[Augmentation] = []
    for operation in operations:
        if Warp.takes(operation):
            before = steps.pop() if steps and isinstance(steps[-1], Warp) else None
            steps.append(Warp([*(before.operations if isinstance(before, Warp) else ()), operation]))  # type: ignore
        elif type(operation) is KorniaColorJitter:
            steps.append(ColorJitter.like(operation))
        elif type(operation) is KorniaRandomErasing:
            steps.append(RandomErasing.like(operation))
        else:
            steps.append(operation if isinstance(operation, Augmentation) else Kornia(operation))
    return steps


class OneOf(Augmentation):
    """Each image takes one of several operations, with equal probability; images with the same one go together."""

    def __init__(self, operations: Sequence[Augmentation]) -> None:
        super().__init__()
        self.operations = nn.ModuleList(operations)

    def configure(self, size: int, num_classes: int) -> None:  # noqa: D102
        super().configure(size, num_classes)
        for operation in self.operations:
            operation.configure(size, num_classes)  # type: ignore[operator]

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32, label (B,) or (B, K); returns labels (B, K)."""
        choice = torch.randint(len(self.operations), (len(image),))
        image, label = image.clone(), soft(label, self.num_classes).clone()
        for number, operation in enumerate(self.operations):
            chosen = (choice == number).nonzero()[:, 0].to(image.device)
            if len(chosen):
                image[chosen], label[chosen] = operation(image[chosen], label[chosen])
        return image, label
