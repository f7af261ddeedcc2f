import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from imgcls.evaluate.accuracy import mean_of
from imgcls.evaluate.multilabel import best_cuts, by_label
from imgcls.evaluate.scores import Scores


class _Predictions(Metric):
    """Logits and labels of an epoch and of all processes, and their scores by our own functions.

    torchmetrics' own take a batch of logits that all lie in 0..1 for probabilities, and count F1 of a label that was
    only ever predicted as 0.
    """

    full_state_update = False
    logits: list[Tensor]
    label: list[Tensor]

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.add_state("logits", [], dist_reduce_fx="cat")
        self.add_state("label", [], dist_reduce_fx="cat")
        self.given: Tensor | None = None
        self.cut = np.zeros(num_labels, np.float32)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits and multi-hot labels, (B, K) both."""
        self.logits.append(preds)
        self.label.append(target.to(torch.uint8))

    def compute(self) -> dict[str, Tensor]:
        """Each score by its name, scalars."""
        logits, label = (dim_zero_cat(of).cpu().numpy() for of in (self.logits, self.label))
        self.cut = best_cuts(logits, label).astype(np.float32) if self.given is None else self.given.cpu().numpy()
        found = by_label(logits, label, self.cut)
        means = {name: mean_of(found[of]) for name, of in (("map", "ap"), ("f1", "f1"), ("ece", "ece"))}
        scores = {"acc": ((logits > self.cut) == label).all(1).mean(), **means}
        return {name: torch.tensor(value, dtype=torch.float32, device=self.device) for name, value in scores.items()}


class MultilabelScores(Scores):
    """Metrics of one stage where an image has any number of labels, (B, K) of 0 and 1, or none.

    loss, acc (all labels of an image are right), map (mean average precision), f1, and ece (expected calibration error,
    15 bins of equal width, mean over labels). map and f1 are means over the labels that have an image, nan if there is
    none. Without cuts labels are decided on by the best ones of the epoch itself, so that acc and f1 are too good.
    """

    def metrics(self, num_classes: int) -> dict[str, Metric | MetricCollection]:  # noqa: D102
        self.predictions = _Predictions(num_classes)
        return {"predictions": self.predictions}

    def collect(self, cut: Tensor | None = None) -> dict[str, Tensor]:  # noqa: D102
        self.predictions.given = cut
        return super().collect(cut)

    def best_cut(self) -> Tensor:
        """The cuts (K,) float32 that the last `collect` decided by; 0 before the first."""
        return torch.from_numpy(self.predictions.cut)
