"""Labels that are probably wrong, by confident learning (Northcutt, Jiang and Chuang, JAIR 70, 2021).

Shapes: N images, K classes. Probabilities come from models that were not trained on the image.
"""

import numpy as np


def confident_class(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The class that each image confidently belongs to, (N,) int64; -1 for none (equations 1 and 2 of the paper).

    The threshold of a class is the mean probability that images of that label are given for it; among several classes
    above their thresholds the most probable counts.

    Args:
        probability: (N, K) float.
        label: As given, (N,) int64.
    """
    classes = probability.shape[1]
    images = np.bincount(label, minlength=classes)
    own = probability[np.arange(len(label)), label]
    threshold = np.bincount(label, own, minlength=classes) / np.maximum(images, 1)
    threshold[images == 0] = np.inf  # nothing is known of such a class
    above = np.where(probability >= threshold - 1e-9, probability, -1.0)
    return np.where(above.max(1) >= 0, above.argmax(1), -1)
