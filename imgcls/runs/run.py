"""A run as its folder tells it: settings, metrics, environment, what it predicted."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.runs.predictions import read_predictions
from imgcls.system.files import read_json

Settings = dict[str, Any]


class Run:
    """A finished or unfinished run, read from its folder.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.settings = flatten(folder.read_config())
        self.metrics: dict[str, Any] = read_json(folder.metrics_json)
        self.environment: dict[str, Any] = read_json(folder.environment)

    @property
    def seed(self) -> Any:
        """The run's seed."""
        return self.settings.get("seed_everything")

    @cached_property
    def test(self) -> dict[str, np.ndarray] | None:
        """Label (M,) and index (M,) of the test images, and whether each is predicted right (M,) bool; or None."""
        path = self.folder.predictions / "test.npz"
        if not path.is_file():
            return None
        found = read_predictions(path)
        return {"label": found.label, "index": found.index, "right": found.logits.argmax(1) == found.label}


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
        configs = [path / "config.yaml"] if (path / "config.yaml").is_file() else sorted(path.rglob("config.yaml"))
        # W&B keeps a file of that name below the run's folder
        folders = [c.parent for c in configs if "wandb" not in c.relative_to(path).parts]
        if not folders:
            raise UserError(f"{asked_by} {path}: holds no run (a folder with config.yaml and metrics.json)")
        for folder in folders:
            found.setdefault(folder.resolve(), Run(RunFolder(folder)))
    return list(found.values())


def flatten(value: Any, prefix: str = "") -> Settings:
    """Nested mappings as one, with dotted keys; lists are values."""
    if not isinstance(value, dict) or not value:
        return {prefix.rstrip("."): value}
    return {k: v for key, below in value.items() for k, v in flatten(below, f"{prefix}{key}.").items()}
