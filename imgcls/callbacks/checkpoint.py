from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch, and among equals the last.

    Few validation images make many equals, and with a schedule that ends low the later epoch is the better guess.
    """

    def check_monitor_top_k(self, trainer: Trainer, current: Tensor | None = None) -> bool:  # noqa: D102
        if super().check_monitor_top_k(trainer, current):
            return True
        return current is not None and self.best_model_score is not None and bool(current == self.best_model_score)
