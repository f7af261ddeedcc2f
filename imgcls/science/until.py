"""More runs until intervals are narrow: how wide they are, what no number of runs would narrow, what it may take."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import scipy

from imgcls.errors import UserError
from imgcls.science.comparison import compare_groups
from imgcls.science.groups import Group
from imgcls.science.planning import narrow_enough
from imgcls.science.question import Question, by_values
from imgcls.science.statistics import LEVEL, Comparison

MOST = 20  # times the runs of the question, where no budget is given
UNITS = {"h": 3600, "m": 60, "s": 1}


@dataclass(frozen=True)
class Interval:
    """The interval of an arm's difference from the baseline.

    Attributes:
        arm: The arm.
        comparison: With the baseline of the same values of the axes.
        floor: Width to which more and more runs would bring it, at the least.
        images: Test images that all runs share; 0 where each split has its own.
    """

    arm: str
    comparison: Comparison
    floor: float
    images: int

    @property
    def width(self) -> float:
        """High minus low; infinite where seeds are no part of it, or there is none."""
        difference = self.comparison.difference
        known = self.comparison.of_seeds and not math.isnan(difference.low)
        return difference.high - difference.low if known else math.inf

    def is_wide(self, width: float) -> bool:
        """Whether it does not speak of methods yet, or is wider."""
        return math.isinf(self.width) or not narrow_enough(self.comparison, width)

    def limit(self, width: float) -> str:
        """Why no number of runs brings it to that width, and what would."""
        more = (self.floor / width) ** 2  # variance falls with the number of images
        reached = f"brings {self.arm} below {self.floor:.4f}"
        if not self.images:
            why = f"no number of repeats {reached}, as all splits are of the same images"
            return f"{why}; {width:g} takes more than {more:.1f} times as many"
        why, needed = f"no number of seeds {reached} with {self.images:,} test images", math.ceil(more * self.images)
        return f"{why}; {width:g} takes more than {needed:,} of them"


def intervals(question: Question, groups: Sequence[Group]) -> list[Interval]:
    """Of the differences of all arms from their baselines.

    To stop once all of them are narrow leaves a 95 % interval nearly what it is, as the width knows nothing of the
    difference (Chow and Robbins, On the asymptotic theory of fixed-width sequential confidence intervals, Annals of
    Mathematical Statistics 1965): simulated, with 2 to 5 seeds to begin with, it held the true one in 92 to 95 % of the
    cases. To stop once a difference is significant would find one where there is none.
    """
    found = []
    for values, alike in by_values(question, groups).items():
        for base in (group for group in alike if group.name == question.baseline):
            for group in alike:
                if group is not base and group.scores(question.metric) and base.scores(question.metric):
                    comparison = compare_groups(group, base, question.metric)
                    images = comparison.design.images if comparison.design else 0
                    floor = _floor(comparison, group, base, question.metric)
                    found.append(Interval("-".join([group.name, *values]), comparison, floor, images))
    return found


def _floor(comparison: Comparison, group: Group, base: Group, metric: str) -> float:
    """Width with runs without number: what the test images leave or, over splits, that training sets overlap.

    Variances are taken at the lower bound of their one-sided 95 % interval: to stop too early is worse than too late.
    """
    design, stays = comparison.design, 0.0
    if design and design.images:
        stays = _least(design.of_images + design.of_both, design.images - 1) - design.of_both
    elif group.over:
        ours, theirs = group.by_split(metric), base.by_split(metric)
        apart = [np.mean(scores) - np.mean(theirs[key]) for key, scores in ours.items() if key in theirs]
        if (freedom := len(apart) - 1) > 0:
            # the interval's variance is (1/J + ratio) s², see compare_splits, of which ratio s² stays
            half = (comparison.difference.high - comparison.difference.low) / 2
            whole = (half / float(scipy.special.stdtrit(freedom, (1 + LEVEL) / 2))) ** 2
            stays = _least(whole - float(np.var(apart, ddof=1)) / len(apart), freedom)
    return 2 * float(scipy.special.ndtri((1 + LEVEL) / 2)) * math.sqrt(max(0.0, stays))


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
