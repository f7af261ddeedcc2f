from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from imgcls.losses import Loss
from imgcls.models.base import Backbone, Stage
from imgcls.tasks import Task


@dataclass(frozen=True)
class Training:
    """How one parameter is trained.

    Attributes:
        scale: Factor of the model's learning rate.
        start: Epoch from which it is trained, from 0; it is frozen before.
    """

    scale: float
    start: int = 0


@dataclass(frozen=True)
class Features:
    """Cached features of the images of one part.

    Attributes:
        feature: (N, 1 + views, F) float32: of the plain image, and of its augmented views.
        label: (N,) int64 or (N, K) float32.
    """

    feature: Tensor
    label: Tensor


class FineTune(ABC):
    """Which parts of a backbone are trained, how fast, and from when on.

    A new variant is one class in one file that defines `scales`; the other methods are for variants that do more.
    The head is always trained, at the model's own learning rate.

    Attributes:
        views: None, if images go through the backbone in each step. A number, if the frozen backbone is run once
            and the head is trained on cached features: of the plain images and so many augmented views of each.
        feature_dir: Where cached features are kept; None is the run's own folder.
        solves: Whether `solve` fits the head, so that nothing is trained by steps.
        data_sized: Tensors of the model whose shape follows from the number of training images.

    Args:
        backbone_scale: Factor of the learning rate for the backbone, in variants that have one for all of it; below
            1, a fresh head learns faster than pre-trained features change.
        freeze_statistics: Keep the running statistics of every BatchNorm of the backbone, trained or not: for
            batches too small, or data too few, to estimate better ones.
    """

    views: int | None = None
    feature_dir: str | None = None
    solves: bool = False
    data_sized: tuple[str, ...] = ()

    def __init__(self, backbone_scale: float = 1.0, freeze_statistics: bool = False) -> None:
        self.backbone_scale, self.freeze_statistics = backbone_scale, freeze_statistics

    @abstractmethod
    def scales(self, stages: Sequence[Stage]) -> list[float | None]:
        """A factor of the learning rate for each stage, from input to output; None freezes the stage."""

    def starts(self, stages: Sequence[Stage]) -> list[int]:
        """The epoch from which each stage is trained."""
        return [0] * len(stages)

    def prepare(self, backbone: Backbone) -> dict[str, Training]:
        """Freeze what is never trained, and say how each trained parameter is, by name."""
        stages = backbone.stages()
        parameters = dict(backbone.named_parameters())
        trained = {}
        for stage, scale, start in zip(stages, self.scales(stages), self.starts(stages), strict=True):
            for name in stage.parameters:
                parameters[name].requires_grad_(scale is not None)
                if scale is not None:
                    trained[name] = Training(scale, start)
        return trained

    def head(self, num_features: int, num_classes: int, task: Task) -> nn.Module:
        """Features (B, F) to logits (B, K)."""
        return nn.Linear(num_features, num_classes)

    def penalty(self, backbone: Backbone) -> Tensor | None:
        """A term of the loss that depends on the weights, a scalar, or None."""
        return None

    def solve(self, head: nn.Module, train: Features, val: Features | None, loss: Loss) -> dict[str, float] | None:
        """Fit the head to cached features at once, in place of training by steps, where `solves` is set.

        Args:
            head: What `head` returned, changed in place.
            train: The training images.
            val: The validation images, for choices such as the strength of a penalty; None if there are none.
            loss: Of the kind of labels: what is to be small.

        Returns:
            What was chosen, by name; None if the head is trained by steps.
        """
        return None

    def merge(self, backbone: Backbone) -> None:
        """Fold what training added to the backbone into plain weights; predictions stay the same."""
        return


def frozen_modules(module: nn.Module, trained: set[nn.Parameter], freeze_statistics: bool) -> Iterator[nn.Module]:
    """The topmost modules that have parameters, none of which is trained now, and BatchNorms if asked for.

    They stay in eval mode while the rest trains: a frozen BatchNorm in train mode would still move its
    running statistics, and dropout in a frozen part would only blur its features.

    Args:
        module: The backbone.
        trained: Parameters that are trained now.
        freeze_statistics: Whether each BatchNorm counts as frozen.
    """
    parameters = list(module.parameters())
    if (parameters and trained.isdisjoint(parameters)) or (freeze_statistics and isinstance(module, _BatchNorm)):
        yield module
    else:
        for child in module.children():
            yield from frozen_modules(child, trained, freeze_statistics)
