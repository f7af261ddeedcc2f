"""Where in an image a network sees a class.

Grad-CAM of Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization (ICCV
2017), equations 1 and 2, on the last feature map of which the class depends; tokens of a transformer are such a map.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.evaluate.responses import by_channel


@torch.enable_grad()
def grad_cam(network: nn.Module, image: Tensor, classes: Tensor) -> Tensor | None:
    """How much each place of an image speaks for a class, in 0..1: the largest value of a map is 1, unless all are 0.

    Args:
        network: Images to logits (N, K), in eval mode, so that images do not mix.
        image: Normalised square images (N, C, S, S) on the network's device.
        classes: M classes for each image, (N, M) int64.

    Returns:
        Maps (N, M, S, S) float32; None if the network has no feature map, as one of linear layers.
    """
    with _spatial_outputs(network, len(image)) as outputs:
        logits = network(image.detach().clone().requires_grad_())
    score = logits.gather(1, classes.to(logits.device)).sum(0)  # of each of M classes, over images that do not mix
    for output in reversed(outputs):
        if output.shape[1:] != outputs[-1].shape[1:] or not output.requires_grad:
            continue
        gradients = [torch.autograd.grad(s, output, retain_graph=True, allow_unused=True)[0] for s in score]
        maps = [_weighted(output, g) for g in gradients if g is not None]
        # behind the last attention a class token hears nothing of the others: their map is one step before
        if len(maps) == len(gradients) and any(bool(_patches(g).any()) for g in gradients):
            map_NMhw = torch.stack(maps, 1)
            large = F.interpolate(map_NMhw, image.shape[-2:], mode="bilinear", align_corners=False)
            return (large / large.amax((2, 3), keepdim=True).clamp_min(1e-12)).detach()
    return None


def _weighted(output: Tensor, gradient: Tensor) -> Tensor:
    """The map (N, h, w) of a class: channels weighted by their mean gradient (equation 1), positive parts (2)."""
    feature_NCP, gradient_NCP = _patches(output).float(), _patches(gradient).float()
    weight_NC1 = gradient_NCP.mean(2, keepdim=True)
    side = isqrt(feature_NCP.shape[2])
    return (weight_NC1 * feature_NCP).sum(1).relu().unflatten(1, (side, side))


def _patches(output: Tensor) -> Tensor:
    """(N, C, positions) of a square map, in any of its layouts, or of tokens without those that are no patches."""
    feature_NCP = by_channel(output)
    return feature_NCP[:, :, feature_NCP.shape[2] - isqrt(feature_NCP.shape[2]) ** 2 :]


@contextmanager
def _spatial_outputs(network: nn.Module, count: int) -> Iterator[list[Tensor]]:
    """What modules give in a pass of `count` images that has places: square maps, and tokens; in order of time."""
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: object) -> None:
        if not isinstance(output, Tensor) or len(output) != count:
            return
        shape = output.shape
        is_map = output.ndim == 4 and (shape[1] == shape[2] > 1 or shape[2] == shape[3] > 1)
        # more tokens besides the patches than a class token and some registers: not patches of a square
        is_tokens = output.ndim == 3 and shape[1] - isqrt(shape[1]) ** 2 < 10 and shape[1] >= 4
        if is_map or is_tokens:
            found.append(output)

    handles = [module.register_forward_hook(keep) for module in network.modules() if module is not network]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
