"""What runs predicted for images that they were not trained on, by the images' names."""

import csv
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from imgcls.errors import UserError, near
from imgcls.runs.groups import Run
from imgcls.runs.record import softmax


def held_out(runs: Sequence[Run], names: Sequence[str], class_names: Sequence[str]) -> np.ndarray:
    """Probabilities (N, K) for images of these names, NaN where no run has any: of several runs, their mean.

    Of each run its validation and test images count. Runs of all folds (`--data.folds=5 --data.fold=0` and so on)
    together have every image of the training part.

    Args:
        runs: The runs.
        names: Names of N images, as the tables of predictions write them.
        class_names: Names of K classes.

    Raises:
        UserError: A run knows other classes, none has predictions, or none of these images is among them.
    """
    row = {name: k for k, name in enumerate(names)}
    total, count = np.zeros((len(names), len(class_names))), np.zeros(len(names))
    for run in runs:
        known: list[str] = run.environment.get("data", {}).get("class_names", [])
        if sorted(known) != sorted(class_names):
            other = next(iter(set(known) ^ set(class_names)), "")
            raise UserError(
                f"--run {run.folder.path}: has {len(known)} classes, the data {len(class_names)}; "
                f"{other!r} is only in one of them{near(other, known if other in class_names else class_names)}"
            )
        column = [known.index(name) for name in class_names]
        for part in ("val", "test"):
            path = run.folder.predictions / f"{part}.csv"
            if path.is_file():
                of, probability = _read(path)
                place = np.array([row.get(name, -1) for name in of], dtype=np.int64)
                np.add.at(total, place[place >= 0], probability[place >= 0][:, column])
                np.add.at(count, place[place >= 0], 1)
    if not count.any():
        where = ", ".join(str(run.folder.path) for run in runs)
        raise UserError(f"--run {where}: has no prediction for any validation or test image of this data")
    with np.errstate(invalid="ignore"):
        return total / count[:, None]


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    """Names and probabilities (M, K) of a table of predictions and the logits beside it."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            names = [row["path"] for row in csv.DictReader(file)]
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            probability = softmax(arrays["logits"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); validate or test the run again") from error
    if len(names) != len(probability):
        raise UserError(f"{path}: has {len(names)} images, the .npz beside it {len(probability)}; test the run again")
    return names, probability
