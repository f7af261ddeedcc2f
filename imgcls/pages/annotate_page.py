"""The page of images to label next, with everything inside it: nothing is requested from anywhere."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imgcls.pages.page import template, thumbnail
from imgcls.system.files import write_atomic

SHOWN, CLASSES = 500, 100  # thumbnails, of 4 kB each: the table has all; rows of classes


def write_page(
    path: Path, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], picture: Callable[[int], Image.Image]
) -> None:
    """Write the page.

    Args:
        path: The .html file.
        rows: What the table says of each image, by rank.
        facts: The number of images `compared`; which were `left_out`, in words; of `classes` the name of each, and how
            many of the chosen and of all images are predicted to be of it; the path of the `table`.
        picture: Pixels of the image in a row.
    """
    shown = [{**row, "uri": thumbnail(picture(k))} for k, row in enumerate(rows[:SHOWN])]
    page = template("annotate.html").render(rows=shown, count=len(rows), limit=CLASSES, **facts)
    write_atomic(path, page)
