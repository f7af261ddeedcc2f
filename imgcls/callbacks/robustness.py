import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from imgcls.callbacks.figures import save
from imgcls.data.base import ImageDataModule
from imgcls.evaluate.variation import SEVERITIES, VARIATIONS, Variation, vary
from imgcls.runs.folder import RunFolder, write_json
from imgcls.runs.record import add_summary

BATCH = 64  # fixed, so that the random draws do not depend on the run's own batch size
BINS = 15


class Robustness(Callback):
    """After a test: accuracy, calibration error and log-likelihood under each variation, at five severities.

    Writes robustness.json and a figure, and to metrics.json `robust/NAME`, the mean accuracy over the severities of a
    variation, with `robust/acc` and `robust/ece`, the means over all variations. Two models that take images of one
    size see the same pixels.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        cells = {v.__name__: [self._measure(trainer, pl_module, data, v, s) for s in SEVERITIES] for v in VARIATIONS}
        if not trainer.is_global_zero:
            return
        write_json(self.run.path / "robustness.json", {"severities": list(SEVERITIES), "variations": cells})
        summary = {f"robust/{name}": float(np.mean([c["acc"] for c in row])) for name, row in cells.items()}
        for metric in ("acc", "ece"):
            summary[f"robust/{metric}"] = float(np.mean([c[metric] for row in cells.values() for c in row]))
        add_summary(self.run, summary)
        clean = trainer.callback_metrics["test/acc"].item()
        save(robustness_figure(cells, clean), self.run.figures / "test_robustness.png")

    @torch.no_grad()
    def _measure(
        self, trainer: Trainer, model: LightningModule, data: ImageDataModule, variation: Variation, severity: int
    ) -> dict[str, float]:
        """Accuracy, expected calibration error (15 bins) and mean negative log-likelihood over all processes."""
        source, index = data.parts["test"]
        totals = torch.zeros(3 * BINS + 1, dtype=torch.float64, device=model.device)
        starts = range(0, len(index), BATCH)
        with trainer.precision_plugin.forward_context():
            for batch in starts[trainer.global_rank :: trainer.world_size]:
                chosen = index[batch : batch + BATCH]
                image = source.images(chosen.tolist(), data.frame("test")).to(model.device)
                image = data.normalize(vary(image, variation, severity, batch)).to(model.dtype)
                label = torch.from_numpy(source.label[chosen]).to(model.device)
                logits = model.predict_step({"image": image, "label": label, "index": label}, 0)["logits"]
                totals += _totals(logits, label)
        totals = trainer.strategy.reduce(totals, reduce_op="sum")  # type: ignore[assignment]
        (count, confidence, right), loss = totals[:-1].view(3, BINS), totals[-1]
        images = count.sum()
        return {
            "acc": (right.sum() / images).item(),
            "ece": ((right - confidence).abs().sum() / images).item(),
            "nll": (loss / images).item(),
        }


def _totals(logits: Tensor, label: Tensor) -> Tensor:
    """(3 · BINS + 1,): images, confidence and right predictions of each bin of confidence, and the loss."""
    confidence, prediction = logits.softmax(1).max(1)
    place = (confidence * BINS).ceil().long().sub(1).clamp(0, BINS - 1)
    values = torch.stack((torch.ones_like(confidence), confidence, (prediction == label).to(confidence)))
    bins = torch.zeros(3, BINS, dtype=torch.float64, device=logits.device).index_add_(1, place, values.double())
    return torch.cat((bins.flatten(), F.cross_entropy(logits, label, reduction="sum").double()[None]))


def robustness_figure(cells: dict[str, list[dict[str, float]]], clean: float) -> Figure:
    """Accuracy against severity, a panel for each variation; severity 0 is the test set as it is."""
    columns = 5
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.1 * rows), layout="constrained", dpi=110)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, row) in zip(grid.flat, cells.items(), strict=False):
        axes.plot([0, *SEVERITIES], [clean, *(c["acc"] for c in row)], color="#1f6feb", marker="o", markersize=3)
        axes.axhline(clean, color="#8a8f98", linewidth=0.8, linestyle=":")
        axes.set_title(name, fontsize=9)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return figure
