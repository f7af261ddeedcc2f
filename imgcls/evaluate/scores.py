from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassStatScores


class _CalibrationError(MulticlassCalibrationError):
    """torchmetrics' own takes a batch of logits that all lie in 0..1 for probabilities, and has a 16th bin for 1.0."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.softmax(1).clamp(max=1 - 2**-24), target)  # the largest float32 below 1


class _MacroF1(MulticlassStatScores):
    """Mean F1 of the classes that have an image; torchmetrics' own counts one that was only ever predicted as 0."""

    def compute(self) -> Tensor:
        true, false, _, missed, images = super().compute().T
        return (2 * true / (2 * true + false + missed))[images > 0].mean()


class Scores(nn.Module):
    """Metrics of one stage over an epoch and all processes, gathered on the device without waiting for it.

    loss, acc (top-1), f1 (mean over the classes that have an image), ece (expected calibration error, 15 bins of equal
    width), and top5 from six classes on.

    Args:
        num_classes: Number of classes K.
        stage: Prefix of the names: val or test.
    """

    def __init__(self, num_classes: int, stage: str) -> None:
        super().__init__()
        self.of_images = MetricCollection(self.metrics(num_classes), compute_groups=False, prefix=f"{stage}/")
        self.mean_loss = MeanMetric()
        self.stage = stage

    def metrics(self, num_classes: int) -> dict[str, Metric | MetricCollection]:
        """What is measured of logits and labels besides the loss, by its name."""
        scores: dict[str, Metric | MetricCollection] = {
            "acc": MulticlassAccuracy(num_classes, average="micro"),
            "f1": _MacroF1(num_classes, average="none"),
            "ece": _CalibrationError(num_classes, n_bins=15),
        }
        if num_classes > 5:
            scores["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
        return scores

    def update(self, logits: Tensor, label: Tensor, loss: Tensor) -> None:
        """Add a batch: logits (B, K), label (B,) or what `metrics` take, and the mean loss over its images."""
        self.of_images.update(logits, label)
        self.mean_loss.update(loss, len(label))

    def collect(self, cut: Tensor | None = None) -> dict[str, Tensor]:
        """Each metric by its name, scalars; the next epoch starts from nothing.

        Args:
            cut: What logits are compared with, (K,), where the kind of labels does that; None: what is best for them.
        """
        values = {f"{self.stage}/loss": self.mean_loss.compute(), **self.of_images.compute()}
        self.of_images.reset()
        self.mean_loss.reset()
        return values
