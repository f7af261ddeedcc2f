import logging
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from imgcls.errors import UserError
from imgcls.runs import slurm
from imgcls.runs.folder import RunFolder
from imgcls.system.files import replacing

log = logging.getLogger(__name__)
EVERY = 20  # steps, on several GPUs, between two looks at whether a process was asked to stop


class _Checkpoint(ModelCheckpoint):
    def _save(self, trainer: Trainer) -> bool:
        """Save this step, whatever the monitored metric; False if it was saved before, or nothing is to be."""
        if self._should_skip_saving_checkpoint(trainer):
            return False
        self._save_none_monitor_checkpoint(trainer, self._monitor_candidates(trainer))
        return True


class BestCheckpoint(_Checkpoint):
    """Keeps the best epoch, and among equals the last.

    Few validation images make many equals, and with a schedule that ends low the later epoch is the better guess.
    """

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:  # noqa: D102
        if super().check_monitor_top_k(trainer, current):
            return True
        return current is not None and self.best_model_score is not None and bool(current == self.best_model_score)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Have the step at which max_steps ends the run validated, also within an epoch."""
        super().on_train_batch_end(trainer, *args, **kwargs)
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of a run that ended before it was validated, the last weights are all there is."""
        super().on_train_end(trainer, pl_module)
        if self.save_top_k and not self.best_model_path:
            self._save(trainer)

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Without a validation part no epoch is known to be better than the last."""
        if self.save_top_k and self.monitor not in monitor_candidates and not any(trainer.num_val_batches):
            self._save_none_monitor_checkpoint(trainer, monitor_candidates)
        else:
            super()._save_topk_checkpoint(trainer, monitor_candidates)


class LastCheckpoint(_Checkpoint):
    """Keeps the last epoch; `Signals` has it keep a step as well."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Leave an epoch's last step to its end: resumed from here, the epoch would go without validation.

        A run that stops within an epoch is saved here: at the end, Lightning would count that epoch as done.
        """
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        super().on_train_batch_end(trainer, *args, **kwargs)
        self._save_if_stopping(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        super().on_validation_end(trainer, pl_module)
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save_if_stopping(trainer)  # where a callback stops the run for what validation found

    def _save_if_stopping(self, trainer: Trainer) -> None:
        if trainer.should_stop and trainer.fit_loop._can_stop_early:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        super().on_train_epoch_end(trainer, pl_module)
        every = self._every_n_train_steps
        if every and trainer.global_step % every == 0:
            self._save(trainer)

    def save_now(self, trainer: Trainer) -> None:
        """Save this step, unless it was."""
        if self._save(trainer):
            rank_zero_only(log.info)(f"stopped by a signal; go on with --resume {trainer.default_root_dir}")


class Signals(Callback):
    """SIGTERM saves the step and stops the run; so does SLURM's signal before a job's end, and puts the job back.

    Lightning's handlers do neither: that of SLURM's signal saves in the middle of a step, to a file that nobody looks
    for, and that of SIGTERM, on several processes, calls a collective in the middle of others, which breaks them.

    Args:
        run: The run's folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run, self.asked, self.requeue = run, False, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the place of Lightning's handlers, which are installed after this and removed at the end."""
        self.launcher: Any = trainer.strategy.launcher
        if trainer.world_size > 1:
            handler: Any = self._ask if stage == "fit" else self._stop
            trainer._signal_connector._sigterm_notifier_fn = handler  # type: ignore[method-assign]
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        environment = trainer._accelerator_connector.cluster_environment
        if stage == "fit" and isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            signal.signal(environment.requeue_signal or signal.SIGUSR1, self._put_back)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if trainer.is_global_zero:
            slurm.remember(self.run)

    def on_train_batch_end(  # noqa: D102
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # to agree, the host waits for the device
        due = trainer.strategy.root_device.type == "cpu" or batch_idx % EVERY == 0
        if trainer.world_size > 1 and due and trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            trainer._signal_connector.received_sigterm = True  # on all processes, after the same step
        if trainer.received_sigterm:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save where Lightning stops for the signal, between two steps; after an error a step may be half done."""
        if not isinstance(exception, SIGTERMException):
            return
        self._save(trainer)
        if self.requeue and trainer.is_global_zero:
            command = ["scontrol", "requeue", slurm.job() or ""]
            done = subprocess.run(command, capture_output=True, text=True)
            log.info(f"{' '.join(command)}: {'done' if done.returncode == 0 else done.stderr.strip()}")

    def _save(self, trainer: Trainer) -> None:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                callback.save_now(trainer)

    def _ask(self, number: int, resize_crop: Any) -> None:
        self.asked = True

    def _stop(self, number: int, resize_crop: Any) -> None:
        if self.launcher is not None:
            self.launcher.kill(number)
        raise SIGTERMException  # an evaluation has nothing to save

    def _put_back(self, number: int, resize_crop: Any) -> None:
        self.requeue = True
        os.kill(os.getpid(), signal.SIGTERM)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and then takes its name: whatever happens, there is the old file or the new one.

    Lightning's own goes through the temporary folder, and across file systems a kill leaves half a file.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint; with a protocol in its path, as Lightning does.

        Raises:
            UserError: The disk is full, or the folder cannot be written to.
        """
        if re.match(r"\w+://", str(path)):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        try:
            with replacing(path) as part, open(part, "wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch's writer has its own words for a full disk
            cause = next((e for e in (error, error.__context__) if isinstance(e, OSError)), error)
            reason = str(cause.strerror if isinstance(cause, OSError) else cause).splitlines()[0]
            stands = "the one before stands" if path.is_file() else "there is none yet"
            raise UserError(
                f"{path}: the checkpoint cannot be written ({reason}), {stands}; make room or mend the folder, "
                "and go on with --resume"
            ) from error
        # the new name itself must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
