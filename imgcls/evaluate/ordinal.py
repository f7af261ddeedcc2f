"""How far predictions are from the class where classes have an order, such as grades.

Shapes: N > 0 images, K classes, R resamples. Labels and predictions are (N,) int64, places in the order, 0 to K - 1.
"""

from collections.abc import Iterable

import numpy as np

from imgcls.evaluate.accuracy import RESAMPLES, interval, percentiles
from imgcls.evaluate.confusion import confusion_matrix

ENDS = "low", "high"


def mean_absolute_error(prediction: np.ndarray, label: np.ndarray) -> float:
    """Mean over images of how many places the prediction is from the class."""
    return float(np.abs(prediction - label).mean())


def within_one(prediction: np.ndarray, label: np.ndarray) -> float:
    """Share of images whose prediction is the class or next to it."""
    return float((np.abs(prediction - label) <= 1).mean())


def quadratic_weighted_kappa(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> float:
    """One minus the squared distances over those that chance agreement has (Cohen, Psychological Bulletin 1968).

    1 is all right, 0 no better than chance. nan where all labels and predictions are one class: chance has none either.
    """
    return float(_kappa(confusion_matrix(label, prediction, num_classes)[None])[0])


def ordinal_scores(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> dict[str, float]:
    """mae, qwk and within_one of the functions above, and the 95 % interval of each as `…_low` and `…_high`.

    Of within_one it is Wilson's, of the others that of percentiles of 1,000 resamples of the images, from a fixed seed.
    """
    cells = confusion_matrix(label, prediction, num_classes)
    # images drawn with replacement fall into the cells by a multinomial distribution
    drawn = np.random.default_rng(0).multinomial(len(label), cells.ravel() / len(label), RESAMPLES)
    drawn = drawn.reshape(-1, num_classes, num_classes)
    distance = _distance(num_classes)
    intervals: dict[str, Iterable[float]] = {
        "mae": percentiles((drawn * distance).sum((1, 2)) / len(label)),
        "qwk": percentiles(_kappa(drawn)),
        "within_one": interval(int(cells[distance <= 1].sum()), len(label)),
    }
    return {
        "mae": mean_absolute_error(prediction, label),
        "qwk": quadratic_weighted_kappa(prediction, label, num_classes),
        "within_one": within_one(prediction, label),
        **{f"{name}_{end}": float(v) for name, of in intervals.items() for end, v in zip(ENDS, of, strict=True)},
    }


def _distance(num_classes: int) -> np.ndarray:
    """Places between each two classes, (K, K)."""
    return np.abs(np.subtract.outer(np.arange(num_classes), np.arange(num_classes)))


def _kappa(cells: np.ndarray) -> np.ndarray:
    """Quadratic weighted kappa (R,) of confusion matrices (R, K, K)."""
    weight = np.square(_distance(cells.shape[-1])).astype(np.float64)
    observed = (cells * weight).sum((1, 2))
    by_chance = np.einsum("ri,ij,rj->r", cells.sum(2), weight, cells.sum(1), optimize=True) / cells.sum((1, 2))
    return 1 - observed / np.where(by_chance > 0, by_chance, np.nan)
