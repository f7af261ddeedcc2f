"""Where in an image a network sees a class.

Grad-CAM of Selvaraju et al., Grad-CAM: visual explanations from deep networks via gradient-based localization (ICCV
2017), equations 1 and 2, on the last feature map on which the class depends; tokens of a transformer are such a map.
"""

from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.evaluate.responses import by_channel, outputs_of


@torch.enable_grad()
def grad_cam(network: nn.Module, image: Tensor, classes: Tensor) -> Tensor | None:
    """How much each pixel of an image supports a class, in 0..1: the largest value of a map is 1, unless all are 0.

    Args:
        network: Images to logits (N, K), in eval mode, so that images do not mix.
        image: Normalised square images (N, C, S, S) on the network's device.
        classes: M classes for each image, (N, M) int64.

    Returns:
        Maps (N, M, S, S) float32; None if the network has no feature map, as one of linear layers.
    """
    with outputs_of(module for module in network.modules() if module is not network) as found:
        logits = network(image.detach().clone().requires_grad_())
    outputs = [output for _, output in found if len(output) == len(image) and _has_places(output)]
    score = logits.gather(1, classes.to(logits.device)).sum(0)  # of each of M classes, over images that do not mix
    for output in reversed(outputs):
        if output.shape[1:] != outputs[-1].shape[1:] or not output.requires_grad:
            continue
        gradients = [torch.autograd.grad(s, output, retain_graph=True, allow_unused=True)[0] for s in score]
        maps = [_weighted(output, g) for g in gradients if g is not None]
        # after the last attention the logits depend on the class token alone: the patches' map is an earlier output
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


def _has_places(output: Tensor) -> bool:
    """Whether an output is a square map, or tokens of a square of patches."""
    shape = output.shape
    if output.ndim == 4:
        return shape[1] == shape[2] > 1 or shape[2] == shape[3] > 1
    # more tokens besides the patches than a class token and some registers: not patches of a square
    return output.ndim == 3 and shape[1] - isqrt(shape[1]) ** 2 < 10 and shape[1] >= 4
