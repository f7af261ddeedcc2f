"""Figures as PNG files; each is a plain function of arrays."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image


def save(figure: Figure, path: Path) -> np.ndarray:
    """Write a figure as PNG and return its pixels, uint8 (H, W, 3), for loggers that take arrays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # once: savefig would lay everything out and draw it again, a second for a grid of images
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    Image.fromarray(pixels).save(path)
    return pixels


def confusion_figure(cells: np.ndarray, names: Sequence[str]) -> Figure:
    """Heat map of counts (K, K), coloured by the share of each class; numbers and names up to 30 classes."""
    count = len(names)
    side = min(12.0, 2.5 + 0.45 * count)
    figure = Figure(figsize=(side, side), layout="constrained", dpi=110)
    axes = figure.subplots()
    share = cells / np.maximum(cells.sum(1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="class")
    if count <= 30:
        axes.set_xticks(range(count), [_shorten(n) for n in names], rotation=90, parse_math=False)
        axes.set_yticks(range(count), [_shorten(n) for n in names], parse_math=False)
        for (row, column), value in np.ndenumerate(cells):
            if value:
                color = "white" if share[row, column] > 0.5 else "black"
                axes.text(column, row, str(value), ha="center", va="center", color=color, fontsize=7)
    return figure


def bars_figure(names: Sequence[str], score: np.ndarray, chance: np.ndarray, title: str, most: int = 30) -> Figure:
    """A bar for the score (K,) of each class, in 0..1, and a mark where chance (K,) lies; the first `most` classes."""
    count = min(len(names), most)
    figure = Figure(figsize=(6.0, 0.8 + 0.24 * count), layout="constrained", dpi=110)
    axes = figure.subplots()
    place = np.arange(count)
    axes.barh(place, score[:count], color="#1f6feb", height=0.7)
    axes.scatter(chance[:count], place, color="black", marker="|", s=80, zorder=2, label="by chance")
    axes.set_yticks(place, [_shorten(name) for name in names[:count]], parse_math=False)
    axes.set(xlim=(0, 1), xlabel=title if count == len(names) else f"{title}, the {count} lowest of {len(names)}")
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


def image_grid(images: np.ndarray, titles: Sequence[str], columns: int = 8) -> Figure:
    """uint8 images (N, C, H, W) with a title each, row by row."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.55 * columns, 1.95 * rows), layout="constrained", dpi=110)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, image, title in zip(grid.flat, images, titles, strict=False):
        pixels = image.transpose(1, 2, 0)
        axes.imshow(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
        axes.set_title("\n".join(_shorten(line) for line in title.split("\n")), fontsize=7, parse_math=False)
    return figure


def _shorten(text: str, length: int = 22) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
