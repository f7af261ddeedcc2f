"""What a model gets right if it may leave out the images of which it is least certain.

Shapes: N images, K classes.
"""

import numpy as np


def risk_by_coverage(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Share of mistakes among the 1, 2 … N most confident images, (N,).

    Its mean is the area under the risk-coverage curve, AURC (Geifman and El-Yaniv, Selective Classification for Deep
    Neural Networks, NeurIPS 2017). Images of equal confidence share their mistakes evenly: their order says nothing.

    Args:
        confidence: (N,).
        right: Whether each prediction is right, (N,) bool.
    """
    _, place, images = np.unique(-confidence, return_inverse=True, return_counts=True)
    share = np.bincount(place, ~right) / images
    return np.cumsum(np.repeat(share, images)) / np.arange(1, len(right) + 1)


def covered(images: int, percent: int) -> int:
    """The fewest of that many images that are at least so many percent of them, at least one."""
    return max(1, -(-images * percent // 100))


def margin(probability: np.ndarray) -> np.ndarray:
    """Distance (N,) between the probabilities (N, K) of the two best classes, K > 1."""
    second, best = np.partition(probability, -2, axis=1)[:, -2:].T
    return best - second
