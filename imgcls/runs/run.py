"""A run as its folder tells it: settings, metrics, environment, what it predicted."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.errors import UserError
from imgcls.runs.environment import task_of
from imgcls.runs.folder import RunFolder
from imgcls.runs.predictions import Predictions, read_predictions
from imgcls.runs.record import Row, read_metrics
from imgcls.system.files import read_json

Settings = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Tested:
    """What a run predicted for test images.

    Attributes:
        predictions: Logits, labels, and the number of each image among those of which the test part was taken.
        identity: Equal for runs that were tested on the same images.
        table: The table of predictions.
    """

    predictions: Predictions
    identity: tuple[Any, ...]
    table: Path

    @property
    def right(self) -> np.ndarray:
        """Whether each image is predicted right, (M,) bool."""
        return self.predictions.right


class Run:
    """A finished or unfinished run, read from its folder.

    What it says of a labelled set from elsewhere, in `evaluations/NAME`, is among its metrics as `NAME/…`.

    Args:
        folder: The run's folder.

    Attributes:
        task: The kind of labels.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.settings = flatten(folder.read_config())
        self.metrics: dict[str, Any] = read_json(folder.metrics_json)
        self.environment: dict[str, Any] = read_json(folder.environment)
        self.task = task_of(self.environment)
        self._tested: dict[str, tuple[RunFolder, dict[str, Any]]] = {"test": (folder, self.environment)}
        for other in folder.evaluations():
            name = other.path.name
            self._tested[name] = other, read_json(other.environment)
            found = {k: v for k, v in read_json(other.metrics_json).items() if k.startswith("test/")}
            self.metrics |= {f"{name}/{key.removeprefix('test/')}": value for key, value in found.items()}
        self._read: dict[str, Tested | None] = {}

    @property
    def seed(self) -> Any:
        """The run's seed."""
        return self.settings.get("seed_everything")

    @cached_property
    def rows(self) -> list[Row]:
        """The rows of metrics.csv, see `read_metrics`."""
        return read_metrics(self.folder)

    def tested(self, name: str = "test") -> Tested | None:
        """What was predicted for its test part, or for a labelled set from elsewhere; None where it was not tested."""
        if name not in self._read:
            self._read[name] = self._read_tested(name)
        return self._read[name]

    def _read_tested(self, name: str) -> Tested | None:
        folder, environment = self._tested.get(name, (None, {}))
        path = folder.predictions / "test.npz" if folder else None
        if path is None or not path.is_file():
            return None
        found, data = read_predictions(path), environment.get("data", {})
        identity = data.get("data"), data.get("test"), found.label.tobytes(), found.index.tobytes()
        return Tested(found, identity, path.with_suffix(".csv"))


def find_runs(paths: Iterable[str], asked_by: str = "compare:") -> list[Run]:
    """All runs in and below some folders, each once.

    Args:
        paths: The folders.
        asked_by: Option or verb that names them.

    Raises:
        UserError: A folder does not exist or holds no run.
    """
    found: dict[Path, Run] = {}
    for given in paths:
        path = Path(given)
        if not path.is_dir():
            raise UserError(f"{asked_by} {path}: there is no such folder")
        folders = run_folders(path)
        if not folders:
            raise UserError(f"{asked_by} {path}: holds no run (a folder with config.yaml and metrics.json)")
        for folder in folders:
            found.setdefault(folder.resolve(), Run(RunFolder(folder)))
    return list(found.values())


def run_folders(path: Path) -> list[Path]:
    """Folders of runs in and below a folder, in order; what lies in a run's folder is the run's own."""
    found = []
    for folder, below, files in os.walk(path, followlinks=True):
        below.sort()
        if "config.yaml" in files:
            below.clear()
            found.append(Path(folder))
    return found


def flatten(value: Any, prefix: str = "") -> Settings:
    """Nested mappings as one, with dotted keys; lists are values."""
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    return {k: v for key, below in value.items() for k, v in flatten(below, f"{prefix}{key}.").items()}
