"""One page that shows a run, with everything inside it: nothing is requested from anywhere."""

from pathlib import Path
from typing import Any

from imgcls.pages.page import data_uri, epoch_axes, svg, template
from imgcls.runs.environment import task_of
from imgcls.runs.folder import RunFolder
from imgcls.runs.record import Row, points, read_metrics
from imgcls.system.files import read_json, write_atomic

COLORS = {"train": "#8a8f98", "val": "#1f6feb"}
CLASSES = 50
EXPLAINED = {"grad_cam": "Where classes are seen (Grad-CAM)", "layers": "What layers respond to"}  # shown last


def write_report(run: RunFolder) -> None:
    """Write report.html."""
    write_atomic(run.report, report(run))


def report(run: RunFolder) -> str:
    """The page from the run's own files, whatever of them exists so far."""
    rows = read_metrics(run)
    metrics, evaluation = read_json(run.metrics_json), read_json(run.evaluation)
    record = read_json(run.environment)
    task = task_of(record)
    classes = [row for row in evaluation.get("classes", []) if row["images"]]
    others = [name for name in task.resampled if name != task.metric]
    headline = (f"test/{task.metric}", f"val/{task.metric}", *(f"test/{name}" for name in others), "fit/seconds")
    curves = {"loss": "loss", task.metric: task.metric_name} | {name: name for name in others}
    whose = run.config.parent.name if run.config.parent != run.path else run.path.parent.name
    figures = sorted(run.figures.glob("*.png"), key=lambda path: (path.stem in EXPLAINED, path.stem))
    return template("report.html").render(
        name=f"{whose}/{run.path.name}",
        headline=[(k, _number(metrics[k]), _interval(metrics, k)) for k in headline if k in metrics],
        metrics=[(k, _number(v)) for k, v in sorted(metrics.items())],
        curves=[curve for key, title in curves.items() if (curve := _curve(rows, key, title))],
        evaluation=evaluation,
        num_classes=len(classes),
        classes=sorted(classes, key=lambda row: row[task.score_of_class])[:CLASSES],
        scored=_scored,
        worst_by=task.score_of_class,
        number=lambda value: "–" if value is None else _number(value),
        figures=[(_caption(p), data_uri(p.read_bytes(), "png")) for p in figures],
        environment=_facts(record),
        config=run.config.read_text(encoding="utf-8") if run.config.is_file() else "",
    )


def _scored(rows: list[dict[str, Any]], of: str) -> list[str]:
    """Columns of a table of what is counted and measured of each `of`, intervals being shown beside their values."""
    return [key for key in (rows or [{}])[0] if key != of and not key.endswith(("_low", "_high"))]


def _number(value: Any) -> str:
    if value is None:
        return "not finite"
    return str(value) if isinstance(value, int) else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"


def _interval(metrics: dict[str, Any], name: str) -> str:
    low, high = (metrics.get(f"{name}_{end}") for end in ("low", "high"))
    return "" if low is None or high is None else f"95 %: {low:.4f} to {high:.4f}"


def _curve(rows: list[Row], key: str, title: str) -> str:
    axes = epoch_axes(5.4, 3.2, title=title)
    for split, color in COLORS.items():
        # the last of an epoch with several validations
        if values := dict(points(rows, f"{split}/{key}")):
            axes.plot(list(values), list(values.values()), color=color, marker="o", markersize=3, label=split)
    if axes.lines:
        axes.legend(frameon=False)
    return svg(axes)


def _caption(path: Path) -> str:
    if path.stem in EXPLAINED:
        return EXPLAINED[path.stem]
    part, _, name = path.stem.partition("_")
    return f"{name.replace('_', ' ').capitalize()} ({part})"


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The record of the environment as lines of a table, one level deep."""
    facts = []
    for key, value in record.items():
        inner = {f"{key}: {k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
        between = ", " if isinstance(value, dict) else " "  # a list of words is the command
        facts += [(k, between.join(map(str, v)) if isinstance(v, list) else str(v)) for k, v in inner.items()]
    return facts
