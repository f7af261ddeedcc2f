from collections.abc import Sequence

from imgcls.finetune.base import FineTune
from imgcls.models.base import Stage


class Full(FineTune):
    """Everything is trained.

    Args:
        backbone_scale: Factor of the learning rate for the backbone; below 1, a fresh head learns faster than
            pre-trained features change.
        freeze_statistics: Keep the running statistics of every BatchNorm.
    """

    def __init__(self, backbone_scale: float = 1.0, freeze_statistics: bool = False) -> None:
        super().__init__(freeze_statistics)
        self.backbone_scale = backbone_scale

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        return [self.backbone_scale] * len(stages)
