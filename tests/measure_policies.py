"""Speed of policies on a CPU beside torchvision's: `python tests/measure_policies.py FOLDER [--side 224] [--rounds 7]`.

128 images of FOLDER, resized to squares; one thread; ours on a batch of uint8 tensors, theirs on PIL images one by one
without a conversion to tensors, by the nearest pixel (their default) and bilinear as ours. Rounds take turns; prints
medians of images per second of CPU time, and of the ratio to theirs by the nearest pixel.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

from imgcls.augment.other_libraries import TORCHVISION
from imgcls.augment.pipeline import Pipeline
from imgcls.augment.policy import AugMix, AutoAugment, RandAugment, TorchvisionRandAugment, TrivialAugmentWide
from imgcls.images.listing import list_images

COUNT = 128
POLICIES = (TrivialAugmentWide, TorchvisionRandAugment, AutoAugment, AugMix, RandAugment)


def main() -> None:
    """Print a row for each policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = (options.side, options.side)
    pictures = [Image.open(path).convert("RGB").resize(size) for path in list(list_images(options.folder))[:COUNT]]
    batch = torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures]).contiguous()
    label = torch.zeros(len(batch), dtype=torch.int64)
    print(f"{'policy':<24}{'nearest':>9}{'bilinear':>9}{'ours':>9}{'ours / nearest':>16}")
    for kind in POLICIES:
        policy = kind()
        pipeline, nearest, bilinear = Pipeline([policy]), *(TORCHVISION[kind](policy) for _ in range(2))
        bilinear.interpolation = InterpolationMode.BILINEAR
        ways: list[Callable[[], object]] = [
            lambda way=way: [way(picture) for picture in pictures]  # type: ignore[misc]
            for way in (nearest, bilinear)
        ]
        ways.append(lambda pipeline=pipeline: pipeline(batch, label))  # type: ignore[misc]
        speeds = [[_speed(way, len(batch), seed) for way in ways] for seed in range(-1, options.rounds)][1:]
        medians = [statistics.median(of) for of in zip(*speeds, strict=True)]
        ratio = statistics.median(row[2] / row[0] for row in speeds)
        print(f"{kind.__name__:<24}{medians[0]:9,.0f}{medians[1]:9,.0f}{medians[2]:9,.0f}{ratio:16.2f}", flush=True)


def _speed(way: Callable[[], object], images: int, seed: int) -> float:
    torch.manual_seed(seed)
    started = time.process_time()
    way()
    return images / (time.process_time() - started)


if __name__ == "__main__":
    main()
