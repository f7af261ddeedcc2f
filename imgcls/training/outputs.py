from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from imgcls.data.base import ImageDataModule, Part
from imgcls.evaluate.figures import image_grid, save
from imgcls.images.arrays import as_shown
from imgcls.runs.folder import RunFolder
from imgcls.runs.predictions import Predictions, read_predictions
from imgcls.training.loggers import log_figures, wandb_loggers
from imgcls.training.trainer import best_checkpoint, from_all, logged

SHOWN = 24


class Outputs(Callback):
    """Keeps each image's logits: tables in `predictions/`; in `figures/` and W&B what they show, and images.

    Shown are the most confident mistakes, and after a test the images of which the model is least certain: they are
    the closest to another prediction.

    Validation images are kept for the epoch whose checkpoint is kept, and drawn once, when training ends. Every
    image counts once, whatever the number of processes.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self.batches: list[dict[str, Tensor]] = []
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self.best = state_dict["best"]

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self.batches = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:  # noqa: D102
        self.batches.append(outputs)

    on_test_batch_end = on_validation_batch_end  # type: ignore[assignment]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if not trainer.sanity_checking and self._is_best(trainer):
            self._write_table(trainer, pl_module, "val")
            for logger in wandb_loggers(trainer):  # its summary shows the epoch that is kept, as metrics.json does
                logger.summarize(logged(trainer, "val/"), kept=True)
        if trainer.state.fn == "validate":
            self._draw(trainer, "val")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._draw(trainer, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._write_table(trainer, pl_module, "test")
        self._draw(trainer, "test")

    def _is_best(self, trainer: Trainer) -> bool:
        checkpoint = best_checkpoint(trainer)
        value = trainer.callback_metrics.get(str(checkpoint.monitor)) if checkpoint else None
        if trainer.state.fn != "fit" or checkpoint is None or value is None:
            return True
        sign = 1 if checkpoint.mode == "max" else -1
        better = self.best is None or sign * value.item() >= sign * self.best
        if better:
            self.best = value.item()
        return better

    def _write_table(self, trainer: Trainer, model: Any, part: Part) -> None:
        gathered = gather(trainer, self.batches)
        self.batches = []
        if gathered is not None:
            data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
            source, _ = data.parts[part]
            cut = None if model.cut is None else model.cut.cpu().numpy()
            logits, index = gathered
            predicted = Predictions(logits, source.label[index], index, model.task, cut)
            predicted.write(self.run.predictions / f"{part}.csv", source.names, data.class_names)

    def _draw(self, trainer: Trainer, part: Part) -> None:
        stored = self.run.predictions / f"{part}.npz"
        if not trainer.is_global_zero or not stored.is_file():
            return
        figures = self._figures(trainer.datamodule, part, read_predictions(stored))  # type: ignore[attr-defined]
        log_figures(trainer, part, figures)

    def _figures(self, data: ImageDataModule, part: Part, predicted: Predictions) -> dict[str, np.ndarray]:
        task, names = predicted.task, data.class_names
        each = predicted.probability, predicted.decided, predicted.label
        drawn = task.figures(*each, names)
        figures = {name: save(figure, self.run.figures / f"{part}_{name}.png") for name, figure in drawn.items()}
        shown = {"mistakes": (predicted.worst_mistakes(SHOWN), 1)}
        if part == "test":
            shown["least_certain"] = (np.argsort(task.margin(*each[:2]), kind="stable")[:SHOWN], 2)
        for name, (chosen, guesses) in shown.items():
            if len(chosen):
                images = data.parts[part][0].images(predicted.index[chosen].tolist(), data.resize_crop(part))
                titles = [task.caption(each[0][i], each[1][i], each[2][i], names, guesses) for i in chosen]
                figures[name] = save(
                    image_grid(as_shown(images).numpy(), titles), self.run.figures / f"{part}_{name}.png"
                )
        return figures


def gather(trainer: Trainer, batches: list[dict[str, Tensor]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Logits (N, K) and index (N,) of all processes in the order of index; None but on rank 0."""
    keys = ("logits", "index")
    mine = [torch.cat([b[k] for b in batches]).cpu().numpy() if batches else None for k in keys]
    shares = from_all(trainer, mine)
    if not trainer.is_global_zero:
        return None
    logits, index = (np.concatenate([s[k] for s in shares if s[k] is not None]) for k in range(2))
    order = np.argsort(index, kind="stable")
    return logits[order], index[order]
