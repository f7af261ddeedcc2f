"""The same augmentation as others carry it out, to compare with: stock Kornia, and torchvision image by image."""

from collections.abc import Callable
from typing import Any

import kornia.augmentation as K  # noqa: N812
import torch
from torch import Tensor
from torchvision.transforms import v2

from imgcls.augment.base import Augmentation
from imgcls.augment.color import ColorJitter
from imgcls.augment.crop import RandomCrop, RandomHorizontalFlip, RandomResizedCrop
from imgcls.augment.erasing import RandomErasing
from imgcls.augment.pipeline import Kornia, Pipeline
from imgcls.augment.policy import RandAugment, TrivialAugmentWide
from imgcls.augment.warp import Warp

Way = Callable[[Tensor, Tensor], Any]


def stock_kornia(augment: Augmentation | None, mean: list[float], std: list[float]) -> Way | None:
    """Kornia's own operations on float images; None if one of ours has no counterpart there."""
    operations = _operations(augment, _as_kornia)
    gray_jitter = len(mean) == 1 and any(isinstance(o, K.ColorJitter) for o in operations or ())
    if operations is None or gray_jitter:  # Kornia's jitter takes RGB only
        return None
    operations.append(K.Normalize(torch.tensor(mean), torch.tensor(std)))
    run = K.AugmentationSequential(*operations, data_keys=["input"])

    @torch.no_grad()
    def way(image: Tensor, label: Tensor) -> Tensor:
        return run(image.float() / 255)

    return way


def torchvision_per_sample(augment: Augmentation | None, mean: list[float], std: list[float]) -> Way | None:
    """The v2 transforms of torchvision on uint8 tensors, one image after the other; None without a counterpart."""
    operations = _operations(augment, _as_torchvision)
    if operations is None:
        return None
    erasing = [o for o in operations if isinstance(o, v2.RandomErasing)]
    before = [o for o in operations if not isinstance(o, v2.RandomErasing)]
    to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    run = v2.Compose([*before, *to_float, *erasing])

    @torch.no_grad()
    def way(image: Tensor, label: Tensor) -> Tensor:
        return torch.stack([run(one) for one in image.cpu()])

    return way


def _operations(augment: Augmentation | None, convert: Callable[[Any], list[Any] | None]) -> list[Any] | None:
    if not isinstance(augment, Pipeline):
        return None
    converted: list[Any] = []
    for operation in augment.operations:
        other = convert(operation)
        if other is None:
            return None
        converted += other
    return converted


def _as_kornia(operation: Any) -> list[Any] | None:
    match operation:
        case Warp():
            return list(operation.operations)
        case Kornia():
            return [operation.operation]
        case RandomCrop():
            pad = round(operation.padding * operation.size)
            mode = "constant" if operation.mode == "constant" else "reflect"
            return [K.RandomCrop((operation.size,) * 2, padding=pad, padding_mode=mode)]
        case RandomHorizontalFlip():
            return [K.RandomHorizontalFlip(p=operation.p)]
        case RandomResizedCrop():
            return [K.RandomResizedCrop((operation.size,) * 2, scale=operation.scale, ratio=operation.ratio)]
        case ColorJitter() | RandomErasing():
            return [operation.kornia]
        case TrivialAugmentWide():
            return [K.auto.TrivialAugment()]  # one operation for the whole batch
        case RandAugment():
            return [K.auto.RandAugment(operation.count, 9)]
    return None


def _as_torchvision(operation: Any) -> list[Any] | None:
    match operation:
        case Warp():
            each = [_as_torchvision(inner) for inner in operation.operations]
            return None if None in each else [o for one in each for o in one or ()]
        case K.RandomRotation():
            generator: Any = operation._param_generator
            drawn = generator.sampler_dict["degrees"]
            rotation = v2.RandomRotation([float(drawn.low), float(drawn.high)], v2.InterpolationMode.BILINEAR)
            return [v2.RandomApply([rotation], p=operation.p)]
        case K.RandomHorizontalFlip() | RandomHorizontalFlip():
            return [v2.RandomHorizontalFlip(operation.p)]
        case K.RandomVerticalFlip():
            return [v2.RandomVerticalFlip(operation.p)]
        case K.RandomResizedCrop():
            return [v2.RandomResizedCrop(operation.flags["size"], antialias=True)]
        case RandomCrop():
            return [v2.RandomCrop(operation.size, padding=round(operation.padding * operation.size))]
        case RandomResizedCrop():
            return [v2.RandomResizedCrop(operation.size, operation.scale, operation.ratio, antialias=True)]
        case ColorJitter():
            own = operation.kornia
            jitter = v2.ColorJitter(own.brightness, own.contrast, own.saturation, own.hue)
            return [v2.RandomApply([jitter], p=own.p)]
        case RandomErasing():
            return [v2.RandomErasing(operation.kornia.p, operation.kornia.scale, operation.kornia.ratio)]
        case TrivialAugmentWide():
            return [v2.TrivialAugmentWide()]
        case RandAugment():
            return [v2.RandAugment(operation.count, 9)]
    return None
