from collections.abc import Sequence

from imgcls.finetune.base import FineTune
from imgcls.models.base import Stage


class LinearProbe(FineTune):
    """The backbone is frozen, its BatchNorm statistics included; only the linear head is trained."""

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        return [None] * len(stages)
