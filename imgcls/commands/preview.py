"""A picture of the augmentation: --config FILE… [--out FILE.png]."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imgcls.cli.lightning import LightningVerb
from imgcls.data.base import ImageDataModule
from imgcls.data.batches import label_tensor
from imgcls.errors import UserError
from imgcls.evaluate.figures import image_grid, save
from imgcls.images.arrays import as_shown

VERSIONS = 3


class Preview(LightningVerb):
    """`python -m imgcls preview`."""

    needs_model = False

    def work(self, out: Path = Path("preview.png"), count: int = 8) -> None:
        """Draw original and augmented training images into a PNG.

        Args:
            out: The PNG file.
            count: Number of images: a row of originals and three rows of augmented versions.
        """
        images, titles = preview_images(self.datamodule, count)
        save(image_grid(images.numpy(), titles, columns=count), out)
        print(f"preview: {out}")


main = Preview.main


def preview_images(data: ImageDataModule, count: int) -> tuple[Tensor, list[str]]:
    """Originals, then `VERSIONS` rows of the same images augmented as one training batch each.

    Args:
        data: The data module; its training part is opened here.
        count: Images in a row.

    Returns:
        uint8 images ((1 + VERSIONS) * count, C, H, W) and a title for each: the class, or the shares of a mix.
    """
    if count < 1:
        raise UserError(f"--count: {count} is not a positive number")
    data.prepare_data()
    data.setup("fit")
    source, index = data.parts["train"]
    position = np.random.default_rng(data.seed).choice(len(index), min(count, len(index)), replace=False)
    chosen = index[position]
    dataset: Any = data.train_dataloader().dataset
    original = source.images(chosen.tolist(), data.resize_crop("val"))
    label = label_tensor(source.label[chosen])
    rows, titles = [original], data.kind.text(source.label[chosen], data.class_names)
    for version in range(VERSIONS):
        torch.manual_seed(data.seed + version)
        loaded = dataset.to_device(dataset[(position + version * len(index)).tolist()])["image"].cpu()
        image, mixed = data.augment.after_loading(loaded, label) if data.augment else (loaded, label)
        image = image if image.dtype == torch.uint8 else (image.clamp(0, 1) * 255).round().byte()
        rows.append(image)
        titles += [_title(row, data.class_names) for row in mixed]
    return as_shown(torch.cat(rows)), titles


def _title(label: Tensor, names: list[str]) -> str:
    if label.ndim == 0:
        return names[int(label)]
    return "\n".join(f"{names[k]} {label[k]:.2f}" for k in label.argsort(descending=True)[:4].tolist() if label[k] > 0)
