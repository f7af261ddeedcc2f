"""Whether a model's probabilities are what they say, and the temperature that makes them so.

Shapes: N images, K classes.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

BINS = 15
EDGES = (np.arange(BINS + 1) / BINS).astype(np.float32)
COLDEST, HOTTEST = 1e-3, 1e3


def negative_log_likelihood(logits: np.ndarray, label: np.ndarray) -> float:
    """Mean over images of minus the log-probability of their class, in nats, for logits (N, K) and labels (N,)."""
    return float(-log_softmax(logits.astype(np.float64), 1)[np.arange(len(label)), label].mean())


def brier_score(probability: np.ndarray, label: np.ndarray) -> float:
    """Mean over images of the squared distance to the class, over all K classes (Brier 1950): from 0 to 2."""
    own = probability[np.arange(len(label)), label]
    return float((np.square(probability).sum(1) - 2 * own + 1).mean())


def reliability(confidence: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """Images, mean confidence and accuracy (nan where there is none) in 15 bins of equal width, (15,) each.

    Args:
        confidence: Probability of the predicted class, (N,); a bin holds its lower edge, the last one both.
        right: Whether the prediction is right, (N,) bool.
    """
    place = bin_of(confidence)
    images = np.bincount(place, minlength=BINS)
    divisor = np.where(images > 0, images, np.nan)
    sums = (np.bincount(place, of.astype(np.float64), BINS) for of in (confidence, right))
    return {"images": images, **{k: s / divisor for k, s in zip(("confidence", "accuracy"), sums, strict=True)}}


def bin_of(confidence: np.ndarray) -> np.ndarray:
    """Number of the bin of each confidence, (N,) int64."""
    # in float32, so that a third, of three equal logits, lies on an edge whatever its last digits are
    return np.minimum(np.searchsorted(EDGES, confidence.astype(np.float32), "right"), BINS) - 1


def expected_calibration_error(bins: dict[str, np.ndarray]) -> float:
    """Mean over images of the distance between confidence and accuracy of their bin (Naeini et al., AAAI 2015)."""
    distance = np.nan_to_num(np.abs(bins["confidence"] - bins["accuracy"]))
    return float((bins["images"] * distance).sum() / bins["images"].sum())


def fit_temperature(logits: np.ndarray, label: np.ndarray) -> float | None:
    """The T by which logits (N, K) are divided so that the labels (N,) are most likely.

    Temperature scaling of Guo et al., On Calibration of Modern Neural Networks (ICML 2017). The likelihood is concave
    in 1/T, so that its slope has one zero at most; None where it has none from 0.001 to 1,000: all images are right
    (the colder the better), or the logits say nothing of the classes (the hotter the better).
    """
    z = logits.astype(np.float64)
    z -= z.max(1, keepdims=True)
    own = z[np.arange(len(label)), label].mean()

    return likeliest(lambda temperature: float((softmax(z / temperature, 1) * z).sum(1).mean() - own))


def likeliest(slope: Callable[[float], float]) -> float | None:
    """The temperature from 0.001 to 1,000 at which a slope that falls as it rises is zero; None if there is none."""
    ends = np.log((COLDEST, HOTTEST))
    if not slope(COLDEST) > 0 > slope(HOTTEST):
        return None
    return float(np.exp(brentq(lambda log_temperature: slope(np.exp(log_temperature)), *ends, xtol=1e-10)))
