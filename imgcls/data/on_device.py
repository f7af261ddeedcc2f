"""What happens to a batch on the device: one seed a step, augmentation, normalisation."""

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from imgcls.augment.base import Augmentation, moved
from imgcls.data.batches import Device
from imgcls.data.options import normalize, seed_step
from imgcls.images.sources import Batch


class DeviceBatches(LightningDataModule):
    """Batches of uint8 images become normalised float ones on the device, training batches after augmentation.

    Attributes:
        augment: Applied to training batches.
        mean: Of each channel, in 0..1.
        std: Of each channel, likewise.
        seed: The run's seed.
        device: Where batches go while no Trainer says it; None: they stay where they were fetched.
    """

    augment: Augmentation | None
    mean: list[float]
    std: list[float]
    seed: int
    device: Device = None

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
