"""A run is one folder; this is its layout."""

import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.runs.earlier import upgraded_run
from imgcls.system.files import read_yaml

EVALUATIONS = "evaluations"


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
        self.log = self.path / "log.txt"

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

    def evaluation_on(self, name: str) -> "RunFolder":
        """The folder of what the run says of another labelled set; config, weights and calibration are the run's."""
        folder = RunFolder(self.path / EVALUATIONS / name)
        folder.config, folder.calibration = self.config, self.calibration
        folder.checkpoints, folder.best, folder.last = self.checkpoints, self.best, self.last
        return folder

    def evaluations(self) -> list["RunFolder"]:
        """The evaluations on other labelled sets, by name."""
        names = sorted(path.parent.name for path in self.path.glob(f"{EVALUATIONS}/*/metrics.json"))
        return [self.evaluation_on(name) for name in names]

    def read_config(self) -> dict[str, Any]:
        """What config.yaml holds: `data`, `model`, `trainer` and further settings, as this version takes them."""
        return upgraded_run(read_yaml(self.config, "a run's config has the keys data, model and trainer"))

    def checkpoint(self, path: Path) -> Path:
        """`path` if it is there.

        Raises:
            UserError: The run has not written that checkpoint.
        """
        if not path.is_file():
            raise UserError(f"{path}: the run has no such checkpoint yet; was it stopped before its first epoch ended?")
        return path
