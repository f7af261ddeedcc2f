from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Change = Callable[[Tensor, slice], Tensor]
"""Changes images (b, C, H, W), which are that slice of a batch; it may overwrite them."""


class Augmentation(nn.Module, ABC):
    """Changes a training batch on its device, each image with random parameters of its own.

    A new augmentation is one class in one file. It samples its parameters with torch's global generator, which
    the data module seeds before each step from (seed, epoch, step, rank).

    Attributes:
        on_uint8: Takes uint8 images as well as float ones (indexing only, no arithmetic).
        margin: Training images are loaded this much larger than the model expects, for a crop to choose from.
        size: Side of the images that the model expects, in pixels; set by `configure`.
        num_classes: Number of classes K; set by `configure`.
    """

    on_uint8 = False
    margin: float = 1.0
    size: int
    num_classes: int

    def configure(self, size: int, num_classes: int) -> None:
        """Called once by the data module, before the first batch."""
        self.size, self.num_classes = size, num_classes

    @abstractmethod
    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: (B, C, H, W), float32 in [0, 1], or uint8 where `on_uint8` is set.
            label: (B,) int64, or (B, K) float32 after an operation that mixes images.

        Returns:
            Image and label of the same kinds.
        """

    def normalized(self, image: Tensor, label: Tensor, normalize: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Like `forward`, and then `normalize` of the images."""
        image, label = self(image, label)
        return normalize(image), label


class ByImage(Augmentation):
    """Changes each image by itself: random parameters are sampled for the whole batch, which may then come in parts.

    On a CPU, a part that stays in the processor's cache goes through several operations one after the other.
    """

    @abstractmethod
    def sample(self, shape: torch.Size) -> tuple[Change, torch.Size]:
        """Sample parameters for a batch of that shape, (B, C, H, W).

        Returns:
            What changes its images, and the shape of the batch after it.
        """

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32 in [0, 1], or uint8 where `on_uint8` is set; labels are left alone."""
        change, _ = self.sample(image.shape)
        return change(image.clone(), slice(None)), label


def soft(label: Tensor, num_classes: int) -> Tensor:
    """Label as probabilities (B, K) float32; one-hot for a label (B,)."""
    return label if label.ndim == 2 else F.one_hot(label, num_classes).float()
