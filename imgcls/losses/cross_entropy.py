from torch import Tensor
from torch.nn import functional as F

from imgcls.losses.base import Loss


class CrossEntropy(Loss):
    """Softmax cross-entropy. With class weights and class labels, the mean is weighted, as PyTorch defines it."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:  # noqa: D102
        return F.cross_entropy(logits, label, weight=class_weight, label_smoothing=self.label_smoothing)
