"""How images are loaded, and what happens to a batch on the device: one seed a step, augmentation, normalisation."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from imgcls.augment.base import Augmentation, LoadingCrop, moved
from imgcls.data.batches import Device
from imgcls.data.channels import Asked
from imgcls.data.options import normalize, seed_step
from imgcls.images.arrays import BandFiles, Bands
from imgcls.images.cache import Caches
from imgcls.images.decode import Interpolation, ResizeCrop
from imgcls.images.depth import ValueRange
from imgcls.images.sources import Batch, FileSource, Part

KEPT = 2.25  # sides of what a cache keeps of a whole image, by those of crops: photos of 500 × 375 stay whole at 224


class DeviceBatches(LightningDataModule):
    """Batches of uint8 images become normalised float ones on the device, training batches after augmentation.

    Attributes:
        has_bands: Whether images are files that may have bands; then `__init__` ends with `set_channels`.
        channels: Number of channels.
        bands: Which bands of each file they are, if files have any; else None.
        num_bands: Bands of each file, likewise.
        value_range: See `ImageDataModule`, as for further ones.
        augment: Applied to training batches.
        mean: Of each channel, in 0..1.
        std: Of each channel, likewise.
        seed: The run's seed.
        device: Where batches go while no Trainer says it; None: they stay where they were fetched.
    """

    has_bands = False
    channels: int
    bands: list[int] | None
    num_bands: int | None
    value_range: Sequence[float] | Sequence[Sequence[float]] | str | None
    image_size: int
    train_size: int
    interpolation: Interpolation
    crop_fraction: float
    caches: Caches
    augment: Augmentation | None
    mean: list[float]
    std: list[float]
    seed: int
    device: Device = None
    _asked: Asked

    def set_channels(self, files: Iterable[Path] | None) -> None:
        """Number of channels, their mean and deviation, and which bands they are, by the first file that can be read.

        Raises:
            UserError: What options ask for is not in the files.
        """
        found = self._asked.found(files)
        self.channels, self.mean, self.std = found.count, found.mean, found.std
        self.bands, self.num_bands = (list(found.bands.chosen), found.bands.total) if found.bands else (None, None)

    def file_source(
        self, root: Path, paths: Sequence[str], label: np.ndarray, origins: Sequence[str] | None = None
    ) -> FileSource:
        """Image files, of bands if these have any; see `FileSource`."""
        if self.bands is None or self.num_bands is None:
            return FileSource(root, paths, label, origins)
        return BandFiles(root, paths, label, Bands(tuple(self.bands), self.num_bands), origins)

    def resize_crop(self, part: Part) -> ResizeCrop:
        """How images of a part are loaded; training images with the augmentation's margin, if it has one."""
        random = part == "train" and self._crop is not None
        margin = 1.0 if self.augment is None or part != "train" or random else self.augment.margin
        crop = round((self.train_size if part == "train" else self.image_size) * margin)
        resize = math.floor(crop / self.crop_fraction + 1e-6)  # as timm; a fraction stands for whole numbers
        bound = round(KEPT * crop) if random and self.caches.where != "none" else 0
        known = _as_range(self.value_range)
        return ResizeCrop(self.channels, resize, crop, self.interpolation, known, random, bound)

    @property
    def _crop(self) -> LoadingCrop | None:
        return None if self.augment is None else self.augment.loading_crop

    @property
    def goes_to(self) -> Device:
        """Where batches go."""
        return self.trainer.strategy.root_device if self.trainer else self.device

    @torch.no_grad()
    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """uint8 images (B, C, H, W) to normalised float ones of the model's dtype, augmented while training."""
        trainer = self.trainer
        assert trainer is not None
        image, label, dtype = batch["image"], batch["label"], trainer.lightning_module.dtype
        if trainer.training:
            # One seed a step: each rank has random numbers of its own (after seed_everything all would have the
            # same), and a resumed run has those of the uninterrupted one, dropout included.
            step = trainer.fit_loop.epoch_loop.batch_progress.current.ready
            seed_step(self.step_seed(trainer.current_epoch, step, trainer.global_rank), image.device)
        if image.ndim == 3:  # cached features (B, 1 + views, F), see use_features
            if trainer.training and image.shape[1] > 1:
                view = moved(torch.randint(image.shape[1], (len(image),)), image.device)
                image = image[torch.arange(len(image), device=image.device), view, None]
            return {**batch, "image": image[:, 0].to(dtype)}
        image, label = self.prepare(image, label) if trainer.training else (self.normalize(image), label)
        return {**batch, "image": image.to(dtype), "label": label}

    @torch.no_grad()
    def prepare(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """A training batch as the model takes it: uint8 images (B, C, H, W) augmented and normalised, and labels.

        Images that were loaded for training are random crops already, where the augmentation begins with one.
        """
        if self.augment is not None:
            return self.augment.after_loading.normalized(image, label, self.normalize)
        return self.normalize(image), label

    def step_seed(self, *position: int) -> int:
        """A seed for torch that follows from the run's seed and a position in the run."""
        return int(np.random.SeedSequence((self.seed, *position)).generate_state(1, np.uint64)[0] >> 1)

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 or float32 in [0, 1], (B, C, H, W), to float32 of mean 0 and deviation 1 per channel."""
        return normalize(image, self.mean, self.std)


def _as_range(known: Sequence[float] | Sequence[Sequence[float]] | str | None) -> ValueRange | None:
    if known is None or isinstance(known, str):
        return None
    return tuple(of if isinstance(of, float | int) else (of[0], of[1]) for of in known)  # type: ignore[misc]
