import math

from torch import Tensor

from imgcls.errors import UserError
from imgcls.losses.base import Loss
from imgcls.losses.focal import Focal


class ClassBalanced(Loss):
    """Cross-entropy, or focal loss, weighted by the inverse effective number of training images of each class.

    Cui et al., Class-balanced loss based on effective number of samples, CVPR 2019, section 4: n images count as
    `(1 - beta ** n) / (1 - beta)`, as later ones resemble earlier ones; weights have the mean 1 over the classes that
    have images. Factors of `--model.class_weights` multiply them: leave it null, or classes are corrected for twice.

    Args:
        beta: 0 weighs all classes alike, and close to 1 is inverse frequency; the paper tries 0.9 to 0.9999.
        gamma: Strength of the focal loss; 0 is cross-entropy.
        label_smoothing: Share of each label that is spread evenly over all classes.
    """

    def __init__(self, beta: float = 0.999, gamma: float = 0.0, label_smoothing: float = 0.0) -> None:
        if not 0 <= beta < 1:
            raise UserError(f"--model.loss.beta: {beta:g} is not from 0 to below 1")
        self.beta, self.loss = beta, Focal(gamma, label_smoothing)
        self.weight: Tensor | None = None

    def configure(self, class_counts: Tensor, images: int) -> None:  # noqa: D102
        log_beta = math.log(self.beta) if self.beta else -math.inf
        weight = -1 / (class_counts.clamp(min=1) * log_beta).expm1()  # 1 - beta ** n loses digits where n is small
        there = class_counts > 0
        self.weight = weight * there.sum() / (weight * there).sum()

    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:  # noqa: D102
        if class_weight is None or self.weight is None:
            return self.loss(logits, label, self.weight if class_weight is None else class_weight)
        return self.loss(logits, label, self.weight * class_weight)

    def evaluate(self, logits: Tensor, label: Tensor) -> Tensor:  # noqa: D102
        return self.loss.evaluate(logits, label)
