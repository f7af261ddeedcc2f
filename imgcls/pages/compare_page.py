"""The page of a comparison, with everything inside it: nothing is requested from anywhere."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from imgcls.pages.page import epoch_axes, svg, template, thumbnail
from imgcls.runs.record import points, read_metrics
from imgcls.science.comparison import disagreements, per_class, tested_on
from imgcls.science.groups import Group
from imgcls.system.files import read_table, write_atomic

CURVES = {"val/acc": "Validation accuracy", "val/loss": "Validation loss", "train/loss": "Training loss"}
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
    by_name = {group.name: group for group in groups}
    compared = [by_name[row["name"]] for row in result["groups"]]
    base = by_name[result["baseline"]]
    keys = sorted({k for row in result["groups"] for k in row["settings"]})
    curves = [(title, curve) for key, title in CURVES.items() if (curve := _curves(compared, key))]
    others = [group for group in compared if group is not base]
    tested = tested_on(result["metric"]) or "test"
    page = template("compare.html").render(
        result=result,
        keys=keys,
        colors=[_color(k) for k in range(len(compared))],
        curves=curves,
        classes=[(g.name, per_class(g, base, tested)[:MANY_CLASSES]) for g in others],
        disagreements=[(g.name, _named(g, base, tested, picture)) for g in others],
        number=number,
    )
    write_atomic(path, page)


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
            for epoch, value in dict(points(read_metrics(run.folder), key)).items():  # the last of each epoch
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
    found, tested = disagreements(group, base, name), base.runs[0].tested(name)
    if not found or tested is None:
        return []
    rows = read_table(tested.table)  # in the order of the logits
    for image in found:
        row = rows[image["position"]]
        image["path"], image["class"] = row["path"], row["label_name"]
        pixels = picture(int(row["index"]), row["path"]) if picture else None
        image["uri"] = thumbnail(pixels) if pixels else None
    return found
