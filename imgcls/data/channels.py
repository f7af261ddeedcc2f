"""How many channels images have, which of the files' bands they are, and how each is normalised."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgcls.data.options import check, per_channel
from imgcls.errors import UserError
from imgcls.images.arrays import Bands, first_total

log = logging.getLogger(__name__)
PHOTO = 3  # channels that weights of photos expect


@dataclass(frozen=True)
class Channels:
    """The channels of a data set's images.

    Attributes:
        count: How many there are.
        mean: Of each, in 0..1.
        std: Of each, likewise.
        bands: Which bands of the files they are; None for photos.
    """

    count: int
    mean: list[float]
    std: list[float]
    bands: Bands | None = None


@dataclass(frozen=True)
class Asked:
    """What options ask for, see `ImageDataModule`, and what images are in place of it if they are photos.

    Attributes:
        channels: Number.
        mean: Of one or each.
        std: Of one or each.
        bands: Numbers of bands.
        num_bands: Bands of each file.
        value_range: Low and high, or those of each.
        native: Number, mean and deviation of the source's own channels.
    """

    channels: int | None
    mean: list[float] | None
    std: list[float] | None
    bands: list[int] | None
    num_bands: int | None
    value_range: Sequence[float] | Sequence[Sequence[float]] | str | None
    native: tuple[int, Sequence[float], Sequence[float]]

    def found(self, files: Iterable[Path] | None) -> Channels:
        """By the first of some files that can be read; None: images are no files.

        Raises:
            UserError: Options contradict each other, or the files.
        """
        wanted, (native, mean, std) = self.channels, self.native
        check(wanted is None or wanted > 0, "channels", wanted, "a positive number")
        if files is None:
            ours = "bands" if self.bands is not None else "num_bands"
            check(self.bands is self.num_bands is None, ours, getattr(self, ours), "for images that are no files")
        total = self.num_bands
        if total is None and files is not None:
            total = first_total(files, self.bands is not None or wanted not in (None, 1, PHOTO))
        bands = None if total is None else self._bands(total)
        count = len(bands.chosen) if bands else native
        if bands or native not in (1, PHOTO):
            photo = wanted == PHOTO != count
            if photo:
                log.info(f"images have {count} channels of their own, and no mean and std of photos")
            elif wanted not in (None, count):
                raise UserError(f"--data.channels: {wanted}, but images have {count} bands; --data.bands chooses some")
        else:
            photo, count = False, wanted or native
            check(count in (1, PHOTO), "channels", count, "1 or 3, as photos have")
        ranges = self.value_range
        if isinstance(ranges, list) and ranges and isinstance(ranges[0], list):
            each = f" or a list of {count} such pairs" if bands else ""
            check(len(ranges) == len(bands.chosen if bands else ()), "value_range", ranges, f"[low, high]{each}")
        of_mean, of_std = (None if photo and of and len(of) == PHOTO else of for of in (self.mean, self.std))
        return Channels(
            count, per_channel("mean", of_mean or mean, count), per_channel("std", of_std or std, count), bands
        )

    def _bands(self, total: int) -> Bands:
        chosen = tuple(range(total) if self.bands is None else self.bands)
        known = bool(chosen) and all(0 <= band < total for band in chosen)
        check(known, "bands", self.bands, f"a list of numbers from 0 to {total - 1}: files have {total} bands")
        return Bands(chosen, total)
