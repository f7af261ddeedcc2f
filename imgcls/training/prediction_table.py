import hashlib
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError
from imgcls.images.sorting import Link, sort_files
from imgcls.images.sources import FileSource
from imgcls.runs.folder import RunFolder
from imgcls.runs.prediction_file import PredictionFile
from imgcls.runs.temperature import checkpoint_hash, temperature
from imgcls.training.trainer import from_all

log = logging.getLogger(__name__)

Predicted = tuple[Tensor, Tensor, dict[int, str]]  # logits (B, K), index (B,), why an image could not be read


@dataclass(frozen=True)
class Sorting:
    """How images are sorted into folders by class, see `sort_files`."""

    folder: Path
    link: Link | None
    min_confidence: float | None


class PredictionTable(Callback):
    """Writes the table of `predict`, batch by batch, in the order of the images; see `PredictionFile`.

    Rank 0 writes: it has the table. Batch number n of all processes together is a stretch of the images, so that none
    waits for another batch. Where the checkpoint was calibrated, probabilities are.

    Args:
        run: The run's folder.
        checkpoint: Whose predictions they are.
        out: The table.
        sort: How to sort the images by class in the end; None leaves them.
    """

    def __init__(self, run: RunFolder, checkpoint: Path, out: Path, sort: Sorting | None) -> None:
        self.run, self.checkpoint, self.out, self.sort = run, checkpoint, out, sort
        self.table: PredictionFile | None = None
        self.before: Predicted | None = None
        self.cut: np.ndarray | None = None

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Find out where to go on."""
        if stage != "predict":
            return
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            self._check_folder(data)
            self.temperature = temperature(self.run, self.checkpoint)
            self.source, self.index = data.parts["test"]
            names = [self.source.names[i] for i in self.index.tolist()]
            settings = (data.resize_crop("test"), data.mean, data.std, pl_module.flip_at_test, trainer.precision)
            stamps = self.source.stamps()
            images = self.source.fingerprint() if stamps is None else stamps[self.index].tobytes()
            identity = {
                "checkpoint": checkpoint_hash(self.checkpoint),
                "images": _digest(images, *names),
                "settings": _digest(settings, self.temperature, data.class_names),
            }
            self.table = PredictionFile(self.out, data.class_names, names, identity, data.kind)
            data.predict_from = self.table.open(data.batch_size * trainer.world_size)
            if data.predict_from:
                log.info(f"{self.out}: goes on behind image {data.predict_from} of {len(names)}")
        data.predict_from = trainer.strategy.broadcast(data.predict_from)

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:  # noqa: D102
        if trainer.is_global_zero and pl_module.cut is not None:  # that of the checkpoint, which is loaded by now
            self.cut = pl_module.cut.cpu().numpy() / self.temperature
        # rank 0 has the most batches; the others join in until it is done
        self.rounds, self.before = trainer.strategy.broadcast(trainer.num_predict_batches[0]), None
        if trainer.world_size > 1:
            # Lightning's handler calls a collective in the middle of others; a stopped table can be taken up again
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_predict_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        # one batch late: a GPU computes the next while this one is written
        before, self.before = self.before, (outputs["logits"], outputs["index"], dict(batch.get("broken", [])))
        if before is not None:
            self._write(trainer, before)
        if trainer.received_sigterm:
            raise SIGTERMException

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        while self.rounds:
            self._write(trainer, self.before)
            self.before = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: D102
        if self.table is not None:
            with suppress(OSError):  # of a full disk, of which the exception tells
                self.table.close()

    def _write(self, trainer: Trainer, batch: Predicted | None) -> None:
        """Write the batches that all processes have predicted together; None if this one has no more."""
        self.rounds -= 1
        mine = batch and (batch[0].cpu().numpy(), batch[1].cpu().numpy(), batch[2])
        shares = [share for share in from_all(trainer, mine) if share is not None]
        if self.table is None:
            return
        logits, index = (np.concatenate([share[k] for share in shares]) for k in (0, 1))
        broken = {number: reason for share in shares for number, reason in share[2].items()}
        order = np.argsort(index, kind="stable")
        position = np.searchsorted(self.index, index[order])  # images are numbered in their order
        reasons = {int(p): broken[int(i)] for p, i in zip(position, index[order], strict=True) if int(i) in broken}
        scaled = logits[order].astype(np.float64) / self.temperature
        self.table.write(position.tolist(), scaled, reasons, self.cut)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sort the images, and say what was done."""
        if (table := self.table) is None:
            return
        predicted = table.done - table.num_skipped
        if self.sort is not None:
            how = (self.sort.link, self.sort.min_confidence)
            count, unsure = sort_files(self._files(table), self.sort.folder, table.class_names, *how)
            print(f"sorted: {count} images into {self.sort.folder}" + (f" ({unsure} unsure)" if unsure else ""))
        table.complete()
        skipped = f", {table.num_skipped} could not be read: {table.skipped}" if table.num_skipped else ""
        if not predicted:
            raise UserError(f"no image could be read{skipped}")
        calibrated = f"; calibrated, temperature {self.temperature:.3g}" if self.temperature != 1 else ""
        print(f"predictions: {self.out} ({predicted} images{skipped}{calibrated})")

    def _files(self, table: PredictionFile) -> Iterator[tuple[Path, list[str], float]]:
        for position, row in table.rows():
            file = self.source.file(int(self.index[position]))
            assert file is not None  # see _check_folder
            yield file, table.task.names(row[1]), float(row[2])

    def _check_folder(self, data: ImageDataModule) -> None:
        """Refuse to sort into the images themselves: they would be predicted the next time."""
        if self.sort is None:
            return
        folder, option = os.path.abspath(self.sort.folder), f"--sort_into {self.sort.folder}"
        source, index = data.parts["test"]
        if source.file(0) is None:
            raise UserError(f"{option}: the run's own images are no files; name others with --data.root")
        searched = data.root if isinstance(source, FileSource) and source.origins is None else None
        inside = searched is not None and searched.is_dir() and _is_below(folder, os.path.abspath(searched))
        if inside or any(_is_below(os.path.abspath(str(source.file(i))), folder) for i in index.tolist()):
            raise UserError(f"{option}: is among the images that are predicted; name a folder outside of theirs")


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(os.path.join(folder, ""))


def _digest(*facts: object) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for fact in facts:
        digest.update(fact if isinstance(fact, bytes) else f"{fact}\n".encode())
    return digest.hexdigest()
