"""Operations of policies on uint8 images, each image with one of its own, as Pillow carries them out.

Images with operations of one kind stand together while they are carried out: what maps values to values is one look-up
for all, what blends an image with another is one interpolation for each kind, and all geometry is one warp.

Shapes: B batch, C channels, H×W pixels, b images of one kind.
"""

from collections.abc import Callable, Mapping
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from imgcls.augment.base import Parameters
from imgcls.augment.color import luma
from imgcls.augment.warp import affine_source, grid_lines, interpolate, middle

RAMP_256 = torch.arange(256.0)
# values after an operation (b, 256) by values before it (256,) and the operation's own value (b, 1)
TABLES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": lambda ramp, factor: (ramp * factor).clamp(0, 255).floor(),
    "invert": lambda ramp, unused: (255 - ramp).expand(len(unused), 256),
    "posterize": lambda ramp, bits: (ramp / 2 ** (8 - bits)).floor() * 2 ** (8 - bits),
    "solarize": lambda ramp, threshold: torch.where(ramp < 255 * threshold, ramp, 255 - ramp),
    "solarize_add": lambda ramp, added: torch.where(ramp < 128, (ramp + 255 * added).round().clamp(max=255), ramp),
}
GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
KINDS = ("identity", "table", "autocontrast", "equalize", "contrast", "color", "sharpness", "blur", "geometry")
BLENDS = ("brightness", "contrast", "color", "sharpness")  # 1 leaves an image alone
# Pillow's smooth image has weights of 1/13, and 5/13 in the middle: that share of a mean of nine, the rest of itself
SMOOTH = 9 / 13
NO_NUMBER = 1e9  # above all entries of a table but infinite ones


def kind(name: str, shape: torch.Size) -> int:
    """Number in KINDS of an operation on images (B, C, H, W) of that shape."""
    if (name == "color" and shape[1] == 1) or (name == "sharpness" and min(shape[-2:]) < 3):
        return 0
    return KINDS.index("table" if name in TABLES else "geometry" if name in GEOMETRIC else name)


def plan(choice_B: Tensor, value_B: Tensor, names: tuple[str, ...], shape: torch.Size) -> Parameters:
    """What `carry_out` needs, all on the CPU.

    Args:
        choice_B: Number of each image's operation in `names`, (B,) int64; -1 leaves it alone.
        value_B: Its value (B,): shears as tangents, translations as shares of the side, rotations in degrees
            counter-clockwise, bits, thresholds and what is added in 0..1, the factor of a blend, or the standard
            deviation of a blur in pixels.
        names: Operations: those of TABLES, GEOMETRIC and KINDS.
        shape: Of the images, (B, C, H, W).
    """
    channels, height, width = shape[1:]
    kind_B = torch.tensor([*(kind(name, shape) for name in names), 0])[choice_B]
    order = kind_B.argsort(stable=True)
    counts = kind_B.bincount(minlength=len(KINDS)).tolist()
    _, table, _, equalized, *others, moved = counts
    choice, value = (part.split(counts) for part in (choice_B[order], value_B[order].float()))
    table_b1256 = torch.empty(table, 1, 256)
    for name, entries in TABLES.items():
        if name in names and len(here := (choice[1] == names.index(name)).nonzero()[:, 0]):
            table_b1256[here, 0] = entries(RAMP_256, value[1][here, None])
    geometry_b5 = torch.zeros(sum(others) + moved, len(GEOMETRIC), dtype=torch.float64)
    for number, name in enumerate(GEOMETRIC):
        if name in names:
            geometry_b5[sum(others) :, number] = value[-1] * (choice[-1] == names.index(name))
    tangent_b2, share_b2, degrees_b1 = geometry_b5.split([2, 2, 1], 1)
    shift_b2, one_12 = share_b2 * torch.tensor([width, height]), torch.ones(1, 2)
    # Pillow shears about the corner and rotates about the middle
    fixed_b2 = torch.where(tangent_b2.any(1, keepdim=True), torch.tensor(-0.5), middle((height, width)))
    source_b23 = affine_source(fixed_b2, degrees_b1[:, 0], tangent_b2, shift_b2, one_12)
    column_bW2, row_bH2 = grid_lines(source_b23, (height, width), (height, width))  # noqa: N806
    return {
        "counts": counts,
        "order": order,
        "table": table_b1256,
        "ramp": torch.stack([RAMP_256, 255 * RAMP_256]),
        "row": 256 * torch.arange(sum(counts[1:4]) * channels, dtype=torch.int32).view(-1, channels, 1),
        "bin": (257 * torch.arange(equalized * channels) + 1).view(-1, channels, 1),
        "one": torch.ones(1, dtype=torch.int32),
        "luma": luma(channels)[None, None],
        "share": [of * (1 - part[:, None, None, None]) for of, part in zip((1, 1, SMOOTH), value[4:7], strict=True)],
        "sigma": 2 * value[7][:, None, None] ** 2,
        "place": torch.arange(max(height, width)),
        "source": source_b23,
        "lines": [column_bW2, row_bH2],
    }


def carry_out(image: Tensor, plan: Parameters) -> Tensor:
    """Give each image its operation, on any device.

    Args:
        image: (A, C, H, W) uint8.
        plan: As `plan` made it, on that device.

    Returns:
        Image `plan["order"][b]` of those as number b, after its operation, (B, C, H, W) uint8.
    """
    counts, result = plan["counts"], image.index_select(0, plan["order"]).contiguous()
    ends = list(accumulate(counts))
    if ends[3] > ends[0]:
        looked_up = result[ends[0] : ends[3]]
        look_up_(looked_up, tables(looked_up.split(counts[1:4]), plan), plan["row"])
    if ends[8] > ends[3]:
        number = torch.add(result[ends[3] :], 0.5)  # a half, as the last step cuts to whole numbers
        blended, moved = number.split([ends[7] - ends[3], counts[8]])
        blend_(blended, counts[4:8], plan)
        blended.clamp_(0, 255.5)
        column, row = plan["lines"]
        if image.device.type == "cpu":
            result[ends[3] : ends[7]] = blended
            result[ends[7] :] = interpolate(moved, column[len(blended) :], row[len(blended) :])
        else:  # blended images are sampled where they are: one step for all
            result[ends[3] :] = interpolate(number, column, row)
    return result


def tables(parts: tuple[Tensor, ...], plan: Parameters) -> Tensor:
    """Values after an operation (b, C, 256) uint8 of images of uint8: with a table already, to stretch, to equalise."""
    (ramp, ramp255), (given, stretched, equalized) = plan["ramp"], parts
    channels = given.shape[1]
    found = [plan["table"].expand(-1, channels, -1)]
    if len(stretched):
        low, high = stretched.flatten(2).aminmax(dim=-1, keepdim=True)
        found.append(torch.sub(ramp255, low, alpha=255).div_(high - low))
    if len(equalized):
        # how many pixels of a channel are below each value; 257 bins, of which the first stays empty
        bins = torch.zeros(len(equalized) * channels * 257, dtype=torch.int32, device=given.device)
        place = torch.add(equalized.flatten(2), plan["bin"]).flatten()
        below = bins.scatter_add_(0, place, plan["one"].expand(len(place))).view(-1, channels, 257).cumsum(-1)
        # all pixels but those of the largest value, in 255 steps
        step = (below % equalized[0, 0].numel()).amax(-1, keepdim=True) // 255
        found.append((below[..., :256] / step).add_(0.5))
    table = torch.cat(found)
    if len(found) > 1:
        # channels of one value, and for equalize those that have almost but one, stay as they are
        table = torch.where(table < NO_NUMBER, table, ramp)
    return table.clamp_(0, 255).byte()


def look_up_(image: Tensor, table: Tensor, row: Tensor) -> None:
    """Replace values of images (b, C, H, W) uint8 by entries of their tables (b, C, 256), which start at `row`."""
    if image.device.type == "cpu":
        for values, entries in zip(image.flatten(0, 1).numpy(), table.flatten(0, 1).numpy(), strict=True):
            np.take(entries, values, out=values, mode="clip")  # a fifth of the time of index_select
    else:
        place = torch.add(image.flatten(2), row).flatten()
        torch.index_select(table.flatten(), 0, place, out=image.view(-1))


def blend_(image: Tensor, counts: list[int], plan: Parameters) -> None:
    """Move float images (b, C, H, W) towards, or away from, their mean, their gray and their smooth image; blur others.

    In place; so many of the first kind come first, and so on. Blurs are Gaussian, by products with matrices; pixels
    beyond the border have no weight.
    """
    contrast, color, sharp, blurred = image.split(counts)
    if len(contrast) + len(color):
        colored = image[: len(contrast) + len(color)].flatten(2)
        gray_b1N = torch.bmm(plan["luma"].expand(len(colored), -1, -1), colored)  # noqa: N806
        contrast.lerp_(gray_b1N[: len(contrast)].mean(2)[..., None, None], plan["share"][0])
        color.lerp_(gray_b1N[len(contrast) :].unflatten(2, color.shape[2:]), plan["share"][1])
    if len(sharp):
        sharp[:, :, 1:-1, 1:-1].lerp_(mean_of_nine(sharp), plan["share"][2])  # Pillow leaves the border
    if len(blurred):
        blurred.copy_(blur(blurred, plan["place"], plan["sigma"]))


def blur(image: Tensor, place: Tensor, sigma: Tensor) -> Tensor:
    """Blurred float images (b, C, H, W), by places of their rows and columns and twice the variances (b, 1, 1)."""
    weight = ((place[:, None] - place).square() / -sigma).exp_()
    rows, columns = (F.normalize(weight[:, :side, :side], p=1.0, dim=2) for side in image.shape[-2:])
    return rows[:, None] @ image @ columns[:, None].mT


def mean_of_nine(image: Tensor) -> Tensor:
    """Mean of each pixel of (B, C, H, W) float32 and its neighbours, (B, C, H-2, W-2)."""
    if image.device.type != "cpu":
        return F.avg_pool2d(image, 3, 1)
    rows = image[:, :, :-2] + image[:, :, 1:-1] + image[:, :, 2:]  # a tenth of the time of the pooling
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]).div_(9)
