"""JPEG files that a device decodes: `--data.decoder=cuda`."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from PIL import ExifTags
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from imgcls.errors import UserError, one_line
from imgcls.images.boxes import Box, crop_resize
from imgcls.images.decode import ResizeCrop, opened, resize_crop_batch

DEVICES = ("cuda",)


def plain_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of a file that any decoder reads alike: a JPEG, not cut, upright, of 8 bits, gray or YCbCr."""
    if not (content.startswith(b"\xff\xd8") and content.endswith(b"\xff\xd9")):
        return None
    with opened(content) as image:
        if image.format != "JPEG" or image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return None
        # each component's number (R, G, B where they are not YCbCr), and how often it is sampled across and down
        first, *others = (layer[:3] for layer in image.layer)  # type: ignore[attr-defined]
        ycbcr = first[0] == 1 and others == [(2, 1, 1), (3, 1, 1)] and image.info.get("adobe_transform", 1) == 1
        return image.size if image.mode == "L" or ycbcr else None


def decode_jpegs(
    files: Sequence[Tensor], resize_crop: ResizeCrop, device: torch.device, boxes: Sequence[Box] | None = None
) -> list[Tensor]:
    """Images (C, H, W) uint8 on a device, in the frame of `resize_crop`; those of one size are resized together.

    nvJPEG was not run yet. It upsamples colours more coarsely than libjpeg, and the CPU shrinks images of twice the
    size or more while it decodes them: pixels of both ways differ a little.

    Args:
        files: What each plain JPEG file holds, (L,) uint8 on the CPU.
        resize_crop: How they are resized and cropped.
        device: Where.
        boxes: Of each image, resized to the square; None: the central square.

    Raises:
        RuntimeError: The device's decoder does not take one of them.
    """
    if device.type == "cuda":
        # torchvision decodes on a stream of its own, into memory that what is queued on this one may still read
        torch.cuda.current_stream(device).synchronize()
    images = decode_jpeg(list(files), ImageReadMode.GRAY if resize_crop.channels == 1 else ImageReadMode.RGB, device)
    if boxes is not None:
        return [crop_resize(image, resize_crop, box) for image, box in zip(images, boxes, strict=True)]
    of_size = defaultdict(list)
    for number, image in enumerate(images):
        of_size[image.shape].append(number)
    found: dict[int, Tensor] = {}
    for numbers in of_size.values():
        found |= zip(numbers, resize_crop_batch(torch.stack([images[k] for k in numbers]), resize_crop), strict=True)
    return [found[number] for number in range(len(images))]


def require_decoder(device: torch.device) -> None:
    """Raise a UserError unless a device decodes JPEG files."""
    if device.type not in DEVICES:
        raise UserError(f"--data.decoder=cuda: the run is on {device}; take --data.decoder=cpu, or a CUDA device")
    try:
        decode_jpegs([encode_jpeg(torch.zeros(3, 16, 16, dtype=torch.uint8))], ResizeCrop(3, 8, 8), device)
    except RuntimeError as error:
        raise UserError(
            f"--data.decoder=cuda: torchvision does not decode on {device} ({one_line(error)}); take --data.decoder=cpu"
        ) from error
