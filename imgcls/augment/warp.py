"""Geometric operations of Kornia's as one matrix per image, and one interpolation for all of them together."""

from collections.abc import Mapping, Sequence

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

from imgcls.augment.base import ByImage, Change

FLIPS = (RandomHorizontalFlip, RandomVerticalFlip)
AFFINE = (RandomAffine, RandomRotation, RandomShear, RandomTranslate)


def warp(image: Tensor, source_B33: Tensor) -> Tensor:
    """Sample each image where its matrix says; what lies outside of it is black.

    Args:
        image: (B, C, H, W) float32.
        source_B33: From pixel (x, y, 1) of the result, of the same size, to pixel of the image, pixel centres on
            integers; float64.
    """
    size = (image.shape[-2], image.shape[-1])
    return sample(image, grid_lines(source_B33, size, size), size)


def grid_lines(source_B33: Tensor, size: tuple[int, int], out_size: tuple[int, int]) -> Tensor:
    """A matrix for `sample`, (B, 2, 3) float32: from -1..1 to -1..1, the centres of the outermost pixels.

    A side of one pixel is its own middle.

    Args:
        source_B33: From pixel of the result to pixel of the image, float64.
        size: Height and width of the image.
        out_size: Height and width of the result.
    """
    (height, width), (out_height, out_width) = size, out_size
    to_unit = torch.tensor([[2 / max(width - 1, 1), 0, -(width > 1)], [0, 2 / max(height - 1, 1), -(height > 1)]])
    half_width, half_height = (out_width - 1) / 2, (out_height - 1) / 2
    from_unit = torch.tensor([[half_width, 0, half_width], [0, half_height, half_height], [0, 0, 1]])
    linear_B33 = source_B33 @ from_unit.double()
    return (to_unit[:, :2].double() @ linear_B33[:, :2] + to_unit[:, 2:] * linear_B33[:, 2:]).float()


def sample(image: Tensor, theta_B23: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear samples (B, C, *size) of images (B, C, H, W) float32 where `grid_lines` says."""
    x, y = (torch.linspace(-1, 1, side, device=image.device)[:, None] for side in reversed(size))
    across_B2, down_B2, offset_B2 = theta_B23.to(image.device)[:, None].unbind(3)
    # (x, y) as one complex number: F.affine_grid says the same by a matrix product, thirty times as slow on a CPU
    across_BW, down_BH = (torch.view_as_complex(t) for t in (across_B2 * x, torch.addcmul(offset_B2, down_B2, y)))
    grid = torch.view_as_real(across_BW[:, None, :] + down_BH[:, :, None]).to(image.dtype)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class Warp(ByImage):
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

    def draw(self, shape: torch.Size) -> tuple[Change, torch.Size]:  # noqa: D102
        source_B33, moved_B, mirrored_B2, size = self.matrices(shape)
        all_moved = bool(moved_B.all()) or size != tuple(shape[-2:])
        theta_B23 = grid_lines(source_B33, (shape[-2], shape[-1]), size)

        def change(image: Tensor, here: slice) -> Tensor:
            if all_moved:
                return sample(image, theta_B23[here], size)
            result = image
            for axis, mirrored_B in zip((-1, -2), mirrored_B2[here].unbind(1), strict=True):
                if mirrored_B.any():
                    result = torch.where(mirrored_B.to(image.device)[:, None, None, None], result.flip(axis), result)
            moved = moved_B[here].nonzero()[:, 0]
            if len(moved):
                place = moved.to(image.device)
                result = result.index_copy(0, place, sample(image[place], theta_B23[here][moved], size))
            return result

        return change, torch.Size((*shape[:2], *size))

    def matrices(self, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Draw for a batch of that shape, (B, C, H, W); all on the CPU.

        Returns:
            The matrix from pixel of the result to pixel of the image (B, 3, 3) float64; which images are more than
            mirrored (B,); which are mirrored left to right and top to bottom (B, 2); height and width of the result.
        """
        count, channels, *size = shape
        source_B33 = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
        moved_B = torch.zeros(count, dtype=torch.bool)
        mirrored_B2 = torch.zeros(count, 2, dtype=torch.bool)
        for operation in self.operations:
            params = operation.forward_parameters(torch.Size((count, channels, *size)))  # type: ignore[operator]
            applied_B = params["batch_prob"].reshape(-1) > 0.5
            back_B33 = source_B33 @ source_matrix(operation, params, (size[0], size[1]))
            source_B33 = torch.where(applied_B[:, None, None], back_B33, source_B33)
            if isinstance(operation, FLIPS):
                mirrored_B2[:, FLIPS.index(type(operation))] ^= applied_B
            else:
                moved_B |= applied_B
            if isinstance(operation, RandomResizedCrop):
                size = list(operation.flags["size"])
        return source_B33, moved_B, mirrored_B2, (size[0], size[1])


def source_matrix(operation: nn.Module, params: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
    """From pixel of the result to pixel of the image, (B, 3, 3) or (3, 3) float64.

    The inverse of Kornia's `compute_transformation`, in closed form: that and inverting it would take as long as the
    interpolation of small images.

    Args:
        operation: One that `Warp.takes`.
        params: What its generator drew.
        size: Height and width of the image.
    """
    height, width = size
    if isinstance(operation, FLIPS):
        axis = FLIPS.index(type(operation))
        matrix = torch.eye(3, dtype=torch.float64)
        matrix[axis, axis], matrix[axis, 2] = -1, (width, height)[axis] - 1
        return matrix
    if isinstance(operation, RandomResizedCrop):
        corners = params["src"].double()
        out_height, out_width = operation.flags["size"]  # type: ignore[index]
        steps = torch.tensor([max(out_width - 1, 1), max(out_height - 1, 1)])
        scale_B2 = (corners[:, 2] - corners[:, 0]) / steps
        return affine_matrix(torch.diag_embed(scale_B2), corners[:, 0])
    none_B = torch.zeros_like(params["batch_prob"], dtype=torch.float64).reshape(-1)
    # counter-clockwise; RandomAffine counts the other way
    angle_B = (params["degrees"] if "degrees" in params else -params.get("angle", none_B)).double().deg2rad()
    scale_B2 = params.get("scale", none_B[:, None].expand(-1, 2) + 1).double()
    tan_x, tan_y = (params.get(name, none_B).double().deg2rad().tan() for name in ("shear_x", "shear_y"))
    shift_B2 = torch.stack([params.get(name, none_B) for name in ("translate_x", "translate_y")], 1)
    shift_B2 = params.get("translations", shift_B2).double()
    middle = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64).expand(len(none_B), 2)
    center_B2 = params.get("center", middle).double()
    cos, sin = angle_B.cos(), angle_B.sin()
    # the inverse of shear, scale and rotation, in this order
    unscaled_B22 = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1) / scale_B2[:, :, None]
    rows = [torch.stack([1 + tan_x * tan_y, tan_x], 1), torch.stack([tan_y, torch.ones_like(tan_y)], 1)]
    linear_B22 = torch.stack(rows, 1) @ unscaled_B22
    return affine_matrix(linear_B22, center_B2 - (linear_B22 @ (center_B2 + shift_B2)[:, :, None])[:, :, 0])


def affine_matrix(linear_B22: Tensor, offset_B2: Tensor) -> Tensor:
    """Of the map of x to `linear x + offset`, as (B, 3, 3)."""
    matrix_B33 = torch.eye(3, dtype=linear_B22.dtype).repeat(len(linear_B22), 1, 1)
    matrix_B33[:, :2, :2], matrix_B33[:, :2, 2] = linear_B22, offset_B2
    return matrix_B33
