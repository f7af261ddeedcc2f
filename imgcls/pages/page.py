"""What the pages of runs share: templates that escape, and curves as SVG inside the page."""

import base64
import io
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

SIDE = 96  # of a thumbnail's longer side, in pixels


def template(name: str) -> Any:
    """A page's template; names of classes, files and settings come from the user's data, so all is escaped."""
    return _templates().get_template(name)


@cache
def _templates() -> Environment:
    return Environment(loader=PackageLoader("imgcls.pages"), autoescape=select_autoescape())


def thumbnail(image: Image.Image) -> str:
    """A JPEG as a data URI; small images are enlarged."""
    scale = SIDE / max(image.size)
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    small = image.resize([max(1, round(side * scale)) for side in image.size], way, reducing_gap=2.0)
    content = io.BytesIO()
    small.save(content, "JPEG", quality=85)
    return data_uri(content.getvalue(), "jpeg")


def data_uri(content: bytes, kind: str) -> str:
    """An image file of a kind such as `png`, to stand inside a page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def epoch_axes(width: float, height: float, **labels: str) -> Axes:
    """Empty axes over epochs, in a figure of that size in inches.

    Args:
        width: Of the figure.
        height: Of the figure.
        **labels: As of matplotlib's `Axes.set`: title, ylabel.
    """
    axes = Figure(figsize=(width, height), layout="constrained").subplots()
    axes.set(xlabel="epoch", **labels)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def svg(axes: Axes) -> str:
    """The figure of the axes as an <svg> element; empty if nothing was drawn."""
    if not axes.lines:
        return ""
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "imgcls"}):  # the same figure is the same text
        axes.get_figure().savefig(text, format="svg", metadata={"Date": None})  # type: ignore[union-attr]
    return text.getvalue()[text.getvalue().index("<svg") :]
