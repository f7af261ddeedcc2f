from collections.abc import Sequence

from imgcls.finetune.base import FineTune
from imgcls.models.base import Stage


class Full(FineTune):
    """Everything is trained."""

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        return [self.backbone_scale] * len(stages)
