from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imgcls.errors import UserError
from imgcls.losses.base import Loss

LARGEST_WEIGHT = 100.0  # a label of one image in ten thousand would else drown all others


class BinaryCrossEntropy(Loss):
    """One sigmoid a class, mean over images (Wightman et al., ResNet strikes back, 2021, section 3.1).

    Args:
        label_smoothing: Share of each label that is spread evenly over all classes; of several labels an image, share
            of each one that gives way to 1/2.
        target_threshold: Classes with a larger share count fully, as if each mixed image were alone: 0.2 in the
            paper's code. None leaves shares as they are.
        reduction: Over classes: `sum`, or `mean` as in the paper's code.
        positive_weight: Factor, in training, of the term of a class that is there. `balanced`: training images without
            the class by images with it, at most 100, so that both terms weigh alike. It moves probabilities up.
    """

    takes = ("one label", "ordered classes", "several labels")

    def __init__(
        self,
        label_smoothing: float = 0.0,
        target_threshold: float | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        positive_weight: float | Literal["balanced"] | None = None,
    ) -> None:
        if isinstance(positive_weight, float | int) and not positive_weight > 0:
            raise UserError(f"--model.loss.positive_weight: {positive_weight:g} is not above 0")
        self.label_smoothing, self.target_threshold, self.reduction = label_smoothing, target_threshold, reduction
        self.positive_weight = positive_weight
        self.balance: Tensor | None = None

    def configure(self, class_counts: Tensor, images: int) -> None:  # noqa: D102
        if self.positive_weight == "balanced":
            self.balance = ((images - class_counts) / class_counts.clamp(min=1)).clamp(max=LARGEST_WEIGHT)

    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:  # noqa: D102
        given = self.positive_weight
        weight = logits.new_full((), given, dtype=torch.float32) if isinstance(given, float | int) else self.balance
        return self._mean(logits, label, class_weight, weight)

    def evaluate(self, logits: Tensor, label: Tensor) -> Tensor:  # noqa: D102
        return self._mean(logits, label, None, None)

    def _mean(self, logits: Tensor, label: Tensor, class_weight: Tensor | None, positive: Tensor | None) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # 16 bits would round shares of labels
        target = self.smooth(label, logits.shape[1]).to(logits.dtype)
        if self.target_threshold is not None:
            target = (target > self.target_threshold).to(logits.dtype)
        loss_BK = F.binary_cross_entropy_with_logits(
            logits, target, weight=class_weight, pos_weight=positive, reduction="none"
        )
        return loss_BK.sum(1).mean() if self.reduction == "sum" else loss_BK.mean()
