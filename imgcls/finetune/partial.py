from collections.abc import Sequence

from imgcls.errors import UserError
from imgcls.finetune.base import FineTune
from imgcls.models.base import Stage


class Partial(FineTune):
    """The last blocks of the backbone are trained, those before them are frozen.

    Args:
        blocks: Number of trained stages, counted from the output.
        backbone_scale: Factor of the learning rate for them.
        freeze_statistics: Keep the running statistics of every BatchNorm, of trained blocks too.
    """

    def __init__(self, blocks: int = 2, backbone_scale: float = 1.0, freeze_statistics: bool = False) -> None:
        super().__init__(backbone_scale, freeze_statistics)
        self.blocks = blocks

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        if not 0 <= self.blocks <= len(stages):
            names = ", ".join(stage.name for stage in stages)
            raise UserError(f"--model.finetune.blocks: {self.blocks}; the backbone has {len(stages)}: {names}")
        frozen = len(stages) - self.blocks
        return [None] * frozen + [self.backbone_scale] * self.blocks
