"""The page of a comparison, with everything inside it: nothing is requested from anywhere."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imgcls.runs.compare import disagreements, per_class
from imgcls.runs.folder import write_atomic
from imgcls.runs.groups import Group
from imgcls.runs.record import read_metrics

CURVES = {"val/acc": "Validation accuracy", "val/loss": "Validation loss", "train/loss": "Training loss"}
MANY_CLASSES = 20


def write_page(path: Path, result: dict[str, Any], groups: Sequence[Group]) -> None:
    """Write the page.

    Args:
        path: The .html file.
        result: What `compare` found.
        groups: The groups that it compared.
    """
    by_name = {group.name: group for group in groups}
    compared = [by_name[row["name"]] for row in result["groups"]]
    base = by_name[result["baseline"]]
    keys = sorted({k for row in result["groups"] for k in row["settings"]})
    curves = [(key.replace("/", "-"), title, svg) for key, title in CURVES.items() if (svg := _curves(compared, key))]
    others = [group for group in compared if group is not base]
    page = _template().render(
        result=result,
        keys=keys,
        colors=[_color(k) for k in range(len(compared))],
        curves=curves,
        classes=[(g.name, per_class(g, base)[:MANY_CLASSES]) for g in others],
        disagreements=[(g.name, _named(g, base)) for g in others],
        number=number,
    )
    write_atomic(path, page)


def number(value: float | None, signed: bool = False) -> str:
    """A figure as the table shows it; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:+.4f}" if signed else f"{value:.4f}"


def _template() -> Any:
    # names of classes, files and settings come from the user's data: everything is escaped
    loader = Environment(loader=PackageLoader("imgcls", "runs"), autoescape=select_autoescape())
    return loader.get_template("compare.html")


def _color(place: int) -> str:
    red, green, blue, _ = colormaps["tab10"](place % 10)
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"


def _curves(groups: Sequence[Group], key: str) -> str:
    """Mean over seeds with a band from the lowest to the highest, one line for each group; empty without data."""
    split, _, name = key.partition("/")
    figure = Figure(figsize=(6.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for place, group in enumerate(groups):
        by_epoch: dict[int, list[float]] = {}
        for run in group.runs:
            for row in read_metrics(run.folder):
                if row["split"] == split and row.get(name):
                    by_epoch.setdefault(int(row["epoch"]) + 1, []).append(float(row[name]))
        if by_epoch:
            epochs = sorted(by_epoch)
            values = [by_epoch[e] for e in epochs]
            (line,) = axes.plot(epochs, [np.mean(v) for v in values], color=_color(place), marker="o", markersize=3)
            band = axes.fill_between(
                epochs, [min(v) for v in values], [max(v) for v in values], color=_color(place), alpha=0.18
            )
            for drawn in (line, band):
                drawn.set_gid(f"{split}-{name}-{place}-{type(drawn).__name__}")
    if not axes.lines:
        return ""
    axes.set(xlabel="epoch", ylabel=key)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _named(group: Group, base: Group) -> list[dict[str, Any]]:
    """Disagreements with the names of image and class, from the baseline's table of predictions."""
    found = disagreements(group, base)
    if not found:
        return []
    run = base.runs[0]
    lines = (run.folder.predictions / "test.csv").read_text(encoding="utf-8").splitlines()[1:] if found else []
    names = run.environment.get("data", {}).get("class_names", [])
    for image in found:
        place = image["position"]
        fields = lines[place].split(",") if place < len(lines) else []
        image["path"] = fields[1].strip('"') if len(fields) > 1 else str(place)
        image["class"] = names[image["label"]] if image["label"] < len(names) else str(image["label"])
    return found
