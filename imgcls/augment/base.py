from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F


class Augmentation(nn.Module, ABC):
    """Changes a training batch on its device, every image by a draw of its own.

    A new augmentation is one class in one file. It draws its parameters with torch's global generator, which
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

    def compile_kernels(self) -> None:
        """Compile with torch.compile what gains by it; shapes may vary from batch to batch."""
        return

    @abstractmethod
    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Augment a batch.

        Args:
            image: (B, C, H, W), float32 in [0, 1], or uint8 where `on_uint8` is set.
            label: (B,) int64, or (B, K) float32 after an operation that mixes images.

        Returns:
            Image and label of the same kinds.
        """


def soft(label: Tensor, num_classes: int) -> Tensor:
    """Label as probabilities (B, K) float32; one-hot for a label (B,)."""
    return label if label.ndim == 2 else F.one_hot(label, num_classes).float()
