"""Every image of a part read once, as it is stored: its size and colours, its pixels' hash, a small gray version."""

import hashlib
import logging
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from imgcls.images.checking import each_once
from imgcls.images.decode import BrokenImage, Original
from imgcls.images.depth import ValueRange
from imgcls.images.sources import Source
from imgcls.system.resources import cores

log = logging.getLogger(__name__)
SIDE = 32  # of the gray version, in pixels
Row = tuple[tuple[int, int], str, int, np.ndarray, str]
UNREAD: Row = ((0, 0), "", 0, np.zeros((SIDE, SIDE), np.uint8), "")


@dataclass(frozen=True)
class Survey:
    """What reading N images tells.

    Attributes:
        size: Width and height, (N, 2) int64 pixels, upright; 0 where an image cannot be read.
        mode: How colours are stored, N of Pillow's words.
        digest: Hash of size and 8-bit pixels, (N,) uint64: the same for a PNG and a BMP of the same pixels. Of a
            JPEG with a shorter side of 1024 pixels or more, of its pixels at half the size or less.
        gray: All of each image, brought to 32 by 32 pixels, (N, 32, 32) uint8.
        reason: Why an image cannot be read, N texts; empty for those that can.
    """

    size: np.ndarray
    mode: list[str]
    digest: np.ndarray
    gray: np.ndarray
    reason: list[str]


def survey(
    source: Source, index: np.ndarray, num_workers: int | None = None, value_range: ValueRange | None = None
) -> Survey:
    """Read images; none of them stops it.

    Args:
        source: The images.
        index: Which of them, (N,) int64.
        num_workers: Processes that read; None: one per core.
        value_range: See `eight_bits`.
    """
    numbers = index.tolist()
    workers = cores() if num_workers is None else num_workers
    rows: list[Row] = []
    for batch in each_once(_Read(source, value_range), numbers, workers):
        if len(rows) // 20_000 < (len(rows) + len(batch)) // 20_000:
            log.info(f"audit: {len(rows) + len(batch)} of {len(numbers)} images read")
        rows += batch
    sizes, modes, digests, grays, reasons = zip(*rows, strict=True) if rows else ([], [], [], [], [])
    return Survey(
        np.array(sizes, dtype=np.int64).reshape(-1, 2),
        list(modes),
        np.array(digests, dtype=np.uint64),
        np.stack(grays) if rows else np.empty((0, SIDE, SIDE), np.uint8),
        list(reasons),
    )


class _Read(Dataset):
    """Numbers of images in, what each of them tells out."""

    def __init__(self, source: Source, value_range: ValueRange | None) -> None:
        self.source, self.value_range = source, value_range

    def __getitem__(self, numbers: list[int]) -> list[Row]:
        return [self._row(number) for number in numbers]

    def _row(self, number: int) -> Row:
        try:
            found = self.source.original(number, self.value_range)
        except BrokenImage as error:
            return (*UNREAD[:-1], error.reason)
        return found.size, found.mode, _digest(found), _small(found), ""


def _digest(found: Original) -> int:
    content = hashlib.blake2b(repr(found.size).encode(), digest_size=8)
    content.update(found.image.convert("RGB").tobytes() if found.channels is None else found.channels.tobytes())
    return int.from_bytes(content.digest(), "little")


def _small(found: Original) -> np.ndarray:
    gray = found.image.convert("L") if found.channels is None else Image.fromarray(found.channels.mean(0).astype("u1"))
    gray = gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.asarray(gray)
