"""`--trainer.max_epochs=auto`: as many as `--trainer.max_time` has room for, measured before training."""

import copy
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
from lightning import Callback, LightningModule
from lightning.pytorch.callbacks import Timer, WeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

from imgcls.classifier import Classifier
from imgcls.cli.measuring import now
from imgcls.cli.quiet import silence
from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError
from imgcls.training.trainer import Trainer, limited, with_days

log = logging.getLogger(__name__)

USED = 0.95  # of max_time, which is also where the run would be cut off: its epochs are not all of one length
BATCHES = 30


def choose_max_epochs(model: Classifier, data: ImageDataModule, options: Mapping[str, Any]) -> int:
    """The number of epochs that end shortly before `max_time`; at least one.

    Measured on copies, so that the run is the same as one that is started with this number. Processes that train
    together measure together and agree.

    Args:
        model: The model; it is not changed.
        data: The data; it is not changed.
        options: Arguments of the trainer.

    Raises:
        UserError: There is no `max_time`, or `max_steps` sets the length.
    """
    if options["max_time"] is None or options["max_steps"] != -1:
        raise UserError("--trainer.max_epochs=auto: give --trainer.max_time=HH:MM:SS with it, and no max_steps")
    if model.finetune.solves or options["fast_dev_run"]:
        return 1
    available = Timer(with_days(options["max_time"])).time_remaining() or 0.0
    model, data = copy.deepcopy(model), copy.deepcopy(data)
    # what is trained later only is trained from the start: an epoch is then as slow as it will get
    model.trained = {name: replace(how, start=0) for name, how in model.trained.items()}
    with isolate_rng(), silence():
        seconds = _seconds_of_an_epoch(model, data, {**options})
    epochs = max(1, int(USED * available / seconds))
    rank_zero_only(log.info)(f"max_time {timedelta(seconds=available)}: {epochs} epochs of {seconds:.3g} s")
    return epochs


class _Clock(Callback):
    """When the last epoch began and ended, and its first and last batch of training and of validation."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def _note(self, name: str, module: LightningModule) -> None:
        self.at[name] = now(module.device)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._note("begin", pl_module)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: LightningModule, *given: Any) -> None:  # noqa: D102
        batch_idx = given[2]
        if batch_idx in (0, trainer.num_training_batches - 1):
            self._note(f"train {batch_idx}", pl_module)

    def on_validation_batch_end(self, trainer: lightning.Trainer, pl_module: LightningModule, *given: Any) -> None:  # noqa: D102
        batch_idx = given[2]
        if batch_idx in (0, trainer.num_val_batches[0] - 1):
            self._note(f"val {batch_idx}", pl_module)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._note("end", pl_module)

    def batch(self, part: str, count: int) -> float:
        """Seconds of a batch after the first of so many."""
        return (self.at[f"{part} {count - 1}"] - self.at[f"{part} 0"]) / (count - 1) if count > 1 else 0.0


def _seconds_of_an_epoch(model: Classifier, data: ImageDataModule, options: dict[str, Any]) -> float:
    """Time a short epoch and its checkpoints, and add the batches that a whole epoch has more.

    It is the second one of the same images: they are in the cache then, and kernels compiled.
    """
    clock = _Clock()
    averaging = [c for c in options["callbacks"] or [] if isinstance(c, WeightAveraging)]  # it works in each step
    changed = {
        **{"max_epochs": 2, "min_epochs": None, "min_steps": None, "max_time": None, "overfit_batches": BATCHES},
        **{"val_check_interval": None, "check_val_every_n_epoch": 1, "num_sanity_val_steps": 0, "profiler": None},
        **{"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False},
    }
    trainer = Trainer(**copy.deepcopy({**options, **changed, "callbacks": averaging}))
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    trainer.fit(model, datamodule=data)
    steps = limited(len(data.train_dataloader()), _limit(options, "train"))
    batches = limited(len(data.val_dataloader()), _limit(options, "val"))
    every = options["val_check_interval"]
    validations = steps / every if isinstance(every, int) else 1 / every if isinstance(every, float) else 1.0
    validations /= options["check_val_every_n_epoch"] or 1
    train, val = int(trainer.num_training_batches), sum(map(int, trainer.num_val_batches))
    seconds = clock.at["end"] - clock.at["begin"] + _seconds_of_checkpoints(trainer, options)
    seconds += (steps - train) * clock.batch("train", train) + (validations * batches - val) * clock.batch("val", val)
    return trainer.strategy.broadcast(seconds)


def _limit(options: dict[str, Any], part: str) -> int | float:
    limits = options["overfit_batches"] or None, options[f"limit_{part}_batches"], 1.0
    return next(limit for limit in limits if limit is not None)


def _seconds_of_checkpoints(trainer: Trainer, options: dict[str, Any]) -> float:
    """Time of writing the best and the last checkpoint."""
    if options["enable_checkpointing"] is False:
        return 0.0
    path = Path(options["default_root_dir"], "checkpoints", "timed.ckpt")
    started = time.perf_counter()
    trainer.save_checkpoint(path, weights_only=False)
    seconds = time.perf_counter() - started
    trainer.strategy.remove_checkpoint(path)
    with suppress(OSError):  # they are not empty where a run goes on
        path.parent.rmdir()
        path.parents[1].rmdir()
    return 2 * seconds
