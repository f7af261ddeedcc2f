from kornia.augmentation import ColorJitter as KorniaColorJitter
from torch import Tensor

from imgcls.augment.base import Augmentation


class ColorJitter(Augmentation):
    """Kornia's ColorJitter for RGB images; for grayscale ones its brightness and contrast only.

    Each argument m is the range: factors from 1 - m to 1 + m, hue from -m to m (in turns of the colour wheel).

    Args:
        brightness: Range of the brightness factor.
        contrast: Range of the contrast factor.
        saturation: Range of the saturation factor; unused for one channel.
        hue: Range of the hue shift, at most 0.5; unused for one channel.
        p: Probability of each image.
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.02,
        p: float = 0.8,
    ) -> None:
        super().__init__()
        self.rgb = KorniaColorJitter(brightness, contrast, saturation, hue, p=p)
        self.gray = KorniaColorJitter(brightness, contrast, p=p)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32 in [0, 1]; the same shape and range."""
        if image.shape[1] == 3:
            return self.rgb(image), label
        return self.gray(image.expand(-1, 3, -1, -1))[:, :1], label  # Kornia's operation takes RGB only
