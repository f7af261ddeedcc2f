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
from imgcls.augment.policy import AutoAugment, RandAugment, TorchvisionRandAugment, TrivialAugmentWide
from imgcls.augment.warp import AFFINE, FLIPS, Warp

Way = Callable[[Tensor, Tensor], Any]
Counterparts = dict[type, Callable[[Any], Any]]
"""By the class of one of our operations, or of one that a `Warp` holds: what makes another library's of it."""


def stock_kornia(augment: Augmentation | None, mean: list[float], std: list[float]) -> Way | None:
    """Kornia's own operations on float images; None if one of ours has no counterpart there."""
    operations = _operations(augment, KORNIA)
    gray_jitter = len(mean) == 1 and any(isinstance(o, K.ColorJitter) for o in operations or ())
    if operations is None or gray_jitter:  # Kornia's jitter takes RGB only
        return None
    normalize = K.Normalize(torch.tensor(mean), torch.tensor(std))
    run = K.AugmentationSequential(*operations, normalize, data_keys=["input"])
    return torch.no_grad()(lambda image, label: run(image.float() / 255))


def torchvision_per_sample(augment: Augmentation | None, mean: list[float], std: list[float]) -> Way | None:
    """The v2 transforms of torchvision on uint8 tensors, one image after the other; None without a counterpart."""
    operations = _operations(augment, TORCHVISION)
    if operations is None:
        return None
    run = v2.Compose([*operations, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    return torch.no_grad()(lambda image, label: torch.stack([run(one) for one in image.cpu()]))


def _operations(augment: Augmentation | None, counterparts: Counterparts) -> list[Any] | None:
    if not isinstance(augment, Pipeline):
        return None
    given = [o for step in augment.operations for o in (step.operations if isinstance(step, Warp) else [step])]  # type: ignore[union-attr]
    if not all(type(operation) in counterparts for operation in given):
        return None
    return [counterparts[type(operation)](operation) for operation in given]


def _torchvision_rotation(operation: Any) -> v2.Transform:
    degrees = operation._param_generator.sampler_dict["degrees"]
    rotation = v2.RandomRotation([float(degrees.low), float(degrees.high)], v2.InterpolationMode.BILINEAR)
    return v2.RandomApply([rotation], p=operation.p)


def _torchvision_jitter(operation: ColorJitter) -> v2.Transform:
    own = operation.kornia
    return v2.RandomApply([v2.ColorJitter(own.brightness, own.contrast, own.saturation, own.hue)], p=own.p)


KORNIA: Counterparts = {
    **dict.fromkeys((*FLIPS, *AFFINE, K.RandomResizedCrop), lambda o: o),
    Kornia: lambda o: o.operation,
    RandomCrop: lambda o: K.RandomCrop((o.size, o.size), padding=round(o.padding * o.size), padding_mode=o.mode),
    RandomHorizontalFlip: lambda o: K.RandomHorizontalFlip(p=o.p),
    RandomResizedCrop: lambda o: K.RandomResizedCrop((o.size, o.size), scale=o.scale, ratio=o.ratio),
    **dict.fromkeys((ColorJitter, RandomErasing), lambda o: o.kornia),
    TrivialAugmentWide: lambda o: K.auto.TrivialAugment(),  # one operation for the whole batch
    RandAugment: lambda o: K.auto.RandAugment(o.count, 9),
}
TORCHVISION: Counterparts = {
    K.RandomRotation: _torchvision_rotation,
    **dict.fromkeys((K.RandomHorizontalFlip, RandomHorizontalFlip), lambda o: v2.RandomHorizontalFlip(o.p)),
    K.RandomVerticalFlip: lambda o: v2.RandomVerticalFlip(o.p),
    K.RandomResizedCrop: lambda o: v2.RandomResizedCrop(o.flags["size"], antialias=True),
    RandomCrop: lambda o: v2.RandomCrop(o.size, padding=round(o.padding * o.size), padding_mode=o.mode),
    RandomResizedCrop: lambda o: v2.RandomResizedCrop(o.size, o.scale, o.ratio, antialias=True),
    ColorJitter: _torchvision_jitter,
    RandomErasing: lambda o: v2.RandomErasing(o.kornia.p, o.kornia.scale, o.kornia.ratio),
    TrivialAugmentWide: lambda o: v2.TrivialAugmentWide(),
    TorchvisionRandAugment: lambda o: v2.RandAugment(o.count, o.magnitude),
    AutoAugment: lambda o: v2.AutoAugment(v2.AutoAugmentPolicy(o.policy)),
    RandAugment: lambda o: v2.RandAugment(o.count, 9),
}
