"""More runs until intervals are narrow: how wide they are, what no number of runs would narrow, what it may take."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import scipy

from imgcls.errors import UserError
from imgcls.science.comparison import compare_groups
from imgcls.science.groups import Group
from imgcls.science.planning import narrow_enough
from imgcls.science.question import Question, by_values
from imgcls.science.statistics import LEVEL, Comparison, normal_quantile

MOST = 20  # times the runs of the question, where no budget is given
UNITS = {"h": 3600, "m": 60, "s": 1}


@dataclass(frozen=True)
class Interval:
    """The interval of an arm's difference from the baseline of the same values of the axes."""

    arm: str
    comparison: Comparison

    @property
    def width(self) -> float:
        """High minus low; infinite where seeds are no part of it, or there is none."""
        difference = self.comparison.difference
        known = self.comparison.of_seeds and not math.isnan(difference.low)
        return difference.high - difference.low if known else math.inf

    def is_wide(self, width: float) -> bool:
        """Whether more runs are needed, were it to be so wide."""
        return not narrow_enough(self.comparison, width)

    @property
    def floor(self) -> float:
        """Width with runs without number: what the images leave and, over splits, that training sets overlap.

        Variances are taken at the lower bound of their one-sided 95 % interval: to stop too early is worse than too
        late.
        """
        design = self.comparison.design
        if design is None:
            return 0.0
        stays = _least(design.of_images + design.of_both, (design.images or design.runs[0]) - 1) - design.of_both
        return 2 * normal_quantile() * math.sqrt(max(0.0, stays))

    def limit(self, width: float) -> str:
        """Why no number of runs brings it to that width, and what would."""
        design, more = self.comparison.design, (self.floor / width) ** 2  # variance falls with the number of images
        reached = f"brings {self.arm} below {self.floor:.4f}"
        if design is None or len(design.runs) == 1:
            why = f"no number of repeats {reached}, as all splits are of the same images"
            return f"{why}; {width:g} takes more than {more:.1f} times as many"
        why = f"no number of seeds {reached} with {design.images:,} test images"
        return f"{why}; {width:g} takes more than {math.ceil(more * design.images):,} of them"


def intervals(question: Question, groups: Sequence[Group]) -> list[Interval]:
    """Of the differences of all arms from their baselines.

    To stop once all of them are narrow, see `narrow_enough`, leaves a 95 % interval nearly what it is, and to stop once
    a difference is significant would find one where there is none.
    """
    found = []
    for values, alike in by_values(question, groups).items():
        for base in (group for group in alike if group.name == question.baseline):
            for group in alike:
                if group is not base and group.scores(question.metric) and base.scores(question.metric):
                    comparison = compare_groups(group, base, question.metric)
                    found.append(Interval("-".join([group.name, *values]), comparison))
    return found


def _least(variance: float, freedom: int) -> float:
    return variance * freedom / float(scipy.special.chdtri(freedom, 1 - LEVEL))


@dataclass(frozen=True)
class Budget:
    """What `--until` may take, in seconds since the command began, or in runs that it makes."""

    seconds: float = math.inf
    runs: float = math.inf

    def refusal(self, seconds: float, made: int, following: int, takes: float) -> str:
        """Why the next round is not begun; empty if it may be.

        Args:
            seconds: Since the command began.
            made: Runs made since.
            following: Runs of the next round.
            takes: Seconds that the next round takes, by the last one.
        """
        if made + following > self.runs:
            return f"the budget of {self.runs:g} runs: {made} were made, and the next round is {following}"
        if seconds + takes > self.seconds:
            spent, about = (timedelta(seconds=round(some)) for some in (seconds, takes))
            total = timedelta(seconds=self.seconds)
            return f"the budget of {total}: {spent} is over, and the next round would take about {about}"
        return ""


def read_budget(text: str) -> Budget:
    """`2h`, `30m` or `90s`, or `40` runs.

    Raises:
        UserError: It is none of these.
    """
    found = re.fullmatch(r"(\d+)(?:(\.\d+)?([hms]))?", text)
    if not found or not float(found[1] + (found[2] or "")):
        raise UserError(f"--budget {text}: give a time or a number of runs, such as 2h, 30m, 90s or 40")
    amount = float(found[1] + (found[2] or ""))
    return Budget(seconds=amount * UNITS[found[3]]) if found[3] else Budget(runs=amount)
