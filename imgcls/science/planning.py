"""What a comparison could have found, and what it would take to tell the difference that was seen."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import scipy

from imgcls.science.statistics import LEVEL, Comparison, Design, satterthwaite

POWER = 0.8
FEWEST = 5  # runs of each group, or splits, whose spread says when to stop
MOST = 1000  # times as many runs or images: beyond it nobody would go


@dataclass(frozen=True)
class Outlook:
    """What more runs or test images would bring, at a power of 80 % and a level of 5 % of one test.

    Attributes:
        detectable: Difference that this design finds four times in five.
        seeds: Seeds in the smaller group, the other in proportion, or splits, that would find the difference seen as
            often, were it the true one; None where no number would.
        images: Images to test on that would; None where no number would, or scores alone were compared.
        splits: Whether splits were compared.
    """

    detectable: float
    seeds: int | None
    images: int | None
    splits: bool = False

    @property
    def words(self) -> str:
        """As one clause for each."""
        runs, images = ("splits", "images") if self.splits else ("seeds", "test images")
        ways = [
            f"{self.seeds} {runs}{'' if self.splits else ' each'}" if self.seeds else "",
            f"{self.images:,} {images}" if self.images else "",
        ]
        more = " or ".join(filter(None, ways))
        seen = f"the one seen would take about {more}" if more else f"no number of {runs} or {images} alone would tell"
        return f"a true difference of {self.detectable:.4f} would be found four times in five; {seen}"


def outlook(comparison: Comparison) -> Outlook | None:
    """What would tell; None where seeds are no part of the comparison, or nothing varied."""
    design, difference = comparison.design, abs(comparison.difference.value)
    if design is None or comparison.difference.low == comparison.difference.high:
        return None
    by_seeds = _least(lambda k: detectable(design, runs=k) <= difference)
    by_images = _least(lambda k: detectable(design, images=k) <= difference) if design.images else None
    return Outlook(
        detectable(design),
        math.ceil(by_seeds * min(design.runs)) if by_seeds else None,
        math.ceil(by_images * design.images) if by_images else None,
        len(design.runs) == 1,
    )


def detectable(design: Design, runs: float = 1.0, images: float = 1.0) -> float:
    """The difference that the t-test finds with a power of 80 %, by the non-central t distribution.

    Args:
        design: Parts of the variance.
        runs: How many times as many runs each group has.
        images: How many times as many test images there are.
    """
    seeds, both = design.of_seeds / runs, design.of_both / (runs * images)
    total = seeds + design.of_images / images + both
    freedom = max(1.0, sum(design.runs) * runs - len(design.runs))
    if design.images:
        freedom = satterthwaite(total, (seeds + both, freedom), (total - seeds, design.images * images - 1))
    limit = scipy.special.stdtrit(freedom, (1 + LEVEL) / 2)
    return math.sqrt(total) * float(scipy.special.nctdtrinc(freedom, 1 - POWER, limit))


def narrow_enough(comparison: Comparison, width: float) -> bool:
    """Whether the 95 % interval of the difference is at most so wide, so that no more runs need be added.

    To stop by width leaves an interval nearly what it is, as the width knows nothing of the difference (Chow and
    Robbins, Annals of Mathematical Statistics 1965), but few runs that happen to be alike would stop too soon: five are
    the least. Planted runs missed the truth in 3 to 7 % then: `python tests/simulate_tests.py until --repeats 1000`.
    """
    design, difference = comparison.design, comparison.difference
    return design is not None and min(design.runs) >= FEWEST and difference.high - difference.low <= width


def _least(enough: Callable[[float], bool]) -> float | None:
    """The least factor from 1 to MOST that is enough, to a hundredth of itself; None if none is."""
    low, high = 1.0, float(MOST)
    if not enough(high):
        return None
    while high > 1.01 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
