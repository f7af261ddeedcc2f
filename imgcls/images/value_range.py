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


def measured_range(source: Source, index: np.ndarray, say: bool) -> ValueRange | None:
    """Low and high for the images of a part that are deeper than 8 bits; None if there are none, or it cannot be told.

    Headers tell which images, spread over the part, are deep; only those are read. Of pixels of them all, low and high
    are the 0.1 % and the 99.9 % percentile. Beside images of 8 bits, whose 0 is black, they are 0 and the largest
    number of the bits in use (4095, 65535). Processes with the same files come to the same.

    Args:
        source: The images.
        index: Those of the part, (N,) int64.
        say: Log what was found.
    """
    looked_at: list[np.ndarray | None] = []
    for number in spread(index, IMAGES):
        with suppress(BrokenImage):  # of which their check will tell
            looked_at.append(_pixels(source, number))
    pooled = [pixels for pixels in looked_at if pixels is not None]
    value = np.concatenate(pooled or [np.empty(0)]).astype(np.float64)
    value = value[np.isfinite(value)]
    if not len(value):
        return None
    if len(pooled) == len(looked_at):
        which, why = "images", "0.1 % and 99.9 % of the training pixels"
        low, high = (float(f"{level:.6g}") for level in np.quantile(value, SHARES))
        high = high if high > low else low + 1
    elif value.min() < 0 or (value % 1).any():
        return None
    else:
        bits = max(8, int(value.max()).bit_length())
        which, why = f"{len(pooled)} of {len(looked_at)} training images looked at", f"the {bits} bits in use"
        low, high = 0.0, float(2**bits - 1)
    if say:
        values = f"values {low:,.6g} to {high:,.6g} ({why}) become 0 to 255"
        log.info(f"{which} are deeper than 8 bits: {values}; --data.value_range sets this")
    return low, high


def _pixels(source: Source, number: int) -> np.ndarray | None:
    """Some pixels of an image, always the same; None if it has 8 bits."""
    values = source.deep_values(number)
    if values is None or values.size <= PIXELS:
        return values if values is None else values.ravel()
    return values.ravel()[np.random.default_rng(0).integers(values.size, size=PIXELS)]
