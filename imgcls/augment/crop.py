"""Crops and flips of uint8 images as they come, before any arithmetic.

Shapes: B batch, C channels, H×W pixels, S side of the result.
"""

import math
from typing import Literal

import numpy as np
import torch
from kornia.augmentation.random_generator import ResizedCropGenerator
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from imgcls.augment.base import LoadingCrop, Parameters, Sampled

LARGE = 1 << 14  # values of an image
TRIES = 10


class RandomCrop(Sampled):
    """Pads every side by a share of the image and crops back to the model's size at a random place.

    With 32 pixels and a padding of 0.125 this is the usual "pad 4, crop 32" of CIFAR-10.

    Args:
        padding: Share of the side that is added at each edge.
        mode: What the padding holds: `constant` is black, `reflect` mirrors the image at its border.
    """

    on_uint8 = True

    def __init__(self, padding: float = 0.125, mode: Literal["constant", "reflect"] = "constant") -> None:
        super().__init__()
        self.padding, self.mode = padding, mode

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        room = [side + 2 * self.pad - self.size for side in shape[-2:]]
        top, left = (torch.randint(r + 1, (shape[0],)) for r in room)
        return {"top": top, "left": left}, torch.Size((*shape[:2], self.size, self.size))

    @property
    def pad(self) -> int:
        """Pixels that are added at each edge."""
        return round(self.padding * self.size)

    def transform(self, image: Tensor, label: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) to (B, C, size, size); on a CPU one by one is ten times as fast as a gather of pixels."""
        padded = tv.pad(image, [self.pad] * 4, padding_mode=self.mode)
        result = torch.empty_like(padded[:, :, : self.size, : self.size])
        boxes, source = result.numpy(), padded.numpy()
        corners = zip(parameters["top"].tolist(), parameters["left"].tolist(), strict=True)
        for number, (row, column) in enumerate(corners):
            boxes[number] = source[number, :, row : row + self.size, column : column + self.size]
        return result, label

    def plan(self, parameters: Parameters, shape: torch.Size) -> Parameters:
        """Number of the pixel that each row and column comes from, and whether it is one of the image's."""
        plan: Parameters = {"image": torch.arange(shape[0])[:, None, None, None]}
        plan["channel"] = torch.arange(shape[1])[:, None, None]
        for name, corner, side in (("row", "top", shape[2]), ("column", "left", shape[3])):
            place_BS = parameters[corner][:, None] + torch.arange(self.size) - self.pad
            mirrored_BS = (side - 1) - ((side - 1) - place_BS.abs()).abs()
            plan[name] = mirrored_BS if self.mode == "reflect" else place_BS.clamp(0, side - 1)
            plan[f"{name}_inside"] = place_BS == plan[name]
        return plan

    def mirrored(self, plan: Parameters, mirrored_B: Tensor) -> bool:  # noqa: D102, N803
        for name in ("column", "column_inside"):
            plan[name] = torch.where(mirrored_B[:, None], plan[name].flip(1), plan[name])
        return True

    def transform_on_device(self, image: Tensor, label: Tensor, plan: Parameters) -> tuple[Tensor, Tensor]:  # noqa: D102
        row, column = plan["row"][:, None, :, None], plan["column"][:, None, None]
        result = image[plan["image"], plan["channel"], row, column]
        if self.pad and self.mode == "constant":
            result *= plan["row_inside"][:, None, :, None] & plan["column_inside"][:, None, None]
        return result, label


class RandomHorizontalFlip(Sampled):
    """Mirrors each image left to right with probability `p`."""

    on_uint8 = True
    only_mirrors = True

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:  # noqa: D102
        return {"mirrored": torch.rand(shape[0]) < self.p}, shape

    def transform(self, image: Tensor, label: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) of any dtype; the same shape and dtype."""
        place, result = parameters["mirrored"].nonzero()[:, 0], image.clone()
        if image[:1].numel() < LARGE:
            return result.index_copy_(0, place, image.index_select(0, place).flip(-1)), label
        for number in place.tolist():  # one by one they stay in the cache
            result[number] = image[number].flip(-1)
        return result, label

    def transform_on_device(self, image: Tensor, label: Tensor, plan: Parameters) -> tuple[Tensor, Tensor]:  # noqa: D102
        return torch.where(plan["mirrored"][:, None, None, None], image.flip(-1), image), label


class RandomResizedCrop(LoadingCrop):
    """A random area of each image, resized with antialiasing to the model's size (Szegedy et al., CVPR 2015, 6).

    As the first operation of a pipeline it is done by the data module while images are decoded, from the whole image,
    or from the one that `--data.cache` keeps of it, as large as that option says.
    In a batch, boxes are sampled by Kornia's generator, and the resize is that of torchvision (bilinear, antialiased),
    on uint8 while the batch is uint8.

    Args:
        scale: Range of the area that is kept, as a share of the image.
        ratio: Range of width / height of that area.
    """

    on_uint8 = True

    def __init__(self, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> None:
        super().__init__()
        self.scale, self.ratio = scale, ratio

    def box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """As torchvision samples it: area and logarithm of the ratio uniformly, ten times; then the central area."""
        narrowest, widest = self.ratio
        for _ in range(TRIES):
            area = width * height * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(narrowest), math.log(widest)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
                return left, top, left + w, top + h
        w, h = min(width, round(height * widest)), min(height, round(width / narrowest))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

    def configure(self, size: int, num_classes: int) -> None:  # noqa: D102
        super().configure(size, num_classes)
        self.generator = ResizedCropGenerator((size, size), torch.tensor(self.scale), torch.tensor(self.ratio))

    def sample(self, shape: torch.Size) -> tuple[Parameters, torch.Size]:
        """The box of each image (B, 4): left, top, right and bottom; the last two are the first outside."""
        corner_B42 = self.generator(shape)["src"].long()
        box_B4 = torch.cat([corner_B42[:, 0], corner_B42[:, 2] + 1], 1)
        return {"box": box_B4}, torch.Size((*shape[:2], self.size, self.size))

    def transform(self, image: Tensor, label: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) uint8, or float32 in [0, 1], to (B, C, size, size) of the same dtype.

        One by one, which is twenty times as fast on a CPU as products of matrices.
        """
        # the order of memory that the kernel for each dtype is fast in
        order = torch.channels_last if image.dtype == torch.uint8 else torch.contiguous_format
        image, size = image.contiguous(memory_format=order), (self.size, self.size)
        result = torch.empty((*image.shape[:2], *size), dtype=image.dtype, memory_format=order)
        for number, (left, top, right, bottom) in enumerate(parameters["box"].tolist()):
            view = image[number : number + 1, :, top:bottom, left:right]
            result[number] = F.interpolate(view, size=size, mode="bilinear", antialias=True, align_corners=False)[0]
        return result, label

    def plan(self, parameters: Parameters, shape: torch.Size) -> Parameters:
        """Centres of the result's columns and rows, and those of the image's pixels, in units of the filter's reach."""
        first_B2, past_B2 = parameters["box"].split(2, 1)
        pixel_L = torch.arange(max(shape[-2:]))
        outside_B2L = (pixel_L < first_B2[:, :, None]) | (pixel_L >= past_B2[:, :, None])
        scale_B21 = (past_B2 - first_B2)[:, :, None] / self.size
        reach_B21 = scale_B21.clamp(min=1)
        centre_B2S = first_B2[:, :, None] + scale_B21 * (torch.arange(self.size) + 0.5)
        pixel_B2L = ((pixel_L + 0.5) / reach_B21).masked_fill(outside_B2L, torch.inf)
        return {"centre": (centre_B2S / reach_B21)[..., None], "pixel": pixel_B2L[:, :, None]}

    def mirrored(self, plan: Parameters, mirrored_B: Tensor) -> bool:  # noqa: D102, N803
        column_BS1 = plan["centre"][:, 0]
        plan["centre"][:, 0] = torch.where(mirrored_B[:, None, None], column_BS1.flip(1), column_BS1)
        return True

    def transform_on_device(self, image: Tensor, label: Tensor, plan: Parameters) -> tuple[Tensor, Tensor]:
        """The same resize as products with the weights of each image's columns and rows (B, S, W), (B, S, H)."""
        count, channels, height, width = image.shape
        weight_B2SL = (1 - (plan["pixel"] - plan["centre"]).abs_()).clamp_(min=0)
        column_BSL, row_BSL = weight_B2SL.div_(weight_B2SL.sum(-1, keepdim=True)).unbind(1)
        # a half, as the last step cuts to whole numbers
        whole = image.dtype == torch.uint8
        pixel = torch.add(image, 0.5 * whole, out=torch.empty(image.shape, device=image.device))
        wide_BSM = torch.bmm(column_BSL[:, :, :width], pixel.view(count, channels * height, width).mT)
        done_BMS = torch.bmm(wide_BSM.view(count, -1, height), row_BSL[:, :, :height].mT)
        result = done_BMS.view(count, self.size, channels, self.size).permute(0, 2, 3, 1)
        return result.to(image.dtype, memory_format=torch.contiguous_format), label
