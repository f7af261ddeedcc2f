"""One page that shows a run, with everything inside it: nothing is requested from anywhere."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imgcls.runs.folder import RunFolder, read_json, write_atomic
from imgcls.runs.record import Row, read_metrics

CURVES = {"loss": "Loss", "acc": "Accuracy"}
COLORS = {"train": "#8a8f98", "val": "#1f6feb"}


def write_report(run: RunFolder) -> None:
    """Write report.html from the run's own files, whatever of them exists so far."""
    rows = read_metrics(run)
    metrics = read_json(run.metrics_json)
    page = _template().render(
        name=f"{run.path.parent.name}/{run.path.name}",
        headline=[(k, _number(metrics[k])) for k in ("test/acc", "val/acc", "fit/seconds") if k in metrics],
        metrics=[(k, _number(v)) for k, v in sorted(metrics.items())],
        curves=[svg for key, title in CURVES.items() if (svg := _curve(rows, key, title))],
        figures=[(_caption(p), _data_uri(p)) for p in sorted(run.figures.glob("*.png"))],
        environment=_facts(read_json(run.environment)),
        config=run.config.read_text(encoding="utf-8") if run.config.is_file() else "",
    )
    write_atomic(run.report, page)


def _template() -> Any:
    # class and file names come from the data: everything is escaped
    loader = Environment(loader=PackageLoader("imgcls", "runs"), autoescape=select_autoescape())
    return loader.get_template("report.html")


def _number(value: Any) -> str:
    if value is None:
        return "not finite"
    return str(value) if isinstance(value, int) else f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}"


def _curve(rows: list[Row], key: str, title: str) -> str:
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for split, color in COLORS.items():
        points = [(int(r["epoch"]) + 1, float(r[key])) for r in rows if r["split"] == split and r.get(key)]
        if points:
            axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3, label=split)
    if not axes.lines:
        return ""
    axes.set(xlabel="epoch", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _caption(path: Path) -> str:
    part, _, name = path.stem.partition("_")
    return f"{name.replace('_', ' ').capitalize()} ({part})"


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The record of the environment as lines of a table, one level deep."""
    facts = []
    for key, value in record.items():
        if isinstance(value, dict):
            facts += [
                (f"{key}: {k}", ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for k, v in value.items()
            ]
        else:
            facts.append((key, " ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return facts
