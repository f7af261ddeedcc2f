"""Batches that are decoded on the device: `--data.decoder=cuda`."""

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from imgcls.data.batches import BatchDataset
from imgcls.errors import one_line
from imgcls.images.decode import decode_bytes, reading, stack
from imgcls.images.jpeg import decode_jpegs, is_plain
from imgcls.images.sources import Batch

log = logging.getLogger(__name__)


class EncodedBatches(BatchDataset):
    """Batches of which workers read plain JPEG files as they are, for the device to decode, and decode all others.

    Attributes:
        failed: Whether the device has refused files; the CPU decodes a batch that holds one.
    """

    failed = False

    def _fetched(self, numbers: list[int]) -> Batch:
        read = [self._read(number) for number in numbers]
        return {  # each in one piece: a tensor that a worker sends takes a file descriptor
            "files": _joined([one for one in read if one.ndim == 1]),
            "decoded": _joined([one for one in read if one.ndim == 3]),
            "size": torch.tensor([len(one) if one.ndim == 1 else 0 for one in read]),
        }

    def _read(self, number: int) -> Tensor:
        """The bytes (L,) of a plain JPEG file, else the image (C, H, W)."""
        with reading(self.source.describe, number):
            content = self.source.encoded(number)
            if is_plain(content):
                return torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_bytes(content, self.resize_crop)

    def to_device(self, batch: Batch) -> Batch:  # noqa: D102
        files, size, number = batch.pop("files"), batch.pop("size"), batch["index"]
        here = self._decoded(files.split(size[size > 0].tolist()), number[size > 0].tolist())
        batch, frame = super().to_device(batch), self.resize_crop
        others = iter(batch.pop("decoded").view(-1, frame.channels, frame.crop, frame.crop))
        return {**batch, "image": stack([next(here if length else others) for length in size.tolist()])}

    def _decoded(self, files: Sequence[Tensor], numbers: list[int]) -> Iterator[Tensor]:
        device = self.device or torch.device("cpu")
        try:
            return iter(decode_jpegs(files, self.resize_crop, device) if files else [])
        except RuntimeError as error:
            if not self.failed:
                log.warning(f"--data.decoder=cuda: the CPU decodes a batch that {device} does not ({one_line(error)})")
            self.failed = True
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what failed may still write into memory that it gave back
        return iter(self.source.images(numbers, self.resize_crop).to(device))


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.uint8), *(part.ravel() for part in parts)])
