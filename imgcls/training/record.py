import logging
import time
from collections.abc import Mapping
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError
from imgcls.pages.report import write_report
from imgcls.runs.environment import environment
from imgcls.runs.folder import RunFolder
from imgcls.runs.record import add_metrics, add_summary, best_row, read_metrics, row_values, write_skipped
from imgcls.system.files import write_atomic, write_json
from imgcls.training.trainer import best_checkpoint, logged


class RunLogger(Logger):
    """Writes metrics.csv as they happen; always on, beside any other logger."""

    name, version, save_dir = "run", "", ""

    def __init__(self, run: RunFolder) -> None:
        super().__init__()
        self.run, self.version, self.save_dir = run, run.path.name, str(run.path)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:  # noqa: D102
        if "epoch" in metrics:  # what is logged within an epoch goes to the other loggers only
            add_metrics(self.run, metrics, int(metrics["epoch"]), step or 0)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:  # noqa: D102
        pass  # config.yaml holds them


class LogFile(logging.FileHandler):
    """Adds to a text file. A full disk stops the run where a metric is lost, not where a message is."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: D102, N802
        pass


class RunRecord(Callback):
    """Keeps the run's folder: config and environment at the start, summary and report at the end.

    Args:
        run: The folder; every process takes over that of rank 0.
        config: Text of config.yaml, written when a new fit starts.
        seed: The run's seed.
        config_folders: Where the run's configs, and modules beside them, were.
        kept: What was logged so far, and will be: log.txt, once a fit starts.
    """

    def __init__(
        self, run: RunFolder, config: str, seed: int, config_folders: list[str], kept: MemoryHandler | None = None
    ) -> None:
        self.run, self.config, self.seed, self.config_folders, self.kept = run, config, seed, config_folders, kept
        self.seconds, self.train_seconds, self.images = 0.0, 0.0, 0
        self._started = self._since = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Agree on the folder.

        Raises:
            UserError: There would be nothing to do, and figures of before would pass for those of now.
        """
        path = trainer.strategy.broadcast(str(self.run.path))
        if path != str(self.run.path):
            self.run.move(path)
        limits = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}
        limit = limits.get(stage)
        if limit and getattr(trainer, limit) == 0:
            raise UserError(f"--trainer.{limit}=0: nothing is left to do")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write config and environment: model, data and optimiser are built, nothing has been trained."""
        self._started = time.perf_counter()
        if not trainer.is_global_zero:
            return
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if not self.run.config.exists():
            write_atomic(self.run.config, self._config(data))
        if self.kept is not None:
            self.kept.setTarget(LogFile(self.run.log))
        sizes = {part: len(index) for part, (_, index) in data.parts.items()}
        record: dict[str, Any] = {"class": type(data).__name__, "task": data.task, "class_names": data.class_names}
        record |= {**data.fingerprint, "images": sizes}
        record["class_counts"] = data.class_counts().tolist()
        hardware = {
            "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "processes": trainer.world_size,
            "threads": torch.get_num_threads(),
            "precision": trainer.precision,
        }
        facts = environment(self.seed, record, hardware)
        write_json(self.run.environment, facts | {"config_folders": self.config_folders})
        self._skipped(trainer)

    def _config(self, data: ImageDataModule) -> str:
        """Text of config.yaml, with what was measured on the training part."""
        config = yaml.safe_load(self.config)
        if "value_range" in (options := config["data"]["init_args"]):
            options["value_range"] = data.value_range
        return yaml.safe_dump(config, sort_keys=False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._since = time.perf_counter()

    on_train_start = on_train_epoch_start  # a run that resumes in the middle of an epoch starts there

    def on_train_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        now = time.perf_counter()
        self.train_seconds += now - self._since  # up to here: validation and checkpoints come after it
        self._since = now
        self.images += len(batch["index"]) * trainer.world_size

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Summarise the epoch whose checkpoint was kept; also where a run was resumed of which all epochs were done."""
        self.seconds += time.perf_counter() - self._started
        if not trainer.is_global_zero:
            return
        rows = read_metrics(self.run)
        last = {row["split"]: row for row in rows}
        summary: dict[str, float | int | None] = {}
        if checkpoint := best_checkpoint(trainer):
            if best := best_row(rows, str(checkpoint.monitor), checkpoint.mode):
                summary = {**row_values(best), "fit/best_epoch": int(best["epoch"])}
        elif "val" in last:
            summary = {**row_values(last["val"])}
        if "train" in last:
            summary |= {k: v for k, v in row_values(last["train"]).items() if k != "train/lr"}
        summary |= {
            "fit/epochs": trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
            "fit/seconds": self.seconds,
            "fit/images_per_second": self.images / self.train_seconds if self.train_seconds else None,
        }
        add_summary(self.run, summary)
        write_report(self.run)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._since = time.perf_counter()
        if trainer.state.fn == "validate":
            self._summarize(trainer, "val/")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._summarize(trainer, "test/")

    def _skipped(self, trainer: Trainer) -> None:
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if data.on_error == "skip":
            add_summary(self.run, {"data/skipped": write_skipped(self.run.skipped, data.checked, data.skipped)})

    def _summarize(self, trainer: Trainer, prefix: str) -> None:
        if trainer.is_global_zero:
            self._skipped(trainer)
            add_summary(self.run, logged(trainer, prefix))
            write_report(self.run)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write an epoch's row before the checkpoint that ends it: after a kill between the two it would be missing."""
        epoch: Any = trainer.fit_loop.epoch_progress.current
        if trainer.is_global_zero and epoch.processed > epoch.completed:
            add_metrics(self.run, logged(trainer, "train/"), trainer.current_epoch, trainer.global_step)

    def state_dict(self) -> dict[str, float]:
        """Time and images so far, so that a resumed run reports its whole length."""
        running = time.perf_counter() - self._started if self._started else 0.0
        return {"seconds": self.seconds + running, "train_seconds": self.train_seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:  # noqa: D102
        self.seconds, self.train_seconds = state_dict["seconds"], state_dict["train_seconds"]
        self.images = int(state_dict["images"])
