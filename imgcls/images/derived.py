"""Sources that are made of other sources."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imgcls.images.boxes import BoxOf
from imgcls.images.decode import Original, ResizeCrop
from imgcls.images.depth import ValueRange
from imgcls.images.sources import Source


class JoinedSource(Source):
    """Two sources one after the other: the pool from which folds are cut."""

    def __init__(self, first: Source, second: Source) -> None:
        super().__init__(np.concatenate([first.label, second.label]), [*first.names, *second.names])
        self.first, self.second = first, second
        self.in_memory = first.in_memory and second.in_memory
        self.verified = first.verified and second.verified
        self.read_as = first.read_as + second.read_as
        shared = [name for name in first.columns if name in second.columns]
        self.columns = {name: [*first.columns[name], *second.columns[name]] for name in shared}
        if first.group is not None or second.group is not None:
            groups = [np.full(len(of), -1) if of.group is None else of.group for of in (first, second)]
            self.group = np.concatenate(groups)

    def images(self, index: Sequence[int], resize_crop: ResizeCrop) -> Tensor:  # noqa: D102
        number = np.asarray(index)
        in_second = number >= len(self.first)
        asked = (self.first, number[~in_second]), (self.second, number[in_second] - len(self.first))
        joined = torch.cat([source.images(numbers.tolist(), resize_crop) for source, numbers in asked if len(numbers)])
        return joined[torch.from_numpy(np.argsort(np.argsort(in_second, kind="stable"), kind="stable"))]

    def crop(self, number: int, resize_crop: ResizeCrop, box_of: BoxOf) -> Tensor:  # noqa: D102
        source, number = self._of(number)
        return source.crop(number, resize_crop, box_of)

    def encoded(self, number: int) -> bytes:  # noqa: D102
        source, number = self._of(number)
        return source.encoded(number)

    def file(self, number: int) -> Path | None:  # noqa: D102
        source, number = self._of(number)
        return source.file(number)

    def _of(self, number: int) -> tuple[Source, int]:
        return (self.first, number) if number < len(self.first) else (self.second, number - len(self.first))

    def stamps(self) -> np.ndarray | None:  # noqa: D102
        first, second = self.first.stamps(), self.second.stamps()
        return None if first is None or second is None else np.concatenate([first, second])

    def original(self, number: int, value_range: ValueRange | None = None) -> Original:  # noqa: D102
        source, number = self._of(number)
        return source.original(number, value_range)

    def deep_values(self, number: int) -> np.ndarray | None:  # noqa: D102
        source, number = self._of(number)
        return source.deep_values(number)

    def has_pages(self, number: int) -> bool:  # noqa: D102
        source, number = self._of(number)
        return source.has_pages(number)

    def describe(self, number: int) -> str:  # noqa: D102
        source, number = self._of(number)
        return source.describe(number)

    def fingerprint(self) -> str:  # noqa: D102
        return f"{self.first.fingerprint()}+{self.second.fingerprint()}"


class FeatureSource(Source):
    """Images of which features are known.

    Args:
        source: The images.
        index: Which of them, (N,).
        feature: (N, V, F) float32, V versions of each.
    """

    in_memory = True

    def __init__(self, source: Source, index: np.ndarray, feature: Tensor) -> None:
        super().__init__(source.label, source.names)
        self.source, self.feature, self.group = source, feature, source.group
        self.row = np.full(len(source), -1)
        self.row[index] = np.arange(len(index))

    def inputs(self, index: Sequence[int], resize_crop: ResizeCrop, boxes: Sequence[BoxOf] | None = None) -> Tensor:
        """Features (B, V, F)."""
        return self.feature[torch.from_numpy(self.row[list(index)])]

    def images(self, index: Sequence[int], resize_crop: ResizeCrop) -> Tensor:  # noqa: D102
        return self.source.images(index, resize_crop)

    def original(self, number: int, value_range: ValueRange | None = None) -> Original:  # noqa: D102
        return self.source.original(number, value_range)

    def fingerprint(self) -> str:  # noqa: D102
        return self.source.fingerprint()
