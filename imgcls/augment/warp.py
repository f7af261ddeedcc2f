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


def warp(image: Tensor, source_B23: Tensor) -> Tensor:
    """Sample each image where its matrix says; what lies outside of it is black.

    Args:
        image: (B, C, H, W) float32.
        source_B23: From pixel (x, y, 1) of the result, of the same size, to pixel of the image, pixel centres on
            integers; float64.
    """
    size = (image.shape[-2], image.shape[-1])
    return sample(image, *grid_lines(source_B23, size, size))


def grid_lines(source_B23: Tensor, size: tuple[int, int], out_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where `sample` samples, from -1 to 1 between the centres of the outermost pixels, as sums of two lines.

    A side of one pixel is its own middle.

    Args:
        source_B23: From pixel of the result to pixel of the image, float64.
        size: Height and width of the image.
        out_size: Height and width of the result.

    Returns:
        What each column adds, (B, W, 2) float32, and what each row adds, (B, H, 2).
    """
    unit_2 = 2 / torch.tensor([max(side - 1, 1) for side in reversed(size)], dtype=torch.float64)
    edge_2 = torch.tensor([float(side > 1) for side in reversed(size)])
    across_B12, down_B12, offset_B12 = (source_B23 * unit_2[:, None])[:, None].unbind(3)
    column_W1, row_H1 = (torch.arange(side, dtype=torch.float64)[:, None] for side in reversed(out_size))
    return (across_B12 * column_W1).float(), (down_B12 * row_H1 + (offset_B12 - edge_2)).float()


def sample(image: Tensor, column_BW2: Tensor, row_BH2: Tensor) -> Tensor:
    """Bilinear samples (B, C, H, W) of images (B, C, any, any) float32 where `grid_lines` says."""
    # (x, y) as one complex number: F.affine_grid says the same by a matrix product, thirty times as slow on a CPU
    column_BW, row_BH = (torch.view_as_complex(line.to(image.device)) for line in (column_BW2, row_BH2))
    grid = torch.view_as_real(column_BW[:, None, :] + row_BH[:, :, None]).to(image.dtype)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class Warp(ByImage):
    """Several of Kornia's geometric operations with one interpolation.

    Each samples its parameters with its own generator. Where Kornia would interpolate after each operation, and lose
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

    def sample(self, shape: torch.Size) -> tuple[Change, torch.Size]:  # noqa: D102
        source_B23, moved_B, mirrored_B2, size = self.matrices(shape)
        all_moved = bool(moved_B.all()) or size != tuple(shape[-2:])
        mirrored_B2 &= ~moved_B[:, None]
        if not self.on_uint8:
            column_BW2, row_BH2 = grid_lines(source_B23, (shape[-2], shape[-1]), size)

        def change(image: Tensor, here: slice) -> Tensor:
            if all_moved:
                return sample(image, column_BW2[here], row_BH2[here])
            for axis, mirrored_B in zip((-1, -2), mirrored_B2[here].unbind(1), strict=True):
                place = mirrored_B.nonzero()[:, 0].to(image.device)
                if len(place):
                    image.index_copy_(0, place, image.index_select(0, place).flip(axis))
            moved = moved_B[here].nonzero()[:, 0]
            if len(moved):
                place = moved.to(image.device)
                lines = (column_BW2[here][moved], row_BH2[here][moved])
                image.index_copy_(0, place, sample(image.index_select(0, place), *lines))
            return image

        return change, torch.Size((*shape[:2], *size))

    def matrices(self, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Sample parameters for a batch of that shape, (B, C, H, W); all on the CPU.

        Returns:
            The matrix from pixel of the result to pixel of the image (B, 2, 3) float64; which images are more than
            mirrored (B,); which are mirrored left to right and top to bottom (B, 2); height and width of the result.
            Of mirror operations alone the matrix is left out.
        """
        count, channels, *size = shape
        source_B23 = torch.eye(2, 3, dtype=torch.float64).expand(count, 2, 3)
        moved_B = torch.zeros(count, dtype=torch.bool)
        mirrored_B2 = torch.zeros(count, 2, dtype=torch.bool)
        for operation in self.operations:
            params = operation.forward_parameters(torch.Size((count, channels, *size)))  # type: ignore[operator]
            applied_B = params["batch_prob"].reshape(-1) > 0.5
            if not self.on_uint8:
                before_B23 = source_matrix(operation, params, (size[0], size[1])).expand(count, 2, 3)
                back_B23 = torch.bmm(source_B23[:, :, :2], before_B23)
                back_B23[:, :, 2] += source_B23[:, :, 2]
                source_B23 = torch.where(applied_B[:, None, None], back_B23, source_B23)
            if isinstance(operation, FLIPS):
                mirrored_B2[:, FLIPS.index(type(operation))] ^= applied_B
            else:
                moved_B |= applied_B
            if isinstance(operation, RandomResizedCrop):
                size = list(operation.flags["size"])
        return source_B23, moved_B, mirrored_B2, (size[0], size[1])


def source_matrix(operation: nn.Module, params: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
    """From pixel of the result to pixel of the image, (B, 2, 3) or (2, 3) float64.

    The inverse of Kornia's `compute_transformation`, in closed form: that and inverting it would take as long as the
    interpolation of small images.

    Args:
        operation: One that `Warp.takes`.
        params: What its generator drew.
        size: Height and width of the image.
    """
    height, width = size
    if isinstance(operation, RandomHorizontalFlip):
        return torch.tensor([[-1.0, 0.0, width - 1], [0.0, 1.0, 0.0]], dtype=torch.float64)
    if isinstance(operation, RandomVerticalFlip):
        return torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, height - 1]], dtype=torch.float64)
    if isinstance(operation, RandomResizedCrop):
        corners = params["src"].double()
        out_height, out_width = operation.flags["size"]  # type: ignore[index]
        steps = torch.tensor([max(out_width - 1, 1), max(out_height - 1, 1)])
        scale_B2 = (corners[:, 2] - corners[:, 0]) / steps
        return torch.cat([torch.diag_embed(scale_B2), corners[:, 0, :, None]], 2)
    middle_2 = torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64)
    center_B2, shift_B2 = params.get("center", middle_2).double(), params.get("translations", torch.zeros(2)).double()
    if "translate_x" in params:
        shift_B2 = torch.stack([params["translate_x"], params["translate_y"]], 1).double()
    linear_B22 = torch.eye(2, dtype=torch.float64)[None]
    # the inverse of shear, scale and rotation, in this order
    if "degrees" in params or "angle" in params:
        # counter-clockwise; RandomAffine counts the other way
        angle_B = (params["degrees"] if "degrees" in params else -params["angle"]).double().deg2rad()
        cos, sin = angle_B.cos(), angle_B.sin()
        linear_B22 = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    if "scale" in params:
        linear_B22 = linear_B22 / params["scale"].double()[:, :, None]
    if "shear_x" in params:
        tan_x, tan_y = (params[name].double().deg2rad().tan() for name in ("shear_x", "shear_y"))
        shear_B22 = torch.stack([1 + tan_x * tan_y, tan_x, tan_y, torch.ones_like(tan_y)], 1).view(-1, 2, 2)
        linear_B22 = shear_B22 @ linear_B22
    return about(linear_B22, center_B2, shift_B2)


def about(linear_B22: Tensor, center_B2: Tensor, shift_B2: Tensor) -> Tensor:
    """From pixel of the result to pixel of the image (B, 2, 3): back by the shift, then the linear map about a centre.

    Args:
        linear_B22: From result to image, (B, 2, 2) or (1, 2, 2) float64.
        center_B2: The point that the linear map leaves, x and y, (B, 2) or (2,) float64.
        shift_B2: By which the result was moved, likewise.
    """
    offset_B2 = center_B2 - (linear_B22 * (center_B2 + shift_B2).view(-1, 1, 2)).sum(2)
    return torch.cat([linear_B22.expand(len(offset_B2), 2, 2), offset_B2[:, :, None]], 2)
