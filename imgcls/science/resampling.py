"""Scores on several splits of the same images: what their mean is worth, though training sets overlap.

Shapes: J splits; M_j test images of split j; M images that are tested on one split at least.
"""

import math
from collections.abc import Sequence

import numpy as np

from imgcls.science.statistics import Comparison, Design, Estimate, interval, satterthwaite, student

Images = Sequence[tuple[np.ndarray, np.ndarray]]
ALSO_TRAINED_ON = 1.1  # what images add to the variance as training images of other folds: as much as simulation asks


def mean_over_splits(scores: Sequence[float], ratio: float, images: Images | None = None) -> Estimate:
    """Mean of J scores with the interval of `compare_splits`; none for a single one."""
    mean = float(np.mean(scores))
    if len(scores) < 2:
        return Estimate(mean, math.nan, math.nan)
    design, freedom = _parts(scores, ratio, images)
    return interval(mean, design.variance, freedom)


def compare_splits(
    group: Sequence[float], baseline: Sequence[float], ratio: float, images: Images | None = None
) -> Comparison:
    """A paired t-test of two scores on each of J splits of the same images, right for overlapping training sets.

    Of scores alone, the corrected resampled t-test: as training sets overlap, the differences d of J splits say less
    than J independent ones, and their mean has the variance (1/J + ratio) s² in place of s²/J (Nadeau and Bengio,
    Inference for the Generalization Error, Machine Learning 2003, section 5), with J - 1 degrees of freedom.

    Of accuracies whose single predictions are known, chance is divided: that of the test images is counted image by
    image, by the sum of squares of what each adds to the mean (as for clusters: an image may be tested on several
    splits), and by how much the d_j vary beyond it is due to seeds and training sets, for which alone the correction is
    made. What an image adds by being trained on is not in these sums; for it the images' part is enlarged by a tenth.
    Degrees of freedom follow Satterthwaite: M - 1 of the images, J - 1 of the rest. It is sharper, as the spread of
    five folds tells less of the images than 200 images do.

    `python tests/simulate_tests.py splits --repeats 300`, with 100 and 250 images, five pairs of classifiers and six
    designs: intervals miss the true difference in 0.7 to 6.3 % (median 3.3) and those of scores alone in 0 to 7 %
    (median 1.3); they are 0.48 to 0.85 times as wide (median 0.67).

    Args:
        group: A score for each split, such as the mean over its seeds.
        baseline: Likewise, of the same splits in the same order.
        ratio: Test images to training images of a split.
        images: Of each split the numbers (M_j,) of its test images among all, and for each the difference (M_j,) of the
            shares of runs that predict it right.
    """
    differences = [a - b for a, b in zip(group, baseline, strict=True)]
    if len(differences) < 2:
        mean = float(np.mean(differences))
        return Comparison(Estimate(mean, math.nan, math.nan), math.nan, "one split: no test", False)
    design, freedom = _parts(differences, ratio, images)
    kind = "t-test over test images and" if images else "corrected resampled t-test over"
    return student(float(np.mean(differences)), freedom, f"{kind} {len(differences)} splits", design)


def _parts(scores: Sequence[float], ratio: float, images: Images | None) -> tuple[Design, float]:
    """Parts of the variance of the mean of J scores, and their degrees of freedom."""
    count, mean, spread = len(scores), float(np.mean(scores)), float(np.var(scores, ddof=1))
    if images is None:
        return Design((count,), 0, spread / count, ratio * spread, 0.0), count - 1
    added = np.zeros(1 + max(int(index.max()) for index, _ in images))
    tested = np.zeros(len(added), bool)
    for index, value in images:
        added[index] += (value - mean) / (count * len(index))
        tested[index] = True
    total = int(tested.sum())
    of_images = ALSO_TRAINED_ON * float((added**2).sum()) * total / (total - 1)
    alone = [value.var(ddof=1) / len(value) if len(value) > 1 else spread for _, value in images]
    beyond = max(0.0, spread - float(np.mean(alone)))
    rest = (1 / count + ratio) * beyond
    freedom = satterthwaite(of_images + rest, (of_images, total - 1), (rest, count - 1))
    return Design((count,), total, beyond / count, of_images + ratio * beyond, 0.0), freedom
