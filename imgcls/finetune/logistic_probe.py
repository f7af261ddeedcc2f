from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.finetune.base import Features, FineTune
from imgcls.losses import Loss
from imgcls.models.base import Stage

STRENGTHS = [10.0 ** (k / 2) for k in range(3, -13, -1)]


class LogisticProbe(FineTune):
    """The backbone is frozen and run once; the head is a logistic regression, solved by L-BFGS.

    The strongest cheap baseline (as in Radford et al., CLIP, ICML 2021, appendix A.3). Features are centred and brought
    to an overall deviation of one; each feature to its own would blow up those that hardly vary. The L2 penalty is
    chosen on the validation images by negative log-likelihood. Learning rate, optimiser, schedule and number of epochs
    have no say, and neither has the seed; the loss is the plain cross-entropy, without class weights or smoothing: of
    several labels the binary one, summed over them, so that each is a regression of its own.

    Args:
        strengths: Penalties to choose from: the mean loss of an image gets `strength / 2` times the squared weights.
        views: Number of augmented versions of each training image to fit beside the plain one.
        feature_dir: Folder of cached features that several runs share; the run's own by default.
    """

    solves = True

    def __init__(self, strengths: Sequence[float] = STRENGTHS, views: int = 0, feature_dir: str | None = None) -> None:
        super().__init__()
        self.strengths, self.views, self.feature_dir = sorted(strengths, reverse=True), views, feature_dir

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        return [None] * len(stages)

    def solve(  # noqa: D102
        self, head: nn.Module, train: Features, val: Features | None, loss: Loss
    ) -> dict[str, float]:
        assert isinstance(head, nn.Linear)
        feature = train.feature.flatten(0, 1)
        label = train.label.repeat_interleave(train.feature.shape[1], 0)
        mean, std = feature.mean(0), feature.std(correction=0).clamp(min=1e-6)
        scaled = (feature - mean) / std
        weight = feature.new_zeros(head.out_features, feature.shape[1])
        bias = feature.new_zeros(head.out_features)
        best = (float("inf"), 0.0, weight, bias)
        for strength in self.strengths:  # from strong to weak: each solution is a good start for the next
            weight, bias = logistic_regression(scaled, label, strength, weight, bias, loss)
            value = 0.0
            if val is not None and len(self.strengths) > 1:
                logits = F.linear((val.feature[:, 0] - mean) / std, weight, bias)
                value = loss.evaluate(logits, val.label).item()
                if value > 1.5 * best[0]:
                    break  # overfitted already, and weaker penalties take the longest to solve
            if val is None or value < best[0]:
                best = (value, strength, weight, bias)
        _, strength, weight, bias = best
        with torch.no_grad():
            head.weight.copy_(weight / std)
            head.bias.copy_(bias - (weight / std) @ mean)
        return {"strength": strength}


def logistic_regression(
    feature: Tensor, label: Tensor, strength: float, weight: Tensor, bias: Tensor, loss: Loss
) -> tuple[Tensor, Tensor]:
    """Minimise a mean loss plus `strength / 2` times the squared weights; biases are free.

    Args:
        feature: (N, F) float32.
        label: (N,) int64 or (N, K) float32.
        strength: Of the penalty.
        weight: Where to start, (K, F).
        bias: Where to start, (K,).
        loss: Of logits and labels.

    Returns:
        Weight (K, F) and bias (K,) of the minimum.
    """
    weight, bias = (t.detach().clone().requires_grad_() for t in (weight, bias))
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-5, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def penalised() -> Tensor:
        solver.zero_grad()
        value = loss(F.linear(feature, weight, bias), label, None) + strength / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(penalised)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()
