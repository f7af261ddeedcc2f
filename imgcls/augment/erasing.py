from collections.abc import Sequence

import kornia.augmentation as K  # noqa: N812
import torch
from torch import Tensor

from imgcls.augment.base import ByImage, Parameters, spans
from imgcls.errors import UserError


class RandomErasing(ByImage):
    """A box of each image is overwritten (Zhong et al., AAAI 2020), sampled as by Kornia's RandomErasing.

    Torchvision and timm erase normalised images: their 0 is `value` at the mean of each channel, and timm's noise
    (`pixel`) has the channels' standard deviation as `std`.

    Args:
        scale: Range of the box's area, as a share of the image.
        ratio: Range of its height over its width.
        value: What is written, in 0..1; one number, or one for each channel, of which gray images take the mean.
        p: Probability of each image.
        std: Standard deviation of noise about the value, anew for each pixel and channel; likewise.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: float | list[float] = 0.0,
        p: float = 0.5,
        std: float | list[float] = 0.0,
    ) -> None:
        super().__init__()
        self.kornia = K.RandomErasing(scale, ratio, p=p)
        self.value, self.std = (of if isinstance(of, list) else [of] for of in (value, std))

    @classmethod
    def like(cls, operation: K.RandomErasing) -> "RandomErasing":
        """With the parameters of an operation of Kornia's."""
        own = cls(value=operation.value)
        own.kornia = operation
        return own

    def refused(self, channels: int) -> list[str]:  # noqa: D102
        given = {len(self.value), len(self.std)} - {1, channels}
        return [f"RandomErasing of {given.pop()} values"] if given else []

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        params = self.kornia.forward_parameters(shape)
        chosen_B = params["batch_prob"].reshape(-1) > 0.5
        x_B, y_B, width_B, height_B = (params[k].long() * chosen_B for k in ("xs", "ys", "widths", "heights"))
        return {"box": torch.stack([x_B, y_B, x_B + width_B, y_B + height_B], 1)}, shape

    def change(self, image: Tensor, parameters: Parameters) -> Tensor:  # noqa: D102
        value, std = _by_channel(self.value, len(image[0])), _by_channel(self.std, len(image[0]))
        for number, (left, top, right, bottom) in enumerate(parameters["box"].tolist()):
            if right > left:
                box = image[number, :, top:bottom, left:right]
                box.copy_(value + std * torch.randn_like(box) if any(self.std) else value)
        return image

    def plan(self, parameters: Parameters, shape: torch.Size) -> Parameters:  # noqa: D102
        column_BW, row_BH = spans(parameters["box"], shape)
        plan = {"column": column_BW[:, None, None], "row": row_BH[:, None, :, None]}
        return plan | {name: _by_channel(getattr(self, name), shape[1]) for name in ("value", "std")}

    def transform_on_device(self, image: Tensor, label: Tensor, plan: Parameters) -> tuple[Tensor, Tensor]:  # noqa: D102
        value = plan["value"]
        if any(self.std):
            value = torch.addcmul(value, torch.randn_like(image), plan["std"])
        return torch.where(plan["row"] & plan["column"], value, image), label


def _by_channel(values: Sequence[float], channels: int) -> Tensor:
    if len(values) not in (1, 3 if channels == 1 else channels):
        raise UserError(
            f"RandomErasing: {list(values)} are {len(values)} numbers for {channels} channels; give 1 or that"
        )
    value_C11 = torch.tensor(values).view(-1, 1, 1)
    return value_C11.mean(0, keepdim=True) if channels == 1 else value_C11
