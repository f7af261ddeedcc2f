"""All images of a data set, whatever their part, for an audit."""

import logging
from typing import Any

import numpy as np
from PIL import Image

from imgcls.data.base import ImageDataModule, Part
from imgcls.images.survey import survey

log = logging.getLogger(__name__)
PARTS: tuple[Part, ...] = ("test", "val", "train")  # of copies, the one in the earlier part is kept


class Images:
    """Every image of a data set, once, in the order of `PARTS`.

    Args:
        data: The data module.

    Attributes:
        parts: Those of `PARTS` that there are; images without labels have one alone.
        rank: Number of its part in `parts`, (N,) int64.
        number: Of each image in its part's source, (N,) int64.
        task: The kind of labels.
        label: As the source has them; -1 of all images without labels.
        said: Number of what the label says, (N,) int64: equal for equal labels.
        group: See `Source`; -1: none.
        class_names: None of images without labels.
        names: N names.
        size, mode, digest, gray, reason: See `Survey`.
    """

    def __init__(self, data: ImageDataModule) -> None:
        self.value_range = data.resize_crop("test").value_range
        self.parts = [part for part in PARTS if part in data.parts]
        self.sources = [data.parts[part][0] for part in self.parts]
        indices = [np.sort(data.parts[part][1]) for part in self.parts]
        self.rank = np.repeat(np.arange(len(self.parts)), [len(index) for index in indices])
        self.number = np.concatenate(indices)
        self.task = data.kind
        self.label = np.concatenate([s.label[i] for s, i in zip(self.sources, indices, strict=True)])
        self.said = np.unique(self.label.reshape(len(self.label), -1), axis=0, return_inverse=True)[1]
        groups = [np.full(len(s), -1) if s.group is None else s.group for s in self.sources]
        self.group = np.concatenate([group[i] for group, i in zip(groups, indices, strict=True)])
        self.class_names = data.class_names if (self.label >= 0).any() else []
        self.names = [s.names[k] for s, index in zip(self.sources, indices, strict=True) for k in index.tolist()]
        looked = []
        for part, source, index in zip(self.parts, self.sources, indices, strict=True):
            log.info(f"audit: reading {len(index)} images" + (f" of the {part} part" if self.class_names else ""))
            looked.append(survey(source, index, data.num_workers, self.value_range))
        self.size, self.digest, self.gray = (
            np.concatenate([getattr(found, name) for found in looked]) for name in ("size", "digest", "gray")
        )
        self.mode = [mode for found in looked for mode in found.mode]
        self.reason = [reason for found in looked for reason in found.reason]

    def __len__(self) -> int:
        return len(self.label)

    def part(self, position: int) -> Part | None:
        """Part of an image, if it has a label."""
        return self.parts[self.rank[position]] if self.class_names else None

    def picture(self, position: int) -> Image.Image:
        """Pixels of an image."""
        source, number = self.sources[self.rank[position]], int(self.number[position])
        return source.original(number, self.value_range).image

    def telling_first(self, groups: list[list[int]]) -> list[list[int]]:
        """Groups over several parts before those over several classes, and the others last."""
        return sorted(groups, key=lambda g: (len(set(self.rank[g])) == 1, len(set(self.said[g])) == 1))

    def facts(self, position: int) -> dict[str, Any]:
        """Part, name and label of an image."""
        label = self.task.text(self.label[[position]], self.class_names)[0] if self.class_names else None
        return {"part": self.part(position), "name": self.names[position], "label": label}
