"""How the error falls with the number of training images, and what more of them would bring."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from imgcls.errors import UserError
from imgcls.runs.run import Run
from imgcls.science.groups import SPLIT, Group
from imgcls.science.statistics import LEVEL, Estimate

LEAST = 4  # sizes: through three the law's three parameters always go
STEEPEST, RATES, FLOORS, QUANTILES = 1.5, 75, 50, 20


@dataclass(frozen=True, eq=False)
class PowerLaw:
    """error(n) = scale · n^-exponent + floor, G laws by Q levels of it, each with its probability.

    Attributes:
        exponent: How fast the error falls, (G, 1).
        share: Share of the floor, which no number of images removes, in the error at the centre, (G, 1).
        level: Logarithm of the error at the centre, (G, Q).
        probability: Of each, (G, Q).
        centre: Logarithm of the sizes' geometric mean, where the level hardly depends on the exponent.
    """

    exponent: np.ndarray
    share: np.ndarray
    level: np.ndarray
    probability: np.ndarray
    centre: float

    def accuracy(self, images: float) -> Estimate:
        """Accuracy at a number of images: median, and 95 % interval of what is expected there."""
        return self._estimate(
            1 - np.exp(self.level + _falling(np.log(images) - self.centre, self.exponent, self.share))
        )

    def images(self, accuracy: float) -> Estimate:
        """Number of images that reaches an accuracy, likewise; infinite where no number does."""
        left = ((1 - accuracy) / np.exp(self.level) - self.share) / (1 - self.share)
        with np.errstate(divide="ignore", over="ignore"):
            return self._estimate(np.exp(self.centre) * np.maximum(left, 0.0) ** (-1 / self.exponent))

    @property
    def floor(self) -> Estimate:
        """Error that no number of images removes."""
        return self._estimate(self.share * np.exp(self.level))

    @property
    def rate(self) -> Estimate:
        """The exponent."""
        return self._estimate(np.broadcast_to(self.exponent, self.level.shape))

    def _estimate(self, value: np.ndarray) -> Estimate:
        order = np.argsort(value, axis=None)
        reached = np.cumsum(self.probability.ravel()[order])
        low, middle, high = np.searchsorted(reached, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
        of = value.ravel()[order]
        return Estimate(float(of[middle]), float(of[low]), float(of[high]))


def fit_power_law(images: Sequence[float], scores: Sequence[Sequence[float]], least: float = 1e-3) -> PowerLaw | None:
    """What the scores say of the power law (Hestness et al., Deep Learning Scaling is Predictable, 2017, equation 1).

    With few sizes several laws fit, with a floor and without, and they part where nobody looked: one law that fits best
    promises too much (Mahmood et al., How Much More Data Do I Need?, CVPR 2022). So all are kept, by Bayes' rule:
    exponents up to 1.5 and shares of the floor come alike; the error's logarithm, by which small errors count as much
    as large ones, has normal residuals. Their deviation and the level are integrated out, which leaves each law the
    probability `(sum of squares)^-((N - 1) / 2)` and its level Student's distribution with N - 1 degrees of freedom.
    Held against models trained on four times the images, five kinds with 40 repeats each, the intervals were right for
    37 to 40 of 40, and 0.04 to 0.05 wide (`python tests/measure_extrapolation.py`).

    Args:
        images: Number of training images of each size, (S,).
        scores: Accuracies of the runs of each size, N in all.
        least: Error that stands for none: half a test image, which has no logarithm else.

    Returns:
        The laws; None with fewer than four sizes.
    """
    if len(set(images)) < LEAST:
        return None
    n = np.log(np.concatenate([np.full(len(s), float(x)) for x, s in zip(images, scores, strict=True)]))
    log_error = np.log(np.maximum(1 - np.concatenate([np.asarray(s, float) for s in scores]), least))
    grid = np.meshgrid(np.linspace(0.02, STEEPEST, RATES), np.linspace(0, 0.98, FLOORS))
    exponent, share = (axis.ravel()[:, None] for axis in grid)
    residual = log_error - _falling(n - n.mean(), exponent, share)
    level, freedom = residual.mean(1, keepdims=True), len(n) - 1
    squares = np.maximum(((residual - level) ** 2).sum(1, keepdims=True), 1e-12)
    probability = (squares / squares.min()) ** (-freedom / 2)
    quantile = scipy.special.stdtrit(freedom, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    levels = level + np.sqrt(squares / (freedom * len(n))) * quantile
    weight = np.broadcast_to(probability / (QUANTILES * probability.sum()), levels.shape)
    return PowerLaw(exponent, share, levels, weight, float(n.mean()))


def _falling(distance: np.ndarray | float, exponent: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Logarithm of the error, less that at the centre, at a distance from there in logarithms of images."""
    return np.log((1 - share) * np.exp(-exponent * distance) + share)


def training_images(group: Group) -> float:
    """Training images of a group's runs, by their own records: the mean, as folds differ by one.

    Raises:
        UserError: A run does not say how many it had.
    """
    counts = [run.environment.get("data", {}).get("images", {}).get("train") for run in group.runs]
    if None in counts:
        raise UserError(
            f"{group.runs[counts.index(None)].folder.environment}: does not say how many images were trained on"
        )
    return float(np.mean(counts))


def scores_of(group: Group, metric: str) -> tuple[list[float], int]:
    """A score for each seed and split, the mean over its folds, and how many images each was tested on at most."""
    of_split: dict[tuple[Any, Any], list[Run]] = {}
    for run in group.runs:
        if run.metrics.get(metric) is not None:
            of_split.setdefault((run.seed, run.settings.get(SPLIT)), []).append(run)
    tested = [sum(len(test.predictions.label) for run in runs if (test := run.tested())) for runs in of_split.values()]
    return [float(np.mean([run.metrics[metric] for run in runs])) for runs in of_split.values()], max(tested, default=0)


def law_of(line: Sequence[tuple[float, Group]], metric: str) -> PowerLaw | None:
    """The law of an arm that was run at several numbers of images."""
    found = [scores_of(group, metric) for _, group in line]
    tested = max((images for _, images in found), default=0)
    return fit_power_law([x for x, _ in line], [scores for scores, _ in found], 0.5 / max(tested, 50))
