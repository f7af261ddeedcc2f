"""Policies that sample an operation and its strength for each image (Kornia's and torchvision's: for each batch).

Shapes: B batch, of one or several versions of each image.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torchvision.transforms import v2

from imgcls.augment.base import Parameters, Sampled, to_bytes, to_float
from imgcls.augment.large_images import LARGE, carry_out_each
from imgcls.augment.operations import BLENDS, GEOMETRIC, KINDS, TABLES, carry_out, plan


class Policy(Sampled):
    """Gives each image one operation after the other of `names`.

    Images are uint8 on the way, as in the papers' code; of float32 ones in [0, 1] the nearest are taken.

    Attributes:
        names: The operations.
    """

    on_uint8 = True
    names: tuple[str, ...]

    def refused(self, channels: int) -> list[str]:  # noqa: D102
        return [f"the color of {type(self).__name__}"] if "color" in self.names else []

    def transform(self, image: Tensor, label: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) uint8, or float32 in [0, 1]; the same shape and dtype."""
        plan = self.plan(parameters, image.shape)
        if image[:1].numel() >= LARGE:
            changed = carry_out_each(to_bytes(image), plan["layers"], plan["back"])
            return self.finished(changed, image.dtype, plan), label
        # channel by channel, as images are picked and looked up in a tenth of the time
        return self.transform_on_device(image.contiguous(), label, plan)

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
        changed = to_bytes(image)
        for layer in plan["layers"]:
            changed = carry_out(changed, layer)
        return self.finished(changed.index_select(0, plan["back"]), image.dtype, plan), label

    def finished(self, changed: Tensor, dtype: torch.dtype, plan: Parameters) -> Tensor:
        """The result, of the dtype of the images, by images (B, C, H, W) uint8 after all operations."""
        return changed if dtype == torch.uint8 else to_float(changed)


class TorchvisionPolicy(Policy):
    """Operations with the strengths of one of torchvision's policies.

    Geometric ones are interpolated bilinearly, where torchvision takes the nearest pixel by default. Translations are
    those of images of 224 pixels, and the same share of other sizes, to whole pixels.

    Attributes:
        reference: Torchvision's class.
        levels: Number of strengths of each operation.
    """

    reference: type[v2.Transform]
    levels = 31

    def __init__(self) -> None:
        super().__init__()
        by_key = {name.replace("_", ""): name for name in (*TABLES, *GEOMETRIC, *KINDS)}
        space = {by_key[key.lower()]: of for key, of in self.reference._AUGMENTATION_SPACE.items()}  # type: ignore[attr-defined]
        self.names = tuple(space)
        strengths = [strength(self.levels, 224, 224) for strength, _ in space.values()]
        self.strength_NL = torch.stack([torch.zeros(self.levels) if s is None else s.float() for s in strengths])  # noqa: N815
        self.signed_N = torch.tensor([signed for _, signed in space.values()])  # noqa: N815

    def values(self, choice_B: Tensor, level_B: Tensor, sign_B: Tensor, shape: torch.Size) -> Tensor:
        """Value (B,) of each image's operation at one of its levels, from 0, and a sign, as `plan` takes it."""
        value_B = self.strength_NL[choice_B, level_B] * torch.where(self.signed_N[choice_B], sign_B, 1)
        for name, side in (("translate_x", shape[-1]), ("translate_y", shape[-2])):
            value_B = torch.where(is_one_of(choice_B, self.names, name), (value_B / 224 * side).trunc() / side, value_B)
        return value_B + is_one_of(choice_B, self.names, *BLENDS)

    def drawn(self, choice_B: Tensor, level_B: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Operations (B,), of which -1 is none, and their values (B,) with random signs."""
        return choice_B, self.values(choice_B, level_B, random_sign(len(choice_B)), shape)


class TrivialAugmentWide(TorchvisionPolicy):
    """One operation of random strength for each image (Müller and Hutter, TrivialAugment, ICCV 2021, table 7, wide)."""

    reference = v2.TrivialAugmentWide

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        choice_B = torch.randint(len(self.names), shape[:1])
        return in_turn([self.drawn(choice_B, torch.randint(self.levels, shape[:1]), shape)]), shape


class TorchvisionRandAugment(TorchvisionPolicy):
    """Several operations of one strength for each image (Cubuk et al., RandAugment, NeurIPS 2020), as torchvision's.

    Args:
        count: Number of operations, n.
        magnitude: Their level, 0 to 30.
    """

    reference = v2.RandAugment

    def __init__(self, count: int = 2, magnitude: int = 9) -> None:
        super().__init__()
        self.count, self.magnitude = count, magnitude

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        level_B = torch.full(shape[:1], self.magnitude)
        choices = (torch.randint(len(self.names), shape[:1]) for _ in range(self.count))
        return in_turn([self.drawn(choice_B, level_B, shape) for choice_B in choices]), shape


class AutoAugment(TorchvisionPolicy):
    """One of 25 learned pairs of operations for each image (Cubuk et al., AutoAugment, CVPR 2019, appendix).

    Args:
        policy: The data that it was learned on.
    """

    reference = v2.AutoAugment
    levels = 10

    def __init__(self, policy: Literal["imagenet", "cifar10", "svhn"] = "imagenet") -> None:
        super().__init__()
        self.policy = policy
        pairs = v2.AutoAugment(v2.AutoAugmentPolicy(policy))._policies
        keys = [name.replace("_", "") for name in self.names]
        self.choice_P2 = torch.tensor([[keys.index(name.lower()) for name, _, _ in pair] for pair in pairs])  # noqa: N815
        self.p_P2 = torch.tensor([[p for _, p, _ in pair] for pair in pairs])  # noqa: N815
        self.level_P2 = torch.tensor([[level or 0 for _, _, level in pair] for pair in pairs])  # noqa: N815

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        pair_B, steps = torch.randint(len(self.p_P2), shape[:1]), []
        for place in range(2):
            choice_B, value_B = self.drawn(self.choice_P2[pair_B, place], self.level_P2[pair_B, place], shape)
            steps.append((choice_B.where(torch.rand(shape[0]) < self.p_P2[pair_B, place], -1), value_B))
        return in_turn(steps), shape


class ThreeAugment(Policy):
    """Gray, inverted above the middle, or blurred (Touvron et al., DeiT III, ECCV 2022, section 3.2).

    The paper adds a crop, a flip and colour jitter of 0.3, see `configs/augment/three_augment.yaml`.

    Args:
        sigma: Range of the blur's standard deviation, in pixels.
    """

    names = ("color", "solarize", "blur")

    def __init__(self, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        super().__init__()
        self.sigma = sigma

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        choice_B, sigma_B = torch.randint(3, shape[:1]), torch.empty(shape[0]).uniform_(*self.sigma)
        return in_turn([(choice_B, torch.where(choice_B == 2, sigma_B, 0.5 * (choice_B == 1)))]), shape


class SharesPolicy(Policy):
    """Operations at a share of their largest strength."""

    @abstractmethod
    def strengths(self, share_B: Tensor, signed_B: Tensor) -> Mapping[str, Tensor]:
        """Value (B,) of each operation that takes one, at a share 0..1 of its largest strength, plain and signed."""

    def values(self, choice_B: Tensor, share_B: Tensor, sign_B: Tensor) -> Tensor:
        """Value (B,) of each image's operation at a share 0..1 of its largest strength, and a sign."""
        value_B = torch.zeros(len(choice_B))
        for name, value in self.strengths(share_B, share_B * sign_B).items():
            value_B = torch.where(is_one_of(choice_B, self.names, name), value, value_B)
        return value_B

    def drawn(self, choice_B: Tensor, share_B: Tensor) -> tuple[Tensor, Tensor]:
        """Operations (B,), of which -1 is none, and their values (B,) with random signs."""
        return choice_B, self.values(choice_B, share_B, random_sign(len(choice_B)))


class RandAugment(SharesPolicy):
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


class AugMix(SharesPolicy):
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
                steps.append(self.drawn(choice_B, (0.1 + (self.severity - 0.1) * torch.rand(count)) / 10))
            chains.append(in_turn(steps))
        parameters = {name: torch.cat([chain[name] for chain in chains]) for name in ("choice", "value")}
        return parameters | {"share": torch.cat([keep_B1, (1 - keep_B1) * share_BW], 1).T / 255}, shape

    def plan(self, parameters: Parameters, shape: torch.Size) -> Parameters:  # noqa: D102
        return super().plan(parameters, shape) | {"share": parameters["share"][..., None, None, None].contiguous()}

    def finished(self, changed: Tensor, dtype: torch.dtype, plan: Parameters) -> Tensor:
        """The mixture of all versions, float32 in [0, 1]."""
        return (changed.unflatten(0, plan["share"].shape[:2]) * plan["share"]).sum(0)

    def strengths(self, share_B: Tensor, signed_B: Tensor) -> Mapping[str, Tensor]:  # noqa: D102
        return {
            **mild(share_B, signed_B),
            **dict.fromkeys(("translate_x", "translate_y"), signed_B / 3),
            "solarize": 1 - share_B,
        }


def random_sign(count: int) -> Tensor:
    """-1 or 1, (count,) float32."""
    return torch.randint(2, (count,)) * 2.0 - 1


def is_one_of(choice_B: Tensor, names: tuple[str, ...], *wanted: str) -> Tensor:
    """Whether operations, by number among names, are one of those, (B,) bool."""
    return torch.isin(choice_B, torch.tensor([names.index(name) for name in wanted if name in names]))


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
