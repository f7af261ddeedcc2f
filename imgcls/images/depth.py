"""Images deeper than 8 bits: their values as they are stored, and one linear scale that brings a data set's to 8."""

import io
from functools import lru_cache

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile
from PIL.TiffImagePlugin import BITSPERSAMPLE, SAMPLEFORMAT, TiffImageFile
from torchvision.io import decode_png

ValueRange = tuple[float, float] | tuple[tuple[float, float], ...]
"""Low and high, of all channels or of each."""


def eight_bits(image: Image.Image, value_range: ValueRange | None) -> Image.Image:
    """An image of 8 bits a channel: the same if it has no more, else its values from low to high as 0 to 255.

    The scale is linear, clipped and rounded; what is no number becomes 0. AVIF and HEIC of 10 or 12 bits are photos for
    a screen: their decoders give 8 bits.

    Args:
        image: Best as `Image.open` gives it: once it is read, Pillow has dropped half of 16-bit colours.
        value_range: Low and high.

    Raises:
        ValueError: It is deeper, and no range is given, or it cannot be read in its depth.
    """
    found = deep_values(image)
    if found is None:
        return image
    if value_range is None:
        raise ValueError("it is deeper than 8 bits: --data.value_range=[low, high] says which values become 0 and 255")
    values, opacity = found
    pixels = _table(value_range)[values] if values.dtype == np.uint16 else _scaled(values, value_range)
    scaled = Image.fromarray(pixels)
    if opacity is not None:
        scaled.putalpha(Image.fromarray(opacity))
    orientation = ExifTags.Base.Orientation
    scaled.getexif()[orientation] = image.getexif().get(orientation, 1)
    return scaled


def deep_values(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Values (H, W) or (H, W, 3) as they are stored, and opacity (H, W) uint8 or None; None for an image of 8 bits.

    Raises:
        ValueError: It is deeper, and cannot be read in its depth.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        unsigned = isinstance(image, TiffImageFile) and image.tag_v2.get(SAMPLEFORMAT, (1,)) == (1,)
        return (values.view(np.uint32) if unsigned and image.mode == "I" else values), None  # Pillow takes it as signed
    if not isinstance(image, ImageFile.ImageFile) or not _narrowed(image):
        return None
    if image.mode not in ("RGB", "RGBA"):
        raise ValueError(f"it is {image.mode} of more than 8 bits a channel; convert it to RGB")
    values = _channels(image)
    if image.mode == "RGB":
        return values[..., :3], None
    colors = values[..., 0] if values.shape[2] == 2 else values[..., :3]
    return colors, (values[..., -1] // 257).astype(np.uint8)


def _narrowed(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow, which knows no deep colours, would keep the upper 8 bits of each channel in silence."""
    if not image.tile:  # it has been read
        return False
    if isinstance(image, TiffImageFile):
        return max(image.tag_v2.get(BITSPERSAMPLE, (1,))) > 8
    if image.format == "JPEG2000":
        content = _content(image)
        return content[content.find(b"\xff\x4f\xff\x51") + 42] & 0x7F >= 8  # bits of the first component, less 1
    arguments = image.tile[0].args  # of the decoder: a raw mode such as RGB;16B, or of a PPM its largest value too
    return ";16" in str(arguments) or image.format == "PPM" and isinstance(arguments, tuple) and arguments[-1] > 255


def _channels(image: ImageFile.ImageFile) -> np.ndarray:
    """Values (H, W, C) of a file of deep colours."""
    if image.format == "PNG":
        encoded = torch.frombuffer(bytearray(_content(image)), dtype=torch.uint8)
        return decode_png(encoded).permute(1, 2, 0).numpy()
    if image.format != "TIFF":
        raise ValueError(f"it is {image.format} of more than 8 bits a channel; convert it to PNG or TIFF")
    try:
        from tifffile import TiffFile
    except ImportError as error:
        raise ValueError("it is TIFF of more than 8 bits a channel: pip install 'imgcls[tiff]' reads it") from error
    with TiffFile(io.BytesIO(_content(image))) as file:
        page = file.pages.first
        return np.moveaxis(page.asarray(), page.axes.index("S"), -1)


def _content(image: ImageFile.ImageFile) -> bytes:
    """The bytes of a file that is open; Pillow goes on where it was."""
    assert image.fp is not None
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    return content


def _scaled(values: np.ndarray, value_range: ValueRange) -> np.ndarray:
    low, high = np.asarray(value_range).T
    return np.nan_to_num((values.astype(np.float64) - low) * (255 / (high - low))).clip(0, 255).round().astype(np.uint8)


@lru_cache(maxsize=1)
def _table(value_range: ValueRange) -> np.ndarray:
    """The scale as a table of all 16-bit values, ten times as fast as the arithmetic for each pixel."""
    return _scaled(np.arange(1 << 16), value_range)
