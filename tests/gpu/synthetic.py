"""Images that cost nothing to have, and JPEG files like photos."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imgcls.data.base import ImageDataModule, Part
from imgcls.images.sources import ArraySource, Source


class SyntheticData(ImageDataModule):
    """Random uint8 images in memory, of the size at which they are trained on: nothing is decoded or resized.

    Args:
        count: Number of images, from which validation and test parts are carved.
        classes: Number of classes.
        side: Side in pixels.
        planes: Channels, 1 or 3.
    """

    def __init__(self, count: int, classes: int, side: int, planes: int, **kwargs: Any) -> None:
        self.count, self.class_names = count, [str(k) for k in range(classes)]
        self.native_size, self.native_channels = side, planes
        super().__init__(**kwargs)

    def has_official(self, part: Part) -> bool:
        return part == "train"

    def open(self, part: Part) -> Source:
        side = self.resize_crop("train").crop
        random = torch.Generator().manual_seed(0)
        shape = self.count, self.channels, side, side
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=random)
        return ArraySource(image, np.arange(self.count) % self.num_classes, part)


def write_photos(root: Path, count: int, classes: int = 10, distinct: int = 256) -> float:
    """JPEG files of 500 × 375 pixels in a folder for each class; returns their mean size in bytes.

    Smooth shapes with the grain of a camera: a file has about 65 kB, as those of ImageNet. Only `distinct` of them
    differ, the others are links to them: what a file costs to decode does not depend on that.
    """
    random = np.random.default_rng(0)
    for number in range(count):
        path = root / f"class {number % classes}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number >= distinct:
            other = number % distinct
            os.link(root / f"class {other % classes}" / f"{other:06d}.jpg", path)
            continue
        coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        grain = random.integers(-19, 20, (375, 500, 1), dtype=np.int16)
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(path, quality=85)
    sizes = [path.stat().st_size for path in root.rglob("*.jpg")]
    return sum(sizes) / len(sizes)
