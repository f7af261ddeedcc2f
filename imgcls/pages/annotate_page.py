"""The page of images to label next, with everything inside it: nothing is requested from anywhere."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from imgcls.pages.page import template, thumbnail
from imgcls.system.files import write_atomic

SHOWN = 500  # thumbnails, of 4 kB each; the table has all


def write_page(
    path: Path, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], picture: Callable[[int], Image.Image]
) -> None:
    """Write the page.

    Args:
        path: The .html file.
        rows: What the table says of each image, by rank.
        facts: What was looked at: the number of images `compared` and of those left out, `left_out` by the reason,
            `classes` with the name of each and how many of the images and of the chosen are predicted to be of it;
            the `table`'s path.
        picture: Pixels of the image in a row.
    """
    shown = [{**row, "uri": thumbnail(picture(k))} for k, row in enumerate(rows[:SHOWN])]
    write_atomic(path, template("annotate.html").render(rows=shown, count=len(rows), **facts))
