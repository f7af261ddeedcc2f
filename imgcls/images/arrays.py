"""Files of images of any number of bands: NumPy's arrays and TIFF; their bands become channels of 8 bits."""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import SAMPLESPERPIXEL, TiffImageFile
from torch import Tensor

from imgcls.errors import UserError, printable
from imgcls.images.boxes import BoxOf, bounded, crop_resize, scaled
from imgcls.images.decode import (
    ARRAYS,
    BrokenImage,
    Original,
    ResizeCrop,
    opened,
    read_file,
    reading,
    resize_crop_batch,
    resized,
)
from imgcls.images.depth import ValueRange, deep_values
from imgcls.images.sources import FileSource

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two are of files beyond 4 GB
NUMPY = b"\x93NUMPY"


@dataclass(frozen=True)
class Bands:
    """Which bands of a file are the channels of an image.

    Attributes:
        chosen: Their numbers, from 0, in the order of the channels.
        total: Number of bands that each file has.
    """

    chosen: tuple[int, ...]
    total: int


def as_shown(image: Tensor) -> Tensor:
    """Images (…, C, H, W) as they are shown, (…, 1 or 3, H, W): the first three channels; two are red and green."""
    if image.shape[-3] == 2:
        return torch.cat([image, torch.zeros_like(image[..., :1, :, :])], -3)
    return image[..., :3, :, :]


def first_total(files: Iterable[Path], in_any_case: bool) -> int | None:
    """Number of bands of the first file that can be read; None without one, or if it is a photo.

    Photos are all files but NumPy's, and TIFF that Pillow does not read or that has more than four samples.

    Args:
        files: Tried in this order.
        in_any_case: Count the bands of a photo, too.
    """
    for path in files:
        try:
            with reading(str, str(path)):
                return read_bands(path).shape[2] if in_any_case or _is_banded(path) else None
        except BrokenImage:  # of which the check of all images will tell
            continue
    return None


def read_bands(path: Path) -> np.ndarray:
    """All bands of a file, (H, W, C), of its own kind of numbers.

    Of an array (C, H, W) or (H, W, C) the smaller of the first and the last axis are the bands; (H, W) is one band. Of
    a TIFF its samples, or else its pages, are.

    Raises:
        ValueError: It holds no such numbers; the text says why.
        UserError: It is TIFF, and tifffile is not installed.
    """
    content = read_file(path)
    if path.suffix.lower() in ARRAYS:
        values = _array(content)
    elif content.startswith(TIFF):
        values = _tiff(path, content)
    else:
        with opened(content) as image:
            deep = deep_values(image)
            plain = image if image.mode in ("L", "LA", "RGB", "RGBA") else image.convert("RGB")
            values = np.asarray(ImageOps.exif_transpose(plain)) if deep is None else deep[0]
        values = values.reshape(*values.shape[:2], -1)
    if values.dtype.kind not in "iuf" or not values.size:
        raise ValueError(f"it holds {values.dtype} of shape {values.shape}, and no image of whole or real numbers")
    return values


def bands_last(values: np.ndarray) -> np.ndarray:
    """An array (H, W), (H, W, C) or (C, H, W) as (H, W, C), see `read_bands`.

    Raises:
        ValueError: Its shape does not tell.
    """
    if values.ndim == 2:
        return values[..., None]
    if values.ndim != 3 or values.shape[0] == values.shape[2]:
        raise ValueError(
            f"its shape {values.shape} does not tell which axis holds the bands: of (H, W, C) and (C, H, W) it is "
            "the smaller of the first and the last"
        )
    return np.moveaxis(values, 0, 2) if values.shape[0] < values.shape[2] else values


def to_channels(values: np.ndarray, bands: Bands, value_range: ValueRange | None) -> Tensor:
    """Channels (C, H, W) uint8 of an image of all bands.

    Values from low to high become 0 to 255, linearly, clipped and rounded; what is not finite becomes 0, as low does.
    Values of uint8 stay as they are.

    Args:
        values: (H, W, bands.total), as a file holds them.
        bands: Which of them.
        value_range: Low and high of all channels, or of each.

    Raises:
        ValueError: There is another number of bands, or no range for values deeper than 8 bits.
    """
    if values.shape[2] != bands.total:
        raise ValueError(f"it has {values.shape[2]} bands, where {bands.total} are expected")
    pixels = values[..., list(bands.chosen)]
    if values.dtype != np.uint8:
        if value_range is None:
            raise ValueError(f"it holds {values.dtype}: --data.value_range says which values become 0 and 255")
        low, high = np.atleast_2d(np.asarray(value_range)).T
        exact = values.dtype.itemsize <= 2 or values.dtype.kind == "f" and values.dtype.itemsize == 4
        pixels = pixels.astype(np.float32 if exact else np.float64)
        finite = np.isfinite(pixels)
        pixels -= low.astype(pixels.dtype)
        pixels *= (255 / (high - low)).astype(pixels.dtype)
        pixels = np.where(finite, pixels, 0).clip(0, 255).round().astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def decode_bands(values: np.ndarray, bands: Bands, resize_crop: ResizeCrop) -> Tensor:
    """The same, resized and cropped."""
    return resize_crop_batch(to_channels(values, bands, resize_crop.value_range)[None], resize_crop)[0]


class BandFiles(FileSource):
    """Files of which bands become channels.

    Args:
        root: See `FileSource`, as for the others.
        paths: Of the files.
        label: Class of each image, (N,) int64.
        bands: Which bands.
        origins: Where each file was named.
    """

    def __init__(
        self, root: Path, paths: Sequence[str], label: np.ndarray, bands: Bands, origins: Sequence[str] | None = None
    ) -> None:
        super().__init__(root, paths, label, origins)
        self.bands, self.read_as = bands, repr(bands)

    def crop(self, number: int, resize_crop: ResizeCrop, box_of: BoxOf) -> Tensor:  # noqa: D102
        image = self._image(number, replace(resize_crop, crop=0))
        size = image.shape[2], image.shape[1]
        box = box_of(*size)
        if resize_crop.bound:
            kept = bounded(size, resize_crop.bound)
            image, box = resized(image, kept, resize_crop), scaled(box, size, kept)
        return crop_resize(image, resize_crop, box)

    def original(self, number: int, value_range: ValueRange | None = None) -> Original:  # noqa: D102
        with reading(self.describe, number):
            values = read_bands(self.file(number))
            channels = to_channels(values, self.bands, value_range)
        pixels = as_shown(channels).numpy()
        picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        return Original(picture.size, f"{values.shape[2]} × {values.dtype}", picture, channels.numpy())

    def deep_values(self, number: int) -> np.ndarray | None:
        """Values (H, W, C) of the channels; None for those of uint8."""
        with reading(self.describe, number):
            values = read_bands(self.file(number))
            to_channels(values[:1, :1], self.bands, (0, 1))  # for its number of bands
        return None if values.dtype == np.uint8 else values[..., list(self.bands.chosen)]

    def has_pages(self, number: int) -> bool:  # noqa: D102
        return False

    def stamps(self) -> np.ndarray:  # noqa: D102
        return super().stamps() ^ np.uint64(crc32(self.read_as.encode()))

    def _image(self, number: int, resize_crop: ResizeCrop) -> Tensor:
        with reading(self.describe, number):
            return decode_bands(read_bands(self.file(number)), self.bands, resize_crop)


def _is_banded(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in (".tif", ".tiff"):
        return suffix in ARRAYS
    try:
        with Image.open(path) as image:
            return isinstance(image, TiffImageFile) and image.tag_v2.get(SAMPLESPERPIXEL, 1) > 4
    except UnidentifiedImageError:
        return True


def _array(content: bytes) -> np.ndarray:
    try:
        found = np.load(io.BytesIO(content), allow_pickle=False)
    except ValueError as error:
        raise ValueError("it is no array of numbers" if content.startswith((NUMPY, b"PK")) else str(error)) from error
    if not isinstance(found, np.ndarray):
        if len(found.files) != 1:
            raise ValueError(f"it holds {len(found.files)} arrays, where one is expected")
        found = found[found.files[0]]
    return bands_last(found)


def _tiff(path: Path, content: bytes) -> np.ndarray:
    try:
        from tifffile import TiffFile
    except ImportError as error:
        reason = f"{printable(str(path))}: TIFF of several bands needs the package tifffile"
        raise UserError(f"{reason}: pip install 'imgcls[tiff]'") from error
    with TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        values, axes = series.asarray(), series.axes
    band = [k for k, axis in enumerate(axes) if axis not in "YX"]
    if len(axes) - len(band) != 2 or len(band) > 1:
        raise ValueError(f"its axes are {axes} of shape {values.shape}, where rows, columns and bands are expected")
    return np.moveaxis(values, band[0], 2) if band else values[..., None]
