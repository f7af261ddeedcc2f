"""Augmentations that blend pairs of images and their labels. Shapes: B batch, K classes, H×W pixels."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from imgcls.augment.base import Parameters, Sampled, soft, spans

Per = Literal["image", "batch"]


def sample_lam(alpha: float, p: float, count: int) -> Tensor:
    """Share of its own image that each sample keeps: Beta(alpha, alpha) with probability p, else 1; (count,)."""
    lam = torch.distributions.Beta(alpha, alpha).sample((count,))
    return torch.where(torch.rand(count) < p, lam, torch.ones(count))


def draws(per: Per, shape: torch.Size) -> int:
    """How often a batch of that shape, (B, C, H, W), samples."""
    return shape[0] if per == "image" else 1


class Mixing(Sampled):
    """Of each image, and of its label, a share is replaced by another image of the batch.

    Parameters are `partner` (B,) int64, the number of that image; `row` (B, H) or (B, 1) and `column` (B, W) or (B, 1)
    float32, whose product is its share of each pixel; and `share` (B,) float32, of the label.
    """

    def transform(self, image: Tensor, label: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32, label (B,) or (B, K); returns labels (B, K)."""
        partner, label_BK = parameters["partner"], soft(label, self.num_classes)
        share_B1HW = parameters["row"][:, None, :, None] * parameters["column"][:, None, None]
        mixed = torch.lerp(image, image.index_select(0, partner), share_B1HW)
        return mixed, torch.lerp(label_BK, label_BK.index_select(0, partner), parameters["share"][:, None])


class MixUp(Mixing):
    """Convex combinations of pairs of images and labels (Zhang et al., mixup, ICLR 2018, section 2).

    Args:
        alpha: Parameter of Beta(alpha, alpha).
        p: Probability that an image is mixed at all.
        per: What has a lambda of its own: each image, or each batch as in the paper.
    """

    def __init__(self, alpha: float = 0.2, p: float = 1.0, per: Per = "image") -> None:
        super().__init__()
        self.alpha, self.p, self.per = alpha, p, per

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        lam_B = sample_lam(self.alpha, self.p, draws(self.per, shape)).expand(shape[0])
        return self.parameters_of(lam_B, torch.randperm(shape[0])), shape

    def parameters_of(self, lam_B: Tensor, partner: Tensor) -> Parameters:
        """`lam_B[b]` of image b and `1 - lam_B[b]` of image `partner[b]`."""
        other_B1 = 1 - lam_B[:, None]
        return {"partner": partner, "row": other_B1, "column": torch.ones_like(other_B1), "share": other_B1[:, 0]}


class CutMix(Mixing):
    """A box of each image is replaced by another's, labels by area (Yun et al., CutMix, ICCV 2019, eq. 1, 2).

    The label follows the area that was replaced, after the box was clipped to the image.

    Args:
        alpha: Parameter of Beta(alpha, alpha).
        p: Probability that an image is mixed at all.
        per: What has a lambda of its own: each image, or each batch as in the paper.
    """

    def __init__(self, alpha: float = 1.0, p: float = 1.0, per: Per = "image") -> None:
        super().__init__()
        self.alpha, self.p, self.per = alpha, p, per

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        lam = sample_lam(self.alpha, self.p, draws(self.per, shape))
        partner = torch.randperm(shape[0])
        edges = []
        for side in shape[-2:]:
            half, centre = side * (1 - lam).sqrt() / 2, torch.rand(len(lam)) * side
            edges += [(centre + sign * half).round().clamp(0, side).expand(shape[0]) for sign in (-1, 1)]
        top, bottom, left, right = edges
        return self.parameters_of(torch.stack([left, top, right, bottom], 1), partner, shape), shape

    def parameters_of(self, box_B4: Tensor, partner: Tensor, shape: torch.Size) -> Parameters:
        """Boxes are left, top, right and bottom, (B, 4); the last two are the first outside."""
        column_BW, row_BH = (inside.float() for inside in spans(box_B4, shape))
        share_B = row_BH.mean(1) * column_BW.mean(1)
        return {"partner": partner, "row": row_BH, "column": column_BW, "share": share_B}


class EitherMixing(Mixing):
    """Each image, or each batch, is mixed by one of several, with equal probability.

    Args:
        operations: What to choose from.
        per: What has a choice of its own.
    """

    def __init__(self, operations: Sequence[Mixing], per: Per = "image") -> None:
        super().__init__()
        self.operations, self.per = nn.ModuleList(operations), per

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:
        """Those of the operation that is chosen for each image."""
        choice_B = torch.randint(len(self.operations), (draws(self.per, shape),)).expand(shape[0])
        found: Parameters = {}
        for number, operation in enumerate(self.operations):
            for name, value in operation.sample(shape)[0].items():  # type: ignore[operator]
                chosen = (choice_B == number).view(-1, *[1] * (value.ndim - 1))
                found[name] = torch.where(chosen, value, found[name]) if number else value
        return found, shape
