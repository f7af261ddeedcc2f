"""Colour operations on float images in [0, 1], each with a factor per image, in few passes over memory.

Shapes: B batch, C channels, H×W pixels. Gray images take brightness and contrast; saturation and hue leave them.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from kornia.augmentation import ColorJitter as KorniaColorJitter
from torch import Tensor
from torch.nn import functional as F

from imgcls.augment.base import ByImage, Change

LUMA = (0.299, 0.587, 0.114)


def gray(image: Tensor) -> Tensor:
    """Luma (B, 1, H, W) of images (B, C, H, W) of one or three channels."""
    if image.shape[1] == 1:
        return image
    red, green, blue = image.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def adjust_brightness(image: Tensor, factor_B: Tensor) -> Tensor:
    """`clamp(factor * image)`."""
    return (image * _each(factor_B, image)).clamp_(0, 1)


def adjust_contrast(image: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, the mean luma of each image, clamped."""
    factor_B111 = _each(factor_B, image)
    return (image * factor_B111).add_((1 - factor_B111) * gray(image).mean((2, 3), keepdim=True)).clamp_(0, 1)


def adjust_saturation(image: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, each pixel's luma, clamped."""
    if image.shape[1] == 1:
        return image
    return torch.lerp(gray(image), image, _each(factor_B, image)).clamp_(0, 1)


def adjust_hue(image: Tensor, shift_B: Tensor, turn: Callable[[Tensor, Tensor], Tensor] | None = None) -> Tensor:
    """Turn the hue of the HSV hexagon by a share of a full turn, without the detour over HSV.

    A third of a turn hands each channel's values on to the next channel; `turn_hue` does what remains.

    Args:
        image: (B, C, H, W) float32.
        shift_B: -0.5 to 0.5; on the CPU, a GPU need not be waited for.
        turn: What to call in place of `turn_hue`: the same, compiled.
    """
    if image.shape[1] == 1:
        return image
    sixths_B = 6 * shift_B
    thirds_B = (sixths_B / 2).round()
    if (thirds_B != 0).any():
        image = _channels_moved(image, thirds_B.long())
    rest_B = sixths_B - 2 * thirds_B
    while (rest_B != 0).any():
        step_B = rest_B.clamp(-0.5, 0.5)
        image = (turn or turn_hue)(image, step_B)
        rest_B = rest_B - step_B
    return image


def turn_hue(image: Tensor, sixths_B: Tensor) -> Tensor:
    """Turn the hue of images (B, 3, H, W) by f sixths of a turn, of at most 1/2.

    Let v be the largest, m the smallest and d the spread of the three channels of a pixel. Channel r, with the next
    channel g (for f < 0: the one before), becomes `clamp(r - g + clamp(g, m + |f| d, v - |f| d), m, v)`: only where g
    is near v does r fall, and only where g is near m does r rise, by what g lies beyond that margin.
    """
    red, green, blue = image.split(1, 1)
    highest = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    margin = (highest - lowest) * _each(sixths_B.abs(), image)
    other = _channels_moved(image, torch.where(sixths_B < 0, 1, -1))
    within = torch.clamp(other, lowest + margin, highest - margin)
    return within.sub_(other).add_(image).clamp_(lowest, highest)


def _channels_moved(image: Tensor, places_B: Tensor) -> Tensor:
    """Each channel of (B, 3, H, W) takes the place of that many channels after it."""
    source_B3 = (torch.arange(3) - places_B.cpu()[:, None]) % 3
    rows = (3 * torch.arange(len(image))[:, None] + source_B3).flatten()
    return image.flatten(0, 1).index_select(0, rows.to(image.device)).view_as(image)


def _each(value_B: Tensor, image: Tensor) -> Tensor:
    """A value for each image of (B, C, H, W), (B, 1, 1, 1), where the images are."""
    return value_B.to(image)[:, None, None, None]


def adjust_sharpness(image: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, a blurred image, clamped; the border stays (Pillow's SMOOTH kernel, as torchvision's)."""
    channels, height, width = image.shape[1:]
    if min(height, width) < 3:
        return image
    kernel_33 = image.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    inside = F.conv2d(image, kernel_33.expand(channels, 1, 3, 3), groups=channels)
    blurred = image.clone()
    blurred[:, :, 1:-1, 1:-1] = (inside * 255).round() / 255  # torchvision rounds to uint8 here
    factor_B111 = _each(factor_B, image)
    return (image * factor_B111).add_((1 - factor_B111) * blurred).clamp_(0, 1)


def posterize(image: Tensor, bits_B: Tensor) -> Tensor:
    """Keep the highest bits (B,) of the 8 of each value."""
    step_B111 = 2 ** (8 - _each(bits_B, image))
    return ((image * 255).round_() / step_B111).floor_().mul_(step_B111) / 255


def solarize(image: Tensor, threshold_B: Tensor) -> Tensor:
    """Invert values at or above a threshold (B,) in 0..1."""
    return torch.where(image >= _each(threshold_B, image), 1 - image, image)


def autocontrast(image: Tensor) -> Tensor:
    """Stretch each channel of each image to 0..1; a channel of one value stays as it is."""
    low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    flat = high <= low
    return torch.where(flat, image, (image - low) / (high - low).masked_fill(flat, 1))


def equalize(image: Tensor) -> Tensor:
    """Flatten the histogram of each channel of each image, in 256 bins (as Pillow and torchvision do)."""
    level = (image * 255).round_().long().flatten(0, 1).flatten(1)
    count = torch.zeros(len(level), 256, device=image.device).scatter_add_(1, level, torch.ones_like(level).float())
    last = 255 - (count > 0).flip(1).byte().argmax(1, keepdim=True)
    step = torch.div(count.sum(1, keepdim=True) - count.gather(1, last), 255, rounding_mode="floor")
    below = count.cumsum(1) - count
    table = torch.div(below + torch.div(step, 2, rounding_mode="floor"), step.clamp(min=1), rounding_mode="floor")
    table = torch.where(step > 0, table.clamp(0, 255), torch.arange(256.0, device=image.device))
    return (table.gather(1, level) / 255).view_as(image)


STEPS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
NEUTRAL = (1.0, 1.0, 1.0, 0.0)


class ColorJitter(ByImage):
    """Kornia's ColorJitter, parameters and results, some ten times as fast; gray images take their share of it.

    The four steps come in an order drawn for each batch; each image draws its own factors. An argument m is a range:
    factors from 1 - m to 1 + m, hue from -m to m (in turns of the colour wheel).

    Args:
        brightness: Range of the brightness factor.
        contrast: Range of the contrast factor.
        saturation: Range of the saturation factor; unused for one channel.
        hue: Range of the hue shift, at most 0.5; unused for one channel.
        p: Probability of each image.
    """

    def __init__(
        self,
        brightness: float | Sequence[float] = 0.2,
        contrast: float | Sequence[float] = 0.2,
        saturation: float | Sequence[float] = 0.2,
        hue: float | Sequence[float] = 0.02,
        p: float = 0.8,
    ) -> None:
        super().__init__()
        self.steps: Sequence[Callable[[Tensor, Tensor], Tensor]] = STEPS
        self.kornia = KorniaColorJitter(_range(brightness), _range(contrast), _range(saturation), _range(hue), p=p)

    @classmethod
    def like(cls, operation: KorniaColorJitter) -> "ColorJitter":
        """One that takes over an operation of Kornia's."""
        own = cls()
        own.kornia = operation
        return own

    def compile_kernels(self) -> None:  # noqa: D102
        *others, hue = (torch.compile(step, dynamic=True) for step in (*STEPS[:3], turn_hue))
        self.steps = (*others, partial(adjust_hue, turn=hue))

    def draw(self, shape: torch.Size) -> tuple[Change, torch.Size]:  # noqa: D102
        params = self.kornia.forward_parameters(shape)
        chosen_B = params["batch_prob"].reshape(-1) > 0.5
        order: Sequence[int] = self.kornia._fixed_order or params["order"].tolist()  # type: ignore[assignment]
        factors = [params[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")]
        # a step that changes nothing is left out
        order = [step for step in order if (factors[step] != NEUTRAL[step]).any()]

        def change(image: Tensor, here: slice) -> Tensor:
            chosen = chosen_B[here].nonzero()[:, 0]
            drawn = [factor[here][chosen] for factor in factors]
            if len(chosen) == len(image):
                return self.jitter(image, order, drawn)
            place = chosen.to(image.device)
            return image.index_copy(0, place, self.jitter(image[place], order, drawn)) if len(chosen) else image

        return change, shape

    def jitter(self, image: Tensor, order: Sequence[int], factors: Sequence[Tensor]) -> Tensor:
        """Brightness, contrast, saturation and hue (steps 0 to 3) in an order.

        Args:
            image: (B, C, H, W) float32 in [0, 1].
            order: Numbers of the steps.
            factors: Of each step, by its number, (B,).
        """
        for step in order:
            image = self.steps[step](image, factors[step])
        return image


class LinearColorJitter(ByImage):
    """Brightness, contrast, saturation and hue as one 3×4 matrix per image: NOT Kornia's or torchvision's definition.

    It differs on purpose. Nothing is clamped between the steps, the order is fixed (brightness, contrast,
    saturation, hue), and hue is a rotation about the gray axis in RGB space, as in YIQ, not a shift of the HSV
    hexagon. In return the batch is read and written twice, whatever the number of steps. Gray images take brightness
    and contrast.

    Args:
        brightness: Factors from 1 - m to 1 + m.
        contrast: Factors from 1 - m to 1 + m, about the image's mean luma after the step before.
        saturation: Factors from 1 - m to 1 + m, about each pixel's luma.
        hue: Rotations from -m to m, in turns.
        p: Probability of each image.
    """

    def __init__(
        self, brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2, hue: float = 0.02, p: float = 0.8
    ) -> None:
        super().__init__()
        self.ranges, self.p = (brightness, contrast, saturation, hue), p

    def draw(self, shape: torch.Size) -> tuple[Change, torch.Size]:  # noqa: D102
        draw_B4 = (2 * torch.rand(shape[0], 4) - 1) * torch.tensor(self.ranges)
        factor_B4 = draw_B4 * (torch.rand(shape[0], 1) < self.p) + torch.tensor(NEUTRAL)
        return lambda image, here: self.apply_factors(image, *factor_B4[here].to(image).unbind(1)), shape

    def apply_factors(
        self, image: Tensor, brightness_B: Tensor, contrast_B: Tensor, saturation_B: Tensor, hue_B: Tensor
    ) -> Tensor:
        """Clamp `M x + t` for each pixel x, with M = hue · saturation · contrast · brightness."""
        mean_B = gray(image).mean((1, 2, 3)) * brightness_B
        offset_B = (1 - contrast_B) * mean_B
        if image.shape[1] == 1:
            scaled = image * (contrast_B * brightness_B)[:, None, None, None]
            return scaled.add_(offset_B[:, None, None, None]).clamp_(0, 1)
        luma_33 = image.new_tensor(LUMA).expand(3, 3)
        one_33 = torch.eye(3, dtype=image.dtype, device=image.device)
        saturate_B33 = saturation_B[:, None, None] * one_33 + (1 - saturation_B)[:, None, None] * luma_33
        # Rodrigues' formula about the axis (1, 1, 1) / sqrt(3), which every gray lies on
        angle_B11 = (2 * torch.pi * hue_B)[:, None, None]
        cross_33 = image.new_tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
        turn_B33 = angle_B11.cos() * one_33 + angle_B11.sin() * cross_33 + (1 - angle_B11.cos()) / 3
        matrix_B33 = turn_B33 @ saturate_B33
        # rows of saturation and rotation sum to one: an equal offset of all channels passes unchanged
        matrix_B33 = matrix_B33 * (contrast_B * brightness_B)[:, None, None]
        flat = torch.baddbmm(offset_B[:, None, None].expand(-1, 3, 1), matrix_B33, image.flatten(2))
        return flat.clamp_(0, 1).view_as(image)


def _range(given: float | Sequence[float]) -> float | list[float]:
    return list(given) if isinstance(given, Sequence) else given
