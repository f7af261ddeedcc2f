"""Colour operations on float images in [0, 1], each with a factor per image, in few passes over memory.

Shapes: B batch, C channels, H×W pixels. Gray images take brightness and contrast; saturation and hue leave them.
"""

from collections.abc import Sequence

import kornia.augmentation as K  # noqa: N812
import torch
from torch import Tensor

from imgcls.augment.base import ByImage, Parameters

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
MOVED_33 = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0]])  # channels after a move by 0, 1 or 2 places


def gray(image: Tensor) -> Tensor:
    """Luma (B, 1, H, W) of images (B, C, H, W) of one or three channels."""
    if image.shape[1] == 1:
        return image
    red, green, blue = image.unbind(1)
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])[:, None]


def luma(channels: int) -> Tensor:
    """Share of each channel in the luma, (C,)."""
    return torch.tensor(LUMA) if channels == 3 else torch.ones(1)


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
        image: (B, C, H, W) float32, on the CPU.
        shift_B: -0.5 to 0.5, (B,).
    """
    if image.shape[1] == 1:
        return image
    places_B, mirrored_B, rest_B = hue_steps(shift_B)
    if places_B.any():
        image.copy_(_channels(image, channel_rows(places_B)))
    if rest_B.any():
        others = _channels(image, channel_rows(1 + (rest_B >= 0).long()))
        turn_hue_(image, others, image.amin(1, keepdim=True), image.amax(1, keepdim=True), rest_B.abs())
    mirrored = mirrored_B.nonzero()[:, 0]
    if len(mirrored):
        some = image.index_select(0, mirrored)
        ends = some.amax(1, keepdim=True).add_(some.amin(1, keepdim=True))
        image.index_copy_(0, mirrored, ends - some)
    return image


def hue_steps(shift_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A shift of the hue (B,) as places that channels move, 0 to 2, whether they are mirrored, and a rest of sixths."""
    sixths_B = 6 * shift_B
    whole_B = sixths_B.round()
    mirrored_B = whole_B % 2 != 0
    return ((whole_B - 3 * mirrored_B) / 2).long() % 3, mirrored_B, sixths_B - whole_B


def turn_hue_(image: Tensor, other: Tensor, lowest: Tensor, highest: Tensor, share_B: Tensor) -> Tensor:
    """Rotate the hue of images (B, 3, H, W) by f sixths of a turn, f (B,) from -1/2 to 1/2, in place.

    Let v be the largest, m the smallest and d the spread of the three channels of a pixel. Channel r, with the next
    channel g (for f < 0: the one before), becomes `clamp(r - g + clamp(g, m + |f| d, v - |f| d), m, v)`: only where g
    is near v does r fall, and only where g is near m does r rise, by what g lies beyond that margin.

    Args:
        image: All r; it is overwritten.
        other: All g; it is overwritten.
        lowest: All m, (B, 1, H, W).
        highest: All v, (B, 1, H, W).
        share_B: All |f|.
    """
    share_B111 = _each(share_B, image)
    inner = torch.lerp(lowest, highest, share_B111), torch.lerp(highest, lowest, share_B111)
    image.sub_(other).add_(other.clamp_(*inner))
    return image.clamp_(lowest, highest)


def channel_rows(places_B: Tensor) -> Tensor:
    """Where channels come from when each takes the place of that many after it, 0 to 2, among all of a batch, (3B,)."""
    return (MOVED_33[places_B] + torch.arange(0, 3 * len(places_B), 3)[:, None]).flatten()


def _channels(image: Tensor, rows: Tensor) -> Tensor:
    """Images (B, C, H, W) of channels that are picked from among all of a batch."""
    return image.flatten(0, 1).index_select(0, rows).view_as(image)


def _each(value_B: Tensor, image: Tensor) -> Tensor:
    """A value for each image of (B, C, H, W), (B, 1, 1, 1), where the images are."""
    return value_B.to(image).view(-1, 1, 1, 1)


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

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        params = self.kornia.forward_parameters(shape)
        chosen_B = params["batch_prob"].reshape(-1) > 0.5
        order: Sequence[int] = self.kornia._fixed_order or params["order"].tolist()  # type: ignore[assignment]
        factor_B4 = torch.stack(
            [params[f"{step}_factor"] for step in ("brightness", "contrast", "saturation", "hue")], 1
        )
        # steps that change no image are left out
        order = [step for step in order if (factor_B4[:, step] != NEUTRAL[step]).any() and (shape[1] == 3 or step < 2)]
        return {"chosen": chosen_B, "factor": factor_B4, "order": order}, shape

    def change(self, image: Tensor, parameters: Parameters) -> Tensor:  # noqa: D102
        chosen = parameters["chosen"].nonzero()[:, 0]
        some = image if len(chosen) == len(image) else image.index_select(0, chosen)
        for step in parameters["order"]:
            STEPS[step](some, parameters["factor"][chosen, step])
        return some if some is image else image.index_copy_(0, chosen, some)

    def plan(self, parameters: Parameters, shape: torch.Size) -> Parameters:
        """Factors of all images, of those that are left alone the neutral ones, and what follows from the factors."""
        factor_B4 = torch.where(parameters["chosen"][:, None], parameters["factor"].float(), torch.tensor(NEUTRAL))
        plan: Parameters = {"order": parameters["order"], "factor": factor_B4, "luma": luma(shape[1])}
        saturation_B11 = factor_B4[:, 2, None, None]
        plan["mixture"] = saturation_B11 * torch.eye(shape[1]) + (1 - saturation_B11) * luma(shape[1])
        places_B, mirrored_B, rest_B = hue_steps(factor_B4[:, 3])
        plan |= {"own": channel_rows(places_B), "next": channel_rows((places_B + 1 + (rest_B >= 0).long()) % 3)}
        return plan | {"share": rest_B.abs(), "mirrored": mirrored_B.float(), "sign": 1 - 2.0 * mirrored_B}

    def transform_on_device(self, image: Tensor, label: Tensor, plan: Parameters) -> tuple[Tensor, Tensor]:  # noqa: D102
        for step in plan["order"]:
            factor_B = plan["factor"][:, step]
            if step == 0:
                image = image.mul(_each(factor_B, image)).clamp_(0, 1)
            elif step == 1:
                mean_B = image.mean((2, 3)) @ plan["luma"]
                image = torch.lerp(_each(mean_B, image), image, _each(factor_B, image)).clamp_(0, 1)
            elif step == 2:
                image = torch.bmm(plan["mixture"], image.flatten(2)).view_as(image).clamp_(0, 1)
            else:
                lowest, highest = image.aminmax(dim=1, keepdim=True)
                own, other = _channels(image, plan["own"]), _channels(image, plan["next"])
                turned = turn_hue_(own, other, lowest, highest, plan["share"])
                ends = (lowest + highest).mul_(_each(plan["mirrored"], image))
                image = torch.addcmul(ends, turned, _each(plan["sign"], image))
        return image, label
