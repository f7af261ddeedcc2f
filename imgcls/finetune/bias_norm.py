from collections.abc import Sequence

from imgcls.finetune.base import FineTune, Training
from imgcls.models.base import Backbone, Stage


class BiasNorm(FineTune):
    """Only biases and the scales of norms are trained, and the head.

    After Ben Zaken et al. (BitFit, ACL 2022) for biases, and Frankle et al. (Training BatchNorm and only BatchNorm,
    ICLR 2021) for norms: all parameters of at most one dimension.
    """

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        return [self.backbone_scale] * len(stages)

    def prepare(self, backbone: Backbone) -> dict[str, Training]:  # noqa: D102
        trained = super().prepare(backbone)
        for name, parameter in backbone.named_parameters():
            if parameter.ndim > 1:
                parameter.requires_grad_(False)
                del trained[name]
        return trained
