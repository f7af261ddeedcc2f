"""Each preset of configs/augment as its users would build it from torchvision's or timm's own transforms."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import NAME_TO_OP, posterize, rand_augment_transform
from torch import Tensor
from torchvision.transforms import v2

from imgcls.data.base import ImageDataModule

Transform = Callable[[Image], Tensor]
"""A PIL image of any size to a normalised one, (C, S, S) float32."""
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Normalised images (B, C, S, S) and labels (B,) int64 to mixed ones and labels (B, K) float32."""


@dataclass(frozen=True)
class Peer:
    """A preset by somebody else's transforms.

    Attributes:
        words: Whose transforms they are, for the table.
        build: What is done to each image, and with a batch, for images as a data module has them.
    """

    words: str
    build: Callable[[ImageDataModule], tuple[Transform, Mix | None]]


def tensor(data: ImageDataModule, *before: v2.Transform) -> list[v2.Transform]:
    """Last steps of torchvision's pipelines: a float tensor, what changes it in 0..1, and normalisation."""
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), *before, v2.Normalize(data.mean, data.std)]


def padded(
    words: str, *steps: Any, erasing: tuple[v2.Transform, ...] = (), mixup: float = 0, cutmix: float = 0
) -> Peer:
    """Images padded by an eighth, cropped and mirrored, then `steps`; timm mixes images, each with its own partner."""

    def build(data: ImageDataModule) -> tuple[Transform, Mix | None]:
        size, mix = data.image_size, None
        first = [v2.RandomCrop(size, padding=round(size / 8)), v2.RandomHorizontalFlip()]
        if mixup or cutmix:
            mix = Mixup(mixup, cutmix, mode="elem", label_smoothing=0, num_classes=data.num_classes)
        return v2.Compose([*first, *steps, *tensor(data, *erasing)]), mix

    return Peer(words, build)


def timm_recipe(
    words: str, mixup: float = 0, cutmix: float = 0, color_jitter: float | None = None, **options: Any
) -> Peer:
    """What timm's training script builds, with MixUp and CutMix for a batch."""

    def build(data: ImageDataModule) -> tuple[Transform, Mix | None]:
        size = (data.channels, data.image_size, data.image_size)
        frame = {"mean": data.mean, "std": data.std, "interpolation": data.interpolation}
        transform = create_transform(size, is_training=True, color_jitter=color_jitter, **frame, **options)
        mix = Mixup(mixup, cutmix, mode="batch", label_smoothing=0, num_classes=data.num_classes) if mixup else None
        return transform, mix

    return Peer(words, build)


def plain(*steps: v2.Transform) -> Callable[[ImageDataModule], tuple[Transform, None]]:
    """Images of the right size, with these steps."""
    return lambda data: (v2.Compose([*steps, *tensor(data)]), None)


def cropped(data: ImageDataModule) -> tuple[Transform, None]:
    """A random area of at least a quarter, then a flip."""
    crop = v2.RandomResizedCrop(data.image_size, (0.25, 1.0), interpolation=v2.InterpolationMode(data.interpolation))
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *tensor(data)]), None


def torchvision_reference(data: ImageDataModule) -> tuple[Transform, Mix]:
    """As torchvision's references/classification has it."""
    mode = v2.InterpolationMode.BILINEAR
    first = [v2.RandomResizedCrop(data.image_size, interpolation=mode), v2.RandomHorizontalFlip()]
    last = [v2.TrivialAugmentWide(interpolation=mode), *tensor(data), v2.RandomErasing(0.1)]
    kinds = [v2.MixUp(alpha=0.2, num_classes=data.num_classes), v2.CutMix(alpha=1.0, num_classes=data.num_classes)]
    return v2.Compose([*first, *last]), v2.RandomChoice(kinds)


class ShortTrivialAugment(v2.TrivialAugmentWide):
    """Torchvision's, with the translations of 224 pixels (at most 32) as a share of the side."""

    _AUGMENTATION_SPACE = {
        **v2.TrivialAugmentWide._AUGMENTATION_SPACE,
        "TranslateX": (lambda bins, height, width: torch.linspace(0, 32 / 224 * width, bins), True),
        "TranslateY": (lambda bins, height, width: torch.linspace(0, 32 / 224 * height, bins), True),
    }


def posterize_to_black(image: Image, bits: int, **options: Any) -> Image:
    """As Pillow did it for timm, which asks for 0 bits at full strength, before 13 refused it."""
    return posterize(image, bits, **options) if bits else image.point([0] * 256 * len(image.getbands()))


NAME_TO_OP["PosterizeIncreasing"] = posterize_to_black
BASIC = "v2.RandomCrop, v2.RandomHorizontalFlip"
STANDARD = (
    v2.RandomApply([v2.RandomRotation(15, v2.InterpolationMode.BILINEAR)], p=0.5),
    v2.RandomApply([v2.ColorJitter(0.3, 0.3, 0.3, 0.05)], p=0.8),
)
RAND, MIXED = "rand-m{}-mstd0.5-inc1", "create_transform, RandAugment m{}, Mixup"
RAND_9 = {"auto_augment": RAND.format(9), "re_prob": 0.25, "re_mode": "pixel"}
PEERS: dict[str, list[Peer]] = {
    "none": [Peer("v2.ToDtype, v2.Normalize", plain())],
    "flip": [Peer("v2.RandomHorizontalFlip", plain(v2.RandomHorizontalFlip()))],
    "basic": [padded(BASIC)],
    "standard": [
        padded(
            f"{BASIC}, RandomRotation, ColorJitter, RandomErasing",
            *STANDARD,
            erasing=(v2.RandomErasing(0.25, (0.02, 0.2)),),
        )
    ],
    "trivial": [
        padded(f"{BASIC}, TrivialAugmentWide, translations as a share", ShortTrivialAugment()),
        padded(f"{BASIC}, TrivialAugmentWide as it is: 32 pixels on any size", v2.TrivialAugmentWide()),
    ],
    "rand": [
        padded(
            f"{BASIC}, timm's {RAND.format(9)}, black borders", rand_augment_transform(RAND.format(9), {"img_mean": 0})
        )
    ],
    "augmix": [padded(f"{BASIC}, AugMix(severity=3, all_ops=False)", v2.AugMix(3, all_ops=False))],
    "auto": [padded(f"{BASIC}, AutoAugment", v2.AutoAugment())],
    "mixup": [padded(f"{BASIC}, timm's Mixup(0.2, mode='elem')", mixup=0.2)],
    "cutmix": [padded(f"{BASIC}, timm's Mixup(cutmix 1.0, mode='elem')", cutmix=1.0)],
    "mix": [padded(f"{BASIC}, timm's Mixup(0.2, 1.0, mode='elem')", mixup=0.2, cutmix=1.0)],
    "three_augment": [
        timm_recipe("timm's create_transform('3a', color_jitter=0.3)", auto_augment="3a", color_jitter=0.3)
    ],
    "imagenet": [Peer("v2.RandomResizedCrop(scale=(0.25, 1)), RandomHorizontalFlip", cropped)],
    "rsb_a2": [timm_recipe(f"timm's {MIXED.format(7)}", 0.1, 1.0, auto_augment=RAND.format(7))],
    "rsb_a3": [timm_recipe(f"timm's {MIXED.format(6)}", 0.1, 1.0, auto_augment=RAND.format(6))],
    "resnet50_v2": [
        Peer("torchvision's reference: TrivialAugmentWide, RandomErasing, MixUp or CutMix", torchvision_reference)
    ],
    "convnext_finetune": [timm_recipe("timm's create_transform, RandAugment m9, erasing by pixel", **RAND_9)],
    "mae_finetune": [timm_recipe(f"timm's {MIXED.format(9)}, erasing by pixel", 0.8, 1.0, **RAND_9)],
}
