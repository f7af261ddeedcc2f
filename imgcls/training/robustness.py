import hashlib
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch.nn import functional as F

from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError
from imgcls.evaluate.scores import Scores
from imgcls.evaluate.variation import SEVERITIES, VARIATIONS, Variation, vary
from imgcls.pages.figures import save
from imgcls.runs.folder import RunFolder
from imgcls.runs.record import add_summary
from imgcls.system.files import read_json, write_json

BATCH = 64  # fixed, so that random parameters do not depend on the run's own batch size
Cells = dict[str, list[dict[str, float]]]  # of each variation, what was measured at each severity


class Robustness(Callback):
    """After a test: accuracy, calibration error and log-likelihood under each variation, at five severities.

    Writes robustness.json and a figure, and to metrics.json `robust/NAME`, the mean accuracy over the severities of a
    variation, with `robust/acc` and `robust/ece`, the means over all variations. Two models that take images of one
    size see the same pixels.

    Relative to a baseline there is `robust/relative_error`: the mean over the variations of the sum of errors over the
    severities, divided by the baseline's; the mCE of Hendrycks and Dietterich (ICLR 2019), as a fraction.

    Args:
        run: The run's folder.
        baseline: Folder of a run that was tested in this way on the same images.

    Raises:
        UserError: The baseline was not tested in this way, or on other images.
    """

    def __init__(self, run: RunFolder, baseline: str | None = None) -> None:
        self.run = run
        self.baseline = _read_baseline(baseline) if baseline else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compare the baseline's test images with these, before the test where they are known."""
        if stage != "test":
            return
        source, index = trainer.datamodule.parts["test"]  # type: ignore[attr-defined]
        self.images = hashlib.blake2b(source.fingerprint().encode() + index.tobytes(), digest_size=8).hexdigest()
        if self.baseline and self.baseline["images"] != self.images:
            raise UserError(f"--robustness_baseline {self.baseline['run']}: was tested on other images than this run")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        cells = {v.__name__: [self._measure(trainer, pl_module, v, s) for s in SEVERITIES] for v in VARIATIONS}
        if not trainer.is_global_zero:
            return
        clean = trainer.callback_metrics["test/acc"].item()
        record = {"images": self.images, "acc": clean, "severities": list(SEVERITIES), "variations": cells}
        write_json(self.run.robustness, record)
        summary = {f"robust/{name}": float(np.mean([c["acc"] for c in row])) for name, row in cells.items()}
        for metric in ("acc", "ece"):
            summary[f"robust/{metric}"] = float(np.mean([c[metric] for row in cells.values() for c in row]))
        if self.baseline:
            summary["robust/relative_error"] = relative_error(cells, self.baseline["variations"])
        add_summary(self.run, summary, instead_of="robust/")
        save(robustness_figure(cells, clean, self.baseline), self.run.figures / "test_robustness.png")

    @torch.no_grad()
    def _measure(self, trainer: Trainer, model: Any, variation: Variation, severity: int) -> dict[str, float]:
        """Accuracy, expected calibration error (15 bins) and mean negative log-likelihood over all processes."""
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        source, index = data.parts["test"]
        scores = Scores(data.num_classes, "robust").to(model.device)
        starts = range(0, len(index), BATCH)
        with trainer.precision_plugin.forward_context():
            for batch in starts[trainer.global_rank :: trainer.world_size]:
                chosen = index[batch : batch + BATCH]
                image = source.images(chosen.tolist(), data.resize_crop("test")).to(model.device)
                image = data.normalize(vary(image, variation, severity, batch)).to(model.dtype)
                label = torch.from_numpy(source.label[chosen]).to(model.device)
                logits = model.logits(image)
                scores.update(logits, label, F.cross_entropy(logits, label))
        found = scores.collect()
        return {name: found[f"robust/{of}"].item() for name, of in (("acc", "acc"), ("ece", "ece"), ("nll", "loss"))}


def relative_error(cells: Cells, baseline: Cells) -> float:
    """Mean over variations of the sum of errors over severities by that of a baseline; nan where one of those is 0."""
    errors = np.array([[sum(1 - c["acc"] for c in of[name]) for name in cells] for of in (cells, baseline)])
    return float((errors[0] / errors[1]).mean()) if errors[1].all() else float("nan")


def _read_baseline(path: str) -> dict[str, Any]:
    """What a run's robustness.json says, and `run`, its folder."""
    run = RunFolder.existing(path, "--robustness_baseline")
    found = read_json(run.robustness)
    if not found:
        raise UserError(f"{run.robustness}: is not there; first test --run {path} --robustness=true")
    names, severities = [variation.__name__ for variation in VARIATIONS], list(SEVERITIES)
    if "images" not in found or list(found["variations"]) != names or found["severities"] != severities:
        raise UserError(f"{run.robustness}: is of an earlier version; test --run {path} --robustness=true again")
    return found | {"run": path}


def robustness_figure(cells: Cells, clean: float, baseline: dict[str, Any] | None = None) -> Figure:
    """Accuracy against severity, a panel for each variation; severity 0 is the test set as it is."""
    columns = 5
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.1 * rows), layout="constrained", dpi=110)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, row) in zip(grid.flat, cells.items(), strict=False):
        if baseline:
            points = [baseline["acc"], *(c["acc"] for c in baseline["variations"][name])]
            axes.plot([0, *SEVERITIES], points, color="#c4c8ce", marker="o", markersize=2, label="baseline")
        axes.plot([0, *SEVERITIES], [clean, *(c["acc"] for c in row)], color="#1f6feb", marker="o", markersize=3)
        axes.axhline(clean, color="#8a8f98", linewidth=0.8, linestyle=":")
        axes.set_title(name, fontsize=9)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if baseline:
        grid.flat[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return figure
