"""The one place that opens an image: a file or a PIL image in, a uint8 tensor (C, H, W) out."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as tv

from imgcls.errors import UserError

Interpolation = Literal["bilinear", "bicubic"]
EXTENSIONS = frozenset(".bmp .gif .jpeg .jpg .jp2 .pbm .pgm .png .ppm .tif .tiff .webp .avif .jfif".split())


@dataclass(frozen=True)
class Frame:
    """How every image of a batch comes to one shape: (channels, crop, crop), in pixels.

    The shorter side is resized to `resize`, then the central square of side `crop` is kept. Upsampling and
    downsampling are antialiased. An image that has the final size already is left alone.
    """

    channels: int
    resize: int
    crop: int
    interpolation: Interpolation = "bilinear"


def decode_file(path: Path, frame: Frame) -> Tensor:
    """Read an image file as a uint8 tensor (C, H, W), upright by its EXIF tag, framed.

    Raises:
        UserError: The file cannot be read as an image; the text names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about odd metadata of images that it reads well
            with Image.open(path) as image:
                if image.format == "JPEG" and image.mode in ("L", "RGB") and min(image.size) < 2 * frame.resize:
                    return _decode_jpeg(path, frame)
                if image.format == "JPEG":
                    # lets libjpeg scale by 1/2, 1/4 or 1/8 while it decodes, never below what is needed
                    image.draft(None, (frame.resize, frame.resize))
                return decode(ImageOps.exif_transpose(image), frame)
    except (OSError, ValueError, SyntaxError, EOFError, RuntimeError, Image.DecompressionBombError) as error:
        reason = "it is empty" if path.is_file() and path.stat().st_size == 0 else error
        raise UserError(f"{path}: cannot be read as an image ({reason}); repair or remove the file") from error


def _decode_jpeg(path: Path, frame: Frame) -> Tensor:
    """A JPEG too small to be scaled while it is decoded: torchvision's decoder and resize are twice as fast."""
    mode = ImageReadMode.GRAY if frame.channels == 1 else ImageReadMode.RGB
    content = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
    return frame_batch(decode_jpeg(content, mode, apply_exif_orientation=True)[None], frame)[0]


def decode(image: Image.Image, frame: Frame) -> Tensor:
    """Convert a PIL image of any mode to a uint8 tensor (C, H, W), framed. Transparency goes over white."""
    image = _to_channels(image, frame.channels)
    width, height = image.size
    if (height, width) != (frame.crop, frame.crop):
        size = _resized(width, height, frame)
        if size != image.size:
            resample = Image.Resampling.BICUBIC if frame.interpolation == "bicubic" else Image.Resampling.BILINEAR
            image = image.resize(size, resample)
        left, top = (image.width - frame.crop) // 2, (image.height - frame.crop) // 2
        image = image.crop((left, top, left + frame.crop, top + frame.crop))
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def frame_batch(image: Tensor, frame: Frame) -> Tensor:
    """The same framing for uint8 images of one shape that are already decoded, (B, C, H, W)."""
    if image.shape[1] != frame.channels:
        image = tv.rgb_to_grayscale(image) if frame.channels == 1 else image.expand(-1, frame.channels, -1, -1)
    if image.shape[-2:] != (frame.crop, frame.crop):
        width, height = _resized(image.shape[-1], image.shape[-2], frame)
        image = tv.resize(image, [height, width], tv.InterpolationMode(frame.interpolation), antialias=True)
        top, left = (height - frame.crop) // 2, (width - frame.crop) // 2
        image = image[:, :, top : top + frame.crop, left : left + frame.crop]
    return image.contiguous()


def _resized(width: int, height: int, frame: Frame) -> tuple[int, int]:
    scale = frame.resize / min(width, height)
    return max(frame.crop, round(width * scale)), max(frame.crop, round(height * scale))


def _to_channels(image: Image.Image, channels: int) -> Image.Image:
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        # Pillow's own conversion clips at 255 instead of scaling
        pixels = np.asarray(image, dtype=np.float32)
        top = 65535.0 if image.mode != "F" else max(float(pixels.max(initial=0.0)), 1.0)
        image = Image.fromarray((pixels.clip(0, top) * (255.0 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert(mode)
