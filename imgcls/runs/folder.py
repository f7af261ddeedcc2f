"""A run is one folder; this is its layout, and how files in it are written."""

import json
import math
import os
import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from imgcls.errors import UserError


class RunFolder:
    """Paths inside a run's folder. Nothing is created before something is written.

    Args:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.move(path)

    def move(self, path: str | Path) -> None:
        """Point to another folder: processes that start together agree on that of the first."""
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics_csv = self.path / "metrics.csv"
        self.metrics_json = self.path / "metrics.json"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.predictions = self.path / "predictions"
        self.figures = self.path / "figures"
        self.environment = self.path / "environment.json"
        self.skipped = self.path / "skipped.csv"
        self.calibration = self.path / "calibration.json"
        self.evaluation = self.path / "evaluation.json"
        self.robustness = self.path / "robustness.json"
        self.report = self.path / "report.html"

    @classmethod
    def new(cls, experiment: str, seed: int) -> "RunFolder":
        """`runs/<experiment>/<time>-<seed>-<id>`."""
        name = f"{datetime.now():%Y%m%d-%H%M%S}-{seed}-{uuid.uuid4().hex[:6]}"
        return cls(Path("runs") / experiment / name)

    @classmethod
    def existing(cls, path: str, option: str) -> "RunFolder":
        """The folder of a run that has a config.

        Raises:
            UserError: There is none; the text names the option and the folder.
        """
        run = cls(path)
        if not run.config.is_file():
            known = "is not a run's folder: it has no config.yaml" if run.path.is_dir() else "does not exist"
            raise UserError(f"{option} {path}: {known} (a run's folder looks like runs/demo/20260131-120000-0-1a2b3c)")
        return run

    def checkpoint(self, path: Path) -> Path:
        """`path` if it is there.

        Raises:
            UserError: The run has not written that checkpoint.
        """
        if not path.is_file():
            raise UserError(f"{path}: the run has no such checkpoint yet; was it stopped before its first epoch ended?")
        return path


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write text or bytes so that a reader, or a crash, sees the old file or the new one and nothing between.

    Raises:
        UserError: The disk is full, or the folder cannot be written to.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room or mend the folder") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file, indented, in one go; a number that is not finite becomes null, as JSON has no word for it."""
    write_atomic(path, json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
