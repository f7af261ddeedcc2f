"""Crops and flips by indexing: no interpolation, so they run on uint8 and cost one copy."""

from typing import Literal

import torch
from kornia.augmentation.random_generator import ResizedCropGenerator
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from imgcls.augment.base import Augmentation

LARGE = 1 << 14  # values of an image


class RandomCrop(Augmentation):
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

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) to (B, C, size, size), of the same dtype."""
        pad = round(self.padding * self.size)
        room = [side + 2 * pad - self.size for side in image.shape[-2:]]
        top, left = (torch.randint(r + 1, (len(image),)).to(image.device) for r in room)
        return self.crop(image, pad, top, left), label

    def crop(self, image: Tensor, pad: int, top: Tensor, left: Tensor) -> Tensor:
        """Crop image b of (B, C, H, W) at row `top[b]`, column `left[b]` (B,) of the padded image."""
        image = tv.pad(image, [pad] * 4, padding_mode=self.mode)
        return (copied_boxes if image.device.type == "cpu" else gathered_boxes)(image, self.size, top, left)


class RandomHorizontalFlip(Augmentation):
    """Mirrors each image left to right with probability `p`."""

    on_uint8 = True

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) of any dtype; the same shape and dtype."""
        chosen = (torch.rand(len(image)) < self.p).nonzero()[:, 0]
        result = image.clone()
        if image.device.type == "cpu" and image[:1].numel() >= LARGE:
            for number in chosen.tolist():  # one by one they stay in the cache
                result[number] = image[number].flip(-1)
        else:
            place = chosen.to(image.device)
            result.index_copy_(0, place, image.index_select(0, place).flip(-1))
        return result, label


class RandomResizedCrop(Augmentation):
    """A random area of each image, resized with antialiasing to the model's size.

    The box is sampled as Kornia's RandomResizedCrop does, by its own generator. The resize is that of torchvision
    (bilinear, antialiased), on uint8 while the batch is uint8, as no arithmetic has been done yet.

    Args:
        scale: Range of the area that is kept, as a share of the image.
        ratio: Range of width / height of that area.
    """

    on_uint8 = True

    def __init__(self, scale: tuple[float, float] = (0.08, 1.0), ratio: tuple[float, float] = (3 / 4, 4 / 3)) -> None:
        super().__init__()
        self.scale, self.ratio = scale, ratio

    def configure(self, size: int, num_classes: int) -> None:  # noqa: D102
        super().configure(size, num_classes)
        self.generator = ResizedCropGenerator((size, size), torch.tensor(self.scale), torch.tensor(self.ratio))

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, H, W) uint8, or float32 in [0, 1], to (B, C, size, size) of the same dtype."""
        corner_B42 = self.generator(image.shape)["src"]
        return self.crop(image, torch.cat([corner_B42[:, 0], corner_B42[:, 2]], 1).long()), label

    def crop(self, image: Tensor, box_B4: Tensor) -> Tensor:
        """Columns left to right and rows top to bottom, both inclusive: `box_B4` holds left, top, right, bottom."""
        if image.device.type != "cpu" and image.dtype == torch.uint8:
            # there is no kernel for uint8 on a GPU
            return self.crop(image.float(), box_B4).round_().clamp_(0, 255).byte()
        # the order of memory that the kernel for each dtype is fast in
        order = torch.channels_last if image.dtype == torch.uint8 else torch.contiguous_format
        image, size = image.contiguous(memory_format=order), (self.size, self.size)
        result = torch.empty((*image.shape[:2], *size), dtype=image.dtype, device=image.device, memory_format=order)
        for number, (left, top, right, bottom) in enumerate(box_B4.tolist()):
            view = image[number : number + 1, :, top : bottom + 1, left : right + 1]
            result[number] = F.interpolate(view, size=size, mode="bilinear", antialias=True, align_corners=False)[0]
        return result


def copied_boxes(image: Tensor, size: int, top: Tensor, left: Tensor) -> Tensor:
    """Squares of side `size` of images (B, C, H, W) on the CPU, one by one: ten times as fast there as a gather."""
    result = torch.empty_like(image[:, :, :size, :size])
    boxes, source = result.numpy(), image.numpy()
    for number, (row, column) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        boxes[number] = source[number, :, row : row + size, column : column + size]
    return result


def gathered_boxes(image: Tensor, size: int, top: Tensor, left: Tensor) -> Tensor:
    """The same by one gather of pixels, on any device."""
    step = torch.arange(size, device=image.device)
    batch = torch.arange(len(image), device=image.device)[:, None, None, None]
    channel = torch.arange(image.shape[1], device=image.device)[None, :, None, None]
    return image[batch, channel, (top[:, None] + step)[:, None, :, None], (left[:, None] + step)[:, None, None]]
