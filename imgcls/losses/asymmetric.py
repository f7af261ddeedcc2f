import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from imgcls.errors import UserError
from imgcls.losses.base import Loss


class Asymmetric(Loss):
    """One sigmoid a class; the many classes that an image does not have fade once they are told apart well.

    Ridnik et al., Asymmetric loss for multi-label classification, ICCV 2021, section 2: of a class with probability p,
    `(1 - p) ** gamma_positive * log(p)` where it is there and `q ** gamma_negative * log(1 - q)` with
    `q = max(p - margin, 0)` where it is not, mean over images. With both gammas alike and no margin it is the focal
    loss, for which sigmoids were first meant (Lin et al., Focal loss, ICCV 2017, eq. 4); all at 0, cross-entropy.

    Args:
        gamma_negative: Strength with which classes that are not there fade.
        gamma_positive: With which classes that are there do: 1 in the paper's code; 0 is cross-entropy of them.
        margin: Of a class that is not there, a probability up to this one is as good as 0.
        label_smoothing: Share of each label that is spread evenly over all classes; of several labels an image, share
            of each one that gives way to 1/2.
        reduction: Over classes: `sum`, or `mean`.
    """

    takes = ("one label", "ordered classes", "several labels")

    def __init__(
        self,
        gamma_negative: float = 4.0,
        gamma_positive: float = 1.0,
        margin: float = 0.05,
        label_smoothing: float = 0.0,
        reduction: Literal["sum", "mean"] = "sum",
    ) -> None:
        if not 0 <= margin < 1:
            raise UserError(f"--model.loss.margin: {margin:g} is not from 0 to below 1")
        self.gamma_negative, self.gamma_positive, self.margin = gamma_negative, gamma_positive, margin
        self.label_smoothing, self.reduction = label_smoothing, reduction

    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:  # noqa: D102
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # 16 bits know no small probabilities
        target_BK, log_margin = self.smooth(label, logits.shape[1]), math.log(self.margin) if self.margin else -math.inf
        log_not_BK = F.logsigmoid(-logits)
        # log(1 - q) = log min(1 - p + margin, 1), also where 1 - p is no more than 0 in float32
        log_negative_BK = torch.logaddexp(log_not_BK, log_not_BK.new_full((), log_margin)).clamp(max=0)
        # a power below 1 has no gradient at 0, where a class is told apart with certainty
        tiny = torch.finfo(logits.dtype).tiny
        wrong_BK = (logits.sigmoid() - self.margin).clamp(min=tiny)
        missing_BK = (-logits).sigmoid().clamp(min=tiny)
        there_BK = target_BK * missing_BK**self.gamma_positive * F.logsigmoid(logits)
        not_there_BK = (1 - target_BK) * wrong_BK**self.gamma_negative * log_negative_BK
        loss_BK = -(there_BK + not_there_BK)
        if class_weight is not None:
            loss_BK = class_weight * loss_BK
        return loss_BK.sum(1).mean() if self.reduction == "sum" else loss_BK.mean()
