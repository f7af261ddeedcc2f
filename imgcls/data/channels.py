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
        total = self.num_bands
        if total is None and files is not None:
            total = first_total(files, self.bands is not None or wanted not in (None, 1, PHOTO))
        if total is None:
            check(not self.bands, "bands", self.bands, "known here: only files of a folder or a table have bands")
            check(wanted in (None, 1, PHOTO), "channels", wanted, "1 or 3, as photos have")
            count = wanted or native
            self._check_ranges(1)
            mean, std = self.mean or mean, self.std or std
            return Channels(count, per_channel("mean", mean, count), per_channel("std", std, count))
        chosen = tuple(range(total) if self.bands is None else self.bands)
        known = bool(chosen) and all(0 <= band < total for band in chosen)
        check(known, "bands", self.bands, f"a list of bands from 0 to {total - 1}, which the first training file has")
        count, by_photos = len(chosen), wanted == PHOTO != len(chosen)
        if by_photos:
            log.info(f"images have {count} channels, those of the files' bands, and no mean and std of photos")
        elif wanted not in (None, count):
            raise UserError(f"--data.channels: {wanted}, but images have {count} bands; --data.bands chooses some")
        self._check_ranges(count)
        of_mean, of_std = (None if by_photos and of and len(of) == PHOTO else of for of in (self.mean, self.std))
        normalised = per_channel("mean", of_mean or mean, count), per_channel("std", of_std or std, count)
        return Channels(count, *normalised, Bands(chosen, total))

    def _check_ranges(self, count: int) -> None:
        given = self.value_range
        if given is not None and not isinstance(given, str) and not isinstance(given[0], float | int):
            ranges = f"{len(given)} ranges for {count} channels"
            check(len(given) == count and count > 1, "value_range", ranges, "one of all, or of each band")
