"""The images of a data set that are kept, as a table that the table module takes."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.images.sources import FileSource, Part, Source
from imgcls.system.files import write_table
from imgcls.tasks import SINGLE_LABEL, find

Kept = tuple[Part, Source, np.ndarray, np.ndarray]
COLUMNS = ("path", "label", "split")  # the first alone of images without labels


def write_clean_table(
    folder: Path, kept: Sequence[Kept], class_names: Sequence[str], task: str = SINGLE_LABEL
) -> dict[str, Any]:
    """Write clean.csv: path, label, split, group (or near_group, of a table with such a column), and what else it said.

    Images that have no file of their own, but lie in memory, are written as PNG files below `images/`.

    Args:
        folder: Where the table is written; an earlier one goes, and its images.
        kept: Part, its source, the numbers of the images kept in it, and their groups, empty cells where -1, both (M,)
            int64.
        class_names: Names of the classes; none of images without labels.
        task: Kind of labels, whose `text` the column `label` holds.

    Returns:
        Number of images of each part, of training images of each class, the table's `file` and the `root` of its paths,
        both absent if the source has neither files nor all images in memory; names that no table can hold; the
        `group_column` and how many images are `grouped`.
    """
    (folder / "clean.csv").unlink(missing_ok=True)
    shutil.rmtree(folder / "images", ignore_errors=True)
    sources = [source for _, source, *_ in kept]
    files = [source for source in sources if isinstance(source, FileSource)]
    names: list[str] = []
    written: dict[str, Any] = {"images": {}, "classes": {}, "names_impossible": names}
    further = [n for n in sources[0].columns if n not in COLUMNS and all(n in s.columns for s in sources)]
    grouped = "group"
    while grouped in further:
        grouped = f"near_{grouped}"
    written |= {"group_column": grouped, "grouped": sum(int((group >= 0).sum()) for *_, group in kept)}
    rows: list[list[str]] = []
    kind = find(task)
    in_files, in_memory = len(files) == len(sources), all(source.in_memory for source in sources)
    root = Path(os.path.commonpath(set[str]().union(*map(_folders, files)))) if in_files else folder
    for part, source, numbers, groups in kept:
        texts, good = kind.text(source.label[numbers], class_names), list[int]()
        for number, group, text in zip(numbers.tolist(), groups.tolist(), texts, strict=True):
            path = _path(source, number, part, root)
            if not _fits(path):
                names.append(source.names[number])
                continue
            if in_memory and not in_files:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                source.original(number).image.save(folder / path, compress_level=1)
            said = [text, part, "" if group < 0 else str(group)] if class_names else []
            good.append(number)
            rows.append([path, *said, *(source.columns[name][number] for name in further)])
        written["images"][part] = len(good)
        count = np.bincount(kind.pairs(source.label[np.array(good, np.int64)])[1], minlength=len(class_names))
        written["classes"][part] = dict(zip(class_names, count.tolist(), strict=True))
    if not (in_files or in_memory):
        return written
    write_table(folder / "clean.csv", [*((*COLUMNS, grouped) if class_names else COLUMNS[:1]), *further], rows)
    return written | {"file": str(folder / "clean.csv"), "root": str(root)}


def add_column(sources: Sequence[Source], column: str, said: Iterable[tuple[int, int, str]]) -> None:
    """Add a column to what is known of the images: of some a text, with the number of its source and in it; "" else."""
    texts = {id(source): [""] * len(source) for source in sources}
    for of, number, text in said:
        texts[id(sources[of])][number] = text
    for source in sources:
        source.columns = {**source.columns, column: texts[id(source)]}


def _path(source: Source, number: int, part: Part, root: Path) -> str:
    if not isinstance(source, FileSource):
        return f"images/{part}/{number}.png"
    path = source.paths[number]
    same = os.path.abspath(source.root) == str(root) and not os.path.isabs(path)
    return path if same else os.path.relpath(source.root / path, root)


def _folders(source: FileSource) -> set[str]:
    """Where relative paths begin, and the folders of absolute ones."""
    root = os.path.abspath(source.root)
    return {os.path.dirname(os.path.abspath(path)) if os.path.isabs(path) else root for path in source.paths}


def _fits(path: str) -> bool:
    """Whether a table gives a path back as it was: in UTF-8, without spaces around it."""
    try:
        return path.encode() == path.strip().encode()
    except UnicodeEncodeError:
        return False
