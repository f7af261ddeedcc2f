import csv
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from imgcls.errors import UserError
from imgcls.training.trainer import from_all

EVERY = 50  # steps between two looks at losses where a look makes the device wait
LISTED = 64  # images in a message


class Step(NamedTuple):
    """A batch of a step: its number, learning rate, images (B,), by number and loss."""

    step: int
    lr: float
    images: Tensor
    loss: Any


class NonFinite(Callback):
    """Stops the run, or leaves the step out, when a loss is not finite; such weights never reach a checkpoint.

    What was found is in nonfinite.csv in the run's folder, a row per image. The host never waits for a GPU: losses stay
    there and are looked at together, at the latest before validation and each checkpoint. A step is left out there
    too, by torch's fused optimisers, which take a flag; for others the host looks at each step.

    Args:
        policy: `raise` stops; `skip` goes on with weights, statistics and optimiser as they were before the step.
        limit: Number of steps that may be left out; a GPU may have left out some more when the run stops.
    """

    def __init__(self, policy: Literal["raise", "skip"] = "raise", limit: int = 10) -> None:
        self.policy, self.limit = policy, limit
        self.pending: list[Step] = []
        self.skipped = 0
        self._index = torch.empty(0)
        self._losses: list[Tensor] = []  # since the last step of the optimiser
        self._before: list[tuple[Tensor, Tensor]] = []
        self._totals: Any = None

    def state_dict(self) -> dict[str, Any]:  # noqa: D102
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what a forward pass changes: BatchNorm takes in what is not finite before the loss is known."""
        self._index = batch["index"]
        if self.policy == "skip" and not self._losses:
            self._before = [(b, b.clone()) for b in pl_module.buffers()]
            self._totals = pl_module.train_totals

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: D102
        lr = trainer.optimizers[0].param_groups[-1]["lr"]
        self.pending.append(Step(trainer.global_step, lr, self._index, loss.detach()))
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Leave a step out, on all processes, if the loss of one of its batches is not finite."""
        losses, self._losses = self._losses, []
        if self.policy == "raise":
            return
        bad = 1 - torch.stack(losses).isfinite().all().float()
        if trainer.world_size > 1:
            torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = bad  # as torch's GradScaler tells it
        elif bad:
            for parameter in pl_module.parameters():
                parameter.grad = None  # without one, nothing moves
        for buffer, value in self._before:
            buffer.copy_(torch.where(bad > 0, value, buffer))
        totals: Any = pl_module.train_totals
        before = torch.zeros_like(totals) if self._totals is None else self._totals
        pl_module.train_totals = torch.where(bad > 0, before, totals)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: D102
        waits = pl_module.device.type != "cpu" or trainer.world_size > 1
        if len(self.pending) >= (EVERY if waits else 1):
            self._act(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        if self.policy == "skip":
            self._act(trainer)
            pl_module.log("train/skipped_steps", float(self.skipped))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Look at losses and weights: a finite loss can have a gradient that is not.

        Raises:
            UserError: One of them is not finite.
        """
        if trainer.state.fn != "fit":
            return
        self._act(trainer)
        bad = [name for name, p in pl_module.named_parameters() if not torch.isfinite(p).all()]
        if bad:
            raise UserError(
                f"step {trainer.global_step}: {len(bad)} weights are not finite, {bad[0]} first, and were not saved; "
                f"{_way_out(trainer)}"
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Look before every save: the file that was to be replaced stays. The count of before the look was there."""
        self.on_validation_start(trainer, pl_module)
        checkpoint["callbacks"][self.state_key] = self.state_dict()

    def _act(self, trainer: Trainer) -> None:
        """Look at the steps since the last look, and stop, or count those that were left out."""
        for bad in self._look(trainer):
            if self.policy == "raise":
                raise UserError(f"{_describe(bad)}; {_way_out(trainer)}, --nonfinite.policy=skip leaves such steps out")
            self.skipped += 1
            if self.skipped > self.limit:
                raise UserError(f"{_describe(bad)}; --nonfinite.limit={self.limit} steps were left out before")

    def _look(self, trainer: Trainer) -> list[list[Step]]:
        """Batches whose loss was not finite, on any process, by steps since the last look."""
        steps, self.pending = self.pending, []
        losses = torch.stack([step.loss for step in steps]).float().tolist() if steps else []
        looked_at = [step._replace(loss=loss) for step, loss in zip(steps, losses, strict=True)]
        bad = [step._replace(images=step.images.cpu()) for step in looked_at if not math.isfinite(step.loss)]
        if trainer.strategy.reduce_boolean_decision(bool(bad), all=False):
            bad = [step for share in from_all(trainer, bad) for step in share]
        found = [[step for step in bad if step.step == number] for number in sorted({step.step for step in bad})]
        found = found[:1] if self.policy == "raise" else found[: self.limit - self.skipped + 1]
        if found and trainer.is_global_zero:
            _write(Path(trainer.default_root_dir) / "nonfinite.csv", sum(found, []), trainer.datamodule)  # type: ignore[attr-defined]
        return found


def _describe(bad: list[Step]) -> str:
    index = torch.cat([step.images for step in bad]).tolist()
    images = ", ".join(map(str, index[:LISTED])) + (f" and {len(index) - LISTED} more" if index[LISTED:] else "")
    return f"step {bad[0].step}: the loss is {bad[0].loss} (learning rate {bad[0].lr:g}, images {images})"


def _way_out(trainer: Trainer) -> str:
    last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    kept = f"{last} is the last good checkpoint" if last.is_file() else "no checkpoint had been written"
    return f"{kept}; a lower --model.lr or --trainer.gradient_clip_val=1 may help"


def _write(path: Path, bad: list[Step], data: Any) -> None:
    names = data.parts["train"][0].names
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows([("step", "lr", "loss", "index", "path")] if fresh else [])
        table.writerows((s.step, s.lr, s.loss, i, names[i]) for s in bad for i in s.images.tolist())
