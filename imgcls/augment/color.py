"""Colour operations on float images in [0, 1], each with a factor per image, in few passes over memory.

Shapes: B batch, C channels, H×W pixels. Gray images take brightness and contrast; saturation and hue leave them.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch
from kornia.augmentation import ColorJitter as KorniaColorJitter
from torch import Tensor
from torch.nn import functional as F

from imgcls.augment.base import ByImage, Change

LUMA = (0.299, 0.587, 0.114)
MOVED_33 = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0]])  # channels after a move by 0, 1 or 2 places


def gray(image: Tensor) -> Tensor:
    """Luma (B, 1, H, W) of images (B, C, H, W) of one or three channels."""
    if image.shape[1] == 1:
        return image
    red, green, blue = image.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def mean_luma(image: Tensor) -> Tensor:
    """Mean luma (B,) of images (B, C, H, W) of one or three channels."""
    return gray(image.mean((2, 3), keepdim=True)).flatten()


def adjust_brightness_(image: Tensor, factor_B: Tensor) -> Tensor:
    """`clamp(factor * image)`, in place."""
    return image.mul_(_each(factor_B, image)).clamp_(0, 1)


def adjust_contrast_(image: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, the mean luma of each image, clamped, in place."""
    offset_B = (1 - factor_B.to(image)) * mean_luma(image)
    return image.mul_(_each(factor_B, image)).add_(_each(offset_B, image)).clamp_(0, 1)


def adjust_saturation_(image: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, each pixel's luma, clamped, in place."""
    if image.shape[1] == 1:
        return image
    return image.lerp_(gray(image), 1 - _each(factor_B, image)).clamp_(0, 1)


def adjust_hue_(image: Tensor, shift_B: Tensor, turn: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Turn the hue of the HSV hexagon by a share of a full turn, without the detour over HSV, in place.

    Of the nearest whole number of sixths, two hand each channel's values on to the next channel, and three mirror them
    between the largest and the smallest of the pixel; `turn_hue_` does what remains.

    Args:
        image: (B, C, H, W) float32.
        shift_B: -0.5 to 0.5; on the CPU, a GPU need not be waited for.
        turn: `turn_hue_`, or the same compiled.
    """
    if image.shape[1] == 1:
        return image
    sixths_B = 6 * shift_B
    whole_B = sixths_B.round()
    rest_B, mirrored_B = sixths_B - whole_B, whole_B % 2 != 0
    places_B = ((whole_B - 3 * mirrored_B) / 2).long() % 3
    if places_B.any():
        image.copy_(_channels_moved(image, places_B))
    if rest_B.any():
        turn(image, rest_B)
    mirrored = mirrored_B.nonzero()[:, 0].to(image.device)
    if len(mirrored):
        some = image.index_select(0, mirrored)
        ends = some.amax(1, keepdim=True).add_(some.amin(1, keepdim=True))
        image.index_copy_(0, mirrored, ends - some)
    return image


def turn_hue_(image: Tensor, sixths_B: Tensor) -> Tensor:
    """Turn the hue of images (B, 3, H, W) by f sixths of a turn, of at most 1/2, in place.

    Let v be the largest, m the smallest and d the spread of the three channels of a pixel. Channel r, with the next
    channel g (for f < 0: the one before), becomes `clamp(r - g + clamp(g, m + |f| d, v - |f| d), m, v)`: only where g
    is near v does r fall, and only where g is near m does r rise, by what g lies beyond that margin.
    """
    highest, lowest = image.amax(1, keepdim=True), image.amin(1, keepdim=True)
    margin = (highest - lowest).mul_(_each(sixths_B.abs(), image))
    other = _channels_moved(image, 1 + (sixths_B >= 0).long())
    image.sub_(other).add_(other.clamp_(lowest + margin, margin.neg_().add_(highest)))
    return image.clamp_(lowest, highest)


def _channels_moved(image: Tensor, places_B: Tensor) -> Tensor:
    """Each channel of (B, 3, H, W) takes the place of that many channels after it, 0 to 2."""
    rows_B3 = MOVED_33[places_B.cpu()] + torch.arange(0, 3 * len(image), 3)[:, None]
    return image.flatten(0, 1).index_select(0, rows_B3.flatten().to(image.device)).view_as(image)


def _each(value_B: Tensor, image: Tensor) -> Tensor:
    """A value for each image of (B, C, H, W), (B, 1, 1, 1), where the images are."""
    return value_B.to(image).view(-1, 1, 1, 1)


def adjust_sharpness_(image: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, a blurred image (Pillow's SMOOTH kernel), clamped, in place; the border stays."""
    channels, height, width = image.shape[1:]
    if min(height, width) < 3:
        return image
    kernel_33 = image.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    blurred = F.conv2d(image, kernel_33.expand(channels, 1, 3, 3), groups=channels)
    blurred = blurred.mul_(255).round_().div_(255)  # torchvision rounds to uint8 here
    image[:, :, 1:-1, 1:-1].lerp_(blurred, 1 - _each(factor_B, image))
    return image.clamp_(0, 1)


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


STEPS = (adjust_brightness_, adjust_contrast_, adjust_saturation_)  # by Kornia's numbers, of which HUE is the last
HUE = 3
NEUTRAL = (1.0, 1.0, 1.0, 0.0)


class ColorJitter(ByImage):
    """Kornia's ColorJitter, parameters and results, several times as fast; gray images take their share of it.

    The four steps come in one random order for each batch; each image has factors of its own. An argument m is a range:
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
        self.turn = turn_hue_
        self.kornia = KorniaColorJitter(_range(brightness), _range(contrast), _range(saturation), _range(hue), p=p)

    @classmethod
    def like(cls, operation: KorniaColorJitter) -> "ColorJitter":
        """One that takes over an operation of Kornia's."""
        own = cls()
        own.kornia = operation
        return own

    def compile_kernels(self) -> None:  # noqa: D102
        # measured on a CPU, where the other steps, of few passes over memory, lose by it
        self.turn = torch.compile(turn_hue_, dynamic=True)

    def sample(self, shape: torch.Size) -> tuple[Change, torch.Size]:  # noqa: D102
        params = self.kornia.forward_parameters(shape)
        chosen = (params["batch_prob"].reshape(-1) > 0.5).nonzero()[:, 0]
        order: Sequence[int] = self.kornia._fixed_order or params["order"].tolist()  # type: ignore[assignment]
        factors = [params[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")]
        # a step that changes nothing is left out
        order = [step for step in order if (factors[step] != NEUTRAL[step]).any()]
        factors, numbers = [factor[chosen] for factor in factors], chosen.tolist()

        def change(image: Tensor, here: slice) -> Tensor:
            first, _, _ = here.indices(shape[0])
            sampled = slice(bisect_left(numbers, first), bisect_left(numbers, first + len(image)))
            values = [factor[sampled] for factor in factors]
            if len(values[0]) == len(image):
                return self.jitter(image, order, values)
            if len(values[0]) == 0:
                return image
            place = (chosen[sampled] - first).to(image.device)
            return image.index_copy_(0, place, self.jitter(image.index_select(0, place), order, values))

        return change, shape

    def jitter(self, image: Tensor, order: Sequence[int], factors: Sequence[Tensor]) -> Tensor:
        """Brightness, contrast, saturation and hue (steps 0 to 3) in an order, in place.

        Args:
            image: (B, C, H, W) float32 in [0, 1].
            order: Numbers of the steps.
            factors: Of each step, by its number, (B,).
        """
        for step in order:
            if step == HUE:
                adjust_hue_(image, factors[step], self.turn)
            else:
                STEPS[step](image, factors[step])
        return image


def _range(given: float | Sequence[float]) -> float | list[float]:
    return list(given) if isinstance(given, Sequence) else given
