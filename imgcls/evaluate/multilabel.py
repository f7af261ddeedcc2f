"""What logits and labels say of a model where an image has any number of labels, or none.

Shapes: N images, K labels, R resamples. Labels are multi-hot, (N, K) of 0 and 1. A label is decided on where its logit
is above its cut, (K,): cuts are logits, so that a temperature, by which both are divided, changes no decision. A label
without an image has no recall, and so no precision, F1, average precision and AUROC here: nan.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import expit

from imgcls.evaluate.accuracy import RESAMPLES, by_size, from_counts, mean_of, percentiles
from imgcls.evaluate.calibration import bin_of, likeliest, reliability
from imgcls.evaluate.summary import before_and_after, class_tables, decisions, with_temperature

# of each label, what is averaged over labels
MEANS = {name: name for name in ("auroc", "precision", "recall", "f1", "hamming", "ece")} | {"map": "ap"}
OF_LABELS, SCORES = "of_labels", ("ap", "auroc", "precision", "recall", "f1", "ece")
# 1,500 pictures with 1.6 of 15 labels each, three kinds of heads on frozen features, 40 splits: 1.8 labels an image are
# given so, 2.5 by the best F1 alone; micro F1 is 0.54 and not 0.46, macro F1 the same within 0.012
LEAST_F1 = 0.2
FEWEST_RESAMPLES, MOST_LABELS, CHUNK = 200, 10**6, 2**22
NOTE = (
    "Each label by itself, decided on where its probability is above its threshold. Means over labels leave out those "
    "without a test image, which have no scores, but for calibration. A label that was never decided on has precision "
    "0. Accuracy asks for all labels of an image. Intervals are 95 % ones: of accuracies Wilson's, else the middle "
    "ones of what resampled images give, those of mAP and ECE less their bias there."
)
SHOTS_NOTE = "Labels by their number of training images: many, above 100; medium, 20 to 100; few, below 20."


def average_precision(score: np.ndarray, positive: np.ndarray) -> float:
    """Mean over positive images of the precision among those that score as high or higher; nan without a positive.

    The area under the precision-recall curve without interpolation, images of equal score taken together.

    Args:
        score: (N,).
        positive: (N,) bool.
    """
    return float(_areas(score, positive, np.ones((len(score), 1)))[0][0])


def best_cuts(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The cut of each label with the best F1, (K,) float64; of equally good ones that nearest 0.

    A cut lies midway between two neighbouring logits. Where all images are best decided on it is 0, or 1 below the
    lowest logit if that is lower still; for a label without a positive image it is 0. It is 0 too where the best F1 is
    below 0.2: of a rare label that cannot be told that is to give it to nearly all images. Lewis et al., RCV1, JMLR
    2004, give such a label to none (SCutFBR).

    Args:
        logits: (N, K), N may be 0.
        label: (N, K) of 0 and 1.
    """
    cut = np.zeros(logits.shape[1])
    for k in np.flatnonzero(label.any(0)):
        order = np.argsort(-logits[:, k], kind="stable")
        descending, right = logits[order, k].astype(np.float64), np.cumsum(label[order, k], dtype=np.int64)
        last = np.flatnonzero(np.append(descending[1:] < descending[:-1], True))
        f1 = 2 * right[last] / (last + 1 + right[-1])
        candidates = np.append((descending[last[:-1]] + descending[last[:-1] + 1]) / 2, min(descending[-1] - 1, 0))
        best = candidates[f1 == f1.max()]
        cut[k] = best[np.abs(best).argmin()] if f1.max() >= LEAST_F1 else 0
    return cut


def negative_log_likelihood(logits: np.ndarray, label: np.ndarray) -> float:
    """Mean over images and labels of minus the log-probability of what is the case, in nats; both are (N, K)."""
    return float(_surprise(logits, label).mean())


def _surprise(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    z = logits.astype(np.float64)
    return np.logaddexp(0, z) - label * z


def _squared_error(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    return np.square(expit(logits.astype(np.float64)) - label)


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float | None:
    """The one T by which logits (N, K) are divided so that the labels (N, K) are most likely.

    As for one label an image, see `calibration.fit_temperature`: also here the likelihood is concave in 1/T.
    """
    z = logits.astype(np.float64)
    own = (label * z).mean()
    return likeliest(lambda temperature: float((expit(z / temperature) * z).mean() - own))


def by_label(logits: np.ndarray, label: np.ndarray, cut: np.ndarray) -> dict[str, np.ndarray]:
    """Counts and scores of each label, (K,) each.

    images, predicted and right ones; precision, recall and f1, precision being 0 for a label that was never decided on;
    hamming, the share of wrong decisions; ap, average precision; auroc, nan if all images have the label; and ece, of
    15 bins, between the label's probability and how often it is there, which like hamming is known of all labels.

    Args:
        logits: (N, K), N > 0.
        label: (N, K) of 0 and 1.
        cut: (K,).
    """
    found = {name: of[:, 0] for name, of in _resampled(logits, label, cut, np.ones((len(label), 1))).items()}
    return {**found, **{name: found[name].astype(np.int64) for name in ("images", "predicted", "right")}}


def bootstrap(logits: np.ndarray, label: np.ndarray, cut: np.ndarray) -> dict[str, Any]:
    """95 % percentile intervals, of N images drawn with replacement again and again, (2,) each.

    Of map (mean average precision), auroc, precision, recall and f1, means over the labels that a resample has; of
    precision_micro, recall_micro and f1_micro; of hamming, ece, nll and brier; and as `of_labels`, (2, K) by name, of
    the ap, auroc, precision, recall, f1 and ece of each label. There are 1,000 resamples, from a fixed seed; above a
    million labels in all (N K) fewer, in inverse proportion, but at least 200.

    Average precision of few positive images is too good, and of those drawn twice once more: that of map is moved down
    by twice its bias in the resamples (Efron and Tibshirani, Bootstrap, 1993, chapter 10). Of 350 images of 15 labels,
    2 to 94 images each, it holds the truth in 93 and 85 of 100 sets, hard and easy labels, else in 45 and 75. So are
    those of calibration errors, which chance makes larger: of 300 images of three labels, in 80 of 100 sets, else in 3.

    Args:
        logits: (N, K), N > 0.
        label: (N, K) of 0 and 1.
        cut: (K,).
    """
    of_images = {"nll": _surprise(logits, label).mean(1), "brier": _squared_error(logits, label).mean(1)}

    def scores(weight: np.ndarray) -> dict[str, np.ndarray]:
        """Of all labels together (R,), and of each of them (R, K), under a name of two."""
        found = _resampled(logits, label, cut, weight)
        means = {name: of @ weight / len(label) for name, of in of_images.items()}
        return {**_totals(found), **means, **{f"{name} {OF_LABELS}": found[name].T for name in SCORES}}

    values, whole = [scores(weight) for weight in _resamples(*label.shape)], scores(np.ones((len(label), 1)))
    drawn = {name: np.concatenate([part[name] for part in values]) for name in whole}
    found = {name: percentiles(of) for name, of in drawn.items()}
    for name in ("map", "ece", f"ece {OF_LABELS}"):
        bias = np.array([mean_of(of) for of in np.atleast_2d(drawn[name].T)]) - whole[name][0]
        found[name] = np.clip(found[name] - 2 * bias, 0, 1)
    of_labels = {name: found.pop(f"{name} {OF_LABELS}") for name in SCORES}
    return {**found, OF_LABELS: of_labels}


def evaluation(
    logits: np.ndarray,
    label: np.ndarray,
    class_names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    cut: np.ndarray,
    temperature: float = 1.0,
    class_counts: Sequence[int] | None = None,
) -> dict[str, Any]:
    """A record in the form of `summary.evaluation`.

    An image is right if all its labels are. Its confidence is the smallest, over labels, of the probability of what was
    decided. Bins of confidence pool all labels: `images` counts pairs of image and label, and `accuracy` is how often
    the label is there. `hamming`, `nll` and `brier` are means over images and labels, `hamming` of wrong decisions.

    Args:
        logits: (N, K), N > 0.
        label: (N, K) of 0 and 1.
        class_names: Of the K labels.
        columns: What else is known of each image, N values by the column's name.
        cut: (K,); a row's `threshold` is its probability, calibrated if the model is.
        temperature: Where it is not 1, calibrated bins and scores are added.
        class_counts: Training images of the K labels, if that is known; where they differ much, scores by it.
    """
    z, there, decided = logits.astype(np.float64), label.astype(bool), logits > cut
    classes, intervals = by_label(logits, label, cut), bootstrap(logits, label, cut)
    columns_of_classes = {"images": classes["images"], "threshold": expit(cut / temperature)}
    columns_of_classes |= {name: classes[name] for name in SCORES} | classes
    for name, (low, high) in intervals.pop(OF_LABELS).items():
        columns_of_classes |= {f"{name}_low": low, f"{name}_high": high}
    by_shots = [] if class_counts is None else _shots(classes, there, class_counts)
    scores, tables = decisions(expit(np.where(decided, z, -z).min(1)), (decided == there).all(1), columns)
    calibration_scores, bins = with_temperature(_calibration, logits, label, temperature)
    metrics = {
        **scores,
        **{name: float(value) for name, value in _totals(classes).items()},
        **{f"{name}_low": float(low) for name, (low, _) in intervals.items()},
        **{f"{name}_high": float(high) for name, (_, high) in intervals.items()},
        "map_micro": average_precision(z.ravel(), there.ravel()),
        **{f"map_{row['shots']}": row["map"] for row in by_shots},
        "brier": float(_squared_error(logits, label).mean()),
        **calibration_scores,
    }
    return {
        "images": len(label),
        "metrics": metrics,
        "note": NOTE,
        **class_tables(class_names, columns_of_classes),
        **bins,
        "shots": by_shots,
        "shots_note": SHOTS_NOTE,
        **tables,
    }


def calibration(logits: np.ndarray, label: np.ndarray) -> dict[str, Any] | None:
    """The temperature fitted to validation images, logits and labels (N, K), and their scores before and after.

    None where there is no best one, see `fit_temperature`.
    """
    return before_and_after(_calibration, logits, label, fit_temperature(logits, label))


def _resampled(logits: np.ndarray, label: np.ndarray, cut: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Counts and scores of each label in each resample, (K, R), of images that count `weight` times, (N, R)."""
    there, decided = label.astype(bool), logits > cut
    # sums of whole numbers are exact in float32 up to 16 million images
    of_labels = (of.T.astype(weight.dtype) @ weight for of in (there, decided, there & decided))
    images, predicted, right = (of.astype(np.float64) for of in of_labels)
    ap, auroc = np.stack([_areas(logits[:, k], there[:, k], weight) for k in range(label.shape[1])], 1)
    return {
        "images": images,
        "predicted": predicted,
        "right": right,
        **from_counts(images, predicted, right),
        "hamming": (images + predicted - 2 * right) / len(label),
        "ap": ap,
        "auroc": auroc,
        "ece": np.stack([_calibration_error(logits[:, k], there[:, k], weight) for k in range(label.shape[1])]),
    }


def _totals(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of all labels together, from counts and scores of each, (K,) or (K, R): scalars or (R,)."""
    known = {name: ~np.isnan(found[name]) for name in MEANS.values()}
    counts = {name: np.where(of.any(0), of.sum(0), np.nan) for name, of in known.items()}
    micro = from_counts(*(found[name].sum(0) for name in ("images", "predicted", "right")))
    return {
        **{name: np.nansum(found[of], 0) / counts[of] for name, of in MEANS.items()},
        **{f"{name}_micro": values for name, values in micro.items()},
    }


def _areas(score: np.ndarray, positive: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average precision and AUROC, (R,) each, of images (N,) that count `weight` times, (N, R)."""
    order = np.argsort(-score, kind="stable")
    ascending = -score[order]
    # one row for each score that a positive image has: how many images there are before it, and up to it
    at, first = np.unique(ascending[positive[order]], return_index=True)
    if not len(at):
        return np.full(weight.shape[1], np.nan), np.full(weight.shape[1], np.nan)
    total = np.cumsum(weight[order], axis=0)
    upto = total[np.searchsorted(ascending, at, "right") - 1].astype(np.float64)
    start = np.searchsorted(ascending, at)
    before = np.where(start[:, None] > 0, total[start - 1], 0).astype(np.float64)
    own = np.add.reduceat(weight[order[positive[order]]], first, axis=0).astype(np.float64)
    own_upto = np.cumsum(own, axis=0)
    ones = np.where(own_upto[-1] > 0, own_upto[-1], np.nan)
    zeros = np.where(total[-1] > own_upto[-1], total[-1] - own_upto[-1], np.nan)
    ap = (own * own_upto / np.maximum(upto, 1)).sum(0) / ones
    # negatives that score higher, those of the same score by half: what is lost of Mann and Whitney's U
    higher = (before - (own_upto - own)) + (upto - before - own) / 2
    return ap, 1 - (own * higher).sum(0) / (ones * zeros)


def _resamples(images: int, labels: int) -> Iterator[np.ndarray]:
    """How often each image is drawn in each resample, (N, R) float32, some resamples at a time."""
    rng = np.random.default_rng(0)
    left = max(FEWEST_RESAMPLES, min(RESAMPLES, RESAMPLES * MOST_LABELS // (images * labels)))
    while left > 0:
        size = min(left, max(1, CHUNK // images))
        cell = rng.integers(images, size=(images, size)) * size + np.arange(size)
        yield np.bincount(cell.ravel(), minlength=images * size).reshape(images, size).astype(np.float32)
        left -= size


def _shots(classes: dict[str, np.ndarray], there: np.ndarray, class_counts: Sequence[int]) -> list[dict[str, Any]]:
    """Mean average precision and F1 of labels with many, a medium number of, and few training images, see `by_size`."""
    return [
        {
            "shots": name,
            "classes": int(group.sum()),
            "images": images,
            "map": mean_of(classes["ap"][group]),
            "f1": mean_of(classes["f1"][group]),
        }
        for name, group in by_size(class_counts).items()
        if (images := int(there[:, group].any(1).sum()))
    ]


def _calibration(logits: np.ndarray, label: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    once = np.ones((len(label), 1))
    errors = [_calibration_error(of, there, once) for of, there in zip(logits.T, label.T, strict=True)]
    scores = {"nll": negative_log_likelihood(logits, label), "ece": float(np.mean(errors))}
    return scores, reliability(expit(logits.astype(np.float64)).ravel(), label.ravel())


def _calibration_error(logits: np.ndarray, there: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Expected calibration error of a label (R,), of images (N,) that count `weight` times, (N, R)."""
    probability = expit(logits.astype(np.float64))
    place, gap = bin_of(probability), (probability - there).astype(weight.dtype)
    return sum(np.abs(gap[place == k] @ weight[place == k]) for k in np.unique(place)) / len(there)
