"""The one place that opens an image: a file or a PIL image in, a uint8 tensor (C, H, W) out."""

import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import get_worker_info
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as tv

from imgcls.errors import UserError, one_line, printable
from imgcls.images.depth import ValueRange, eight_bits

with suppress(ImportError):  # an extra
    from pillow_heif import register_heif_opener

    register_heif_opener()

Interpolation = Literal["bilinear", "bicubic"]
PHOTOS = frozenset(".bmp .gif .jpeg .jpg .jp2 .pbm .pgm .png .ppm .tif .tiff .webp .avif .jfif .heic .heif".split())
ARRAYS = frozenset((".npy", ".npz"))  # see `imgcls.images.arrays`
EXTENSIONS = PHOTOS | ARRAYS
PAGED = frozenset(".gif .png .tif .tiff .webp .avif .heic .heif".split())  # an image may have pages or frames
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
LARGE = 1024  # pixels of the shorter side


@dataclass(frozen=True)
class ResizeCrop:
    """How every image of a batch comes to one shape: (channels, crop, crop), in pixels.

    The shorter side is resized to `resize`, then the central square of side `crop` is kept. Upsampling and
    downsampling are antialiased. An image that has the final size already is left alone. With a crop of 0 images keep
    the size in which they are decoded. Images deeper than 8 bits come to 8 by `value_range`, see `eight_bits`.

    Where it is `random`, training images are crops of random boxes, each resized to the square. Boxes are drawn by the
    size of the whole image, of which sides above `bound` pixels are shrunk to it first, each by itself, for a cache to
    keep; with a bound of 0 none is.
    """

    channels: int
    resize: int
    crop: int
    interpolation: Interpolation = "bilinear"
    value_range: ValueRange | None = None
    random: bool = False
    bound: int = 0

    @property
    def kept(self) -> int:
        """Largest side of what a cache keeps of an image, in pixels; 0: it has no bound."""
        return self.bound if self.random else self.crop


class BrokenImage(UserError):
    """An image that cannot be read.

    Args:
        name: Its path, or its part and number.
        reason: What is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that the error survives the way out of a worker process
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return (
            f"{self.name}: cannot be read as an image ({self.reason}); repair or remove it, "
            "or leave such images out with --data.on_error=skip"
        )


@dataclass(frozen=True)
class Original:
    """An image as it is stored, not resized.

    Attributes:
        size: Width and height in pixels, upright.
        mode: How colours are stored, in Pillow's words: L, RGB, RGBA, P, CMYK, I;16 …
        image: Upright, 8 bit, L or RGB; of a JPEG with a shorter side of `LARGE` or more a half, a quarter or an eighth
            of the size, as libjpeg reads it faster than whole.
        channels: All of its channels (C, H, W) uint8, where the image shows some of them only.
    """

    size: tuple[int, int]
    mode: str
    image: Image.Image
    channels: np.ndarray | None = None


def decode_file(path: Path, resize_crop: ResizeCrop) -> Tensor:
    """Read an image file as a uint8 tensor (C, H, W), upright by its EXIF tag, resized and cropped.

    Raises:
        BrokenImage: The file cannot be read as an image.
    """
    with reading(printable, str(path)):
        return decode_bytes(read_file(path), resize_crop)


def decode_bytes(content: bytes, resize_crop: ResizeCrop) -> Tensor:
    """The same for what an image file holds; raises whatever a parser of damaged content raises."""
    with opened(content) as image:
        if image.format == "JPEG" and image.mode in ("L", "RGB") and min(image.size) < 2 * resize_crop.resize:
            with suppress(RuntimeError):  # what it does not read, Pillow may
                return _decode_jpeg(content, resize_crop)
        size = upright_size(image)
        if image.format == "JPEG":
            # lets libjpeg scale by 1/2, 1/4 or 1/8 while it decodes, never below what is needed
            image.draft(None, (resize_crop.resize, resize_crop.resize))  # type: ignore[attr-defined]
        return decode_upright(image, resize_crop, size)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a PIL image after it was turned by its EXIF tag."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # by a quarter
    return image.size[::-1] if turned else image.size


def original_bytes(content: bytes, value_range: ValueRange | None = None) -> Original:
    """The same for what an image file holds; raises whatever a parser of damaged content raises."""
    with opened(content) as image:
        return original(image, value_range)


def original(image: Image.Image, value_range: ValueRange | None = None) -> Original:
    """A PIL image, opened and perhaps not yet read, as it is stored, but for its depth."""
    mode, size, image = image.mode, upright_size(image), eight_bits(image, value_range)
    if image.format == "JPEG":
        image.draft(None, (LARGE // 2, LARGE // 2))  # type: ignore[attr-defined]
    gray = mode in ("1", "L", "F") or mode.startswith("I")
    return Original(size, mode, to_channels(ImageOps.exif_transpose(image), 1 if gray else 3))


def read_file(path: Path) -> bytes:
    """The bytes of an image file.

    Raises:
        OSError: It is no file, or cannot be read; the text says why.
    """
    _require_file(path)
    return path.read_bytes()


def has_pages(path: Path) -> bool:
    """Whether an image file holds several pages or frames, of which the first is used."""
    if path.suffix.lower() not in PAGED:
        return False
    with opened(path) as image:
        return getattr(image, "is_animated", False)


def _require_file(path: Path) -> None:
    if not path.is_file():  # opening a pipe would wait for a writer for ever
        absent = "it is a link to nothing" if path.is_symlink() else "there is no such file"
        raise OSError("it is no file" if path.exists() else absent)


@contextmanager
def reading(name: Callable[..., str], *of: Any) -> Iterator[None]:
    """Whatever goes wrong while an image is read is a BrokenImage, which is named `name(*of)`."""
    try:
        yield
    except (MemoryError, UserError):
        raise  # the one says nothing about the image, the other all
    except Exception as error:  # parsers of damaged files raise anything: struct.error, IndexError, zlib.error …
        raise BrokenImage(name(*of), _reason(error)) from error


def _reason(error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "there is no permission to read it"
    if isinstance(error, UnidentifiedImageError):
        return "its content is no image"
    return printable(one_line(error))


@contextmanager
def opened(image: bytes | Path) -> Iterator[Image.Image]:
    """An image file, or its bytes, of which only the header is read yet."""
    if not image:
        raise ValueError("it is empty")
    if isinstance(image, Path):
        _require_file(image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata of images that it reads well
        try:
            file = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)
        except UnidentifiedImageError as error:
            start = image[:12] if isinstance(image, bytes) else b""
            if start[8:] in HEIF_BRANDS and "HEIF" not in Image.OPEN:
                raise ValueError("it is HEIC: pip install 'imgcls[heif]' reads it") from error
            if start[:6] == b"\x93NUMPY" or start[:4] == b"PK\3\4":
                raise ValueError("it is an array or an archive, and no photo, as others are") from error
            if start[:4] in (b"II*\0", b"MM\0*"):
                raise ValueError("it is TIFF of a kind that is not read; convert it to gray or RGB") from error
            raise
        with file:
            yield file


def encode(image: Image.Image) -> bytes:
    """A PNG file of a PIL image, which decodes to the same pixels; of numbers that PNG does not know a TIFF file.

    Colours that PNG does not know become RGB.
    """
    numbers = image.mode in ("I", "F", "I;16B")
    if not numbers and image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = to_channels(image, 3)
    file = io.BytesIO()
    image.save(file, "TIFF" if numbers else "PNG")
    return file.getvalue()


def _decode_jpeg(content: bytes, resize_crop: ResizeCrop) -> Tensor:
    """A JPEG too small to be scaled while it is decoded: torchvision's decoder and resize are twice as fast."""
    return resize_crop_batch(read_jpeg(content, resize_crop.channels)[None], resize_crop)[0]


def read_jpeg(content: bytes, channels: int) -> Tensor:
    """A JPEG file as uint8 (C, H, W), upright; raises a RuntimeError for what torchvision does not read."""
    mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
    return decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode, apply_exif_orientation=True)


def decode_upright(image: Image.Image, resize_crop: ResizeCrop, size: tuple[int, int] | None = None) -> Tensor:
    """`decode` of a PIL image, best not read yet, turned by its EXIF tag."""
    return decode(ImageOps.exif_transpose(eight_bits(image, resize_crop.value_range)), resize_crop, size)


def decode(image: Image.Image, resize_crop: ResizeCrop, size: tuple[int, int] | None = None) -> Tensor:
    """A PIL image of any mode as uint8 tensor (C, H, W), resized and cropped. Transparency goes over white.

    `size` is the whole image's width and height, where it was decoded at a part of it: its sides say the frame.
    """
    image = to_channels(eight_bits(image, resize_crop.value_range), resize_crop.channels)
    width, height = size or image.size
    if resize_crop.crop and (height, width) != (resize_crop.crop, resize_crop.crop):
        size, (left, top) = _resized(width, height, resize_crop)
        if size != image.size:
            image = image.resize(size, resampling(resize_crop))
        image = image.crop((left, top, left + resize_crop.crop, top + resize_crop.crop))
    return as_tensor(image)


def as_tensor(image: Image.Image) -> Tensor:
    """A PIL image, L or RGB, as uint8 (C, H, W)."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def resampling(resize_crop: ResizeCrop) -> Image.Resampling:
    """Pillow's name of the interpolation."""
    return Image.Resampling.BICUBIC if resize_crop.interpolation == "bicubic" else Image.Resampling.BILINEAR


def resized(image: Tensor, size: tuple[int, int], resize_crop: ResizeCrop) -> Tensor:
    """Images (…, C, H, W) uint8 of another width and height."""
    if image.shape[-3] > 4:  # more than torch's kernels for uint8 take: one by one it is twice as fast
        planes = resized(image.reshape(-1, 1, *image.shape[-2:]), size, resize_crop)
        return planes.reshape(*image.shape[:-2], *planes.shape[-2:])
    return tv.resize(image, [size[1], size[0]], tv.InterpolationMode(resize_crop.interpolation), antialias=True)


def resize_crop_batch(image: Tensor, resize_crop: ResizeCrop) -> Tensor:
    """The same for uint8 images of one shape that are already decoded, (B, C, H, W)."""
    channels = resize_crop.channels
    if image.shape[1] != channels:
        image = tv.rgb_to_grayscale(image) if channels == 1 else image.expand(-1, channels, -1, -1)
    if resize_crop.crop and image.shape[-2:] != (resize_crop.crop, resize_crop.crop):
        (width, height), (left, top) = _resized(image.shape[-1], image.shape[-2], resize_crop)
        image = resized(image, (width, height), resize_crop)
        image = image[:, :, top : top + resize_crop.crop, left : left + resize_crop.crop]
    return image


def stack(images: Iterable[Tensor], count: int) -> Tensor:
    """So many images (C, H, W) of one shape as a batch (B, C, H, W) with channels side by side, as decoders give them.

    A loader's process writes them where the main process reads them: no copy is made on the way.
    """
    batch = torch.empty(0)
    for number, image in enumerate(images):
        if number == 0:
            shape = (count, *image.shape[1:], image.shape[0])
            batch = torch.empty(0 if get_worker_info() else shape, dtype=image.dtype, device=image.device)
            if get_worker_info():
                batch.set_(torch.UntypedStorage._new_shared(count * image.nbytes)).resize_(shape)
        batch[number] = image.permute(1, 2, 0)
    return batch.permute(0, 3, 1, 2)


def _resized(width: int, height: int, resize_crop: ResizeCrop) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size of a resized image, rounded down, and corner of its central crop, rounded to even, as torchvision's."""
    shorter, kept = min(width, height), resize_crop.crop
    across, down = (max(kept, int(resize_crop.resize * side / shorter)) for side in (width, height))
    return (across, down), (round((across - kept) / 2), round((down - kept) / 2))


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """A PIL image of any mode of 8 bits as L or RGB. Transparency goes over white."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode:
        return image
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert(mode)
