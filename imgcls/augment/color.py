"""Colour operations on float images in [0, 1], each with a factor per image, in few passes over memory.

Shapes: B batch, C channels, H×W pixels. Gray images take brightness and contrast; saturation and hue leave them. So
do images of other numbers of channels, for which saturation and hue are refused.
"""

from collections.abc import Sequence

import kornia.augmentation as K  # noqa: N812
import torch
from torch import Tensor

from imgcls.augment.base import ByImage, Parameters

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
MOVED_33 = torch.tensor([[0, 1, 2], [2, 0, 1], [1, 2, 0]])  # channels after a move by 0, 1 or 2 places


def luma(channels: int) -> Tensor:
    """Share of each channel in the luma, (C,); of bands, which are no colours, equal ones."""
    return torch.tensor(LUMA) if channels == 3 else torch.full((channels,), 1 / channels)


def turn_hue(image: Tensor, plan: Parameters) -> Tensor:
    """Rotate the hue of the HSV hexagon of images (B, 3, H, W) float32, without converting to HSV.

    The nearest whole number of sixths of a turn is exact: two of them move each channel's values to the next channel,
    three mirror the values between the pixel's largest and smallest. For the rest f, from -1/2 to 1/2, let v be the
    largest, m the smallest and d the spread of the three channels of a pixel. Channel r, with the next channel g (for
    f < 0: the one before), becomes `clamp(r - g + clamp(g, m + |f| d, v - |f| d), m, v)`: only where g is near v does r
    fall, and only where g is near m does r rise, by what g lies beyond that margin.

    Args:
        image: It is left alone.
        plan: Of `plan_hue`, on the images' device.
    """
    lowest, highest = image.amin(1, keepdim=True), image.amax(1, keepdim=True)
    share_B111 = _each(plan["share"])
    inner = torch.lerp(lowest, highest, share_B111), torch.lerp(highest, lowest, share_B111)
    own, other = (_channels(image, plan[name]) for name in ("own", "next"))
    turned = (own - other).add_(other.clamp_(*inner)).clamp_(lowest, highest)
    if plan["mirrored"] is None:
        return turned
    ends = (lowest + highest).mul_(_each(plan["mirrored"]))
    return turned.mul_(_each(plan["sign"])).add_(ends)


def plan_hue(shift_B: Tensor) -> Parameters:
    """What `turn_hue` needs to shift the hue by a share of a full turn, -0.5 to 0.5, (B,) on the CPU."""
    sixths_B = 6 * shift_B
    whole_B = sixths_B.round()
    mirrored_B, rest_B = whole_B.abs() % 2, sixths_B - whole_B
    places_B = ((whole_B - 3 * mirrored_B) / 2).long()
    first_B1 = torch.arange(0, 3 * len(shift_B), 3)[:, None]
    own, other = (MOVED_33[p % 3] + first_B1 for p in (places_B, places_B + 1 + (rest_B >= 0).long()))
    plan = {"own": own.flatten() if places_B.any() else None, "next": other.flatten(), "share": rest_B.abs()}
    return plan | {"mirrored": mirrored_B if mirrored_B.any() else None, "sign": 1 - 2 * mirrored_B}


def _channels(image: Tensor, rows: Tensor | None) -> Tensor:
    return image if rows is None else image.flatten(0, 1).index_select(0, rows).view_as(image)


def _each(value_B: Tensor) -> Tensor:
    return value_B.view(-1, 1, 1, 1)


NEUTRAL = (1.0, 1.0, 1.0, 0.0)  # brightness, contrast, saturation, hue: by Kornia's numbers


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

    def refused(self, channels: int) -> list[str]:  # noqa: D102
        ranges = {"saturation": (self.kornia.saturation, 1), "hue": (self.kornia.hue, 0)}
        some = (name for name, (of, neutral) in ranges.items() if of not in (0, [neutral] * 2, (neutral,) * 2))
        return [f"the {name} of ColorJitter" for name in some]

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
        changed = self.steps(some, self.plan_of(parameters["factor"][chosen], parameters["order"], some.shape[1]))
        return changed if some is image else image.index_copy_(0, chosen, changed)

    def plan(self, parameters: Parameters, shape: torch.Size) -> Parameters:
        """Images that are left alone get neutral factors."""
        factor_B4 = torch.where(parameters["chosen"][:, None], parameters["factor"].float(), torch.tensor(NEUTRAL))
        return self.plan_of(factor_B4, parameters["order"], shape[1])

    def plan_of(self, factor_B4: Tensor, order: Sequence[int], channels: int) -> Parameters:
        """What `steps` needs, on the CPU, to change images by factors of brightness, contrast, saturation and hue."""
        plan: Parameters = {"order": order, "factor": factor_B4, "luma": luma(channels), "rest": 1 - factor_B4[:, 1]}
        if 2 in order:
            kept_B11 = factor_B4[:, 2, None, None]
            plan["mixture"] = kept_B11 * torch.eye(channels) + (1 - kept_B11) * plan["luma"]
        return plan | (plan_hue(factor_B4[:, 3]) if 3 in order else {})

    def transform_on_device(self, image: Tensor, label: Tensor, plan: Parameters) -> tuple[Tensor, Tensor]:  # noqa: D102
        return self.steps(image, plan), label

    def steps(self, image: Tensor, plan: Parameters) -> Tensor:
        """Images (B, C, H, W) after all steps in their order, on any device."""
        for step in plan["order"]:
            factor_B = plan["factor"][:, step]
            if step == 0:
                image = image.mul(_each(factor_B)).clamp_(0, 1)
            elif step == 1:
                offset_B = (image.mean((2, 3)) @ plan["luma"]).mul_(plan["rest"])
                image = image.mul(_each(factor_B)).add_(_each(offset_B)).clamp_(0, 1)
            elif step == 2:
                image = torch.bmm(plan["mixture"], image.flatten(2)).view_as(image).clamp_(0, 1)
            else:
                image = turn_hue(image, plan)
        return image
