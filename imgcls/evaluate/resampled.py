"""Metrics as functions of how often each image counts, so that images can be resampled many at a time.

Shapes: M images, K labels, B resamples. Each function here takes predictions and gives a function of weights (M, B),
how often each image is in each resample, integers, whose values (B,) are the metric; nan where a resample has none.
"""

from collections.abc import Callable

import numpy as np

MetricOf = Callable[[np.ndarray], np.ndarray]


def mean(value: np.ndarray) -> MetricOf:
    """Mean of what each image is worth (M,): accuracy, absolute error, share of wrong labels."""
    return lambda weights: _ratio(value.astype(np.float64) @ weights, weights.sum(0))


def mean_average_precision(logits: np.ndarray, label: np.ndarray) -> MetricOf:
    """Mean over the labels that have a positive image of the average precision, not interpolated.

    AP = Σ (R_n - R_(n-1)) P_n over the thresholds n, equal logits being one threshold.

    Args:
        logits: (M, K).
        label: (M, K), 1 where an image has the label, else 0.
    """
    of_labels = [_average_precision(*columns) for columns in zip(logits.T, label.T.astype(bool), strict=True)]

    def metric_of(weights: np.ndarray) -> np.ndarray:
        found = np.stack([of_label(weights) for of_label in of_labels])
        there = ~np.isnan(found)
        return _ratio(np.where(there, found, 0).sum(0), there.sum(0))

    return metric_of


def quadratic_weighted_kappa(prediction: np.ndarray, label: np.ndarray) -> MetricOf:
    """Agreement of ordered classes beyond chance: 1 less observed over expected squared distance (Cohen 1968).

    The distances' sums need no table of classes: expected is Σp² + Σy² - 2 ΣpΣy / M.

    Args:
        prediction: (M,) int64.
        label: (M,) int64.
    """
    p, y = (classes.astype(np.float64) for classes in (prediction, label))
    moments = np.stack([(p - y) ** 2, p**2 + y**2, p, y, np.ones(len(y))])

    def metric_of(weights: np.ndarray) -> np.ndarray:
        observed, squares, of_p, of_y, count = moments @ weights
        return 1 - _ratio(observed, squares - 2 * of_p * of_y / np.maximum(count, 1))

    return metric_of


def _average_precision(score: np.ndarray, positive: np.ndarray) -> MetricOf:
    """Of one label, (M,) each. Precision is asked for only at the thresholds that a positive image has."""
    order = np.argsort(-score, kind="stable")
    positive, score = positive[order], score[order]
    threshold = np.cumsum(np.r_[0, score[1:] != score[:-1]])  # number of each image's own
    last = np.searchsorted(threshold, np.unique(threshold[positive]), "right")
    decided, positives = order[: last[-1] if len(last) else 0], order[positive]
    decided_from, positives_from = np.r_[0, last[:-1]], np.unique(threshold[positive], return_index=True)[1]

    def metric_of(weights: np.ndarray) -> np.ndarray:
        if not len(last):
            return np.full(weights.shape[1], np.nan)
        images = np.cumsum(np.add.reduceat(weights[decided], decided_from, dtype=np.int64), axis=0)
        added = np.add.reduceat(weights[positives], positives_from, dtype=np.int64)
        true = np.cumsum(added, axis=0)
        return _ratio((added * (true / np.maximum(images, 1))).sum(0), true[-1])

    return metric_of


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)
