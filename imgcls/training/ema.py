from functools import partial
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from imgcls.errors import UserError


class EMA(WeightAveraging):
    """Validates, keeps and tests an exponential moving average of weights and buffers, with a warm-up of its decay.

    Update t has the decay min(decay, (1 + t) / (10 + t)), as TensorFlow's ExponentialMovingAverage has with
    `num_updates`: about the last tenth of the steps is averaged until `decay` limits that. A constant decay of 0.999
    holds on to the initial weights for thousands of steps, which is all that small data have.

    Args:
        decay: Its limit; 0.999 averages over about 1,000 updates.
        update_every_n_steps: Steps of the optimiser from one update to the next.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        if not 0 <= decay < 1 or update_every_n_steps < 1:
            raise UserError(
                f"trainer.callbacks: EMA takes a decay from 0 to below 1, and updates every 1 or more steps; it was "
                f"given {decay} and {update_every_n_steps}"
            )
        # AveragedModel counts the updates in a buffer that checkpoints hold: resumed runs have the same decay
        super().__init__(avg_fn=partial(_average, decay))
        self.update_every_n_steps = update_every_n_steps

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:  # noqa: D102
        return step_idx is not None and step_idx % self.update_every_n_steps == 0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up training again; a test takes the average alone, where Lightning's would go back to the weights."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _average(decay: float, average: Tensor, current: Tensor, updates: Tensor) -> Tensor:
    """The next average of a tensor after so many updates; a count, as BatchNorm has one, is not averaged."""
    if not average.is_floating_point():
        return current
    return average.lerp(current, (9 / (10 + updates)).clamp(min=1 - decay).to(average.dtype))
