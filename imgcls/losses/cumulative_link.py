import torch
from torch import Tensor
from torch.nn import functional as F

from imgcls.losses.cross_entropy import CrossEntropy


class CumulativeLink(CrossEntropy):
    """For ordered classes, such as grades: logistic regressions on "above class k", whose odds fall with k.

    McCullagh, Regression models for ordinal data, JRSS B 1980, section 2, with log odds that are free for each image,
    not parallel: `c_0 = z_0` and `c_k = c_(k-1) - softplus(z_k)` of the head's outputs z, of which the last has no
    part. A class has the probability `sigmoid(c_(k-1)) - sigmoid(c_k)`; the loss is cross-entropy of these. They sum
    to 1 and say of no image that it is above a class but not above a lower one; of two classes they are logistic
    regression.

    Args:
        label_smoothing: Share of each label that is spread evenly over all classes.
    """

    takes = ("ordered classes",)

    def link(self, outputs: Tensor) -> Tensor:
        """Log-probabilities (B, K) float32 of the outputs z (B, K)."""
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        first, steps = outputs[:, :1], outputs[:, 1:-1]
        above = torch.cat((first, first - F.softplus(steps).cumsum(1)), 1)  # log odds of "above class k", (B, K-1)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), and here 1 - exp(b - a) = sigmoid(z)
        between = F.logsigmoid(above[:, :-1]) + F.logsigmoid(-above[:, 1:]) + F.logsigmoid(steps)
        return torch.cat((F.logsigmoid(-first), between, F.logsigmoid(above[:, -1:])), 1)
