"""What the terminal says at the end: the figure that counts, all metrics, what is confused, what to try next."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Column, Table

from imgcls.errors import printable
from imgcls.runs.folder import RunFolder
from imgcls.runs.predictions import Predictions, read_predictions
from imgcls.system.files import read_json
from imgcls.training.progress import Screen

MISTAKES = 3  # of each kind
CLASS_WIDTH = 26
MEANING = {
    "loss": "",
    "acc": "share of images predicted right",
    "top3": "class among the three most likely",
    "top5": "class among the five most likely",
    "acc_many": "on classes of > 100 training images",
    "acc_medium": "on classes of 20 to 100",
    "acc_few": "on classes of < 20",
    "balanced_acc": "mean recall of the classes",
    "precision": "right among a class's predictions",
    "recall": "right among a class's images",
    "f1": "precision and recall in one",
    "auroc": "each class against all others",
    "nll": "negative log-likelihood, in nats",
    "ece": "gap of confidence and accuracy",
    "brier": "squared error, from 0 to 2",
    "aurc": "error, the least certain left out",
    "acc_at_80": "on the 80 % most certain images",
    "acc_at_90": "on the 90 % most certain",
    "acc_at_95": "on the 95 % most certain",
    "temperature": "fitted, divides the logits",
    "nll_calibrated": "after that division",
    "ece_calibrated": "after that division",
    "robust/acc": "mean over the variations below",
    "robust/ece": "likewise",
    "robust/relative_error": "error over that of the baseline",
}
TRAIN = "train: mean over the last epoch, as augmented; all others: of the best epoch"
HEADLINE = {"test": "test", "val": "validation"}


def print_summary(
    screen: Screen, run: RunFolder, class_names: Sequence[str], parts: Sequence[str], robustness: bool = False
) -> None:
    """Print a run's figures on some parts, and where its report is.

    Args:
        screen: Where.
        run: The run's folder, which has them.
        class_names: Of the K classes.
        parts: Of train, val and test, where there are figures; the headline is that of the last.
        robustness: Whether those under variations are shown too.
    """
    metrics = read_json(run.metrics_json)
    parts = [part for part in parts if any(name.startswith(f"{part}/") for name in metrics)]
    screen.print("")
    last = parts[-1] if parts else ""
    stored = run.predictions / f"{last}.npz"
    predicted = read_predictions(stored) if stored.is_file() else None
    if predicted is not None and f"{last}/{predicted.task.metric}" not in metrics:
        predicted = None
    if predicted is not None:
        screen.print(_headline(last, metrics, predicted, "train" in parts), "bold")
    screen.print(_metrics_table(metrics, parts, robustness, predicted))
    if "train" in parts and len(parts) > 1:
        screen.print(TRAIN, "dim")
    if predicted is not None:
        for table in _mistakes(predicted, class_names):
            screen.print(table)
    if "train" in parts:
        screen.print(f"trained for {metrics['fit/seconds']:,.0f} s; next:\n")
        for command in _next(run, "test" in parts):
            screen.print(f"  {command}", whole=True)
    screen.print(f"\nrun: {run.path}\nreport: {run.report}", whole=True)


def _headline(part: str, metrics: dict[str, Any], predicted: Predictions, trained: bool) -> str:
    task = predicted.task
    low, high = task.interval(predicted.logits, predicted.label, predicted.cut)
    said = f"{HEADLINE[part]} {task.metric_name} {metrics[f'{part}/{task.metric}']:.3f}, 95 % {low:.3f} to {high:.3f}"
    said += f", {len(predicted.label):,} images"
    if trained and "fit/best_epoch" in metrics:
        said += f"; best epoch {metrics['fit/best_epoch'] + 1} of {metrics['fit/epochs']}"
    return said


def _metrics_table(
    metrics: dict[str, Any], parts: Sequence[str], robustness: bool, predicted: Predictions | None
) -> Table:
    cells: dict[str, dict[str, Any]] = {}
    for name, value in metrics.items():
        part, _, metric = name.partition("/")
        if part in parts and not metric.endswith(("_low", "_high")):
            cells.setdefault(metric, {})[part] = value
        elif part == "robust" and robustness:
            cells[name] = {"test": value}
    columns = [Column(part, justify="right", no_wrap=True) for part in parts]
    table = Table("", *columns, Column(style="dim"), box=box.SIMPLE_HEAD, pad_edge=False)
    own = {} if predicted is None else predicted.task.meaning
    meaning, order = {**MEANING, **own}, [*own, *MEANING]
    for metric in sorted(cells, key=lambda name: (order.index(name) if name in order else len(order), name)):
        table.add_row(metric, *(_number(cells[metric], part) for part in parts), meaning.get(metric, ""))
    return table


def _number(values: dict[str, Any], part: str) -> str:
    if part not in values:
        return ""
    return "not finite" if values[part] is None else f"{values[part]:.4f}"


def _mistakes(predicted: Predictions, class_names: Sequence[str]) -> Iterator[Table]:
    """The mistakes with most images."""
    for titles, rows in predicted.task.mistakes(predicted.label, predicted.decided).items():
        columns = [Column(title, no_wrap=True, overflow="ellipsis", max_width=CLASS_WIDTH) for title in titles]
        table = Table(*columns, Column("images", justify="right"), box=box.SIMPLE_HEAD, pad_edge=False)
        for classes, images, of in rows[:MISTAKES]:
            table.add_row(*(printable(class_names[k]) for k in classes), f"{images:,} of {of:,}")
        yield table


def _next(run: RunFolder, tested: bool) -> list[str]:
    """Commands, as they work here: `make demo` leaves its environment inactive."""
    here = Path(sys.executable)
    python = os.path.relpath(here) if here.is_relative_to(Path.cwd()) else str(here)
    python = "python" if shutil.which("python") == str(here) else python
    folder = shlex.quote(str(run.path))
    words = [] if tested else [f"test --run {folder}"]
    words += [f"explain --run {folder}", f"export --run {folder}"]
    if any(config != run.config for config in run.path.parent.glob("*/config.yaml")):
        words.append(f"compare {shlex.quote(str(run.path.parent))}")
    return [f"{python} -m imgcls {line}" for line in words]
