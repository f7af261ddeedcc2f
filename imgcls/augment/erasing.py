import kornia.augmentation as K  # noqa: N812
import torch
from torch import Tensor

from imgcls.augment.base import ByImage, Change


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

    def sample(self, shape: torch.Size) -> tuple[Change, torch.Size]:  # noqa: D102
        params = self.kornia.forward_parameters(shape)
        boxes = torch.stack([params[k].double() for k in ("xs", "ys", "widths", "heights")], 1).long().tolist()
        chosen, values = (params["batch_prob"].reshape(-1) > 0.5).tolist(), params["values"].tolist()

        def change(image: Tensor, here: slice) -> Tensor:
            for number, (x, y, width, height) in enumerate(boxes[here]):
                if chosen[here][number]:
                    image[number, :, y : y + height, x : x + width] = values[here][number]
            return image

        return change, shape
