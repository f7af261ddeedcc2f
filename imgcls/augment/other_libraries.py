"""The same augmentation as others carry it out, to compare with: stock Kornia, and torchvision image by image."""

import random
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
from imgcls.augment.mixing import CutMix, EitherMixing, MixUp
from imgcls.augment.pipeline import Kornia, Pipeline
from imgcls.augment.policy import AugMix, AutoAugment, RandAugment, TorchvisionRandAugment, TrivialAugmentWide
from imgcls.augment.warp import AFFINE, FLIPS, Warp

Way = Callable[[Tensor, Tensor], Any]
Counterparts = dict[type, Callable[[Any], Any]]
"""By the class of one of our operations, or of one that a `Warp` holds: what makes another library's of it."""


def stock_kornia(augment: Augmentation | None, mean: list[float], std: list[float]) -> Way | None:
    """Kornia's own operations on float images; None if one of ours has no counterpart there."""
    operations, mixing = _operations(augment, KORNIA)
    gray_jitter = len(mean) != 3 and any(isinstance(o, K.ColorJitter) for o in operations or ())
    if operations is None or gray_jitter:  # Kornia's jitter takes RGB only
        return None
    normalize = K.Normalize(torch.tensor(mean), torch.tensor(std))
    run = K.AugmentationSequential(*operations, normalize, data_keys=["input"])
    keys: list[Any] = ["input", "class"]
    cut = K.RandomCutMixV2(data_keys=keys, use_correct_lambda=True)
    mix = [cut if isinstance(o, CutMix) else K.RandomMixUpV2(data_keys=keys) for o in mixing]
    return torch.no_grad()(lambda image, label: _one_of(mix, run(image.float() / 255), label))


def torchvision_per_sample(augment: Augmentation | None, mean: list[float], std: list[float]) -> Way | None:
    """The v2 transforms of torchvision on uint8 tensors where they are, image by image; None without a counterpart."""
    operations, mixing = _operations(augment, TORCHVISION)
    if operations is None:
        return None
    run = v2.Compose([*operations, v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    classes = augment.num_classes if mixing else 0  # type: ignore[union-attr]
    mix = [(v2.CutMix if isinstance(o, CutMix) else v2.MixUp)(alpha=o.alpha, num_classes=classes) for o in mixing]
    return torch.no_grad()(lambda image, label: _one_of(mix, torch.stack([run(one) for one in image]), label))


def _one_of(mix: list[Any], image: Tensor, label: Tensor) -> Any:
    """Theirs choose one for a whole batch."""
    # of several labels an image one stands for all: Kornia mixes no others, and images are what takes the time
    return random.choice(mix)(image, label if label.ndim == 1 else label.argmax(1)) if mix else image


def _operations(augment: Augmentation | None, counterparts: Counterparts) -> tuple[list[Any] | None, list[Any]]:
    """Counterparts of all that changes single images, if there are, and what mixes images after it."""
    if not isinstance(augment, Pipeline):
        return None, []
    steps = list(augment.operations)
    last = steps[-1] if steps else None
    mixing: list[Any] = list(last.operations) if isinstance(last, EitherMixing) else [last]
    mixing = mixing if all(isinstance(one, MixUp | CutMix) for one in mixing) else []
    steps = steps[:-1] if mixing else steps
    given = [o for step in steps for o in (step.operations if isinstance(step, Warp) else [step])]  # type: ignore[union-attr]
    if not all(type(operation) in counterparts for operation in given):
        return None, []
    return [counterparts[type(operation)](operation) for operation in given], mixing


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
    AugMix: lambda o: v2.AugMix(round(o.severity), o.width, o.depth, o.alpha),
    RandAugment: lambda o: v2.RandAugment(o.count, 9),
}
