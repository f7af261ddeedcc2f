"""Every image is read once before the first step: what is broken is named then, or left out, and not found at night."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple
from zlib import crc32

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from imgcls.errors import UserError
from imgcls.images.boxes import whole
from imgcls.images.cache import Caches
from imgcls.images.decode import BrokenImage, ResizeCrop
from imgcls.images.sources import Part, Source
from imgcls.system.files import replacing, write_table
from imgcls.system.resources import cores, user_cache

log = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
Parts = Mapping[Part, tuple[Source, np.ndarray, ResizeCrop]]
LISTED = 20  # names in a message; a file holds all
FEW = 256  # images for which no processes are started


class Skipped(NamedTuple):
    """An image, or a row of a table, that was left out.

    Attributes:
        part: train, val or test.
        name: As the prediction table names images, or the table's line.
        reason: What is wrong with it.
    """

    part: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})"


@dataclass(frozen=True)
class Processes:
    """The processes that share the work.

    Attributes:
        rank: Number of this one among all.
        world_size: How many there are.
        local_rank: Number of this one among those of its machine.
        local_size: How many its machine has.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of(cls, trainer: Any) -> "Processes":
        """Those of a Lightning Trainer; one without a Trainer."""
        if trainer is None:
            return cls()
        local_size = max(1, trainer.world_size // trainer.num_nodes)
        return cls(trainer.global_rank, trainer.world_size, trainer.local_rank, local_size)


def check_images(
    parts: Parts,
    problems: Sequence[Skipped],
    caches: Caches,
    on_error: OnError,
    num_workers: int | None,
    processes: Processes,
    listing: Path | None,
) -> tuple[dict[Part, tuple[Source, np.ndarray]], list[Skipped]]:
    """Read every image of some parts as training will, into the cache where they have room there.

    Each is read once, until its file changes. Splits and fingerprints are those of all images: they do not move when
    one breaks or is mended.

    Args:
        parts: Source of each part, the numbers of its images in the source, (M,) int64, and how they are resized.
        problems: What else is wrong with the data, to be named in the same message.
        caches: The data module's.
        on_error: What to do about images that cannot be read.
        num_workers: Processes that read; None: one per core.
        processes: They share the work, and what one finds holds for all.
        listing: Where rank 0 lists all images that cannot be read, if they are not to be skipped.

    Returns:
        The parts without what was left out, and what was left out.

    Raises:
        UserError: Images cannot be read, and they are not to be skipped, or a part would be empty.
    """
    broken, paged = _read(parts, caches, num_workers, processes)
    if paged and processes.rank == 0:
        log.info(f"{len(paged)} images have several pages or frames, of which the first is used: {first_of(paged, 1)}")
    skipped = [
        Skipped(part, parts[part][0].describe(number), reason)
        for part, reasons in broken.items()
        for number, reason in sorted(reasons.items())
    ]
    if on_error == "raise":
        found = [*problems, *skipped]
        if listing is not None and processes.rank == 0 and (found or listing.exists()):
            write_table(listing, Skipped._fields, found)
        if len(skipped) == 1 and not problems:
            raise BrokenImage(skipped[0].name, skipped[0].reason)
        if found:
            total = sum(len(index) for _, index, _ in parts.values())
            counts = [f"{len(problems)} folders cannot be used"] if problems else []
            counts += [f"{len(skipped)} of {total} images cannot be read"] if skipped else []
            where = f" ({listing} lists all)" if listing is not None and found[LISTED:] else ""
            raise UserError(
                f"data: {' and '.join(counts)}: {first_of(found)}{where}; repair or remove them, or leave such out "
                "with --data.on_error=skip"
            )
    kept = {
        part: (source, index[~np.isin(index, list(broken[part]))] if broken[part] else index)
        for part, (source, index, _) in parts.items()
    }
    for part, (_, index) in kept.items():
        if broken[part] and not len(index):
            reasons = [row for row in skipped if row.part == part]
            raise UserError(f"data: no image of the {part} part can be read: {first_of(reasons)}")
    return kept, skipped


def first_of(rows: Sequence[object], count: int = LISTED) -> str:
    """The first of them, and how many more there are."""
    return ", ".join(map(str, rows[:count])) + (f" and {len(rows) - count} more" if rows[count:] else "")


def _read(
    parts: Parts, caches: Caches, num_workers: int | None, processes: Processes
) -> tuple[dict[Part, dict[int, str]], list[str]]:
    """Why each image that cannot be read cannot be, by its number, for each part; names of those with several pages."""
    workers = max(1, cores() // processes.local_size) if num_workers is None else num_workers
    known, fresh = _known(), []
    found: dict[Part, dict[int, str]] = {part: {} for part in parts}
    paged: list[str] = []
    for part, (source, index, resize_crop) in parts.items():
        if source.in_memory or source.verified:
            continue
        stamps = source.stamps()
        if stamps is not None:  # whether a deep image can be read depends on the range
            stamps = stamps ^ np.uint64(crc32(repr(resize_crop.value_range).encode()))
        new = index if stamps is None else index[~np.isin(stamps[index], known)]
        mine = new[processes.rank :: processes.world_size].tolist()
        if len(mine) > FEW:
            log.info(f"{part}: checking that {len(new)} images can be read, once")
        loader = each_once(_Check(caches.cached(source, index, resize_crop), resize_crop), mine, workers)
        shares: list[Any] = [[finding for batch in loader for finding in batch]] * processes.world_size
        if processes.world_size > 1:
            torch.distributed.all_gather_object(shares, shares[0])
        for number, reason in chain(*shares):
            if reason is None:
                paged.append(source.describe(number))
            else:
                found[part][number] = reason
        if stamps is not None:
            fresh.append(stamps[new[~np.isin(new, list(found[part]))]])
    if processes.local_rank == 0:
        _remember(known, fresh)
    return found, paged


def each_once(dataset: Dataset, numbers: Sequence[int], workers: int) -> DataLoader:
    """Lists of numbers of images through a data set, as they come out of it, by processes unless they are few."""
    return DataLoader(
        dataset,
        sampler=[numbers[k : k + 32] for k in range(0, len(numbers), 32)],  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers if len(numbers) > FEW else 0,
        collate_fn=list,  # as it is; the default makes tensors of arrays
    )


class _Check(Dataset):
    """Numbers of images in; out come the broken ones among them and why, and those with several pages, with None."""

    def __init__(self, source: Source, resize_crop: ResizeCrop) -> None:
        self.source, self.resize_crop = source, resize_crop

    def __getitem__(self, numbers: list[int]) -> list[tuple[int, str | None]]:
        try:
            self.source.inputs(numbers, self.resize_crop, [whole] * len(numbers) if self.resize_crop.random else None)
            return [(number, None) for number in numbers if self.source.has_pages(number)]
        except BrokenImage as error:
            if len(numbers) == 1:
                return [(numbers[0], error.reason)]
            return [finding for number in numbers for finding in self[[number]]]


def _file() -> Path:
    """Stamps of all images that could be read, of all data sets of this user: 8 bytes each."""
    return user_cache() / "readable.npy"


def _known() -> np.ndarray:
    """Stamps (N,) uint64; none if the file is not there or damaged."""
    try:
        found = np.load(_file(), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.empty(0, np.uint64)
    whole = isinstance(found, np.ndarray) and found.dtype == np.uint64 and found.ndim == 1
    return found if whole else np.empty(0, np.uint64)


def _remember(known: np.ndarray, fresh: list[np.ndarray]) -> None:
    if not sum(map(len, fresh)):
        return
    try:
        with replacing(_file(), shared=True) as part, open(part, "wb") as content:
            np.save(content, np.union1d(known, np.concatenate(fresh)))
    except OSError as error:
        log.warning(f"{_file()}: cannot be written ({error}); images are checked again next time")
