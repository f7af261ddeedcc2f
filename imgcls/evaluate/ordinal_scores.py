from torch import Tensor
from torchmetrics import MeanAbsoluteError, Metric, MetricCollection
from torchmetrics.classification import MulticlassCohenKappa

from imgcls.evaluate.scores import Scores


class _MeanAbsoluteError(MeanAbsoluteError):
    """Of classes, from logits (B, K) and label (B,)."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.argmax(1), target)


class OrdinalScores(Scores):
    """Metrics of one stage where classes have an order: those of `Scores`, mae and qwk.

    mae is the mean number of places between class and prediction, qwk the quadratic weighted kappa (Cohen,
    Psychological Bulletin 1968).
    """

    def metrics(self, num_classes: int) -> dict[str, Metric | MetricCollection]:  # noqa: D102
        kappa = MulticlassCohenKappa(num_classes, weights="quadratic")
        return {**super().metrics(num_classes), "mae": _MeanAbsoluteError(), "qwk": kappa}
