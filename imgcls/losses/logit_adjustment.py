from torch import Tensor
from torch.nn import functional as F

from imgcls.errors import UserError
from imgcls.losses.base import Loss


class LogitAdjustment(Loss):
    """Cross-entropy of logits to which the log share of each class in the training part is added.

    Menon et al., Long-tail learning via logit adjustment, ICLR 2021, eq. 10: the model learns what is left when the
    frequencies are taken out, so that its own logits, unchanged, are for classes that are alike frequent. Predictions,
    validation and test know nothing of the shares. Classes are corrected for once: neither class weights nor balanced
    sampling belong beside it.

    Args:
        tau: Factor of the log shares; 1 is consistent for the balanced error, 0 is cross-entropy.
        label_smoothing: Share of each label that is spread evenly over all classes.
    """

    def __init__(self, tau: float = 1.0, label_smoothing: float = 0.0) -> None:
        if tau < 0:
            raise UserError(f"--model.loss.tau: {tau:g} would favour frequent classes; give 0 or more")
        self.tau, self.label_smoothing = tau, label_smoothing
        self.shift: Tensor | None = None

    def configure(self, class_counts: Tensor, images: int) -> None:  # noqa: D102
        count = class_counts.clamp(min=1)  # of a class without an image, labels that are mixed or smoothed have a share
        self.shift = self.tau * (count / count.sum()).log()

    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:  # noqa: D102
        shifted = logits if self.shift is None else logits + self.shift  # float32, also of logits of 16 bits
        return F.cross_entropy(shifted, label, weight=class_weight, label_smoothing=self.label_smoothing)

    def evaluate(self, logits: Tensor, label: Tensor) -> Tensor:  # noqa: D102
        return F.cross_entropy(logits, label, label_smoothing=self.label_smoothing)
