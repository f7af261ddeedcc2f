"""What the layers of a network respond to: the patches of real images that excite a channel most.

After Zeiler and Fergus, Visualizing and Understanding Convolutional Networks (ECCV 2014), figure 2; the gradient, in
place of a deconvolution, says what a unit sees.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SEEN = 0.05  # of the largest gradient: a pixel with less is not counted as seen by a unit


@dataclass(frozen=True)
class Patch:
    """Where a channel responds most in an image.

    Attributes:
        image: Number of the image.
        box: Top, left, bottom, right of what the unit sees, in pixels; the two last are exclusive.
    """

    image: int
    box: tuple[int, int, int, int]


def strongest_patches(
    network: nn.Module, layers: Sequence[str], image: Tensor, channels: int = 8, patches: int = 4, batch_size: int = 64
) -> dict[str, list[list[Patch]]]:
    """The patches to which some channels of each layer respond most.

    Of each layer the channels are shown whose strongest responses stand out most from their mean, in deviations.

    Args:
        network: In eval mode.
        layers: Names of its modules; what gives no tensor is left out.
        image: Normalised images (N, C, H, W) on the network's device.
        channels: Channels of each layer.
        patches: Images of each channel.
        batch_size: Images of one pass.

    Returns:
        For each layer a list of channels, each a list of patches, the strongest first.
    """
    names = {network.get_submodule(name): name for name in layers}
    largest: dict[str, list[Tensor]] = {}
    for batch in image.split(batch_size):
        with torch.no_grad(), outputs_of(names) as found:
            network(batch)
        for module, output in dict(found).items():
            largest.setdefault(names[module], []).append(by_channel(output).amax(2))
    result: dict[str, list[list[Patch]]] = {}
    for name, parts in largest.items():
        response = torch.cat(parts)  # (N, C)
        best = response.topk(min(patches, len(response)), dim=0)
        standing_out = (best.values.mean(0) - response.mean(0)) / response.std(0).clamp_min(1e-12)
        chosen = standing_out.topk(min(channels, response.shape[1])).indices.tolist()
        result[name] = [[_patch(network, name, image, i, c) for i in best.indices[:, c].tolist()] for c in chosen]
    return result


def _patch(network: nn.Module, layer: str, image: Tensor, number: int, channel: int) -> Patch:
    pixels = image[number : number + 1].clone().requires_grad_()
    with torch.enable_grad(), outputs_of([network.get_submodule(layer)]) as found:
        network(pixels)
        (gradient,) = torch.autograd.grad(by_channel(found[-1][1])[0, channel].max(), pixels)
    seen = gradient.abs().sum((0, 1))
    rows, columns = (seen >= SEEN * seen.max()).nonzero(as_tuple=True)
    return Patch(number, (int(rows.min()), int(columns.min()), int(rows.max()) + 1, int(columns.max()) + 1))


@contextmanager
def outputs_of(modules: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """What each of some modules gives in the passes within, in order of time: tensors of two to four dimensions."""
    found: list[tuple[nn.Module, Tensor]] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim in (2, 3, 4):
            found.append((module, output))

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def by_channel(output: Tensor) -> Tensor:
    """(B, C, positions) of maps (B, C, H, W) or (B, H, W, C), tokens (B, N, C) or features (B, C)."""
    if output.ndim == 4:
        is_last = output.shape[1] == output.shape[2] != output.shape[3]  # as Swin has it
        return output.flatten(1, 2).transpose(1, 2) if is_last else output.flatten(2)
    return output.transpose(1, 2) if output.ndim == 3 else output[:, :, None]
