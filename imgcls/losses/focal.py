import torch
from torch import Tensor
from torch.nn import functional as F

from imgcls.losses.base import Loss


class Focal(Loss):
    """Cross-entropy that fades for images already classified well (Lin et al., Focal loss, ICCV 2017, eq. 4).

    Args:
        gamma: Strength; 0 is cross-entropy.
        label_smoothing: Share of each label that is spread evenly over all classes.
    """

    def __init__(self, gamma: float = 2.0, label_smoothing: float = 0.0) -> None:
        self.gamma, self.label_smoothing = gamma, label_smoothing

    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:  # noqa: D102
        target_BK = self.smooth(label, logits.shape[1])
        log_p_BK = F.log_softmax(logits, 1, dtype=torch.promote_types(logits.dtype, torch.float32))
        # a power below 1 has no gradient at 0, where an image is classified with certainty
        missing_BK = (-log_p_BK.expm1()).clamp(min=torch.finfo(log_p_BK.dtype).tiny)
        weighted_BK = target_BK if class_weight is None else class_weight * target_BK
        return -(weighted_BK * missing_BK**self.gamma * log_p_BK).sum(1).mean()
