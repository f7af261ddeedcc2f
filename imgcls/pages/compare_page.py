"""The page of a comparison, with everything inside it: nothing is requested from anywhere."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from imgcls.pages.page import epoch_axes, svg, template, thumbnail
from imgcls.runs.record import points
from imgcls.science.comparison import disagreements, per_class, tested_on
from imgcls.science.groups import Group
from imgcls.system.files import read_table, write_atomic

CURVES = {"val/loss": "Validation loss", "train/loss": "Training loss"}
MANY_CLASSES = 20


Picture = Callable[[int, str], Image.Image | None]


def write_page(path: Path, result: dict[str, Any], groups: Sequence[Group], picture: Picture | None = None) -> None:
    """Write the page.

    Args:
        path: The .html file.
        result: What `compare` found.
        groups: The groups that it compared.
        picture: A test image by its number and name, None if there is none of that name; None where none can be had.
    """
    scored = {row["name"] for row in result["groups"]}
    shown = {"classes": classes(result, groups), "disagreements": disagreeing(result, groups, picture)}
    common = table_context(result, groups) | curves_context([group for group in groups if group.name in scored])
    write_atomic(path, template("compare.html").render(common | shown))


def table_context(result: dict[str, Any], groups: Sequence[Group]) -> dict[str, Any]:
    """What the table of groups is made from."""
    keys = sorted({k for row in result["groups"] for k in row["settings"]})
    colors = {group.name: _color(k) for k, group in enumerate(groups)}
    return {"result": result, "keys": keys, "colors": colors, "number": number}


def curves_context(groups: Sequence[Group]) -> dict[str, Any]:
    """What the curves of groups are made from."""
    tasks = {run.task for group in groups for run in group.runs}
    titles = {f"val/{task.metric}": f"Validation {task.metric_name}" for task in tasks} | CURVES
    titles |= {f"val/{name}": f"Validation {name}" for task in tasks for name in task.resampled if name != task.metric}
    curves = [(title, curve) for key, title in titles.items() if (curve := _curves(groups, key))]
    return {"curves": curves, "lines": [(group.name, _color(k)) for k, group in enumerate(groups)]}


def classes(result: dict[str, Any], groups: Sequence[Group]) -> list[tuple[str, list[Any]]]:
    """For each group but the baseline, its name and the classes that it judges most differently."""
    base, others, tested = _against(result, groups)
    return [(group.name, per_class(group, base, tested)[:MANY_CLASSES]) for group in others]


def disagreeing(
    result: dict[str, Any], groups: Sequence[Group], picture: Picture | None
) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each group but the baseline, its name and the images that it judges most differently."""
    base, others, tested = _against(result, groups)
    return [(group.name, _named(group, base, tested, picture)) for group in others]


def _against(result: dict[str, Any], groups: Sequence[Group]) -> tuple[Group, list[Group], str]:
    """The baseline, the groups compared with it, and the set of images that they were tested on."""
    base, by_name = baseline_of(result, groups), {group.name: group for group in groups}
    compared = [by_name[row["name"]] for row in result["groups"]]
    return base, [group for group in compared if group is not base], tested_on(result["metric"], base) or "test"


def baseline_of(result: dict[str, Any], groups: Sequence[Group]) -> Group:
    """The group that the others were compared with."""
    return next(group for group in groups if group.name == result["baseline"])


def number(value: float | None, signed: bool = False) -> str:
    """A figure as the table shows it; a dash where there is none."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:+.4f}" if signed else f"{value:.4f}"


def _color(place: int) -> str:
    red, green, blue, _ = colormaps["tab10"](place % 10)
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"


def _curves(groups: Sequence[Group], key: str) -> str:
    """Mean over seeds with a band from the lowest to the highest, one line for each group; empty without data."""
    axes = epoch_axes(6.2, 3.6, ylabel=key)
    for place, group in enumerate(groups):
        by_epoch: dict[int, list[float]] = {}
        for run in group.runs:
            for epoch, value in dict(points(run.rows, key)).items():  # the last of each epoch
                by_epoch.setdefault(epoch, []).append(value)
        if by_epoch:
            epochs = sorted(by_epoch)
            values = [by_epoch[e] for e in epochs]
            (line,) = axes.plot(epochs, [np.mean(v) for v in values], color=_color(place), marker="o", markersize=3)
            low, high = list(map(min, values)), list(map(max, values))
            band = axes.fill_between(epochs, low, high, color=_color(place), alpha=0.18)
            for drawn in (line, band):
                drawn.set_gid(f"{key.replace('/', '-')}-{place}-{type(drawn).__name__}")
    return svg(axes)


def _named(group: Group, base: Group, name: str, picture: Picture | None) -> list[dict[str, Any]]:
    """Disagreements with the names of image and class, from the baseline's table of predictions."""
    found, tables = disagreements(group, base, name), dict[Path, list[dict[str, str]]]()
    for image in found:
        table, place = image.pop("row")
        if table not in tables:
            tables[table] = read_table(table)  # in the order of the logits
        row = tables[table][place]
        image["path"], image["class"] = row["path"], row["label_name"]
        pixels = picture(int(row["index"]), row["path"]) if picture else None
        image["uri"] = thumbnail(pixels) if pixels else None
    return found
