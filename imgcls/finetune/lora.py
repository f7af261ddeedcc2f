import math
from collections.abc import Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from imgcls.errors import UserError
from imgcls.finetune.base import FineTune, Training
from imgcls.models.base import Backbone, Stage


class LowRank(nn.Module):
    """Adds `alpha / rank * up @ down` to a weight matrix (Hu et al., LoRA, ICLR 2022, eq. 3).

    Args:
        weight: (O, I), or (O, I, 1, 1) of a 1×1 convolution.
        rank: Inner dimension.
        alpha: Size of the update relative to the rank.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        outputs, inputs = weight.shape[:2]
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))  # zero: training starts from the given weights
        self.factor = alpha / rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight, of the shape of `weight`."""
        return weight + (self.factor * self.up @ self.down).view_as(weight)


class LoRA(FineTune):
    """The backbone is frozen but for low-rank updates of its linear layers and 1×1 convolutions.

    BatchNorm statistics rest. `merge` turns the updates into plain weights: then nothing is left that costs time.

    Args:
        rank: Rank of each update; layers with fewer inputs or outputs are left out.
        alpha: Size of the updates relative to the rank.
        targets: Patterns of layer names, such as `*.attn.*`; null for all layers that can be updated.
        scale: Factor of the learning rate for the updates.
    """

    def __init__(
        self, rank: int = 8, alpha: float = 16.0, targets: list[str] | None = None, scale: float = 1.0
    ) -> None:
        super().__init__(freeze_statistics=True)
        if rank < 1:
            raise UserError(f"--model.finetune.rank: {rank} is not a positive number")
        self.rank, self.alpha, self.targets, self.scale = rank, alpha, targets, scale

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        return [None] * len(stages)

    def prepare(self, backbone: Backbone) -> dict[str, Training]:  # noqa: D102
        super().prepare(backbone)
        for module, tensor in self._chosen(backbone):
            weight = getattr(module, tensor)
            parametrize.register_parametrization(module, tensor, LowRank(weight, self.rank, self.alpha).to(weight))
        return {n: Training(self.scale) for n, p in backbone.named_parameters() if p.requires_grad}

    def merge(self, backbone: Backbone) -> None:  # noqa: D102
        for module in list(backbone.modules()):
            if parametrize.is_parametrized(module):
                for tensor in list(module.parametrizations):  # type: ignore[arg-type, union-attr]
                    parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)

    def _chosen(self, backbone: Backbone) -> list[tuple[nn.Module, str]]:
        """Modules with the name of the weight in each.

        Raises:
            UserError: A pattern matches no layer; the text lists the layers.
        """
        layers: dict[str, tuple[nn.Module, str]] = {}
        for name, module in backbone.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                layers[name] = (module, "in_proj_weight")  # its out_proj is a linear layer of its own
            elif isinstance(module, nn.Linear) or (
                isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
            ):
                layers[name] = (module, "weight")
        layers = {n: (m, t) for n, (m, t) in layers.items() if min(getattr(m, t).shape[:2]) >= self.rank}
        for pattern in self.targets or ["*"]:
            if not any(fnmatch(name, pattern) for name in layers):
                shown = ", ".join(list(layers)[:20]) or "none (other variants work with any backbone)"
                raise UserError(
                    f"--model.finetune.targets: {pattern!r} matches no linear layer and no 1×1 convolution of rank "
                    f"{self.rank} or more; the backbone has {shown}"
                )
        return [layers[n] for n in layers if any(fnmatch(n, pattern) for pattern in self.targets or ["*"])]
