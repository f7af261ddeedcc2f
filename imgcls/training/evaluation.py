import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError
from imgcls.evaluate.calibration import EDGES
from imgcls.evaluate.figures import save
from imgcls.images.derived import FeatureSource
from imgcls.runs.folder import RunFolder
from imgcls.runs.predictions import read_predictions
from imgcls.runs.record import add_summary
from imgcls.runs.temperature import temperature, write_calibration
from imgcls.system.files import read_json, write_json
from imgcls.training.loggers import log_figures, wandb_loggers
from imgcls.training.outputs import Outputs, gather
from imgcls.training.robustness import Robustness

log = logging.getLogger(__name__)
GRAY, BLUE, ORANGE = "#8a8f98", "#1f6feb", "#bc4c00"


class Evaluation(Callback):
    """After a test, on rank 0: evaluation.json, its scores in metrics.json as `test/…`, and figures.

    It reads the logits that `Outputs` has stored. Where the weights were calibrated, calibrated scores are
    added.

    Args:
        run: The run's folder.
        calibrate: First fit a temperature to the validation images and write calibration.json.
    """

    def __init__(self, run: RunFolder, calibrate: bool = False) -> None:
        self.run, self.calibrate = run, calibrate

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: D102
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if self.calibrate and stage in ("fit", "test") and not len(data.parts["val"][1]):
            raise UserError("--calibrate: the data have no validation images to fit to; see --data.val_fraction")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        checkpoint = Path(str(trainer.ckpt_path)) if trainer.ckpt_path else None
        if self.calibrate and checkpoint:
            self._calibrate(trainer, pl_module, data, checkpoint)
        if not trainer.is_global_zero:
            return
        predicted = read_predictions(self.run.predictions / "test.npz")
        self.run.evaluation.unlink(missing_ok=True)
        if not np.isfinite(predicted.logits).all():
            log.warning("test: logits are not finite, so that there is nothing to evaluate")
            add_summary(self.run, {}, instead_of="test/")
            return
        source = data.parts["test"][0]
        columns = {name: [values[i] for i in predicted.index] for name, values in source.columns.items()}
        scaled_by = temperature(self.run, checkpoint) if checkpoint else 1.0
        counts = read_json(self.run.environment).get("data", {}).get("class_counts")
        each = predicted.logits, predicted.label, data.class_names, columns
        found = predicted.task.evaluation(*each, predicted.cut, scaled_by, counts)
        write_json(self.run.evaluation, found)
        scores = {f"test/{name}": value for name, value in found["metrics"].items()}
        add_summary(self.run, scores, instead_of="test/")  # calibrated ones of other weights go
        figures = {"reliability": reliability_figure(found, *predicted.task.reliability)}
        figures["risk_coverage"] = risk_coverage_figure(found)
        pixels = {name: save(figure, self.run.figures / f"test_{name}.png") for name, figure in figures.items()}
        for logger in wandb_loggers(trainer):
            logger.summarize(scores)
        log_figures(trainer, "test", pixels)

    @torch.no_grad()
    def _calibrate(self, trainer: Trainer, model: LightningModule, data: ImageDataModule, checkpoint: Path) -> None:
        """Run the validation images through the model as it was tested, and fit to them."""
        source, index = data.parts["val"]
        if isinstance(source, FeatureSource):  # of the images as they are: a test may look at their mirror images too
            data.parts["val"] = (source.source, index)
        data.setup("validate")  # what cannot be read is left out, as in training
        with trainer.precision_plugin.forward_context():
            batches = [model.predict_step(trainer.strategy.batch_to_device(b), 0) for b in data.val_dataloader()]
        gathered = gather(trainer, batches)
        if gathered is None:
            return
        logits, index = gathered
        found = data.kind.calibration(logits, source.label[index])
        if found is None:
            log.warning(
                f"--calibrate: no temperature fits {len(index)} validation images (all are right, or the logits "
                "say nothing of the classes): not calibrated"
            )
            self.run.calibration.unlink(missing_ok=True)
            return
        write_calibration(self.run, checkpoint, found)


def of_a_test(run: RunFolder, config: Any, baseline: str | None) -> list[Callback]:
    """What a test needs, in the order in which each finds what the one before has written.

    Args:
        run: The run's folder.
        config: Its `calibrate` and `robustness` say what is looked at.
        baseline: Run whose robustness this one's is compared with.
    """
    first: list[Callback] = [Robustness(run, baseline)] if config.robustness or baseline else []
    return [*first, Outputs(run), Evaluation(run, config.calibrate)]


def reliability_figure(found: dict[str, Any], probability: str, share: str, counted: str) -> Figure:
    """What happens against its probability, with calibration if there is one, above the number of cases of each.

    Args:
        found: Of `evaluation`.
        probability: Words for what bins are of, as `Task.reliability` has them.
        share: For how often it happens.
        counted: For its cases.
    """
    figure = Figure(figsize=(5.4, 5.2), layout="constrained", dpi=110)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8, linestyle=":")
    for key, color, name in (("reliability", BLUE, ""), ("reliability_calibrated", ORANGE, "_calibrated")):
        if key in found:
            points = [(b["confidence"], b["accuracy"]) for b in found[key] if b["images"]]
            label = f"{'calibrated' if name else 'as trained'}: ECE {found['metrics'][f'ece{name}']:.4f}"
            upper.plot(*zip(*points, strict=True), color=color, marker="o", clip_on=False, label=label)
            lower.stairs([b["images"] for b in found[key]], EDGES, color=color, fill=not name, alpha=1 if name else 0.5)
    upper.legend(frameon=False)
    upper.set(ylabel=share, xlim=(0, 1), ylim=(0, 1))
    lower.set(xlabel=probability, ylabel=counted)
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def risk_coverage_figure(found: dict[str, Any]) -> Figure:
    """Share of mistakes among the most confident images, by how many are kept."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.plot(*([p[k] for p in found["risk_coverage"]] for k in ("coverage", "risk")), color=BLUE)
    axes.set(title=f"AURC {found['metrics']['aurc']:.4f}", xlim=(0, 1), ylim=(0, None))
    axes.set(xlabel="coverage: share of images kept, the most confident first", ylabel="risk: share of mistakes")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
