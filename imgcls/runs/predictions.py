"""What a run predicted for the images of a part: a table for people, and the logits beside it."""

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import scipy

from imgcls.errors import UserError, one_line
from imgcls.system.files import write_atomic, write_table


def write_predictions(
    path: Path,
    logits: np.ndarray,
    label: np.ndarray,
    index: np.ndarray,
    names: Sequence[str],
    class_names: Sequence[str],
) -> None:
    """Write one row per image, in the order of `index`, and the logits beside it as .npz.

    Args:
        path: The .csv file.
        logits: (N, K) float32.
        label: (N,) int64.
        index: Number of each image in its part, (N,) int64.
        names: Path of each image of the part, by number.
        class_names: Name of each class.
    """
    probability = probabilities(logits)
    header = ("index", "path", "label", "prediction", "confidence", "label_name", "prediction_name")
    columns = (values.tolist() for values in (index, label, probability.argmax(1), probability.max(1)))
    numbers = zip(*columns, strict=True)
    rows = ([i, names[i], y, p, f"{q:.6f}", class_names[y], class_names[p]] for i, y, p, q in numbers)
    write_table(path, header, rows)
    content = io.BytesIO()
    np.savez_compressed(content, logits=logits, label=label, index=index)
    write_atomic(path.with_suffix(".npz"), content.getvalue())


@dataclass(frozen=True, eq=False)
class Predictions:
    """What was predicted for images of one part.

    Attributes:
        logits: (M, K) float32.
        label: Class of each image (M,) int64.
        index: Number of each image in its part, (M,) int64.
    """

    logits: np.ndarray
    label: np.ndarray
    index: np.ndarray

    @cached_property
    def probability(self) -> np.ndarray:
        """(M, K) float64, not calibrated."""
        return probabilities(self.logits)


def read_predictions(path: Path) -> Predictions:
    """What `write_predictions` left in an .npz file.

    Raises:
        UserError: It cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Predictions(arrays["logits"], arrays["label"], arrays["index"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        verb = "validate" if path.stem == "val" else "test"
        raise UserError(f"{path}: cannot be read ({one_line(error)}); {verb} the run again") from error


def probabilities(logits: np.ndarray) -> np.ndarray:
    """(N, K) float64 of logits (N, K)."""
    return scipy.special.softmax(logits.astype(np.float64), axis=1)
