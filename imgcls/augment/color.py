"""Colour operations on float images in [0, 1], each with a factor per image, in few passes over memory.

Shapes: B batch, C channels, H×W pixels. Gray images take brightness and contrast; saturation and hue leave them.
"""

from collections.abc import Sequence

import kornia.augmentation as K  # noqa: N812
import torch
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


def adjust_brightness_(image: Tensor, factor_B: Tensor) -> Tensor:
    """`clamp(factor * image)`, in place."""
    return image.mul_(_each(factor_B, image)).clamp_(0, 1)


def adjust_contrast_(image: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, the mean luma of each image, clamped, in place."""
    factor_B111 = _each(factor_B, image)
    offset_B111 = (1 - factor_B111) * gray(image.mean((2, 3), keepdim=True))
    return image.mul_(factor_B111).add_(offset_B111).clamp_(0, 1)


def adjust_saturation_(image: Tensor, factor_B: Tensor) -> Tensor:
    """Away from, or towards, each pixel's luma, clamped, in place."""
    if image.shape[1] == 1:
        return image
    return image.lerp_(gray(image), 1 - _each(factor_B, image)).clamp_(0, 1)


def adjust_hue_(image: Tensor, shift_B: Tensor) -> Tensor:
    """Rotate the hue of the HSV hexagon by a share of a full turn, without converting to HSV, in place.

    The nearest whole number of sixths is exact: two of them move each channel's values to the next channel, three
    mirror the values between the pixel's largest and smallest. `turn_hue_` does what remains.

    Args:
        image: (B, C, H, W) float32.
        shift_B: -0.5 to 0.5, (B,); on the CPU, so that a GPU need not be waited for.
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
        turn_hue_(image, rest_B)
    mirrored = mirrored_B.nonzero()[:, 0].to(image.device)
    if len(mirrored):
        some = image.index_select(0, mirrored)
        ends = some.amax(1, keepdim=True).add_(some.amin(1, keepdim=True))
        image.index_copy_(0, mirrored, ends - some)
    return image


def turn_hue_(image: Tensor, sixths_B: Tensor) -> Tensor:
    """Rotate the hue of images (B, 3, H, W) by f sixths of a turn, f (B,) from -1/2 to 1/2, in place.

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


STEPS = (adjust_brightness_, adjust_contrast_, adjust_saturation_, adjust_hue_)  # by Kornia's numbers
NEUTRAL = (1.0, 1.0, 1.0, 0.0)


class ColorJitter(ByImage):
    """Parameters and results of Kornia's ColorJitter, several times as fast; gray images take brightness and contrast.

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
        brightness: float | list[float] = 0.2,
        contrast: float | list[float] = 0.2,
        saturation: float | list[float] = 0.2,
        hue: float | list[float] = 0.02,
        p: float = 0.8,
    ) -> None:
        super().__init__()
        self.kornia = K.ColorJitter(brightness, contrast, saturation, hue, p=p)

    @classmethod
    def like(cls, operation: K.ColorJitter) -> "ColorJitter":
        """With the parameters of an operation of Kornia's."""
        own = cls()
        own.kornia = operation
        return own

    def sample(self, shape: torch.Size) -> tuple[Change, torch.Size]:  # noqa: D102
        params = self.kornia.forward_parameters(shape)
        chosen_B = params["batch_prob"].reshape(-1) > 0.5
        order: Sequence[int] = self.kornia._fixed_order or params["order"].tolist()  # type: ignore[assignment]
        factors = [params[f"{name}_factor"] for name in ("brightness", "contrast", "saturation", "hue")]
        # steps that change no image are left out
        order = [step for step in order if (factors[step] != NEUTRAL[step]).any()]

        def change(image: Tensor, here: slice) -> Tensor:
            chosen = chosen_B[here].nonzero()[:, 0]
            place = None if len(chosen) == len(image) else chosen.to(image.device)
            some = image if place is None else image.index_select(0, place)
            for step in order:
                STEPS[step](some, factors[step][here][chosen])
            return some if place is None else image.index_copy_(0, place, some)

        return change, shape
