"""Augmentations that blend pairs of images and their labels. Shapes: B batch, K classes, H×W pixels."""

import torch
from torch import Tensor

from imgcls.augment.base import Augmentation, soft


def sample_lam(alpha: float, p: float, count: int) -> Tensor:
    """Share of its own image that each sample keeps: Beta(alpha, alpha) with probability p, else 1; (B,)."""
    lam = torch.distributions.Beta(alpha, alpha).sample((count,))
    return torch.where(torch.rand(count) < p, lam, torch.ones(count))


class MixUp(Augmentation):
    """Convex combinations of pairs of images and labels (Zhang et al., mixup, ICLR 2018, section 2).

    Each image has a lambda of its own, where the paper samples one per batch.

    Args:
        alpha: Parameter of Beta(alpha, alpha).
        p: Probability that an image is mixed at all.
    """

    def __init__(self, alpha: float = 0.2, p: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.p = alpha, p

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32, label (B,) or (B, K); returns labels (B, K)."""
        lam = sample_lam(self.alpha, self.p, len(image)).to(image)
        partner = torch.randperm(len(image)).to(image.device)
        return self.mix(image, label, lam, partner)

    def mix(self, image: Tensor, label: Tensor, lam: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
        """`lam[b]` of image b and `1 - lam[b]` of image `partner[b]`; labels likewise. Both (B,)."""
        label_BK = soft(label, self.num_classes)
        lam_B1 = lam[:, None]
        mixed = torch.lerp(image[partner], image, lam[:, None, None, None])
        return mixed, lam_B1 * label_BK + (1 - lam_B1) * label_BK[partner]


class CutMix(Augmentation):
    """A box of each image is replaced by another's, labels by area (Yun et al., CutMix, ICCV 2019, eq. 1, 2).

    Each image has a box of its own, where the paper samples one per batch. The label follows the area that was
    replaced, after the box was clipped to the image.

    Args:
        alpha: Parameter of Beta(alpha, alpha).
        p: Probability that an image is mixed at all.
    """

    def __init__(self, alpha: float = 1.0, p: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.p = alpha, p

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32, label (B,) or (B, K); returns labels (B, K)."""
        count, _, height, width = image.shape
        lam = sample_lam(self.alpha, self.p, count)
        partner = torch.randperm(count).to(image.device)
        edges = []
        for side in (height, width):
            half = side * (1 - lam).sqrt() / 2
            centre = torch.rand(count) * side
            edges += [(centre + sign * half).round().clamp(0, side) for sign in (-1, 1)]
        box_B4 = torch.stack(edges, 1).long().to(image.device)
        return self.paste(image, label, box_B4, partner)

    def paste(self, image: Tensor, label: Tensor, box_B4: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
        """Replace rows top…bottom and columns left…right (exclusive) by those of image `partner[b]`."""
        height, width = image.shape[-2:]
        top, bottom, left, right = (edge[:, None] for edge in box_B4.unbind(1))
        row_H, column_W = torch.arange(height, device=image.device), torch.arange(width, device=image.device)
        inside_BH, inside_BW = (top <= row_H) & (row_H < bottom), (left <= column_W) & (column_W < right)
        mixed = torch.where((inside_BH[:, :, None] & inside_BW[:, None, :])[:, None], image[partner], image)
        lam_B1 = 1 - ((bottom - top) * (right - left)).to(image) / (height * width)
        label_BK = soft(label, self.num_classes)
        return mixed, lam_B1 * label_BK + (1 - lam_B1) * label_BK[partner]
