import kornia.augmentation as K  # noqa: N812
import torch
from torch import Tensor

from imgcls.augment.base import ByImage, Parameters, spans


class RandomErasing(ByImage):
    """Parameters and results of Kornia's RandomErasing: a box of each image is overwritten (Zhong et al., AAAI 2020).

    Args:
        scale: Range of the box's area, as a share of the image.
        ratio: Range of its height over its width.
        value: What is written, in 0..1.
        p: Probability of each image.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: float = 0.0,
        p: float = 0.5,
    ) -> None:
        super().__init__()
        self.kornia = K.RandomErasing(scale, ratio, value, p=p)

    @classmethod
    def like(cls, operation: K.RandomErasing) -> "RandomErasing":
        """With the parameters of an operation of Kornia's."""
        own = cls()
        own.kornia = operation
        return own

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        params = self.kornia.forward_parameters(shape)
        chosen_B = params["batch_prob"].reshape(-1) > 0.5
        x_B, y_B, width_B, height_B = (params[k].long() * chosen_B for k in ("xs", "ys", "widths", "heights"))
        box_B4 = torch.stack([x_B, x_B + width_B, y_B, y_B + height_B], 1)
        return {"box": box_B4, "value": params["values"].float()}, shape

    def change(self, image: Tensor, parameters: Parameters) -> Tensor:  # noqa: D102
        for number, (left, right, top, bottom) in enumerate(parameters["box"].tolist()):
            if right > left:
                image[number, :, top:bottom, left:right] = float(parameters["value"][number])
        return image

    def plan(self, parameters: Parameters, shape: torch.Size) -> Parameters:  # noqa: D102
        column_BW, row_BH = spans(parameters["box"], shape)
        return {"column": column_BW[:, None, None], "row": row_BH[:, None, :, None], "value": parameters["value"]}

    def transform_on_device(self, image: Tensor, label: Tensor, plan: Parameters) -> tuple[Tensor, Tensor]:  # noqa: D102
        return torch.where(plan["row"] & plan["column"], plan["value"][:, None, None, None], image), label
