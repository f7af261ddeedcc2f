from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from torch import nn

from imgcls.models.base import Backbone, Stage


class FineTune(ABC):
    """Which parts of a backbone are trained, and how fast.

    A new variant is one class in one file. The head is always trained, at the model's own learning rate.
    """

    @abstractmethod
    def scales(self, stages: Sequence[Stage]) -> list[float | None]:
        """A factor of the learning rate for each stage, from input to output; None freezes the stage."""

    def prepare(self, backbone: Backbone) -> dict[str, float]:
        """Freeze what is frozen and return the learning-rate factor of every trained parameter by name."""
        stages = backbone.stages()
        parameters = dict(backbone.named_parameters())
        factors = {}
        for stage, scale in zip(stages, self.scales(stages), strict=True):
            for name in stage.parameters:
                parameters[name].requires_grad_(scale is not None)
                if scale is not None:
                    factors[name] = scale
        return factors


def frozen_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The topmost modules that have parameters, none of which is trained.

    They stay in eval mode while the rest trains: a frozen BatchNorm in train mode would still move its
    running statistics, and dropout in a frozen part would only blur its features.
    """
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        yield module
    else:
        for child in module.children():
            yield from frozen_modules(child)
