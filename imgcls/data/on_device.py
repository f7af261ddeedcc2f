"""Loaders of parts, and what happens to a batch on the device: one seed a step, augmentation, normalisation."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from imgcls.augment.base import Augmentation, LoadingCrop, moved
from imgcls.data.batches import BatchDataset, Device, loader
from imgcls.data.channels import Asked
from imgcls.data.encoded import EncodedBatches
from imgcls.data.options import normalize, seed_step
from imgcls.data.resident import ResidentBatches
from imgcls.data.sampling import EvalBatches, TrainBatches, balanced
from imgcls.images.arrays import BandFiles, Bands
from imgcls.images.cache import Caches
from imgcls.images.checking import OnError
from imgcls.images.decode import Interpolation, ResizeCrop
from imgcls.images.depth import ValueRange
from imgcls.images.derived import FeatureSource
from imgcls.images.sources import Batch, FileSource, ItemSource, Part, Source
from imgcls.tasks import Task, find

Parts = dict[Part, tuple[Source, np.ndarray]]
KEPT = 2.25  # sides of what a cache keeps of a whole image, by those of crops: photos of 500 × 375 stay whole at 224


class DeviceBatches(LightningDataModule):
    """Batches of uint8 images become normalised float ones on the device, training batches after augmentation.

    Attributes:
        parts: See `ImageDataModule`, as for further ones.
        has_bands: Whether images are files that may have bands; then `__init__` ends with `set_channels`.
        channels: Number of channels.
        bands: Which bands of each file they are, if files have any; else None.
        num_bands: Bands of each file, likewise.
        value_range: See `ImageDataModule`.
        augment: Applied to training batches.
        predict_from: Position of the first image that is predicted.
        mean: Of each channel, in 0..1.
        std: Of each channel, likewise.
        seed: The run's seed.
        device: Where batches go while no Trainer says it; None: they stay where they were fetched.
    """

    parts: Parts
    task: str
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
    batch_size: int
    sampling: Literal["shuffle", "balanced"]
    repeats: int
    cache: str
    decoder: Literal["cpu", "cuda"]
    on_error: OnError
    num_workers: int | None
    predict_from: int
    mean: list[float]
    std: list[float]
    seed: int
    device: Device = None
    _asked: Asked
    _resume_at: tuple[int, int]
    _resident: dict[Part, ResidentBatches]

    @property
    def kind(self) -> Task:
        """The kind of labels, see `imgcls.tasks`."""
        return find(self.task)

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

    def train_dataloader(self) -> DataLoader:
        """Full batches in an order that depends on (seed, epoch) alone, shared among the processes."""
        source, index = self.parts["train"]
        probability = (
            balanced(self.kind.pairs(source.label[index]), len(index)) if self.sampling == "balanced" else None
        )
        sizes = len(index), self.batch_size, self.seed, *self._rank()
        draws = self.resize_crop("train").random
        batches = TrainBatches(*sizes, probability, self.repeats, source.blocks(index), draws)
        batches.resume_at = self._resume_at
        batches.fixed = self.trainer is not None and self.trainer.overfit_batches > 0  # type: ignore[attr-defined]
        return self._loader("train", batches)

    def val_dataloader(self) -> DataLoader | list:
        """Each validation image once over all processes."""
        return self._eval_loader("val") if len(self.parts["val"][1]) else []

    def test_dataloader(self) -> DataLoader:
        """Each test image once over all processes."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader:
        """The test images from `predict_from` on; with on_error=skip, what cannot be read is blank and in `broken`."""
        return self._eval_loader("test", self.predict_from)

    def ordered_batches(self, part: Part, version: int = 0) -> DataLoader:
        """Each image of a part once, all in this process: 0 as for evaluation, other versions as for augmentation."""
        batches = EvalBatches(len(self.parts[part][1]), self.batch_size, draw=version)
        return self._loader(part, batches, self.resize_crop("train" if version else "val"))

    def use_features(self, part: Part, feature: Tensor) -> None:
        """From now on, loaders yield features in place of a part's images.

        Args:
            part: The part.
            feature: (N, V, F) float32, V versions of each of its images; training takes one at random, evaluation
                the first.
        """
        source, index = self.parts[part]
        self.parts[part] = (FeatureSource(source, index, feature), index)

    def _eval_loader(self, part: Part, start: int | None = None) -> DataLoader:
        batches = EvalBatches(len(self.parts[part][1]), self.batch_size, *self._rank(), start)
        return self._loader(part, batches, go_on=start is not None and self.on_error == "skip")

    def _loader(self, part: Part, batches: Sampler, frame: ResizeCrop | None = None, go_on: bool = False) -> DataLoader:
        (source, index), own = self.parts[part], self.resize_crop(part)
        every_core, frame = frame is not None, frame or own  # in a given frame features are computed, not trained
        files = not (go_on or source.in_memory or self.bands or isinstance(source, ItemSource))
        kind = EncodedBatches if files and self.decoder == "cuda" and self.goes_to else BatchDataset
        cached = self.caches.cached(source, index, frame)
        crop = None if isinstance(source, FeatureSource) else self._crop
        dataset = kind(cached, index, frame, go_on, self.goes_to, crop, self.seed)
        again = part != "test" and frame == own  # what is looked at once is not worth the memory
        if self.cache == "device" and self.goes_to and again:
            if part not in self._resident or not self._resident[part].holds(dataset):
                self._resident.pop(part, None)  # before its successor takes memory
                self._resident[part] = ResidentBatches(dataset, self.num_workers)
            dataset = self._resident[part]
        return loader(dataset, batches, self.num_workers, every_core)

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

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
