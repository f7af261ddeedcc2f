import numpy as np


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of images (K, K) int64: row the class, column the prediction. Both arguments are (N,) int64."""
    cells = np.bincount(label * num_classes + prediction, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def worst_mistakes(probability: np.ndarray, label: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` wrong predictions with the highest confidence, most confident first.

    Args:
        probability: (N, K) float.
        label: (N,) int64.
        count: At most this many.
    """
    wrong = np.flatnonzero(probability.argmax(1) != label)
    return wrong[np.argsort(-probability.max(1)[wrong], kind="stable")][:count]
