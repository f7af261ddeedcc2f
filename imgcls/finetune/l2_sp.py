from collections.abc import Sequence

import torch
from torch import Tensor

from imgcls.finetune.base import FineTune, Training
from imgcls.models.base import Backbone, Stage


class L2SP(FineTune):
    """Everything is trained, and pulled towards where it started.

    After Li et al., Explicit inductive bias for transfer learning, ICML 2018, eq. 4: the loss gets `alpha / 2` times
    the squared distance of the backbone's trained weights from the pre-trained ones. That takes the place of weight
    decay: set `--model.weight_decay=0`, or leave a little for the head (their beta). The start is kept in the
    checkpoint, so that a resumed run is pulled to the same place.

    Args:
        alpha: Strength of the pull.
        backbone_scale: Factor of the learning rate for the backbone.
        freeze_statistics: Keep the running statistics of every BatchNorm.
    """

    def __init__(self, alpha: float = 0.01, backbone_scale: float = 1.0, freeze_statistics: bool = False) -> None:
        super().__init__(backbone_scale, freeze_statistics)
        self.alpha = alpha

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        return [self.backbone_scale] * len(stages)

    def prepare(self, backbone: Backbone) -> dict[str, Training]:  # noqa: D102
        trained = super().prepare(backbone)
        parameters = dict(backbone.named_parameters())
        self.names = list(trained)
        for number, name in enumerate(self.names):
            backbone.register_buffer(f"start_{number}", parameters[name].detach().clone())
        return trained

    def penalty(self, backbone: Backbone) -> Tensor:  # noqa: D102
        parameters, buffers = dict(backbone.named_parameters()), dict(backbone.named_buffers())
        now = [parameters[name] for name in self.names]
        start = [buffers[f"start_{number}"] for number in range(len(now))]
        squared = [(a - b).square().sum() for a, b in zip(now, start, strict=True)]
        return self.alpha / 2 * torch.stack(squared).sum()

    def merge(self, backbone: Backbone) -> None:  # noqa: D102
        for number in range(len(self.names)):
            delattr(backbone, f"start_{number}")
