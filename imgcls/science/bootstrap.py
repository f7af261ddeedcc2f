"""Comparisons by metrics that are no mean over images, such as mean average precision: the images are resampled.

Shapes: S runs of a group that differ in the seed alone, M test images, B resamples, J splits.
"""

from collections.abc import Callable, Sequence

import numpy as np

from imgcls.science.resampling import ChanceOfImages
from imgcls.science.statistics import LEVEL, Comparison, Estimate, compare_runs, compare_scores

# of weights (M, B), how often each image is in each resample, int16, to values (B,); nan where a resample has none
MetricOf = Callable[[np.ndarray], np.ndarray]
RESAMPLES = 1000
AT_ONCE, WEIGHTS_AT_ONCE = 128, 2**23  # resamples, as fast as any; weights, 64 MB


def compare_resampled(
    group: Sequence[MetricOf], baseline: Sequence[MetricOf], images: int, paired: bool = False
) -> Comparison:
    """Difference of the mean over runs of any metric of one shared test set, by a paired bootstrap over its images.

    Every run is evaluated on the same 1,000 resamples of the M images, drawn with replacement (Efron and Tibshirani, An
    Introduction to the Bootstrap, 1993). How its values vary and covary with those of the others is what the choice of
    the images does to the runs; with the spread of the scores over seeds it is put together as for accuracies, by
    `compare_runs`: the part that images and seeds do together, which the resamples tell as what runs of a group do not
    share, is taken off once. Of accuracies this is `compare_images`, but for the chance of the resampling.

    One run in each group: the interval is from the 2.5 % to the 97.5 % point of the differences on the resamples, and
    the p-value twice the share of the resamples that do not have the difference's sign, by (k + 1) / (B + 1), so that
    it is never 0. It speaks of these two trained models only.

    `python tests/simulate_tests.py map --repeats 200`, mean average precision of five labels, the rarest on 5 % of 100
    or 500 images: with one, three and five seeds intervals miss the true difference in 4.0 to 7.5 % (median 6.5): few
    positive images do not tell their variance well. With three and five seeds those of scores alone miss it in 4.0 to
    29.5 % (median 10.8), and the former are 0.90 to 1.63 times as wide.

    Resamples in which the metric of a run is undefined are left out; where fewer than half are left, or there is one
    image, scores alone are compared.

    Args:
        group: The metric of each of S runs.
        baseline: Of each of S' runs, likewise, for the same images in the same order.
        images: M.
        paired: As in `compare_runs`.
    """
    metrics = [*group, *baseline]
    whole = np.ones((images, 1), np.int16)
    score = np.array([metric_of(whole)[0] for metric_of in metrics])
    scores = score[: len(group)], score[len(group) :]
    value = _known(np.stack([resample(metric_of, images) for metric_of in metrics]))
    if value is None or images == 1:
        return compare_scores(*scores, paired)
    if len(metrics) == 2:
        return _percentiles(float(score[0] - score[1]), value[0] - value[1])
    return compare_runs(*scores, _covariance(value, images), images, paired)


def chance_of_images(
    indices: Sequence[np.ndarray], metrics: Sequence[tuple[Sequence[MetricOf], Sequence[MetricOf]]]
) -> ChanceOfImages | None:
    """What the choice of the images does to the difference of a metric on each of J splits.

    All images that are tested on one split at least are resampled, each with what it adds to all of its splits. None
    where the metric is undefined on more than half of the resamples, or there is one image.

    Args:
        indices: Of each split the numbers (M_j,) of its test images among all.
        metrics: Of each split those of the runs of both groups; the second may be empty.
    """
    tested = np.unique(np.concatenate(indices))
    value = np.zeros((len(indices), RESAMPLES))
    for row, index, (group, baseline) in zip(value, indices, metrics, strict=True):
        place = np.searchsorted(tested, index)
        for share, runs in ((1, group), (-1, baseline)):
            row += sum(share / len(runs) * resample(metric_of, len(tested), place) for metric_of in runs)
    known = _known(value)
    if known is None or len(tested) == 1:
        return None
    covariance = _covariance(known, len(tested))
    return ChanceOfImages(len(tested), float(covariance.mean()), covariance.diagonal())


def resample(metric_of: MetricOf, images: int, place: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Values (B,) of a metric on resamples of M images, which are the same for each metric that is asked.

    Args:
        metric_of: The metric.
        images: M.
        place: Which of the M images it is measured on.
    """
    rng = np.random.default_rng(0)
    step = max(1, min(AT_ONCE, WEIGHTS_AT_ONCE // images))
    found = []
    for count in np.diff([*range(0, RESAMPLES, step), RESAMPLES]).tolist():
        cell = rng.integers(images, size=(count, images)) * count + np.arange(count)[:, None]
        weights = np.bincount(cell.ravel(), minlength=images * count).reshape(images, count)
        found.append(metric_of(weights[place].astype(np.int16)))
    return np.concatenate(found)


def _known(value: np.ndarray) -> np.ndarray | None:
    """Of values (n, B) the resamples in which all are defined; None where these are fewer than half."""
    known = ~np.isnan(value).any(0)
    return value[:, known] if 2 * known.sum() >= RESAMPLES else None


def _covariance(value: np.ndarray, images: int) -> np.ndarray:
    """Of scores (S,) over the choice of M images: resamples vary as M - 1 images would, not as M."""
    return np.atleast_2d(np.cov(value)) * images / (images - 1)


def _percentiles(difference: float, resampled: np.ndarray) -> Comparison:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, (tail, 1 - tail))
    beyond = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    p_value = min(1.0, 2 * (beyond + 1) / (len(resampled) + 1))
    found = Estimate(difference, float(low), float(high))
    return Comparison(found, p_value, "paired bootstrap over test images, one model of each", False)
