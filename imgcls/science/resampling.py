"""Scores on several splits of the same images: what their mean is worth, though training sets overlap.

Shapes: J splits; M_j test images of split j; M images that are tested on one split at least.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imgcls.science.statistics import Comparison, Design, Estimate, interval, satterthwaite, student

ALSO_TRAINED_ON = 1.1  # what images add to the variance as training images of other folds: as much as simulation asks


@dataclass(frozen=True)
class ChanceOfImages:
    """What the choice of the test images does to scores on J splits, the trained models being what they are.

    Attributes:
        images: M.
        of_mean: Variance of the mean of the scores.
        of_splits: That of each score, (J,); nan where the one image of a split cannot tell.
    """

    images: int
    of_mean: float
    of_splits: np.ndarray


def image_by_image(splits: Sequence[tuple[np.ndarray, np.ndarray]]) -> ChanceOfImages:
    """Of scores that are means over images: by what each image adds, as an image may be tested on several splits.

    Args:
        splits: Of each split the numbers (M_j,) of its test images among all, and what each is worth, (M_j,): a
            prediction that is right or not, or the difference of the shares of runs that predict it right.
    """
    mean = float(np.mean([value.mean() for _, value in splits]))
    added = np.zeros(1 + max(int(index.max()) for index, _ in splits))
    tested = np.zeros(len(added), bool)
    for index, value in splits:
        added[index] += (value - mean) / (len(splits) * len(index))
        tested[index] = True
    total = int(tested.sum())
    alone = [value.var(ddof=1) / len(value) if len(value) > 1 else math.nan for _, value in splits]
    return ChanceOfImages(total, float((added**2).sum()) * total / max(1, total - 1), np.array(alone))


def mean_over_splits(scores: Sequence[float], ratio: float, images: ChanceOfImages | None = None) -> Estimate:
    """Mean of J scores with the interval of `compare_splits`; none for a single one."""
    mean = float(np.mean(scores))
    if len(scores) < 2:
        return Estimate(mean, math.nan, math.nan)
    design, freedom = _parts(scores, ratio, images)
    return interval(mean, design.variance, freedom)


def compare_splits(
    group: Sequence[float], baseline: Sequence[float], ratio: float, images: ChanceOfImages | None = None
) -> Comparison:
    """A paired t-test of two scores on each of J splits of the same images, right for overlapping training sets.

    Of scores alone, the corrected resampled t-test: as training sets overlap, the differences d of J splits say less
    than J independent ones, and their mean has the variance (1/J + ratio) s² in place of s²/J (Nadeau and Bengio,
    Inference for the Generalization Error, Machine Learning 2003, section 5), with J - 1 degrees of freedom.

    Where the predictions are known, chance is divided: that of the test images is counted image by image, of accuracies
    by the sum of squares of what each adds to the mean (as for clusters: an image may be tested on several splits), of
    other metrics by resampling, and by how much the d_j vary beyond it is due to seeds and training sets, for which
    alone the correction is made. What an image adds by being trained on is not in these sums; for it the images' part
    is enlarged by a tenth. Degrees of freedom follow Satterthwaite: M - 1 of the images, J - 1 of the rest. It is
    sharper, as the spread of five folds tells less of the images than 200 images do.

    `python tests/simulate_tests.py splits --repeats 300`, with 100 and 250 images, five pairs of classifiers and six
    designs: intervals miss the true difference in 0.7 to 6.3 % (median 3.3) and those of scores alone in 0 to 7 %
    (median 1.3); they are 0.48 to 0.85 times as wide (median 0.67). Of quadratic weighted kappas,
    `splits --metric qwk --repeats 100`, the first 23 rows (100 images): 1 to 6 % (median 3), scores alone 0 to 6 %
    (median 0); 0.49 to 0.78 times as wide (median 0.65).

    Args:
        group: A score for each split, such as the mean over its seeds.
        baseline: Likewise, of the same splits in the same order.
        ratio: Test images to training images of a split.
        images: What the choice of the test images does to the differences; None where scores alone are known.
    """
    differences = [a - b for a, b in zip(group, baseline, strict=True)]
    if len(differences) < 2:
        mean = float(np.mean(differences))
        return Comparison(Estimate(mean, math.nan, math.nan), math.nan, "one split: no test", False)
    design, freedom = _parts(differences, ratio, images)
    kind = "t-test over test images and" if images else "corrected resampled t-test over"
    return student(float(np.mean(differences)), freedom, f"{kind} {len(differences)} splits", design)


def _parts(scores: Sequence[float], ratio: float, images: ChanceOfImages | None) -> tuple[Design, float]:
    """Parts of the variance of the mean of J scores, and their degrees of freedom."""
    count, spread = len(scores), float(np.var(scores, ddof=1))
    if images is None:
        return Design((count,), 0, spread / count, ratio * spread, 0.0), count - 1
    of_images = ALSO_TRAINED_ON * images.of_mean
    alone = np.where(np.isnan(images.of_splits), spread, images.of_splits)
    beyond = max(0.0, spread - float(alone.mean()))
    rest = (1 / count + ratio) * beyond
    freedom = satterthwaite(of_images + rest, (of_images, images.images - 1), (rest, count - 1))
    return Design((count,), images.images, beyond / count, of_images + ratio * beyond, 0.0), freedom
