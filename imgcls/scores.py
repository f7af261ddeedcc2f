from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassF1Score


class Scores(nn.Module):
    """Metrics of one stage over an epoch and all processes, gathered on the device without waiting for it.

    loss, acc (top-1), f1 (macro average), ece (expected calibration error, 15 bins of equal width), and top5 from
    six classes on.

    Args:
        num_classes: Number of classes K.
        stage: Prefix of the names: val or test.
    """

    def __init__(self, num_classes: int, stage: str) -> None:
        super().__init__()
        scores: dict[str, Metric | MetricCollection] = {
            "acc": MulticlassAccuracy(num_classes, average="micro"),
            "f1": MulticlassF1Score(num_classes, average="macro"),
            "ece": MulticlassCalibrationError(num_classes, n_bins=15),
        }
        if num_classes > 5:
            scores["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
        self.of_images = MetricCollection(scores, compute_groups=False, prefix=f"{stage}/")
        self.mean_loss = MeanMetric()
        self.stage = stage

    def update(self, logits: Tensor, label: Tensor, loss: Tensor) -> None:
        """Add a batch: logits (B, K), label (B,), and the mean loss over its images."""
        self.of_images.update(logits, label)
        self.mean_loss.update(loss, len(label))

    def collect(self) -> dict[str, Tensor]:
        """Each metric by its name, scalars; the next epoch starts from nothing."""
        values = {f"{self.stage}/loss": self.mean_loss.compute(), **self.of_images.compute()}
        self.of_images.reset()
        self.mean_loss.reset()
        return values
