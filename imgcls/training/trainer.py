import math
import sys
from datetime import timedelta
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint

from imgcls.errors import UserError


def with_days(duration: Any) -> Any:
    """A duration as Lightning takes it, which of text is DD:HH:MM:SS alone; HH:MM:SS is what one writes."""
    return f"00:{duration}" if isinstance(duration, str) and duration.count(":") == 2 else duration


def limited(batches: int, limit: int | float) -> int:
    """So many of the batches as a limit of the trainer's leaves, a number or a share."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def total_steps(trainer: Any) -> int:
    """Optimiser steps of a whole run, from lengths alone.

    Lightning's own estimate builds the loader's iterator, which breaks a resumed position.

    Raises:
        UserError: There are none, or no end of them is known.
    """
    every = trainer.accumulate_grad_batches
    batches = limited(len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches)
    counts = {"overfit_batches" if trainer.overfit_batches else "limit_train_batches": batches}
    counts |= {"max_steps": trainer.max_steps, "accumulate_grad_batches": every}
    if none := [option for option, count in counts.items() if count == 0]:
        raise UserError(f"--trainer.{none[0]}: leaves no step to train; give more")
    of_epochs = math.ceil(batches / every) * (trainer.max_epochs or 0)
    if not (given := [steps for steps in (trainer.max_steps, of_epochs) if steps > 0]):
        raise UserError("--trainer.max_epochs: give a number from 1 on; the schedule needs to know the last step")
    return min(given)  # what comes first ends the run


def best_checkpoint(trainer: lightning.Trainer) -> ModelCheckpoint | None:
    """The checkpoint that is kept for the best epoch, if there is one."""
    checkpoint = trainer.checkpoint_callback
    return checkpoint if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor else None


def logged(trainer: lightning.Trainer, prefix: str) -> dict[str, float]:
    """The last values that were logged under names which begin so."""
    return {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith(prefix)}


def from_all(trainer: lightning.Trainer, mine: Any) -> list[Any]:
    """The object of each process, on each process."""
    shares = [mine] * trainer.world_size
    if trainer.world_size > 1:
        torch.distributed.all_gather_object(shares, mine)
    return shares


class Trainer(lightning.Trainer):
    """Lightning's Trainer, stopped by a signal where nothing is lost, on all the processes that were asked for.

    Args:
        max_epochs: `auto`: as many as `max_time` has room for, which `fit` measures and writes into the run's config.
        max_time: Stop after this time, HH:MM:SS or DD:HH:MM:SS, and validate what was trained.
    """

    def __init__(
        self,
        *args: Any,
        max_epochs: int | Literal["auto"] | None = None,
        max_time: str | timedelta | dict[str, int] | None = None,
        **kwargs: Any,
    ) -> None:
        epochs = 1 if max_epochs == "auto" else max_epochs  # verbs that do not train have no use for it
        super().__init__(*args, max_epochs=epochs, max_time=with_days(max_time), **kwargs)

    @property
    def received_sigterm(self) -> bool:
        """Whether to stop before the next step; an epoch whose last step is done is validated and saved first.

        Lightning would leave validation in the middle, and the resumed run would go on without it. Gradients that are
        being accumulated are in no checkpoint: the optimiser's step comes first.
        """
        epoch = self.fit_loop.epoch_progress.current
        finishing = self.fit_loop.epoch_loop.batch_progress.is_last_batch and epoch.started > epoch.completed  # type: ignore[attr-defined]
        accumulating = self.training and self.fit_loop.epoch_loop._should_accumulate()
        unready = self.state.fn == "fit" and (finishing or self.validating or accumulating)
        return super().received_sigterm and not unready

    def check_processes(self) -> None:
        """Compare the processes that torchrun or SLURM started with those that were asked for.

        Lightning takes what is there: a run asked for on two devices would be one of another global batch size, or
        several processes would each train alone and write to one folder.

        Raises:
            UserError: They differ; the process of rank 0 says so, the others end with the same exit code.
        """
        environment = self._accelerator_connector.cluster_environment
        wanted = self.num_devices * self.num_nodes
        if not environment.creates_processes_externally or environment.world_size() == wanted:
            return
        if environment.global_rank() != 0:
            sys.exit(2)
        by_slurm = isinstance(environment, SLURMEnvironment)
        started, launcher = environment.world_size(), "SLURM" if by_slurm else "torchrun"
        options = "--nodes, --ntasks-per-node and srun" if by_slurm else "--nnodes and --nproc_per_node"
        raise UserError(
            f"trainer: {launcher} started {started} processes, and --trainer.num_nodes={self.num_nodes} with "
            f"--trainer.devices={self.num_devices} asks for {wanted}; {launcher} takes the same numbers by {options}"
        )
