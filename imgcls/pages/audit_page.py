"""The page of an audit, with everything inside it: nothing is requested from anywhere."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from imgcls.pages.page import template, thumbnail
from imgcls.system.files import write_atomic

FOUND = {
    "broken": "images that cannot be read",
    "unusable": "rows or files that cannot be used",
    "two_labels": "images of which a copy is labelled otherwise",
    "leaks": "images that are, pixel by pixel, in another part too",
    "copies": "further copies, pixel by pixel, within a part",
    "near_leaks": "images that look like one in another part",
    "near_duplicates": "near duplicates, anywhere",
    "label_errors": "labels that are probably wrong",
}
GROUPS, IMAGES, SUSPECTS, ODD, ROWS = 40, 6, 120, 24, 100  # shown of each kind; audit.json has all


Facts = Callable[[int], dict[str, Any]]
Picture = Callable[[int], Image.Image]


def write_page(path: Path, result: Mapping[str, Any], shown: Mapping[str, Any], facts: Facts, picture: Picture) -> None:
    """Write the page.

    Args:
        path: The .html file.
        result: What audit.json holds.
        shown: Positions of images: groups `two_labels`, `exact`, `near`; `label_errors`; `odd` by kind.
        facts: Part, name and label of the image at a position.
        picture: Its pixels.
    """

    def image(position: int) -> dict[str, Any]:
        return facts(position) | {"uri": thumbnail(picture(position))}

    labels = result["label_errors"][:SUSPECTS]
    page = template("audit.html").render(
        result=result,
        found=[(text, result["found"][key]) for key, text in FOUND.items() if key in result["found"]],
        largest=max((n for of in result.get("classes", {}).values() for n in of.values()), default=1) or 1,
        groups={
            key: [[image(k) for k in group[:IMAGES]] for group in shown[key][:GROUPS]]
            for key in ("two_labels", "exact", "near")
        },
        sizes={key: [len(group) for group in shown[key]] for key in ("two_labels", "exact", "near")},
        suspects=[fact | image(k) for fact, k in zip(labels, shown["label_errors"], strict=False)],
        odd={kind: [image(k) for k in at[:ODD]] for kind, at in shown["odd"].items()},
        limit={"groups": GROUPS, "images": IMAGES, "suspects": SUSPECTS, "odd": ODD, "rows": ROWS},
    )
    write_atomic(path, page)
