from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

from imgcls.errors import UserError
from imgcls.training.sharded import Sharded, whole


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
        super().__init__()
        self.decay, self.update_every_n_steps = decay, update_every_n_steps

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the average where the model will be, and its count of updates, which is looked at, on the CPU."""
        sharded = trainer.strategy if isinstance(trainer.strategy, Sharded) else None
        self._device = None if sharded else trainer.strategy.root_device  # it is copied whole, and may not fit there
        super().setup(trainer, pl_module, stage)
        if self._average_model is not None:
            if sharded:
                sharded.shard(self._average_model.module)
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # type: ignore[override]
        """Update the average once for each step of the optimiser that is due."""
        step = trainer.global_step
        if step > self._latest_update_step and (step - 1) % self.update_every_n_steps == 0:
            assert self._average_model is not None
            self.update(self._average_model, pl_module)
            self._latest_update_step = step

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """At the end of an epoch, when Lightning asks, nothing is due."""
        return False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The average has the cuts that were chosen for it: the model's own weights are back before they are."""
        if self._average_model is not None and pl_module.cut is not None:
            self._average_model.module.cut.copy_(pl_module.cut)  # type: ignore[operator, arg-type]

    @torch.no_grad()
    def update(self, average: AveragedModel, model: nn.Module) -> None:
        """Take in weights and buffers of a model; a count, as BatchNorm has one, is not averaged.

        torch's own `update_parameters` looks at a counter on the device, for which the host would wait in each step.
        """
        pairs = [*zip(_tensors(average.module), _tensors(model), strict=True)]
        # the counter is a buffer that checkpoints hold: resumed runs have the same decay
        weight = max(1 - self.decay, 9 / (10 + updates)) if (updates := int(average.n_averaged)) else 1.0
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mean for mean, _ in floats], [now for _, now in floats], weight)
        for count, now in pairs:
            if not count.is_floating_point():
                count.copy_(now)
        average.n_averaged += 1

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the average as a whole, also where it is sharded."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["state_dict"] = whole(checkpoint["state_dict"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take up training again; a test takes the average alone, where Lightning's would go back to the weights."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    tensors = chain(module.parameters(), module.buffers())
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
