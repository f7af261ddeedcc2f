import hashlib
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from imgcls.data.base import ImageDataModule
from imgcls.data.batches import label_tensor
from imgcls.errors import UserError
from imgcls.evaluate.figures import save
from imgcls.evaluate.variation import SEVERITIES, VARIATIONS, Variation, vary
from imgcls.runs.folder import RunFolder
from imgcls.runs.record import add_summary
from imgcls.system.files import read_json, write_json
from imgcls.tasks import Task

BATCH = 64  # fixed, so that random parameters do not depend on the run's own batch size
Cells = dict[str, list[dict[str, float]]]  # of each variation, what was measured at each severity


class Robustness(Callback):
    """After a test: the metrics of an epoch under each variation, at five severities.

    Writes robustness.json and a figure, and to metrics.json `robust/NAME`, the mean over the severities of a variation
    of the metric of the kind of labels, such as accuracy; with the means over all variations of that metric and of the
    expected calibration error, such as `robust/acc` and `robust/ece`. Two models that take images of one size see the
    same pixels.

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
        task = trainer.datamodule.kind  # type: ignore[attr-defined]
        clean = trainer.callback_metrics[f"test/{task.metric}"].item()
        record = {"images": self.images, task.metric: clean, "severities": list(SEVERITIES), "variations": cells}
        write_json(self.run.robustness, record)
        summary = {f"robust/{name}": float(np.mean([c[task.metric] for c in row])) for name, row in cells.items()}
        for metric in {task.metric, "ece"} & cells[VARIATIONS[0].__name__][0].keys():
            summary[f"robust/{metric}"] = float(np.mean([c[metric] for row in cells.values() for c in row]))
        if self.baseline:
            summary["robust/relative_error"] = relative_error(cells, self.baseline["variations"], task.metric)
        add_summary(self.run, summary, instead_of="robust/")
        figure = robustness_figure(cells, clean, self.baseline, task)
        save(figure, self.run.figures / "test_robustness.png")

    @torch.no_grad()
    def _measure(self, trainer: Trainer, model: Any, variation: Variation, severity: int) -> dict[str, float]:
        """The metrics of an epoch, over all processes, and `nll`, the loss where none is asked for."""
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        source, index = data.parts["test"]
        scores: Any = data.kind.scores(data.num_classes, "robust").to(model.device)
        loss = data.kind.loss()
        starts = range(0, len(index), BATCH)
        with trainer.precision_plugin.forward_context():
            for batch in starts[trainer.global_rank :: trainer.world_size]:
                chosen = index[batch : batch + BATCH]
                image = source.images(chosen.tolist(), data.resize_crop("test")).to(model.device)
                image = data.normalize(vary(image, variation, severity, batch)).to(model.dtype)
                label = label_tensor(source.label[chosen]).to(model.device)
                logits = model.logits(image)
                scores.update(logits, label, loss.evaluate(logits, label))
        found = {name.removeprefix("robust/"): value.item() for name, value in scores.collect(model.cut).items()}
        return {"nll" if name == "loss" else name: value for name, value in found.items()}


def relative_error(cells: Cells, baseline: Cells, metric: str = "acc") -> float:
    """Mean over variations of the sum of errors over severities by that of a baseline; nan where one of those is 0."""
    errors = np.array([[sum(1 - c[metric] for c in of[name]) for name in cells] for of in (cells, baseline)])
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


def robustness_figure(cells: Cells, clean: float, baseline: dict[str, Any] | None, task: Task) -> Figure:
    """The kind's metric against severity, a panel for each variation; severity 0 is the test set as it is."""
    columns = 5
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(2.1 * columns, 2.1 * rows), layout="constrained", dpi=110)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, row) in zip(grid.flat, cells.items(), strict=False):
        if baseline:
            points = [baseline[task.metric], *(c[task.metric] for c in baseline["variations"][name])]
            axes.plot([0, *SEVERITIES], points, color="#c4c8ce", marker="o", markersize=2, label="baseline")
        axes.plot([0, *SEVERITIES], [clean, *(c[task.metric] for c in row)], color="#1f6feb", marker="o", markersize=3)
        axes.axhline(clean, color="#8a8f98", linewidth=0.8, linestyle=":")
        axes.set_title(name, fontsize=9)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if baseline:
        grid.flat[0].legend(frameon=False, fontsize=8)
    figure.supxlabel("severity", fontsize=9)
    figure.supylabel(task.metric_name, fontsize=9)
    return figure
