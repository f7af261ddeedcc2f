from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Loss(ABC):
    """A loss of logits (B, K), and of class labels (B,) int64 or class probabilities (B, K) float32.

    A new loss is one class in one file.
    """

    def configure(self, class_counts: Tensor) -> None:
        """Take note of what is trained on, before training begins; nothing of it is kept in a checkpoint.

        Args:
            class_counts: Number of training images of each class, (K,) float32, on the device of the logits.
        """
        return

    @abstractmethod
    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:
        """Mean loss of a training batch, a scalar; before `configure`, as if all classes were of one size.

        Args:
            logits: (B, K) float.
            label: (B,) int64 or (B, K) float32.
            class_weight: Factor of each class (K,), or None.
        """

    def evaluate(self, logits: Tensor, label: Tensor) -> Tensor:
        """Mean loss of a batch outside of training, a scalar: images count alike, so that it is exact on any batching.

        A loss that `configure` changes leaves that out: a test may be of other images than the training's.
        """
        return self(logits, label, None)


def smooth(label: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """Probabilities (B, K) with a share spread evenly over all classes (Szegedy et al., CVPR 2016, section 7)."""
    # F.one_hot looks at the labels, which on some devices makes the host wait
    classes_K = torch.arange(num_classes, device=label.device)
    label_BK = (label[:, None] == classes_K).float() if label.ndim == 1 else label
    return label_BK * (1 - label_smoothing) + label_smoothing / num_classes
