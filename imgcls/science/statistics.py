"""Is one group of runs better than another? Plain functions of scores and of what was predicted right.

Shapes: S runs of a group that differ in the seed alone, M test images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # loads its parts when they are used: help must not wait for them

LEVEL = 0.95
FEWEST_PAIRS, SURE = 4, 1.2816  # seeds that tell a correlation; standard errors of a one-sided 90 % interval


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval; low and high are nan where the data cannot give one."""

    value: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        """`0.912 [0.903, 0.921]` with the numbers in a form such as `.3f`; no interval where there is none."""
        value, low, high = ("–" if math.isnan(v) else format(v, form) for v in (self.value, self.low, self.high))
        return value if math.isnan(self.low) else f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Design:
    """What a comparison was made from, and the parts of the difference's variance that more of it would lessen.

    Attributes:
        runs: S and S', or the number of splits that both share.
        images: M, of one shared test set or over all splits; 0 where scores alone were compared.
        of_seeds: Falls with the runs.
        of_images: Falls with the images.
        of_both: Falls with either.
    """

    runs: tuple[int, ...]
    images: int
    of_seeds: float
    of_images: float
    of_both: float

    @property
    def variance(self) -> float:
        """Of the difference."""
        return self.of_seeds + self.of_images + self.of_both


@dataclass(frozen=True)
class Comparison:
    """A difference, with the probability of one as large if there were none.

    Attributes:
        difference: Group minus baseline.
        p_value: Two-sided; nan where no test is possible.
        method: What was tested, in words.
        of_seeds: Whether seeds are part of the uncertainty, so that it speaks of methods and not of two models.
        design: None where it does not speak of methods.
    """

    difference: Estimate
    p_value: float
    method: str
    of_seeds: bool
    design: Design | None = None


def mean_over_seeds(scores: Sequence[float]) -> Estimate:
    """Mean of S scores with Student's interval; no interval for a single one."""
    mean = float(np.mean(scores))
    if len(scores) < 2:
        return Estimate(mean, math.nan, math.nan)
    return interval(mean, _mean_variance(scores), len(scores) - 1)


def interval(value: float, variance: float, freedom: float) -> Estimate:
    """Student's interval about a value of a variance that is known by so many degrees of freedom."""
    half = _student_quantile(freedom) * math.sqrt(variance)
    return Estimate(value, value - half, value + half)


def _student_quantile(freedom: float) -> float:
    """By how many standard errors an interval reaches to each side."""
    return float(scipy.special.stdtrit(freedom, (1 + LEVEL) / 2))  # scipy.stats, which calls it too, loads for a second


def normal_quantile() -> float:
    """By how many standard deviations an interval reaches to each side, of a variance that is known."""
    return float(scipy.special.ndtri((1 + LEVEL) / 2))


def satterthwaite(total: float, *parts: tuple[float, float]) -> float:
    """Degrees of freedom of a total variance, from those of its parts (Satterthwaite, Biometrics 1946).

    Args:
        total: The variance.
        parts: The variance of each part, as it was measured, and its degrees of freedom.
    """
    denominator = sum(variance**2 / freedom for variance, freedom in parts)
    return total**2 / denominator if denominator else math.inf


def compare_scores(
    group: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray, paired: bool = False
) -> Comparison:
    """Welch's t-test and interval of the means of two groups of scores; `paired` as in `compare_runs`."""
    difference = float(np.mean(group) - np.mean(baseline))
    if min(len(group), len(baseline)) < 2:
        return Comparison(Estimate(difference, math.nan, math.nan), math.nan, "one seed: no test", False)
    variance, freedom = _seed_variance(group, baseline)
    if paired:
        variance, freedom = _of_same_seeds(group, baseline, variance, freedom)
    design = Design((len(group), len(baseline)), 0, variance, 0.0, 0.0)
    return student(difference, freedom, "Welch's t-test over seeds", design)


def compare_pairs(group: Sequence[float], baseline: Sequence[float]) -> Comparison:
    """Paired t-test of two scores of the same S runs."""
    differences = [a - b for a, b in zip(group, baseline, strict=True)]
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return Comparison(Estimate(mean, math.nan, math.nan), math.nan, "one seed: no test", False)
    design = Design((len(differences),), 0, _mean_variance(differences), 0.0, 0.0)
    return student(mean, len(differences) - 1, "paired t-test over seeds", design)


def compare_images(group: np.ndarray, baseline: np.ndarray, paired: bool = False) -> Comparison:
    """Difference of accuracies on one shared test set.

    With one run in each group: McNemar's exact test on the images that one of the two gets right (McNemar,
    Psychometrika 1947; the binomial form). It speaks of these two trained models only. With more: `compare_runs`.

    Args:
        group: (S, M) bool, whether each run predicts each image right.
        baseline: (S', M) bool, likewise.
        paired: As in `compare_runs`.
    """
    images = group.shape[1]
    if len(group) == len(baseline) == 1:
        of_image = group[0].astype(float) - baseline[0]
        gains, losses = int((of_image > 0).sum()), int((of_image < 0).sum())
        p_value = scipy.stats.binomtest(gains, gains + losses).pvalue if gains + losses else 1.0
        difference, half = float(of_image.mean()), normal_quantile() * math.sqrt(_mean_variance(of_image))
        interval = Estimate(difference, difference - half, difference + half)
        return Comparison(interval, float(p_value), "McNemar's exact test, one model of each", False)
    covariance = np.cov(np.concatenate([group, baseline])) / images
    return compare_runs(group.mean(1), baseline.mean(1), covariance, images, paired)


def compare_runs(
    group: np.ndarray, baseline: np.ndarray, covariance: np.ndarray, images: int, paired: bool = False
) -> Comparison:
    """Difference of mean scores on one shared test set, of which not both groups have one run only.

    Runs and images are the two ways of a layout with random effects, and both sources of chance count: the choice of
    the test images, by what it does to the difference of the means, and that of the seeds, by the variance of the runs'
    scores. What images and seeds do together is in both; the residual of the layout (Searle, Casella and McCulloch,
    Variance Components, 1992, chapter 4) is taken off once, and what it leaves of the seeds is at least zero. Degrees
    of freedom follow Satterthwaite, as if nothing had been taken off; those of the seeds are S + S' - 2 in groups of
    one size with variances within a factor of ten, else Welch's.

    Args:
        group: Score of each run, (S,).
        baseline: Likewise, (S',).
        covariance: Of these S + S' scores over the choice of the images, the runs being what they are.
        images: M.
        paired: The runs of both have the same seeds, in this order: initial weights and the order of the images may be
            shared, and what they do to both cancels in the difference, see `_of_same_seeds`.
    """
    share = np.concatenate([np.full(len(group), 1 / len(group)), np.full(len(baseline), -1 / len(baseline))])
    image_variance = float(share @ covariance @ share)
    ours, theirs = slice(len(group)), slice(len(group), None)
    several = [(scores, covariance[of, of]) for scores, of in ((group, ours), (baseline, theirs)) if len(scores) > 1]
    if len(several) == 1:
        # the one seed says nothing of its spread: take that of the other group for both
        scores = several[0][0]
        scale = len(scores) * (1 / len(group) + 1 / len(baseline))
        variance, freedom = scale * _mean_variance(scores), float(len(scores) - 1)
    else:
        scale = 1.0
        variance, freedom = _seed_variance(group, baseline)
        low, high = sorted(map(_mean_variance, (group, baseline)))
        if len(group) == len(baseline) and high <= 10 * low:
            freedom = 2.0 * len(group) - 2
    residual = scale * sum(_residual_variance(of_group) for _, of_group in several)
    if paired and len(several) == 2:
        variance, freedom = _of_same_seeds(group, baseline, variance, freedom)
        common = covariance[ours, theirs]
        of_pairs = covariance[ours, ours] + covariance[theirs, theirs] - common - common.T
        residual = min(residual, _residual_variance(of_pairs))
    seed_variance = max(0.0, variance - residual)
    total = seed_variance + image_variance
    freedom = satterthwaite(total, (variance, freedom), (image_variance, images - 1))
    of_images = max(0.0, image_variance - residual)
    design = Design((len(group), len(baseline)), images, seed_variance, of_images, image_variance - of_images)
    return student(float(group.mean() - baseline.mean()), freedom, "t-test over seeds and test images", design)


def _mean_variance(scores: Sequence[float] | np.ndarray) -> float:
    return float(np.var(scores, ddof=1)) / len(scores)


def _residual_variance(covariance: np.ndarray) -> float:
    """What runs and images do together, as its part of the variance of the mean of S scores (S, S)."""
    count = len(covariance)
    return float(np.trace(covariance) - covariance.sum() / count) / (count * (count - 1))


def _seed_variance(group: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Variance of the difference of two means, and Welch's degrees of freedom."""
    parts = [(_mean_variance(g), len(g) - 1) for g in (group, baseline)]
    total = sum(v for v, _ in parts)
    return total, satterthwaite(total, *parts) if total else float(sum(f for _, f in parts))


def _of_same_seeds(
    group: Sequence[float] | np.ndarray, baseline: Sequence[float] | np.ndarray, variance: float, freedom: float
) -> tuple[float, float]:
    """The variance less what runs of the same seed have in common, and its degrees of freedom.

    A paired test would have half of these, and lose where seeds share nothing. So only the correlation r that is sure
    is taken off: the lower end of its one-sided 90 % interval (Fisher, Metron 1921), at least 0; degrees of freedom
    fall by 1 + r², to half of them at r = 1. `python tests/simulate_tests.py seeds --repeats 4000`, normal scores of 5
    to 12 seeds: false alarms are at most 0.5 points more than without where seeds share nothing, and below 5 % from
    r = 0.3 on; at r = 0.9 intervals of five seeds are 0.63 times as wide.
    """
    count, pair = len(group), np.stack([group, baseline])
    if count < FEWEST_PAIRS or not pair.std(1).all():
        return variance, freedom
    correlation = min(float(np.corrcoef(pair)[0, 1]), 1 - 1e-9)
    sure = math.tanh(math.atanh(max(correlation, -1 + 1e-9)) - SURE / math.sqrt(count - 3))
    if sure <= 0:
        return variance, freedom
    common = 2 * sure * math.sqrt(_mean_variance(group) * _mean_variance(baseline))
    return max(0.0, variance - common), freedom / (1 + sure**2)


def student(difference: float, freedom: float, method: str, design: Design) -> Comparison:
    """Two-sided t-test of a difference."""
    error = math.sqrt(design.variance)
    p_value = float(2 * scipy.special.stdtr(freedom, -abs(difference) / error)) if error else float(difference == 0)
    return Comparison(interval(difference, design.variance, freedom), p_value, method, True, design)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: all below 0.05 may be believed together (Holm, Scand. J. Statistics 1979); nan stays."""
    tested = [k for k, p in enumerate(p_values) if not math.isnan(p)]
    adjusted, largest = list(p_values), 0.0
    for rank, k in enumerate(sorted(tested, key=lambda k: p_values[k])):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[k]))
        adjusted[k] = largest
    return adjusted


def p_value_text(value: float, digits: int) -> str:
    """A p-value with so many decimals, `<0.001` below the least of them, a dash for nan."""
    least = 10**-digits
    return "–" if math.isnan(value) else f"<{least:.{digits}f}" if value < least else f"{value:.{digits}f}"


def verdict(comparison: Comparison, adjusted_p: float, higher_is_better: bool = True) -> str:
    """`better`, `worse` or `cannot tell`, and what it speaks of."""
    if math.isnan(adjusted_p):
        return "cannot tell (one seed)"
    if adjusted_p >= 1 - LEVEL:
        return "cannot tell"
    word = "better" if (comparison.difference.value > 0) == higher_is_better else "worse"
    return word if comparison.of_seeds else f"{word} (these two models; more seeds for the methods)"
