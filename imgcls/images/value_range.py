"""The values of a data set's deep images that become 0 and 255, measured on its training part."""

import logging
from contextlib import suppress

import numpy as np

from imgcls.images.decode import BrokenImage
from imgcls.images.depth import ValueRange
from imgcls.images.sources import Source, spread

log = logging.getLogger(__name__)
IMAGES, PIXELS = 256, 10_000  # that are looked at, and of each of them
SHARES = (0.001, 0.999)  # of pixels below low and below high: a few dead or hot pixels set no scale


def measured_range(source: Source, index: np.ndarray, say: bool, bands: bool = False) -> ValueRange | None:
    """Low and high for the images of a part that are deeper than 8 bits; None if there are none, or it cannot be told.

    Headers tell which images, spread over the part, are deep; only those are read. Of pixels of them all, low and high
    are the 0.1 % and the 99.9 % percentile, of bands each of its own. Beside images of 8 bits, whose 0 is black, they
    are 0 and the largest number of the bits in use (4095, 65535). Processes with the same files come to the same.

    Args:
        source: The images.
        index: Those of the part, (N,) int64.
        say: Log what was found.
        bands: Whether channels are bands, each with a range of its own.
    """
    looked_at: list[np.ndarray | None] = []
    for number in spread(index, IMAGES):
        with suppress(BrokenImage):  # of which their check will tell
            looked_at.append(_pixels(source, number, bands))
    pooled = [pixels for pixels in looked_at if pixels is not None]
    if not pooled:
        return None
    value_PC = np.concatenate(pooled).astype(np.float64)  # noqa: N806
    finite = np.isfinite(value_PC)
    columns = [channel[good] for channel, good in zip(value_PC.T, finite.T, strict=True)]
    if not finite.any():
        return None
    if say and bands and not finite.all():
        log.warning(f"{1 - finite.mean():.2%} of the training values looked at are not finite: they become 0, as low")
    if len(pooled) == len(looked_at):
        which, why = "images", "0.1 % and 99.9 % of the training pixels"
        found = [_low_high(column) for column in columns]
    elif value_PC[finite].min() < 0 or (value_PC[finite] % 1).any():
        return None
    else:
        bits = max(8, int(value_PC[finite].max()).bit_length())
        which, why = f"{len(pooled)} of {len(looked_at)} training images looked at", f"the {bits} bits in use"
        found = [(0.0, float(2**bits - 1))] * len(columns)
    if say:
        values = ", ".join(f"{low:,.6g} to {high:,.6g}" for low, high in found)
        deeper = f"{which} are deeper than 8 bits: values {values} ({why}) become 0 to 255"
        log.info(f"{deeper}{', channel by channel' if bands else ''}; --data.value_range sets this")
    return tuple(found) if bands else found[0]


def _low_high(value: np.ndarray) -> tuple[float, float]:
    if not len(value):
        return 0.0, 1.0
    low, high = (float(f"{level:.6g}") for level in np.quantile(value, SHARES))
    return low, high if high > low else low + 1


def _pixels(source: Source, number: int, bands: bool) -> np.ndarray | None:
    """Some values of an image, always the same, (P, 1), of bands pixels (P, C); None if it has 8 bits."""
    values = source.deep_values(number)
    if values is None:
        return None
    values = values.reshape(-1, values.shape[2] if bands else 1)
    if len(values) <= PIXELS:
        return values
    return values[np.random.default_rng(0).integers(len(values), size=PIXELS)]
