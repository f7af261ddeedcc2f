"""What runs predicted for images that they were not trained on, by the images' names."""

import csv
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from imgcls.errors import UserError, near, one_line
from imgcls.runs.environment import task_of
from imgcls.runs.predictions import read_predictions
from imgcls.runs.run import Run
from imgcls.system.files import read_table
from imgcls.tasks import Task

Table = tuple[list[str], np.ndarray]  # names of M images, their probabilities (M, K)


def held_out(
    runs: Sequence[Run], files: Sequence[Path], names: Sequence[str], class_names: Sequence[str], task: Task
) -> np.ndarray:
    """Probabilities (N, K) for images of these names, NaN where there are none: of several, their mean.

    Of each run its validation and test images count. Runs of all folds (`--data.folds=5 --data.fold=0` and so on), be
    the fold the validation or the test part, together have every image of the training part.

    Args:
        runs: The runs.
        files: Tables as `predict` writes them, with a column `path` and one for each class.
        names: Names of N images, as the tables of predictions write them.
        class_names: Names of K classes.
        task: The kind of labels.

    Raises:
        UserError: A run or file knows other classes, or none has a prediction for any of these images.
    """
    row = {name: k for k, name in enumerate(names)}
    total, count = np.zeros((len(names), len(class_names))), np.zeros(len(names))
    of_runs = chain.from_iterable(_of_run(run, class_names, task) for run in runs)
    for of, probability in chain(of_runs, (_of_file(file, class_names, task) for file in files)):
        place = np.array([row.get(name, -1) for name in of], dtype=np.int64)
        np.add.at(total, place[place >= 0], probability[place >= 0])
        np.add.at(count, place[place >= 0], 1)
    if not count.any():
        where = ", ".join([*(f"--run {run.folder.path}" for run in runs), *(f"--predictions {f}" for f in files)])
        raise UserError(f"{where}: no prediction for any validation or test image of this data")
    with np.errstate(invalid="ignore"):
        return total / count[:, None]


def _of_run(run: Run, class_names: Sequence[str], task: Task) -> Iterator[Table]:
    """Validation and test images, as far as the run has predictions for them."""
    known: list[str] = run.environment.get("data", {}).get("class_names", [])
    if sorted(known) != sorted(class_names):
        other = min(set(known) ^ set(class_names), default="")
        raise UserError(
            f"--run {run.folder.path}: has {len(known)} classes, the data {len(class_names)}; "
            f"{other!r} is only in one of them{near(other, known if other in class_names else class_names)}"
        )
    if task_of(run.environment).link != task.link:
        raise UserError(f"--run {run.folder.path}: knows another kind of labels than the data have")
    for part in ("val", "test"):
        path = run.folder.predictions / f"{part}.csv"
        if path.is_file():
            names, probability = _read(path)
            yield names, probability[:, [known.index(name) for name in class_names]]


def _of_file(path: Path, class_names: Sequence[str], task: Task) -> Table:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            for name in ("path", *class_names):
                if name not in (table.fieldnames or []):
                    raise UserError(f"--predictions {path}: has no column {name!r}{near(name, table.fieldnames or [])}")
            rows = [(row["path"], [float(row[name]) for name in class_names]) for row in table]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"--predictions {path}: cannot be read ({' '.join(str(error).split())})") from error
    probability = np.array([values for _, values in rows]).reshape(-1, len(class_names))
    if not task.plausible(probability):
        raise UserError(f"--predictions {path}: its rows are no probabilities, {task.probabilities_are}")
    return [name for name, _ in rows], probability


def _read(path: Path) -> Table:
    """Names and probabilities (M, K) of a table of predictions and the logits beside it."""
    try:
        names = [row["path"] for row in read_table(path)]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); validate or test the run again") from error
    probability = read_predictions(path.with_suffix(".npz")).probability
    if len(names) != len(probability):
        raise UserError(f"{path}: has {len(names)} images, the .npz beside it {len(probability)}; test the run again")
    return names, probability
