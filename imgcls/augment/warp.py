"""Geometric operations of Kornia's as one matrix per image, and one interpolation for all of them together."""

from collections.abc import Sequence

import torch
from kornia.augmentation import (
    RandomAffine,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    RandomShear,
    RandomTranslate,
    RandomVerticalFlip,
)
from kornia.augmentation._2d.geometric.base import GeometricAugmentationBase2D
from kornia.constants import Resample, SamplePadding
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.augment.base import Augmentation

FLIPS = (RandomHorizontalFlip, RandomVerticalFlip)
AFFINE = (RandomAffine, RandomRotation, RandomShear, RandomTranslate)


def warp(image: Tensor, source_B33: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Sample each image where its matrix says; what lies outside of it is black.

    Args:
        image: (B, C, H, W) float32.
        source_B33: From pixel (x, y, 1) of the result to pixel of the image, pixel centres on integers.
        size: Height and width of the result; the image's own by default.
    """
    height, width = image.shape[-2:]
    out_height, out_width = size or (height, width)
    to_unit = _to_unit(height, width).to(source_B33)
    from_unit = torch.linalg.inv(_to_unit(out_height, out_width)).to(source_B33)
    theta = (to_unit @ source_B33 @ from_unit).to(image)
    x, y = (torch.linspace(-1, 1, side, dtype=image.dtype, device=image.device) for side in (out_width, out_height))
    grid = image.new_empty(len(image), out_height, out_width, 2)
    for axis in (0, 1):  # F.affine_grid says the same by a matrix product, ten times as slow on a CPU
        in_x, in_y, offset = (theta[:, axis, k, None] for k in range(3))
        torch.add((in_x * x)[:, None, :], (in_y * y + offset)[:, :, None], out=grid[..., axis])
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class Warp(Augmentation):
    """Several of Kornia's geometric operations with one interpolation.

    Each draws its parameters with its own generator. Where Kornia would interpolate after each operation, and lose
    what leaves the frame on the way, the composed matrix does so once; a single operation gives what Kornia gives.
    Images that are only mirrored, or left alone, are not interpolated.

    Args:
        operations: Those that `takes` accepts.
    """

    def __init__(self, operations: Sequence[GeometricAugmentationBase2D]) -> None:
        super().__init__()
        self.operations = nn.ModuleList(operations)
        self.on_uint8 = all(isinstance(operation, FLIPS) for operation in operations)

    @staticmethod
    def takes(operation: nn.Module) -> bool:
        """Whether an operation is one of Kornia's that a matrix per image describes completely."""
        if isinstance(operation, RandomResizedCrop):
            return bool(operation.flags["align_corners"]) and operation.flags["resample"] == Resample.BILINEAR
        if not isinstance(operation, FLIPS + AFFINE):
            return False
        flags = operation.flags
        black = flags.get("padding_mode", SamplePadding.ZEROS) == SamplePadding.ZEROS
        return isinstance(operation, FLIPS) or (black and flags["resample"] == Resample.BILINEAR)

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) float32; of the same shape, unless an operation crops to another."""
        source_B33, moved_B, mirrored_B2, size = self.draw(image.shape)
        if moved_B.all() or size != tuple(image.shape[-2:]):
            return warp(image, source_B33.to(image.device), size), label
        result = image
        for axis, mirrored_B in zip((-1, -2), mirrored_B2.unbind(1), strict=True):
            if mirrored_B.any():
                result = torch.where(mirrored_B.to(image.device)[:, None, None, None], result.flip(axis), result)
        if moved_B.any():
            here = moved_B.nonzero()[:, 0]
            moved = warp(image[here.to(image.device)], source_B33[here].to(image.device), size)
            result = result.index_copy(0, here.to(image.device), moved)
        return result, label

    def draw(self, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Parameters for a batch of that shape, (B, C, H, W), on the CPU.

        Returns:
            The matrix from pixel of the result to pixel of the image (B, 3, 3) float64; which images are more than
            mirrored (B,); which are mirrored left to right and top to bottom (B, 2); height and width of the result.
        """
        count, channels, *size = shape
        source_B33 = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
        moved_B = torch.zeros(count, dtype=torch.bool)
        mirrored_B2 = torch.zeros(count, 2, dtype=torch.bool)
        for operation in self.operations:
            before = torch.Size((count, channels, *size))
            params = operation.forward_parameters(before)  # type: ignore[operator]
            applied_B = params["batch_prob"].reshape(-1) > 0.5
            blank = torch.empty(1, dtype=torch.float64).expand(before)
            there_B33 = operation.compute_transformation(blank, params, operation.flags)  # type: ignore[operator]
            back_B33 = torch.linalg.inv(there_B33.double())
            source_B33 = torch.where(applied_B[:, None, None], source_B33 @ back_B33, source_B33)
            if isinstance(operation, FLIPS):
                mirrored_B2[:, FLIPS.index(type(operation))] ^= applied_B
            else:
                moved_B |= applied_B
            if isinstance(operation, RandomResizedCrop):
                size = list(operation.flags["size"])
        return source_B33, moved_B, mirrored_B2, (size[0], size[1])


def _to_unit(height: int, width: int) -> Tensor:
    """From pixels to -1..1 between the centres of the outermost pixels; a side of one pixel is its own middle."""
    x, y = (2 / max(side - 1, 1) for side in (width, height))
    return torch.tensor([[x, 0, -(width > 1)], [0, y, -(height > 1)], [0, 0, 1]], dtype=torch.float64)
