from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from imgcls.errors import UserError
from imgcls.tasks.base import Pairs, Task

if TYPE_CHECKING:
    from torch import Tensor

JOINED_BY = "|"


class MultiLabel(Task):
    """Each image is of any number of classes, or of none: each class is decided on by itself."""

    fewest_classes = 1

    def pairs(self, label: np.ndarray) -> Pairs:  # noqa: D102
        image, of = np.nonzero(label > 0)
        return image, of

    def text(self, label: np.ndarray, class_names: Sequence[str]) -> list[str]:
        """Names in the order of the classes, joined by `|`; empty also of an image that has none."""
        return [JOINED_BY.join(class_names[k] for k in np.flatnonzero(of > 0).tolist()) for of in label]

    def numbered(self, names: Sequence[Sequence[str] | None], class_names: Sequence[str]) -> np.ndarray:  # noqa: D102
        number = {name: k for k, name in enumerate(class_names)}
        label = np.zeros((len(names), len(class_names)), np.int8)
        for row, of in zip(label, names, strict=True):
            row[[number[name] for name in of or ()]] = 1
            if of is None:
                row[:] = -1
        return label

    def unknown(self, images: int, num_classes: int) -> np.ndarray:  # noqa: D102
        return np.full((images, num_classes), -1, np.int8)

    def renumbered(self, label: np.ndarray, number_of: np.ndarray, num_classes: int) -> np.ndarray:  # noqa: D102
        known = number_of >= 0
        there = np.zeros((len(label), num_classes), np.int8)
        there[:, number_of[known]] = label[:, known]
        there[(label < 0).any(1) | (label[:, ~known] > 0).any(1)] = -1
        return there

    def another(self, label: np.ndarray, num_classes: int, rng: np.random.Generator) -> np.ndarray:
        """One class, sampled evenly from all, is turned round: there if it was not, and the other way."""
        other, image = label.copy(), np.arange(len(label))
        turned = rng.integers(num_classes, size=len(label))
        other[image, turned] = 1 - label[image, turned]
        return other

    def class_order(self, names: Sequence[str], order: Sequence[str] | None = None) -> list[str]:  # noqa: D102
        for name in names:
            if JOINED_BY in name:
                raise UserError(
                    f"data: class {name!r} holds {JOINED_BY}, which joins the labels of an image; rename it"
                )
        return list(names)

    def check(self, label: np.ndarray) -> None:  # noqa: D102
        if label.ndim != 2:
            raise UserError("--data.task multi_label: images of these data have one label each; leave it out")

    def example(self, images: int, num_classes: int) -> Tensor:
        """Of one class each, in turn, so that all are there and are lacking alike."""
        import torch
        from torch.nn.functional import one_hot

        return one_hot(torch.arange(images) % num_classes, num_classes).float()
