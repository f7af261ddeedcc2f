"""Boxes of whole images, resized to a square: random crops, drawn by an image's size and cut while it is decoded."""

import math
from collections.abc import Callable
from contextlib import suppress

from PIL import Image, ImageOps
from torch import Tensor

from imgcls.images.decode import (
    ResizeCrop,
    as_tensor,
    decode_bytes,
    opened,
    read_jpeg,
    resampling,
    resized,
    to_channels,
    upright_size,
)
from imgcls.images.depth import eight_bits

Box = tuple[int, int, int, int]  # left, top, right and bottom; the last two are the first outside
Size = tuple[int, int]  # width and height
BoxOf = Callable[[int, int], Box]  # draws a box of an image of that width and height


def whole(width: int, height: int) -> Box:
    """All of an image of that size."""
    return 0, 0, width, height


def frame_bytes(content: bytes, resize_crop: ResizeCrop, box_of: BoxOf | None) -> Tensor:
    """A box of what an image file holds, or without one the central square."""
    return decode_bytes(content, resize_crop) if box_of is None else crop_bytes(content, resize_crop, box_of)


def crop_bytes(content: bytes, resize_crop: ResizeCrop, box_of: BoxOf) -> Tensor:
    """A box of what an image file holds, drawn by its upright size, resized to the square (C, crop, crop) uint8.

    A JPEG is decoded at a half, a quarter or an eighth of its size where that is not below what is needed.
    """
    with opened(content) as image:
        return crop(image, resize_crop, box_of, content)


def crop(image: Image.Image, resize_crop: ResizeCrop, box_of: BoxOf, content: bytes | None = None) -> Tensor:
    """The same of a PIL image, best not read yet; `content` is its file, where there is one."""
    size, side, bound = upright_size(image), resize_crop.crop, resize_crop.bound
    box = box_of(*size)
    if not bound:
        return _decoded(image, box, (side, side), resize_crop, content)
    kept = bounded(size, bound)
    return crop_resize(_decoded(image, whole(*size), kept, resize_crop, content), resize_crop, scaled(box, size, kept))


def _decoded(image: Image.Image, box: Box, to: Size, resize_crop: ResizeCrop, content: bytes | None) -> Tensor:
    (width, height), across, down = upright_size(image), box[2] - box[0], box[3] - box[1]
    if content is not None and image.format == "JPEG" and image.mode in ("L", "RGB"):
        if across < 2 * to[0] or down < 2 * to[1]:
            with suppress(RuntimeError):  # what it does not read, Pillow may
                return crop_resize(read_jpeg(content, resize_crop.channels), resize_crop, box, to)
        needed = math.ceil(width * to[0] / across), math.ceil(height * to[1] / down)
        image.draft(None, needed if (width, height) == image.size else needed[::-1])  # type: ignore[attr-defined]
    image = to_channels(ImageOps.exif_transpose(eight_bits(image, resize_crop.value_range)), resize_crop.channels)
    if image.size == (width, height):
        return crop_resize(as_tensor(image.crop(box)), resize_crop, whole(across, down), to)
    x, y = image.width / width, image.height / height
    return as_tensor(image.resize(to, resampling(resize_crop), box=(box[0] * x, box[1] * y, box[2] * x, box[3] * y)))


def crop_resize(image: Tensor, resize_crop: ResizeCrop, box: Box, to: Size | None = None) -> Tensor:
    """A box of an image (C, H, W) uint8 that is already decoded, resized to the square, or to another width and height.

    With a crop of 0 it keeps its size.
    """
    left, top, right, bottom = box
    to = to or (resize_crop.crop or right - left, resize_crop.crop or bottom - top)
    return resized(image[:, top:bottom, left:right], to, resize_crop)


def bounded(size: Size, bound: int) -> Size:
    """Width and height of an image of that size, of which sides above a bound are shrunk to it."""
    return min(size[0], bound), min(size[1], bound)


def scaled(box: Box, size: Size, kept: Size) -> Box:
    """A box of an image of that size where it was resized to `kept`, in whole pixels, at least one."""
    (left, right), (top, bottom) = (_span(box[k], box[k + 2], size[k], kept[k]) for k in (0, 1))
    return left, top, right, bottom


def _span(first: int, past: int, side: int, kept: int) -> tuple[int, int]:
    first = min(round(first * kept / side), kept - 1)
    return first, max(first + 1, round(past * kept / side))
