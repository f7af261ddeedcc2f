"""Batches that are decoded on the device: `--data.decoder=cuda`."""

import logging
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from imgcls.data.batches import BatchDataset
from imgcls.errors import one_line
from imgcls.images.boxes import Box, BoxOf, frame_bytes
from imgcls.images.decode import reading, stack
from imgcls.images.jpeg import decode_jpegs, plain_size
from imgcls.images.sources import Batch

log = logging.getLogger(__name__)


class EncodedBatches(BatchDataset):
    """Batches of which workers read plain JPEG files as they are, for the device to decode, and decode all others.

    Attributes:
        failed: Whether the device has refused files; the CPU decodes a batch that holds one.
    """

    failed = False

    def _fetched(self, numbers: list[int], boxes: list[BoxOf] | None) -> Batch:
        found = [self._read(number, boxes[k] if boxes else None) for k, number in enumerate(numbers)]
        read = [content for content, _ in found]
        drawn = {"box": torch.tensor([box for _, box in found if box])} if boxes else {}
        return drawn | {  # each in one piece: a tensor that a worker sends takes a file descriptor
            "files": _joined([one for one in read if one.ndim == 1]),
            "decoded": _joined([one for one in read if one.ndim == 3]),
            "size": torch.tensor([len(one) if one.ndim == 1 else 0 for one in read]),
        }

    def _read(self, number: int, box_of: BoxOf | None) -> tuple[Tensor, Box | None]:
        """The bytes (L,) of a plain JPEG file and the box that is drawn of it, else the image (C, H, W)."""
        with reading(self.source.describe, number):
            content = self.source.encoded(number)
            size = plain_size(content)
            if size is None:
                return frame_bytes(content, self.resize_crop, box_of), None
            return torch.frombuffer(bytearray(content), dtype=torch.uint8), box_of(*size) if box_of else None

    def to_device(self, batch: Batch) -> Batch:  # noqa: D102
        files, size, number = batch.pop("files"), batch.pop("size"), batch["index"]
        boxes = batch.pop("box").tolist() if "box" in batch else None
        here = self._decoded(files.split(size[size > 0].tolist()), number[size > 0].tolist(), boxes)
        batch, frame = super().to_device(batch), self.resize_crop
        others = iter(batch.pop("decoded").view(-1, frame.channels, frame.crop, frame.crop))
        return {**batch, "image": stack((next(here if length else others) for length in size.tolist()), len(size))}

    def _decoded(self, files: Sequence[Tensor], numbers: list[int], boxes: list[Box] | None) -> Iterator[Tensor]:
        device = self.device or torch.device("cpu")
        try:
            return iter(decode_jpegs(files, self.resize_crop, device, boxes) if files else [])
        except RuntimeError as error:
            if not self.failed:
                log.warning(f"--data.decoder=cuda: the CPU decodes a batch that {device} does not ({one_line(error)})")
            self.failed = True
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # what failed may still write into memory that it gave back
        given = None if boxes is None else [partial(_given, box) for box in boxes]
        return iter(self.source.inputs(numbers, self.resize_crop, given).to(device))


def _given(box: Box, width: int, height: int) -> Box:
    return box


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.uint8), *(part.ravel() for part in parts)])
