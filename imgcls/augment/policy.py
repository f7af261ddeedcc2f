"""Policies that sample an operation and its strength for each image (Kornia's and torchvision's: for each batch).

Shapes: B batch. Images with the same operation are changed together, and all geometric operations are one warp.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from imgcls.augment import color
from imgcls.augment.base import Augmentation
from imgcls.augment.warp import affine_source, middle, warp

# operations with a value per image (B,), which may be in place; for the units see `apply_operations`
VALUED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": color.adjust_brightness_,
    "color": color.adjust_saturation_,
    "contrast": color.adjust_contrast_,
    "sharpness": color.adjust_sharpness_,
    "posterize": color.posterize,
    "solarize": color.solarize,
    "autocontrast": lambda image, value_B: tv.autocontrast(image),
    "equalize": lambda image, value_B: tv.equalize((image * 255).round_().byte()) / 255,
    "invert": lambda image, value_B: 1 - image,
    "solarize_add": lambda image, value_B: torch.where(
        image < 0.5, (image + value_B.to(image)[:, None, None, None]).clamp(max=1), image
    ),
}
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def apply_operations(image: Tensor, choice_B: Tensor, value_B: Tensor, names: tuple[str, ...]) -> Tensor:
    """Give each image its operation.

    Args:
        image: (B, C, H, W) float32 in [0, 1].
        choice_B: Number of each image's operation in `names`, (B,) int64, on the CPU.
        value_B: Its value (B,) on the CPU: shears as tangents, translations as shares of the side, rotations in
            degrees counter-clockwise, bits, thresholds in 0..1, or the factor of a colour operation.
        names: Operations; `identity` leaves an image as it is.
    """
    geometry_B5 = torch.zeros(len(image), len(GEOMETRIC), dtype=torch.float64)
    moved_B = torch.zeros(len(image), dtype=torch.bool)
    result = image.clone()
    for number, name in enumerate(names):
        chosen = (choice_B == number).nonzero()[:, 0]
        if not len(chosen) or name == "identity":
            continue
        if name in GEOMETRIC:
            moved_B[chosen] = True
            geometry_B5[chosen, GEOMETRIC.index(name)] = value_B[chosen].double()
        else:
            here = chosen.to(image.device)
            result.index_copy_(0, here, VALUED[name](image.index_select(0, here), value_B[chosen]))
    if moved_B.any():
        moved = moved_B.nonzero()[:, 0]
        here = moved.to(image.device)
        height, width = image.shape[-2:]
        tangent_B2, share_B2, degrees_B1 = geometry_B5[moved].split([2, 2, 1], 1)
        shift_B2, one_12 = share_B2 * torch.tensor([width, height]), torch.ones(1, 2)
        source_B23 = affine_source(middle((height, width)), degrees_B1[:, 0], tangent_B2, shift_B2, one_12)
        result.index_copy_(0, here, warp(image.index_select(0, here), source_B23))
    return result


class Policy(Augmentation):
    """Gives each image an operation of `names`, at a share of that operation's largest strength.

    Attributes:
        names: The operations.
    """

    names: tuple[str, ...]

    @abstractmethod
    def strengths(self, share_B: Tensor, signed_B: Tensor) -> Mapping[str, Tensor]:
        """Value (B,) of each operation that takes one, at a share 0..1 of its largest strength, plain and signed."""

    def values(self, choice_B: Tensor, share_B: Tensor, sign_B: Tensor) -> Tensor:
        """Value (B,) of each image's operation at a share 0..1 of its largest strength, and a sign."""
        by_name = self.strengths(share_B, share_B * sign_B)
        value_B = torch.zeros(len(choice_B))
        for number, name in enumerate(self.names):
            if name in by_name:
                value_B = torch.where(choice_B == number, by_name[name], value_B)
        return value_B

    def change(self, image: Tensor, choice_B: Tensor, share_B: Tensor) -> Tensor:
        """Carry out each image's operation, of which -1 is none, with a random sign."""
        sign_B = torch.randint(2, (len(image),)) * 2.0 - 1
        return apply_operations(image, choice_B, self.values(choice_B, share_B, sign_B), self.names)


class TrivialAugmentWide(Policy):
    """One operation of random strength for each image (Müller and Hutter, TrivialAugment, ICCV 2021, table 7, wide).

    Operations and ranges are those of torchvision's class of this name, with 31 strengths. Geometric ones are
    interpolated bilinearly, where torchvision takes the nearest pixel; a translation of at most 32 pixels is meant
    for images of 224, and is a share of 32 / 224 of other sizes here.
    """

    names = (
        *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
        *("brightness", "color", "contrast", "sharpness", "posterize", "solarize", "autocontrast", "equalize"),
    )
    steps = 31

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32 in [0, 1]; the same shape and range."""
        choice_B = torch.randint(len(self.names), (len(image),))
        share_B = torch.randint(self.steps, (len(image),)) / (self.steps - 1)
        return self.change(image, choice_B, share_B), label

    def strengths(self, share_B: Tensor, signed_B: Tensor) -> Mapping[str, Tensor]:  # noqa: D102
        return {
            **dict.fromkeys(("shear_x", "shear_y"), 0.99 * signed_B),
            **dict.fromkeys(("translate_x", "translate_y"), 32 / 224 * signed_B),
            "rotate": 135.0 * signed_B,
            **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 1 + 0.99 * signed_B),
            "posterize": 8 - (6 * share_B).round(),
            "solarize": 1 - share_B,
        }


class RandAugment(Policy):
    """Several operations for each image, all of about one strength (Cubuk et al., RandAugment, NeurIPS 2020).

    In the variant of timm's `rand-mM-mstdS-incI`, by which most recipes since DeiT are written: each operation
    takes effect with probability 1/2, its strength is sampled from a normal distribution about `magnitude`, and all
    grow with it. Geometric operations are interpolated bilinearly, with black borders.

    Args:
        magnitude: Mean strength, 0 to 10.
        std: Standard deviation of the strength.
        count: Number of operations, n.
        p: Probability that an operation takes effect.
    """

    names = (
        *("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color"),
        *("contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
    )

    def __init__(self, magnitude: float = 9.0, std: float = 0.5, count: int = 2, p: float = 0.5) -> None:
        super().__init__()
        self.magnitude, self.std, self.count, self.p = magnitude, std, count, p

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32 in [0, 1]; the same shape and range."""
        for _ in range(self.count):
            choice_B = torch.randint(len(self.names), (len(image),))
            choice_B[torch.rand(len(image)) >= self.p] = -1
            share_B = (self.magnitude + self.std * torch.randn(len(image))).clamp(0, 10) / 10
            image = self.change(image, choice_B, share_B)
        return image, label

    def strengths(self, share_B: Tensor, signed_B: Tensor) -> Mapping[str, Tensor]:  # noqa: D102
        return {
            **mild(share_B, signed_B),
            **dict.fromkeys(("translate_x", "translate_y"), 0.45 * signed_B),
            **dict.fromkeys(("brightness", "color", "contrast", "sharpness"), 1 + 0.9 * signed_B),
            "solarize": (256 - (256 * share_B).floor()) / 255,
            "solarize_add": (110 * share_B).floor() / 255,
        }


class AugMix(Policy):
    """A mixture of the image and of chains of operations on it (Hendrycks et al., AugMix, ICLR 2020, algorithm 1).

    Without the consistency loss of the paper. The operations are the paper's, which leaves out those of the
    corruptions that robustness is tested on.

    Args:
        severity: Largest strength, 1 to 10.
        width: Number of chains.
        depth: Longest chain; each has 1 to so many operations.
        alpha: Parameter of the Dirichlet distribution of the chains' shares, and of the Beta distribution of the
            mixture's.
    """

    names = (
        *("autocontrast", "equalize", "posterize", "rotate", "solarize"),
        *("shear_x", "shear_y", "translate_x", "translate_y"),
    )

    def __init__(self, severity: float = 3.0, width: int = 3, depth: int = 3, alpha: float = 1.0) -> None:
        super().__init__()
        self.severity, self.width, self.depth, self.alpha = severity, width, depth, alpha

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32 in [0, 1]; the same shape and range."""
        count = len(image)
        share_BW = torch.distributions.Dirichlet(torch.full((self.width,), self.alpha)).sample((count,)).to(image)
        keep_B = torch.distributions.Beta(self.alpha, self.alpha).sample((count,)).to(image)
        mixture = torch.zeros_like(image)
        for chain in range(self.width):
            length_B, changed = torch.randint(1, self.depth + 1, (count,)), image
            for position in range(self.depth):
                choice_B = torch.randint(len(self.names), (count,))
                choice_B[length_B <= position] = -1
                changed = self.change(changed, choice_B, torch.rand(count) * self.severity / 10)
            mixture += share_BW[:, chain, None, None, None] * changed
        return torch.lerp(mixture, image, keep_B[:, None, None, None]), label

    def strengths(self, share_B: Tensor, signed_B: Tensor) -> Mapping[str, Tensor]:  # noqa: D102
        return {
            **mild(share_B, signed_B),
            **dict.fromkeys(("translate_x", "translate_y"), signed_B / 3),
            "solarize": 1 - share_B,
        }


def mild(share_B: Tensor, signed_B: Tensor) -> dict[str, Tensor]:
    """The values on which RandAugment and AugMix agree, after AutoAugment (Cubuk et al., CVPR 2019, table 6)."""
    return {
        **dict.fromkeys(("shear_x", "shear_y"), 0.3 * signed_B),
        "rotate": 30.0 * signed_B,
        "posterize": 4 - (4 * share_B).floor(),
    }
