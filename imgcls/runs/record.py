"""What a run writes about itself: metrics, predictions, environment."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from imgcls.runs.folder import RunFolder
from imgcls.system.files import read_json, read_table, write_json, write_table

LEADING = ["epoch", "step", "split", "loss", "acc"]

Row = dict[str, str]


def read_metrics(run: RunFolder) -> list[Row]:
    """Rows of metrics.csv: one per epoch and split, with `epoch`, `step`, `split` and the metrics' names."""
    return read_table(run.metrics_csv) if run.metrics_csv.is_file() else []


def add_metrics(run: RunFolder, metrics: Mapping[str, float], epoch: int, step: int) -> None:
    """Add one row per split to metrics.csv for metrics named `split/name`; a repeated step replaces its row."""
    rows = read_metrics(run)
    splits: dict[str, Row] = {}
    for key, value in metrics.items():
        split, slash, name = key.partition("/")
        if slash:
            row = splits.setdefault(split, {"epoch": str(epoch), "step": str(step), "split": split})
            row[name] = repr(float(value))
    # what comes after a resumed checkpoint is run again; with val_check_interval an epoch has several validations
    first = {split: (epoch, 0 if split == "train" else step) for split in splits}
    rows = [r for r in rows if r["split"] not in splits or (int(r["epoch"]), int(r["step"])) < first[r["split"]]]
    rows += splits.values()
    names = list(dict.fromkeys([*LEADING, *chain.from_iterable(rows)]))
    write_table(run.metrics_csv, names, ([row.get(name, "") for name in names] for row in rows))


def points(rows: Iterable[Row], key: str) -> list[tuple[int, float]]:
    """Epoch, from 1, and value of each row of metrics.csv that has the metric `split/name`."""
    split, _, name = key.partition("/")
    return [(int(row["epoch"]) + 1, float(row[name])) for row in rows if row["split"] == split and row.get(name)]


def best_row(rows: Sequence[Row], monitor: str, mode: str) -> Row | None:
    """The row of the epoch whose checkpoint was kept: the last with the best value of `split/name`."""
    split, _, name = monitor.partition("/")
    candidates = [r for r in rows if r["split"] == split and r.get(name) and not math.isnan(float(r[name]))]
    sign = -1 if mode == "max" else 1
    return min(reversed(candidates), key=lambda r: sign * float(r[name]), default=None)


def add_summary(run: RunFolder, values: Mapping[str, float | int | None], instead_of: str | None = None) -> None:
    """Merge values into metrics.json; earlier values whose names begin with `instead_of` are removed."""
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
    rows = [list(row) for row in skipped]
    if path.is_file():
        earlier = [list(row.values()) for row in read_table(path)]
        rows += [row for row in earlier if row[0] not in parts and row not in rows]
    write_table(path, ("part", "name", "reason"), sorted(rows))
    return len(rows)


def row_values(row: Row) -> dict[str, float]:
    """Metrics of a row of metrics.csv by their full names, `split/name`."""
    skip = {"epoch", "step", "split"}
    return {f"{row['split']}/{k}": float(v) for k, v in row.items() if k not in skip and v != ""}
