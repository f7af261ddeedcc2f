from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imgcls.losses.base import Loss, smooth


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
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # 16 bits would round shares of labels
        target = smooth(label, logits.shape[1], self.label_smoothing).to(logits.dtype)
        if self.target_threshold is not None:
            target = (target > self.target_threshold).to(logits.dtype)
        loss_BK = F.binary_cross_entropy_with_logits(logits, target, weight=class_weight, reduction="none")
        return loss_BK.sum(1).mean() if self.reduction == "sum" else loss_BK.mean()
