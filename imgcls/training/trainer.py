import sys
from datetime import timedelta
from typing import Any, Literal

import lightning
from lightning.fabric.plugins.environments import SLURMEnvironment

from imgcls.errors import UserError


def with_days(duration: Any) -> Any:
    """A duration as Lightning takes it, which of text is DD:HH:MM:SS alone; HH:MM:SS is what one writes."""
    return f"00:{duration}" if isinstance(duration, str) and duration.count(":") == 2 else duration


def limited(batches: int, limit: int | float) -> int:
    """So many of the batches as a limit of the trainer's leaves, a number or a share."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


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
