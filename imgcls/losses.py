"""Losses on logits (B, K), for class labels (B,) int64 or class probabilities (B, K) float32."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


class Loss(ABC):
    """A new loss is one class in one file."""

    @abstractmethod
    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:
        """Mean loss of a batch, a scalar.

        Args:
            logits: (B, K) float.
            label: (B,) int64 or (B, K) float32.
            class_weight: Factor of each class (K,), or None.
        """


def smooth(label: Tensor, num_classes: int, label_smoothing: float) -> Tensor:
    """Probabilities (B, K) with a share spread evenly over all classes (Szegedy et al., CVPR 2016, section 7)."""
    # F.one_hot looks at the labels, which on some devices makes the host wait
    classes_K = torch.arange(num_classes, device=label.device)
    label_BK = (label[:, None] == classes_K).float() if label.ndim == 1 else label
    return label_BK * (1 - label_smoothing) + label_smoothing / num_classes


class CrossEntropy(Loss):
    """Softmax cross-entropy. With class weights and class labels, the mean is weighted, as PyTorch defines it."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:  # noqa: D102
        return F.cross_entropy(logits, label, weight=class_weight, label_smoothing=self.label_smoothing)


class BinaryCrossEntropy(Loss):
    """One sigmoid a class, mean over images (Wightman et al., ResNet strikes back, 2021, section 3.1).

    Args:
        label_smoothing: Share of each label that is spread evenly over all classes.
        target_threshold: Classes with a larger share count fully, as if each mixed image were alone: 0.2 in the
            paper's code. None leaves shares as they are.
        reduction: Over classes: `sum`, or `mean` as in the paper's code.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        target_threshold: float | None = None,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        self.label_smoothing, self.target_threshold, self.reduction = label_smoothing, target_threshold, reduction

    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:  # noqa: D102
        target = smooth(label, logits.shape[1], self.label_smoothing).to(logits.dtype)
        if self.target_threshold is not None:
            target = (target > self.target_threshold).to(logits.dtype)
        loss_BK = F.binary_cross_entropy_with_logits(logits, target, weight=class_weight, reduction="none")
        return loss_BK.sum(1).mean() if self.reduction == "sum" else loss_BK.mean()


class Focal(Loss):
    """Cross-entropy that fades for images already classified well (Lin et al., Focal loss, ICCV 2017, eq. 4).

    Args:
        gamma: Strength; 0 is cross-entropy.
        label_smoothing: Share of each label that is spread evenly over all classes.
    """

    def __init__(self, gamma: float = 2.0, label_smoothing: float = 0.0) -> None:
        self.gamma, self.label_smoothing = gamma, label_smoothing

    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:  # noqa: D102
        target = smooth(label, logits.shape[1], self.label_smoothing)
        log_p = F.log_softmax(logits, 1)
        weight = torch.ones_like(log_p[0]) if class_weight is None else class_weight
        return -(weight * target * (1 - log_p.exp()) ** self.gamma * log_p).sum(1).mean()
