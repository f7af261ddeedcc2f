from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imgcls.errors import UserError, one_line


@dataclass(frozen=True)
class InputSpec:
    """What a backbone's pre-trained weights expect of an image; None where it does not matter.

    Attributes:
        image_size: Side in pixels.
        channels: 1 or 3.
        mean: Mean per channel, in 0..1.
        std: Standard deviation per channel, in 0..1.
        interpolation: How images were resized.
        crop_fraction: Share of the resized image's shorter side that the central crop kept.
    """

    image_size: int | None = None
    channels: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    crop_fraction: float | None = None


@dataclass(frozen=True)
class Stage:
    """Consecutive layers of a backbone, for fine-tuning by depth: the names of their parameters."""

    name: str
    parameters: tuple[str, ...]


class Backbone(nn.Module, ABC):
    """A network without its classification head: images in, one feature vector each out.

    A new network is one class in one file. Its `__init__` takes `channels` and `image_size` first, which come
    from the data, and then its own options; it sets `num_features`.

    Attributes:
        num_features: Length F of the feature vector.
    """

    num_features: int

    @abstractmethod
    def forward(self, image: Tensor) -> Tensor:
        """Pooled features (B, F) of float images (B, C, H, W), normalised per channel."""

    def stages(self) -> list[Stage]:
        """All parameters in stages from input to output, each in exactly one; by default one per block.

        A block is a child module; containers, and children with more than half of the parameters, are opened. A
        norm of its own goes with the block before it, parameters that belong to no block (class tokens, position
        embeddings) with the first one.
        """
        total = sum(1 for _ in self.parameters())
        blocks: dict[str, str] = {}  # prefix of names: the block that it belongs to

        def walk(module: nn.Module, prefix: str) -> None:
            for name, child in module.named_children():
                parameters = list(child.parameters())
                is_container = isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict)
                if not parameters:
                    continue
                if any(True for _ in child.children()) and (is_container or len(parameters) > total / 2):
                    walk(child, f"{prefix}{name}.")
                else:
                    block = f"{prefix}{name}."
                    is_norm = all(p.ndim <= 1 for p in parameters)
                    blocks[block] = list(blocks.values())[-1] if is_norm and blocks else block

        walk(self, "")
        members: dict[str, list[str]] = {block: [] for block in blocks.values() or [""]}
        for name, _ in self.named_parameters():
            block = next((block for prefix, block in blocks.items() if name.startswith(prefix)), next(iter(members)))
            members[block].append(name)
        return [Stage(block.rstrip("."), tuple(names)) for block, names in members.items() if names]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay, beside all norms and biases."""
        return set()

    @classmethod
    def input_spec(cls, **options: Any) -> InputSpec:
        """What the weights named by `options` (those of `__init__`) expect, known without loading them."""
        return InputSpec()


BackboneFactory = Callable[[int, int], Backbone]
"""(channels, image_size) to backbone: how a config names a backbone before the data is known."""


def compile_backbone(backbone: Backbone, joins: int) -> None:
    """Compile a backbone in place: a graph for training, one for validation, one for a test, each of one batch size.

    Args:
        backbone: Whose forward pass is to be compiled when it is first called.
        joins: How often a part of it joins the training, each time with another graph; beyond torch's limit of graphs,
            no other would be compiled, and nothing would say so.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 2 * joins + 4)
    backbone.compile(dynamic=False)


def count_features(backbone: Backbone, name: str, channels: int, image_size: int) -> int:
    """Length F of the features of one blank image: a network from a library does not always say it.

    Raises:
        UserError: The network cannot take images of that size.
    """
    backbone.eval()
    try:
        with torch.no_grad():
            return backbone(torch.zeros(1, channels, image_size, image_size)).shape[1]
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        raise UserError(
            f"--data.image_size: {name} cannot take images of {image_size} px ({one_line(error)[:160]}); "
            "without the option, images get the size that its weights were trained on"
        ) from error
    finally:
        backbone.train()
