"""All that logits and labels say of a model, as one record that JSON can hold."""

from collections.abc import Mapping, Sequence
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
    confidence, right = probability.max(1), probability.argmax(1) == label
    classes, risk = by_class(probability, label), risk_by_coverage(confidence, right)
    scores, bins = _calibration(logits, label)
    by_shots = [] if class_counts is None else shots(right, label, class_counts)
    metrics = {
        **accuracy(right),
        **{f"top{k}": top_k(logits, label, k) for k in (3, 5) if k < logits.shape[1]},
        **{f"acc_{row['shots']}{end}": row[f"acc{end}"] for row in by_shots for end in ("", "_low", "_high")},
        "balanced_acc": mean_of(classes["recall"]),
        **{name: mean_of(classes[name]) for name in MEANS},
        **scores,
        "brier": brier_score(probability, label),
        "aurc": float(risk.mean()),
        **{f"acc_at_{p}": 1 - float(risk[covered(len(label), p) - 1]) for p in (80, 90, 95)},
    }
    found = {
        "images": len(label),
        "metrics": metrics,
        "note": NOTE,
        "classes": _rows({"class": np.array(class_names, dtype=object), **classes}),
        "classes_without_image": [name for name, n in zip(class_names, classes["images"], strict=True) if not n],
        "reliability": _bins(bins),
        "risk_coverage": [
            {"coverage": n / len(label), "risk": float(risk[n - 1])}
            for n in sorted({covered(len(label), p) for p in range(1, 101)})
        ],
        "shots": by_shots,
        "shots_note": SHOTS_NOTE,
        "slices": slices(right, columns),
        "slices_note": SLICES_NOTE,
    }
    if temperature != 1:
        scores, bins = _calibration(logits / np.float64(temperature), label)
        found["reliability_calibrated"] = _bins(bins)
        metrics |= {"temperature": temperature, **{f"{name}_calibrated": value for name, value in scores.items()}}
    return found


def calibration(logits: np.ndarray, label: np.ndarray) -> dict[str, Any] | None:
    """The temperature fitted to validation images, logits (N, K) and labels (N,), and their scores before and after.

    None where there is no best one, see `fit_temperature`.
    """
    temperature = fit_temperature(logits, label)
    if temperature is None:
        return None
    before, after = (_calibration(logits / np.float64(t), label)[0] for t in (1, temperature))
    found = {"temperature": temperature, "images": len(label), **before}
    return found | {f"{name}_calibrated": value for name, value in after.items()}


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
