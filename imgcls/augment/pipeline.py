from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import kornia.augmentation as K  # noqa: N812
import torch
from kornia.augmentation._2d.geometric.base import GeometricAugmentationBase2D
from kornia.augmentation.container.base import ImageSequentialBase
from torch import Tensor, nn

from imgcls.augment.base import Augmentation, ByImage, LoadingCrop, Sampled, moved, on_device, soft, to_float
from imgcls.augment.color import ColorJitter
from imgcls.augment.erasing import RandomErasing
from imgcls.augment.mixing import EitherMixing, Mixing, Per, draws
from imgcls.augment.warp import Warp
from imgcls.system.allocator import keep_freed_memory

# of Kornia's: what does the same to each channel, whatever their number; some others do nothing then, in silence
PER_CHANNEL = (
    *(GeometricAugmentationBase2D, K.RandomElasticTransform, K.RandomFisheye, K.RandomThinPlateSpline),
    *(K.RandomAutoContrast, K.RandomBrightness, K.RandomClahe, K.RandomContrast, K.RandomEqualize, K.RandomGamma),
    *(K.RandomInvert, K.RandomPosterize, K.RandomSolarize, K.RandomSharpness, K.RandomGaussianNoise),
    *(K.RandomBoxBlur, K.RandomGaussianBlur, K.RandomMedianBlur, K.RandomMotionBlur, K.RandomErasing),
)
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

    def refused(self, channels: int) -> list[str]:  # noqa: D102
        return [name for operation in self.operations for name in operation.refused(channels)]  # type: ignore[operator]


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

    @property
    def loading_crop(self) -> LoadingCrop | None:  # noqa: D102
        first = next(iter(self.operations), None)
        return first if isinstance(first, LoadingCrop) else None

    @cached_property
    def after_loading(self) -> "Pipeline":  # type: ignore[override]  # noqa: D102
        return Pipeline(list(self.operations[1:])) if self.loading_crop else self  # type: ignore[arg-type]

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) uint8 or float32; float32 in [0, 1] if an operation computed, else unchanged."""
        return self.normalized(image, label, nn.Identity())

    def normalized(  # noqa: D102
        self, image: Tensor, label: Tensor, normalize: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        if image.device.type != "cpu":
            for sampled, group in groupby(self.operations, lambda operation: isinstance(operation, Sampled)):
                operations: list[Any] = list(group)
                if sampled:
                    image, label = on_device(operations, image, label)
                else:
                    image, label = one_by_one(operations, image, label)
            return normalize(image), label
        done = False
        for by_image, group in groupby(self.operations, lambda operation: isinstance(operation, ByImage)):
            operations = list(group)
            if by_image:
                done = operations[-1] is self.operations[-1]  # then a part is normalised while it is in the cache
                image = in_parts(image, operations, normalize if done else nn.Identity())
            else:
                image, label = one_by_one(operations, image, label)
        return image if done else normalize(image), label


def one_by_one(operations: Sequence[Augmentation], image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Apply operations to a batch; images turn to float32 before the first that needs it."""
    for operation in operations:
        image, label = operation(image if operation.on_uint8 else to_float(image), label)
    return image, label


def in_parts(image: Tensor, operations: Sequence[ByImage], normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply operations, then `normalize`, to images (B, C, H, W) on the CPU, uint8 or float32, part by part.

    Random parameters are sampled once for the whole batch.
    """
    shape, sampled = image.shape, []
    for operation in operations:
        parameters, shape = operation.sample(shape)
        sampled.append(parameters)
    size = max(1, PART // (4 * image[:1].numel()))
    result = torch.empty(0)
    for start in range(0, len(image), size):
        here = slice(start, start + size)
        # a copy even of float images, which may be overwritten: reading them in order also brings them into the cache
        part = image[here].clone() if operations[0].on_uint8 or image.dtype != torch.uint8 else image[here]
        for operation, parameters in zip(operations, sampled, strict=True):
            mine = {name: value[here] if isinstance(value, Tensor) else value for name, value in parameters.items()}
            part = operation.change(part if operation.on_uint8 else to_float(part), mine)
        part = normalize(part)
        if len(part) == len(image):
            return part
        if start == 0:
            order = torch.channels_last if part.stride(1) == 1 else torch.contiguous_format
            result = torch.empty(shape, dtype=part.dtype, memory_format=order)
        result[here] = part
    return result


class Kornia(Augmentation):
    """An operation of Kornia's, unchanged."""

    def __init__(self, operation: K.AugmentationBase2D | ImageSequentialBase) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32 in [0, 1]."""
        return self.operation(image), label

    def refused(self, channels: int) -> list[str]:  # noqa: D102
        return _refused(self.operation)


def _refused(operation: nn.Module) -> list[str]:
    if type(operation) in (K.AugmentationSequential, K.ImageSequential, K.PatchSequential):
        return [name for child in operation.children() for name in _refused(child)]
    return [] if isinstance(operation, PER_CHANNEL) else [f"Kornia's {type(operation).__name__}"]


class OneOf(Several):
    """Each image, or each batch, takes one of several operations, with equal probability.

    Args:
        operations: The augmentations to choose from.
        per: What has a choice of its own; images with the same one go together.
    """

    def __init__(self, operations: Sequence[Augmentation], per: Per = "image") -> None:
        super().__init__(operations)
        self.per = per

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32, label (B,) or (B, K); returns labels (B, K)."""
        choice = torch.randint(len(self.operations), (draws(self.per, image.shape),)).expand(len(image))
        image, label = image.clone(), soft(label, self.num_classes).clone()
        places = moved([(choice == k).nonzero()[:, 0] for k in range(len(self.operations))], image.device)
        for operation, chosen in zip(self.operations, places, strict=True):
            if len(chosen):
                image[chosen], label[chosen] = operation(image[chosen], label[chosen])
        return image, label


FASTER: dict[type, Callable[[Any], Augmentation]] = {
    K.ColorJitter: ColorJitter.like,
    K.RandomErasing: RandomErasing.like,
}


def fused(operations: Sequence[Augmentation | K.AugmentationBase2D | ImageSequentialBase]) -> list[Augmentation]:
    """The same operations in fewer steps: neighbouring geometric ones of Kornia's are one, and so are mixing ones."""
    steps: list[Augmentation] = []
    for geometric, group in groupby(operations, Warp.takes):
        several: list[Any] = list(group)
        steps += [Warp(several)] if geometric else map(_faster, several)
    return steps


def _faster(operation: Augmentation | K.AugmentationBase2D | ImageSequentialBase) -> Augmentation:
    if isinstance(operation, OneOf) and all(isinstance(one, Mixing) for one in operation.operations):
        return EitherMixing(list(operation.operations), operation.per)  # type: ignore[arg-type]
    return operation if isinstance(operation, Augmentation) else FASTER.get(type(operation), Kornia)(operation)
