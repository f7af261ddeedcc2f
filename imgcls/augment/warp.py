"""Geometric operations of Kornia's as one matrix per image, and one interpolation for all of them together."""

from collections.abc import Mapping, Sequence

import kornia.augmentation as K  # noqa: N812
import torch
from kornia.augmentation._2d.geometric.base import GeometricAugmentationBase2D
from kornia.constants import Resample, SamplePadding
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.augment.base import ByImage, Parameters

FLIPS = (K.RandomHorizontalFlip, K.RandomVerticalFlip)
# a mirror image as scales along x and y
MIRROR: dict[type, tuple[float, float]] = {K.RandomHorizontalFlip: (-1.0, 1.0), K.RandomVerticalFlip: (1.0, -1.0)}
AFFINE = (K.RandomAffine, K.RandomRotation, K.RandomShear, K.RandomTranslate)


def grid_lines(source_B23: Tensor, size: tuple[int, int], out_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where `interpolate` samples, from -1 to 1 between the centres of the outermost pixels, as sums of two lines.

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


def interpolate(image: Tensor, column_BW2: Tensor, row_BH2: Tensor) -> Tensor:
    """Bilinear samples (B, C, H, W) of images (B, C, any, any) float32 where `grid_lines` says; outside is black."""
    # (x, y) as one complex number: F.affine_grid says the same by a matrix product, thirty times as slow on a CPU
    column_BW, row_BH = (torch.view_as_complex(line) for line in (column_BW2, row_BH2))
    grid = torch.view_as_real(column_BW[:, None, :] + row_BH[:, :, None]).to(image.dtype)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


class Warp(ByImage):
    """Several of Kornia's geometric operations with one interpolation.

    Each samples its parameters with its own generator. Where Kornia would interpolate after each operation, and lose
    what leaves the image on the way, the composed matrix does so once; a single operation gives what Kornia gives.
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
        if isinstance(operation, K.RandomResizedCrop):
            return bool(operation.flags["align_corners"]) and operation.flags["resample"] == Resample.BILINEAR
        if not isinstance(operation, FLIPS + AFFINE):
            return False
        flags = operation.flags
        black = flags.get("padding_mode", SamplePadding.ZEROS) == SamplePadding.ZEROS
        return isinstance(operation, FLIPS) or (black and flags["resample"] == Resample.BILINEAR)

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        source_B23, moved_B, mirrored_B2, size = self.matrices(shape)
        resized = size != tuple(shape[-2:])
        parameters = {"moved": moved_B | resized, "mirrored": mirrored_B2 & ~moved_B[:, None]}
        if not self.on_uint8:
            column_BW2, row_BH2 = grid_lines(source_B23, (shape[-2], shape[-1]), size)
            parameters |= {"column": column_BW2, "row": row_BH2}
        return parameters, torch.Size((*shape[:2], *size))

    def change(self, image: Tensor, parameters: Parameters) -> Tensor:  # noqa: D102
        moved_B = parameters["moved"]
        if moved_B.all():
            return interpolate(image, parameters["column"], parameters["row"])
        for axis, mirrored_B in zip((-1, -2), parameters["mirrored"].unbind(1), strict=True):
            place = mirrored_B.nonzero()[:, 0]
            if len(place):
                image.index_copy_(0, place, image.index_select(0, place).flip(axis))
        if moved_B.any():
            place = moved_B.nonzero()[:, 0]
            lines = parameters["column"][place], parameters["row"][place]
            image.index_copy_(0, place, interpolate(image.index_select(0, place), *lines))
        return image

    def plan(self, parameters: Parameters, shape: torch.Size) -> Parameters:
        """Images that are left alone are told apart, if there are any; mirrored ones are interpolated with others."""
        if self.on_uint8:
            return parameters | {"axes": parameters["mirrored"].any(0).tolist()}
        changed_B = parameters["moved"] | parameters["mirrored"].any(1)
        return parameters | {"changed": None if changed_B.all() else changed_B[:, None, None, None]}

    def transform_on_device(self, image: Tensor, label: Tensor, plan: Parameters) -> tuple[Tensor, Tensor]:  # noqa: D102
        if not self.on_uint8:
            warped = interpolate(image, plan["column"], plan["row"])
            return warped if plan["changed"] is None else torch.where(plan["changed"], warped, image), label
        for axis, mirrored_B, some in zip((-1, -2), plan["mirrored"].unbind(1), plan["axes"], strict=True):
            if some:
                image = torch.where(mirrored_B[:, None, None, None], image.flip(axis), image)
        return image, label

    def matrices(self, shape: torch.Size) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """Sample parameters for a batch of that shape, (B, C, H, W); all on the CPU.

        Returns:
            The matrix from pixel of the result to pixel of the image (B, 2, 3) float64; which images are more than
            mirrored (B,); which are mirrored left to right and top to bottom (B, 2); height and width of the result.
            If all operations mirror, the matrix is left at the identity.
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
            if isinstance(operation, K.RandomResizedCrop):
                size = list(operation.flags["size"])
        return source_B23, moved_B, mirrored_B2, (size[0], size[1])


def source_matrix(operation: nn.Module, params: Mapping[str, Tensor], size: tuple[int, int]) -> Tensor:
    """From pixel of the result to pixel of the image, (B, 2, 3) or (2, 3) float64.

    The inverse of Kornia's `compute_transformation`, in closed form: that and inverting it would take as long as the
    interpolation of small images.

    Args:
        operation: One that `Warp.takes`.
        params: What its generator sampled.
        size: Height and width of the image.
    """
    if isinstance(operation, K.RandomResizedCrop):
        corners = params["src"].double()
        out_height, out_width = operation.flags["size"]  # type: ignore[index]
        steps = torch.tensor([max(out_width - 1, 1), max(out_height - 1, 1)])
        scale_B2 = (corners[:, 2] - corners[:, 0]) / steps
        return torch.cat([torch.diag_embed(scale_B2), corners[:, 0, :, None]], 2)
    zero_1 = torch.zeros(1)
    pairs = [[params.get(f"{name}_{axis}", zero_1) for axis in "xy"] for name in ("translate", "shear")]
    translate_B2, shear_B2 = (torch.stack(pair, 1) for pair in pairs)
    return affine_source(
        params.get("center", middle(size)),
        # counter-clockwise; RandomAffine counts the other way
        params["degrees"] if "degrees" in params else -params.get("angle", zero_1),
        shear_B2.double().deg2rad().tan(),
        params.get("translations", translate_B2),
        params.get("scale", torch.tensor([MIRROR.get(type(operation), (1.0, 1.0))])),
    )


def middle(size: tuple[int, int]) -> Tensor:
    """Middle of an image of that height and width, x and y, (1, 2) float64."""
    return torch.tensor([[(size[1] - 1) / 2, (size[0] - 1) / 2]], dtype=torch.float64)


def affine_source(
    center_B2: Tensor, degrees_B: Tensor, tangent_B2: Tensor, shift_B2: Tensor, scale_B2: Tensor
) -> Tensor:
    """From pixel of the result to pixel of the image, (B, 2, 3) float64: the inverse of an affine map.

    The map shears, scales and rotates about a centre, in this order, and then shifts. Arguments are of any float type;
    where B is 1, the value holds for all images.

    Args:
        center_B2: What shear, scale and rotation leave in place, x and y.
        degrees_B: Rotation, counter-clockwise, (B,).
        tangent_B2: Shear along x and y, as tangents.
        shift_B2: In pixels, x and y.
        scale_B2: Along x and y; negative mirrors.
    """
    center_B2, shift_B2, angle_B = center_B2.double(), shift_B2.double(), degrees_B.double().deg2rad()
    rotation_B22 = torch.stack([angle_B.cos(), -angle_B.sin(), angle_B.sin(), angle_B.cos()], 1).view(-1, 2, 2)
    tan_x_B, tan_y_B = tangent_B2.double().unbind(1)
    shear_B22 = torch.stack([1 + tan_x_B * tan_y_B, tan_x_B, tan_y_B, torch.ones_like(tan_x_B)], 1).view(-1, 2, 2)
    linear_B22 = shear_B22 @ (rotation_B22 / scale_B2.double()[:, :, None])
    offset_B2 = center_B2 - (linear_B22 * (center_B2 + shift_B2)[:, None]).sum(2)
    return torch.cat([linear_B22.expand(len(offset_B2), 2, 2), offset_B2[:, :, None]], 2)
