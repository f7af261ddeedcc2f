"""All that logits and labels say of a model, as one record that JSON can hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from imgcls.evaluate.accuracy import accuracy, by_class, mean_of, shots, slices, top_k
from imgcls.evaluate.calibration import (
    BINS,
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from imgcls.evaluate.selective import covered, risk_by_coverage

Scoring = Callable[[np.ndarray, np.ndarray], tuple[dict[str, float], dict[str, np.ndarray]]]
MEANS = "precision", "recall", "f1", "auroc"
NOTE = (
    "Each class against all others. Means over classes leave out those without a test image, which have no scores. "
    "A class that was never predicted has precision 0. Intervals are 95 % ones (Wilson)."
)
SHOTS_NOTE = "Classes by their number of training images: many, above 100; medium, 20 to 100; few, below 20."
SLICES_NOTE = "Each interval is a 95 % one by itself: of twenty slices, expect one to be off by chance alone."


def evaluation(
    logits: np.ndarray,
    label: np.ndarray,
    class_names: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    temperature: float = 1.0,
    class_counts: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Scores under `metrics`; tables of classes, bins of confidence, coverages and slices.

    Args:
        logits: (N, K), N > 0.
        label: (N,) int64.
        class_names: Of the K classes.
        columns: What else is known of each image, N values by the column's name.
        temperature: Where it is not 1, calibrated bins and scores are added.
        class_counts: Training images of the K classes, if that is known; where they differ much, accuracies by it.
    """
    probability = softmax(logits.astype(np.float64), 1)
    right = probability.argmax(1) == label
    classes = by_class(probability, label)
    by_shots = [] if class_counts is None else shots(right, label, class_counts)
    scores, tables = decisions(probability.max(1), right, columns)
    calibration_scores, bins = with_temperature(_calibration, logits, label, temperature)
    metrics = {
        **scores,
        **{f"top{k}": top_k(logits, label, k) for k in (3, 5) if k < logits.shape[1]},
        **{f"acc_{row['shots']}{end}": row[f"acc{end}"] for row in by_shots for end in ("", "_low", "_high")},
        "balanced_acc": mean_of(classes["recall"]),
        **{name: mean_of(classes[name]) for name in MEANS},
        "brier": brier_score(probability, label),
        **calibration_scores,
    }
    return {
        "images": len(label),
        "metrics": metrics,
        "note": NOTE,
        **class_tables(class_names, classes),
        **bins,
        "shots": by_shots,
        "shots_note": SHOTS_NOTE,
        **tables,
    }


def calibration(logits: np.ndarray, label: np.ndarray) -> dict[str, Any] | None:
    """The temperature fitted to validation images, logits (N, K) and labels (N,), and their scores before and after.

    None where there is no best one, see `fit_temperature`.
    """
    return before_and_after(_calibration, logits, label, fit_temperature(logits, label))


def decisions(
    confidence: np.ndarray, right: np.ndarray, columns: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Scores of how often images are predicted right, and tables of it by confidence and by slice.

    Args:
        confidence: (N,), N > 0.
        right: (N,) bool.
        columns: What else is known of each image, N values by the column's name.
    """
    images, risk = len(right), risk_by_coverage(confidence, right)
    scores = {
        **accuracy(right),
        "aurc": float(risk.mean()),
        **{f"acc_at_{p}": 1 - float(risk[covered(images, p) - 1]) for p in (80, 90, 95)},
    }
    kept = sorted({covered(images, p) for p in range(1, 101)})
    return scores, {
        "risk_coverage": [{"coverage": n / images, "risk": float(risk[n - 1])} for n in kept],
        "slices": slices(right, columns),
        "slices_note": SLICES_NOTE,
    }


def with_temperature(
    scoring: Scoring, logits: np.ndarray, label: np.ndarray, temperature: float
) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """Scores and bins of probabilities as trained and, where the temperature is not 1, as calibrated.

    Args:
        scoring: Logits and labels to scores by name and the bins of `reliability`.
        logits: (N, K).
        label: As `scoring` takes it.
        temperature: What logits are divided by.
    """
    scores, bins = scoring(logits, label)
    tables = {"reliability": _bins(bins)}
    if temperature != 1:
        after, bins = scoring(logits / np.float64(temperature), label)
        scores |= {"temperature": temperature, **{f"{name}_calibrated": value for name, value in after.items()}}
        tables["reliability_calibrated"] = _bins(bins)
    return scores, tables


def before_and_after(
    scoring: Scoring, logits: np.ndarray, label: np.ndarray, temperature: float | None
) -> dict[str, Any] | None:
    """What is kept of a fitted temperature: it, its images and their scores, see `with_temperature`; None of None."""
    if temperature is None:
        return None
    scores, _ = with_temperature(scoring, logits, label, temperature)
    return {"temperature": temperature, "images": len(label), **scores}


def class_tables(class_names: Sequence[str], classes: dict[str, np.ndarray]) -> dict[str, list]:
    """A row of plain values for each of K classes, of columns (K,) with `images` among them; names of those without."""
    return {
        "classes": _rows({"class": np.array(class_names, dtype=object), **classes}),
        "classes_without_image": [name for name, n in zip(class_names, classes["images"], strict=True) if not n],
    }


def _calibration(logits: np.ndarray, label: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    probability = softmax(logits.astype(np.float64), 1)
    bins = reliability(probability.max(1), probability.argmax(1) == label)
    return {"nll": negative_log_likelihood(logits, label), "ece": expected_calibration_error(bins)}, bins


def _bins(bins: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    edges = np.arange(BINS + 1) / BINS
    return _rows({"low": edges[:-1], "high": edges[1:], **bins})


def _rows(columns: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Columns as rows of plain values."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]
