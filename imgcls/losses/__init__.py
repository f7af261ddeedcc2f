"""Losses on logits (B, K), for class labels (B,) int64 or class probabilities (B, K) float32.

The names below are short for what configs name most; another loss is named by its own module, which needs no line here.
"""

from imgcls.losses.base import Labels, Loss, shares
from imgcls.losses.binary_cross_entropy import BinaryCrossEntropy
from imgcls.losses.cross_entropy import CrossEntropy
from imgcls.losses.focal import Focal

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "Focal", "Labels", "Loss", "shares"]
