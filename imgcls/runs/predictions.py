"""What a run predicted for the images of a part: a table for people, and the logits beside it."""

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from imgcls.errors import UserError, one_line
from imgcls.system.files import write_atomic, write_table
from imgcls.tasks import SINGLE_LABEL, Task, agree, find


@dataclass(frozen=True, eq=False)
class Predictions:
    """What was predicted for images of one part.

    Attributes:
        logits: (M, K) float32.
        label: Label of each image, (M,) int64 or (M, K) int8.
        index: Number of each image in its part, (M,) int64.
        task: The kind of labels.
        cut: What logits were compared with, (K,), where the kind does that.
    """

    logits: np.ndarray
    label: np.ndarray
    index: np.ndarray
    task: Task = find(SINGLE_LABEL)
    cut: np.ndarray | None = None

    @cached_property
    def probability(self) -> np.ndarray:
        """(M, K) float64, not calibrated."""
        return self.task.probabilities(self.logits)

    @cached_property
    def decided(self) -> np.ndarray:
        """Labels that are predicted, of the kind of `label`."""
        return self.task.decided(self.logits, self.cut)

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability that they are right, (M,)."""
        return self.task.confidence(self.probability, self.decided)

    @cached_property
    def right(self) -> np.ndarray:
        """Whether they are, (M,) bool."""
        return agree(self.decided, self.label)

    @property
    def hits(self) -> tuple[np.ndarray, np.ndarray]:
        """The class of each label that is given, (P,) int64, and whether it is found, (P,) bool."""
        label, decided = (self.task.pairs(of) for of in (self.label, self.decided))
        there, seen = (image * self.logits.shape[1] + number for image, number in (label, decided))
        return label[1], np.isin(there, seen)

    def worst_mistakes(self, count: int) -> np.ndarray:
        """Positions of the `count` wrong predictions with the highest confidence, most confident first."""
        wrong = np.flatnonzero(~self.right)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:count]

    def write(self, path: Path, names: Sequence[str], class_names: Sequence[str]) -> None:
        """Write one row per image, in the order of `index`, and the logits beside it as .npz.

        Args:
            path: The .csv file.
            names: Path of each image of the part, by number.
            class_names: Name of each class.
        """
        header = ("index", "path", "label", "prediction", "confidence", "label_name", "prediction_name")
        numbers = [str(k) for k in range(len(class_names))]
        texts = [self.task.text(of, words) for words in (numbers, class_names) for of in (self.label, self.decided)]
        each = zip(self.index.tolist(), *texts, self.confidence.tolist(), strict=True)
        rows = ([i, names[i], label, other, f"{q:.6f}", *words] for i, label, other, *words, q in each)
        write_table(path, header, rows)
        arrays: dict[str, Any] = {"logits": self.logits, "label": self.label, "index": self.index}
        arrays |= {"task": self.task.name} | ({} if self.cut is None else {"cut": self.cut})
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomic(path.with_suffix(".npz"), content.getvalue())


def read_predictions(path: Path) -> Predictions:
    """What `Predictions.write` left in an .npz file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            task = str(arrays["task"]) if "task" in arrays else SINGLE_LABEL  # as an earlier version knew it alone
            cut = arrays["cut"] if "cut" in arrays else None
            return Predictions(arrays["logits"], arrays["label"], arrays["index"], find(task), cut)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        verb = "validate" if path.stem == "val" else "test"
        raise UserError(f"{path}: cannot be read ({one_line(error)}); {verb} the run again") from error
