"""What a run writes about itself: metrics, predictions, environment."""

import csv
import io
import math
import os
import platform
import re
import subprocess
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import scipy

from imgcls.errors import UserError, one_line
from imgcls.runs.folder import RunFolder, read_json, write_atomic, write_json

PACKAGES = "imgcls torch torchvision lightning torchmetrics kornia timm jsonargparse wandb numpy pillow".split()
LEADING = ["epoch", "step", "split", "loss", "acc"]

Row = dict[str, str]


def read_metrics(run: RunFolder) -> list[Row]:
    """Rows of metrics.csv: one per epoch and split, with `epoch`, `step`, `split` and the metrics' names."""
    if not run.metrics_csv.is_file():
        return []
    with open(run.metrics_csv, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_metrics(run: RunFolder, metrics: Mapping[str, float], epoch: int, step: int) -> None:
    """Add one row per split to metrics.csv for metrics named `split/name`; a repeated epoch replaces its row."""
    rows = read_metrics(run)
    splits: dict[str, Row] = {}
    for key, value in metrics.items():
        split, slash, name = key.partition("/")
        if slash:
            row = splits.setdefault(split, {"epoch": str(epoch), "step": str(step), "split": split})
            row[name] = repr(float(value))
    # the epochs after a resumed checkpoint are run again
    rows = [r for r in rows if r["split"] not in splits or int(r["epoch"]) < epoch] + list(splits.values())
    names = dict.fromkeys(LEADING)
    for row in rows:
        names |= dict.fromkeys(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(run.metrics_csv, text.getvalue())


def best_row(rows: Sequence[Row], monitor: str, mode: str) -> Row | None:
    """The row of the epoch whose checkpoint was kept: the last with the best value of `split/name`."""
    split, _, name = monitor.partition("/")
    candidates = [r for r in rows if r["split"] == split and r.get(name) and not math.isnan(float(r[name]))]
    sign = -1 if mode == "max" else 1
    return min(reversed(candidates), key=lambda r: sign * float(r[name]), default=None)


def add_summary(run: RunFolder, values: Mapping[str, float | int | None], instead_of: str | None = None) -> None:
    """Merge values into metrics.json, where `instead_of` begins the names of those that they replace all together."""
    kept = {k: v for k, v in read_json(run.metrics_json).items() if instead_of is None or not k.startswith(instead_of)}
    write_json(run.metrics_json, kept | dict(values))


def write_skipped(path: Path, parts: Iterable[str], skipped: Iterable[Sequence[str]]) -> int:
    """Write a table `part,name,reason`: what was left out of the data.

    Args:
        path: The file.
        parts: The parts that were looked at; rows of others are kept.
        skipped: Part, name and reason of each image or row.

    Returns:
        The number of rows in the file.
    """
    header, rows = ["part", "name", "reason"], [list(row) for row in skipped]
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            rows += [row for row in csv.reader(file) if row != header and row[0] not in parts and row not in rows]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *sorted(rows)])
    write_atomic(path, text.getvalue())
    return len(rows)


def row_values(row: Row) -> dict[str, float]:
    """Metrics of a row of metrics.csv by their full names, `split/name`."""
    skip = {"epoch", "step", "split"}
    return {f"{row['split']}/{k}": float(v) for k, v in row.items() if k not in skip and v != ""}


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
    prediction = probability.argmax(1)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["index", "path", "label", "prediction", "confidence", "label_name", "prediction_name"])
    for i, y, p, q in zip(
        index.tolist(), label.tolist(), prediction.tolist(), probability.max(1).tolist(), strict=True
    ):
        writer.writerow([i, names[i], y, p, f"{q:.6f}", class_names[y], class_names[p]])
    write_atomic(path, text.getvalue())
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


def environment(seed: int | None, data: dict[str, Any], hardware: dict[str, Any]) -> dict[str, Any]:
    """What is needed to say where figures came from. No environment variables: they hold keys.

    Args:
        seed: The run's seed.
        data: Fingerprints, class names and sizes.
        hardware: What the caller knows of accelerators.
    """
    return {
        "command": [without_keys(word) for word in sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git": _git(),
        "hardware": {"processor": _processor(), "cores": os.cpu_count(), **hardware},
        "seed": seed,
        "data": data,
    }


def without_keys(text: str) -> str:
    """Text in which REMOVED stands for the value of each environment variable and option that is named as a key is."""
    for name, value in os.environ.items():
        if name.upper().endswith(("KEY", "TOKEN", "SECRET", "PASSWORD")) and len(value) >= 8:
            text = text.replace(value, "REMOVED")
    return re.sub(r"((?:api_?key|password|secret)\w*[=:] ?)(?!null\b)[^\s,}]+", r"\1REMOVED", text, flags=re.IGNORECASE)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None  # an extra that is not installed


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _git() -> dict[str, Any] | None:
    here = Path(__file__).parent

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from an archive, or no git on this machine
