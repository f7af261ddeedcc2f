from collections.abc import Sequence

from imgcls.errors import UserError
from imgcls.finetune.base import FineTune
from imgcls.models.base import Stage


class Gradual(FineTune):
    """The head is trained first; then stages join it from output to input (Howard and Ruder, ULMFiT, ACL 2018, 3.3).

    All parameters are in the optimiser from the start: a stage that has not joined gets no gradient, no weight
    decay and no moments, and its BatchNorm statistics rest. Which stages have joined depends on the epoch alone,
    so that a resumed run and several processes agree.

    With `blocks` null the whole backbone joins at once: first a probe, then fine-tuning (Kumar et al., Fine-tuning
    can distort pretrained features, ICLR 2022, LP-FT).

    Args:
        epochs: Epochs before the next stages join.
        blocks: Number of stages that join at a time; null for all.
        backbone_scale: Factor of the learning rate for the backbone.
        freeze_statistics: Keep the running statistics of every BatchNorm.
    """

    def __init__(
        self, epochs: int = 1, blocks: int | None = 1, backbone_scale: float = 1.0, freeze_statistics: bool = False
    ) -> None:
        super().__init__(backbone_scale, freeze_statistics)
        if epochs < 1 or (blocks is not None and blocks < 1):
            raise UserError(f"--model.finetune: epochs {epochs} and blocks {blocks} must be positive")
        self.epochs, self.blocks = epochs, blocks

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        return [self.backbone_scale] * len(stages)

    def starts(self, stages: Sequence[Stage]) -> list[int]:  # noqa: D102
        at_a_time = self.blocks or len(stages)
        return [self.epochs * (1 + (len(stages) - 1 - k) // at_a_time) for k in range(len(stages))]
