"""How far predictions are from the class where classes have an order, such as grades.

Shapes: N > 0 images, K classes. Labels and predictions are (N,) int64, places in the order, 0 to K - 1.
"""

import numpy as np

from imgcls.evaluate.accuracy import interval
from imgcls.evaluate.confusion import confusion_matrix
from imgcls.evaluate.resampled import RESAMPLES, MetricOf, mean, percentiles, quadratic_weighted_kappa


def ordinal_metrics(prediction: np.ndarray, label: np.ndarray) -> dict[str, MetricOf]:
    """mae, the mean number of places between prediction and class; qwk; within_one, the share of at most one place."""
    distance = np.abs(prediction - label)
    return {
        "mae": mean(distance),
        "qwk": quadratic_weighted_kappa(prediction, label),
        "within_one": mean(distance <= 1),
    }


def ordinal_scores(prediction: np.ndarray, label: np.ndarray, num_classes: int) -> dict[str, float]:
    """The metrics above, and the 95 % interval of each as `…_low` and `…_high`.

    Of within_one it is Wilson's, of the others that of percentiles of 1,000 resamples of the images, from a fixed seed.
    """
    images, cells = len(label), confusion_matrix(label, prediction, num_classes).ravel()
    metrics = ordinal_metrics(*np.divmod(np.arange(num_classes**2), num_classes)[::-1])
    # images drawn with replacement fall into the cells by a multinomial distribution
    drawn = np.random.default_rng(0).multinomial(images, cells / images, RESAMPLES).T
    found = {name: float(metric_of(cells[:, None])[0]) for name, metric_of in metrics.items()}
    ends = {name: percentiles(metrics[name](drawn)) for name in ("mae", "qwk")}
    ends["within_one"] = np.array(interval(round(found["within_one"] * images), images))
    return found | {f"{name}_{end}": float(of[k]) for name, of in ends.items() for k, end in enumerate(("low", "high"))}
