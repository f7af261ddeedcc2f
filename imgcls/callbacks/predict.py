from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from imgcls.callbacks.outputs import gather
from imgcls.runs.record import write_unlabelled


class PredictionTable(Callback):
    """Writes the table of `predict`: one row per image, in the order of the images.

    Args:
        path: The CSV file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches: list[dict[str, Tensor]] = []

    def on_predict_batch_end(  # noqa: D102
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.batches.append({k: v.cpu() for k, v in outputs.items()})

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        gathered = gather(trainer, self.batches)
        self.batches = []
        if gathered is not None:
            logits, _, index = gathered
            data = trainer.datamodule  # type: ignore[attr-defined]
            source, _ = data.parts["test"]
            write_unlabelled(self.path, logits, index, source.names, data.class_names)
            print(f"predictions: {self.path} ({len(index)} images)")
