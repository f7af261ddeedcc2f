"""Policies that sample an operation and its strength for each image (Kornia's and torchvision's: for each batch).

Shapes: B batch, of one or several versions of each image.
"""

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from imgcls.augment.base import Parameters, Sampled, to_float
from imgcls.augment.operations import carry_out, plan


class Policy(Sampled):
    """Gives each image one operation after the other of `names`, at a share of that operation's largest strength.

    Images are uint8 on the way, as in the papers' code; of float32 ones in [0, 1] the nearest are taken.

    Attributes:
        names: The operations.
    """

    on_uint8 = True
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

    def drawn(self, choice_B: Tensor, share_B: Tensor) -> tuple[Tensor, Tensor]:
        """Operations (B,), of which -1 is none, and their values (B,) with random signs."""
        sign_B = torch.randint(2, choice_B.shape) * 2.0 - 1
        return choice_B, self.values(choice_B, share_B, sign_B)

    def transform(self, image: Tensor, label: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) uint8, or float32 in [0, 1]; the same shape and dtype."""
        # channel by channel, as images are picked and looked up in a tenth of the time
        return self.transform_on_device(image.contiguous(), label, self.plan(parameters, image.shape))

    def plan(self, parameters: Parameters, shape: torch.Size) -> Parameters:
        """Images are put into the order of each step's operations, and back after the last."""
        layers, place = [], torch.arange(parameters["choice"].shape[0]) % shape[0]
        for choice_B, value_B in zip(parameters["choice"].unbind(1), parameters["value"].unbind(1), strict=True):
            step = plan(choice_B, value_B, self.names, shape)
            order = step["order"]
            layers.append(step | {"order": place[order]})
            place = order.argsort()
        return {"layers": layers, "back": place}

    def transform_on_device(self, image: Tensor, label: Tensor, plan: Parameters) -> tuple[Tensor, Tensor]:  # noqa: D102
        result = image if image.dtype == torch.uint8 else (image * 255).round_().byte()
        for layer in plan["layers"]:
            result = carry_out(result, layer)
        result = result.index_select(0, plan["back"])
        return result if image.dtype == torch.uint8 else to_float(result), label


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

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        choice_B = torch.randint(len(self.names), shape[:1])
        share_B = torch.randint(self.steps, shape[:1]) / (self.steps - 1)
        return in_turn([self.drawn(choice_B, share_B)]), shape

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

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        steps = []
        for _ in range(self.count):
            choice_B = torch.randint(len(self.names), shape[:1])
            choice_B[torch.rand(shape[0]) >= self.p] = -1
            share_B = (self.magnitude + self.std * torch.randn(shape[0])).clamp(0, 10) / 10
            steps.append(self.drawn(choice_B, share_B))
        return in_turn(steps), shape

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

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:
        """Each image is there once for each chain, and once more as it is."""
        count = shape[0]
        share_BW = torch.distributions.Dirichlet(torch.full((self.width,), self.alpha)).sample((count,))
        keep_B1 = torch.distributions.Beta(self.alpha, self.alpha).sample((count, 1))
        unchanged = torch.full((count, self.depth), -1)
        chains = [{"choice": unchanged, "value": unchanged.float()}]
        for _ in range(self.width):
            length_B, steps = torch.randint(1, self.depth + 1, (count,)), []
            for position in range(self.depth):
                choice_B = torch.randint(len(self.names), (count,))
                choice_B[length_B <= position] = -1
                steps.append(self.drawn(choice_B, torch.rand(count) * self.severity / 10))
            chains.append(in_turn(steps))
        parameters = {name: torch.cat([chain[name] for chain in chains]) for name in ("choice", "value")}
        return parameters | {"share": torch.cat([keep_B1, (1 - keep_B1) * share_BW], 1).T / 255}, shape

    def plan(self, parameters: Parameters, shape: torch.Size) -> Parameters:  # noqa: D102
        return super().plan(parameters, shape) | {"share": parameters["share"][..., None, None, None].contiguous()}

    def transform_on_device(self, image: Tensor, label: Tensor, plan: Parameters) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) uint8, or float32 in [0, 1]; float32 in [0, 1]."""
        whole = image if image.dtype == torch.uint8 else (image * 255).round_().byte()
        changed, _ = super().transform_on_device(whole, label, plan)
        return (changed.unflatten(0, plan["share"].shape[:2]) * plan["share"]).sum(0), label

    def strengths(self, share_B: Tensor, signed_B: Tensor) -> Mapping[str, Tensor]:  # noqa: D102
        return {
            **mild(share_B, signed_B),
            **dict.fromkeys(("translate_x", "translate_y"), signed_B / 3),
            "solarize": 1 - share_B,
        }


def in_turn(steps: list[tuple[Tensor, Tensor]]) -> Parameters:
    """Operations and values of steps (L of both) as parameters, (B, L)."""
    choice, value = zip(*steps, strict=True)
    return {"choice": torch.stack(choice, 1), "value": torch.stack(value, 1)}


def mild(share_B: Tensor, signed_B: Tensor) -> dict[str, Tensor]:
    """The values on which RandAugment and AugMix agree, after AutoAugment (Cubuk et al., CVPR 2019, table 6)."""
    return {
        **dict.fromkeys(("shear_x", "shear_y"), 0.3 * signed_B),
        "rotate": 30.0 * signed_B,
        "posterize": 4 - (4 * share_B).floor(),
    }
