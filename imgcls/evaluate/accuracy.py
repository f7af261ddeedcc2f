"""How often a model is right: over all images, for each class, and for groups of images.

Shapes: N images, K classes. A class without an image has no recall, and so no precision, F1 and AUROC here: nan.
"""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import binomtest

LEVEL = 0.95
RESAMPLES = 1000
IMBALANCED = 10  # largest over smallest class from which on classes are told apart by their size


def interval(right: int, images: int) -> tuple[float, float]:
    """95 % interval of the share `right / images` (Wilson, Journal of the American Statistical Association 1927)."""
    low, high = binomtest(right, images).proportion_ci(LEVEL, method="wilson")
    return float(low), float(high)


def percentiles(values: np.ndarray) -> np.ndarray:
    """95 % percentile interval (2, …) of R resamples (R, …), Efron and Tibshirani, Bootstrap, 1993, chapter 13.

    Resamples without a value, nan, are left out; nan where none has one.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "All-NaN slice")
        return np.nanpercentile(values, (50 - 50 * LEVEL, 50 + 50 * LEVEL), axis=0)


def top_k(logits: np.ndarray, label: np.ndarray, k: int) -> float:
    """Share of images (N, K) whose class (N,) is among the k largest logits; of equal ones the first is larger."""
    own, number = logits[np.arange(len(label)), label, None], np.arange(logits.shape[1])
    before = (logits > own) | ((logits == own) & (number < label[:, None]))
    return float((before.sum(1) < k).mean())


def by_class(probability: np.ndarray, label: np.ndarray) -> dict[str, np.ndarray]:
    """Images, precision, recall, F1 and AUROC of each class against the rest, (K,) each.

    Precision is 0 for a class that was never predicted. AUROC is nan if all images are of the class.

    Args:
        probability: (N, K).
        label: (N,) int64.
    """
    prediction, classes = probability.argmax(1), probability.shape[1]
    images, predicted, right = (
        np.bincount(of, minlength=classes) for of in (label, prediction, label[label == prediction])
    )
    return {
        "images": images,
        **from_counts(images, predicted, right),
        "auroc": np.array([auroc(probability[:, k], label == k) for k in range(classes)]),
    }


def from_counts(images: np.ndarray, predicted: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of classes with so many images, predictions, and right ones, of one shape all.

    Precision is 0 for a class that was never predicted; all are nan for one without an image.
    """
    there = np.where(images > 0, 1.0, np.nan)
    return {
        "precision": there * right / np.maximum(predicted, 1),
        "recall": there * right / np.maximum(images, 1),
        "f1": there * 2 * right / np.maximum(images + predicted, 1),
    }


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive image scores higher than a negative one, ties counting half; nan without one of each.

    Args:
        score: (N,).
        positive: (N,) bool.
    """
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if not ones or not zeros:
        return float("nan")
    ordered, own = np.sort(score), score[positive]
    below = np.searchsorted(ordered, own, "left").sum() + np.searchsorted(ordered, own, "right").sum()
    # among themselves positives count ones²/2: what is left is Mann and Whitney's U (Ann. Math. Statistics 1947)
    return float((below - ones**2) / (2 * ones * zeros))


def mean_of(values: np.ndarray) -> float:
    """Mean of the values that are not nan; nan if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def slices(right: np.ndarray, columns: Mapping[str, Sequence[str]], most: int = 50) -> dict[str, list[dict] | None]:
    """Accuracy, with its interval, of the images that share a value of a column.

    Args:
        right: Whether each image was predicted right, (N,) bool.
        columns: N values each, by the column's name.
        most: A column with more distinct values gives None.
    """
    found: dict[str, list[dict] | None] = {}
    for name, column in columns.items():
        values, place = np.unique(np.array(column, dtype=object), return_inverse=True)
        groups = [(value, right[place == k]) for k, value in enumerate(values)] if len(values) <= most else []
        found[name] = [{"value": value, "images": len(of), **accuracy(of)} for value, of in groups] or None
    return found


def shots(right: np.ndarray, label: np.ndarray, class_counts: Sequence[int]) -> list[dict]:
    """Accuracy, with its interval, on classes with many, a medium number of, and few training images.

    A group without a test image is left out.

    Args:
        right: Whether each image was predicted right, (N,) bool.
        label: (N,) int64.
        class_counts: Training images of the K classes.

    Returns:
        A row for each group of `by_size`.
    """
    groups = [(name, int(classes.sum()), right[classes[label]]) for name, classes in by_size(class_counts).items()]
    return [{"shots": name, "classes": k, "images": len(of), **accuracy(of)} for name, k, of in groups if len(of)]


def by_size(class_counts: Sequence[int]) -> dict[str, np.ndarray]:
    """Which classes, (K,) bool, have many, a medium number of, and few training images.

    Groups as in Liu et al., Large-scale long-tailed recognition in an open world, CVPR 2019: above 100, 20 to 100,
    below 20. None where the largest class has less than ten times the images of the smallest.
    """
    count = np.asarray(class_counts)
    if count.max() < IMBALANCED * count.min():
        return {}
    return {"many": count > 100, "medium": (count >= 20) & (count <= 100), "few": count < 20}


def accuracy(right: np.ndarray) -> dict[str, float]:
    """Share of images predicted right, (N,) bool, and its 95 % interval: acc, acc_low, acc_high."""
    low, high = interval(int(right.sum()), len(right))
    return {"acc": float(right.mean()), "acc_low": low, "acc_high": high}
