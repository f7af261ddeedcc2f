from collections.abc import Sequence

from imgcls.finetune.base import FineTune
from imgcls.models.base import Stage


class LayerDecay(FineTune):
    """Everything is trained, the slower the nearer to the input (Clark et al., ELECTRA, ICLR 2020, appendix A).

    Stage k of n, from 1, has the factor `decay ** (n + 1 - k)`; the head has 1. Stages are the backbone's own
    blocks: a deep network wants a decay nearer to 1.

    Args:
        decay: Ratio of the learning rates of neighbouring stages.
        freeze_statistics: Keep the running statistics of every BatchNorm.
    """

    def __init__(self, decay: float = 0.75, freeze_statistics: bool = False) -> None:
        super().__init__(freeze_statistics=freeze_statistics)
        self.decay = decay

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        return [self.decay ** (len(stages) - k) for k in range(len(stages))]
