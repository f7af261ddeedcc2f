"""The presets of configs/augment, ready for a size."""

import torch
from torch import Tensor

from imgcls.augment.base import Augmentation
from imgcls.data.options import normalize

from .. import test_augment

PRESETS = {path.stem: path for path in test_augment.PRESETS if path.stem != "none"}
MEAN, STD, CLASSES = [0.5, 0.4, 0.3], [0.25, 0.24, 0.23], 10


def preset(name: str, size: int) -> Augmentation:
    """Ready for images of that size and ten classes."""
    return test_augment.prepared(test_augment.preset(PRESETS[name]), size)


def batch(augment: Augmentation, count: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random uint8 images (B, 3, H, W), as large as the preset wants them, and labels (B,), on the device."""
    side = round(size * augment.margin)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    return images.to(device), (torch.arange(count) % CLASSES).to(device)


def augmented(augment: Augmentation, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """As a training batch is: augmented and normalised, (B, 3, H, W) float32."""
    return augment.normalized(image, label, lambda images: normalize(images, MEAN, STD))
