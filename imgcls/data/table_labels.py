"""Labels of a table's rows, as names of classes: a cell holds one or several, or each class has a column."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from imgcls.data.options import check
from imgcls.errors import UserError

Names = tuple[str, ...]
JOINING = "|;,"
PERHAPS_JOINING = "/+&"  # such as in T-shirt/top
CELLS = {"1": True, "true": True, "1.0": True, "0": False, "false": False, "0.0": False, "": False}


def several_labels(label_separator: str | None, label_columns: Sequence[str] | None) -> bool:
    """Whether options say that rows have several labels.

    Raises:
        UserError: They contradict each other.
    """
    if label_columns is not None:
        wanted = "a list of different columns, one for each class, and without --data.label_separator"
        good = len(label_columns) == len({*label_columns}) > 0 and label_separator is None
        check(good, "label_columns", label_columns, wanted)
    check(label_separator != "", "label_separator", "''", "what stands between the labels of an image, or none")
    return label_columns is not None or label_separator not in (None, "none")


def in_cells(cells: Sequence[str], separator: str | None, line: Callable[[int], str]) -> list[Names]:
    """Distinct names in each cell, in alphabetical order; none in an empty one.

    Args:
        cells: A column.
        separator: Between names; `none`: there is one in each. None: likewise, but not if cells look otherwise.
        line: Names a row by its number, for messages.

    Raises:
        UserError: It is not said what cells hold that may be one name or several.
    """
    if separator is None:
        _ask_about_several(cells, line)
    if separator in (None, "none"):
        return [(cell,) if cell else () for cell in cells]
    return [tuple(sorted(_split(cell, separator))) for cell in cells]


def in_columns(columns: Mapping[str, Sequence[str]]) -> tuple[list[Names], dict[int, str]]:
    """Classes of each row, by columns that say whether it is of the class; rows that say something else, and what."""
    names, found, wrong = list(columns), list[Names](), dict[int, str]()
    for row, cells in enumerate(zip(*columns.values(), strict=True)):
        said = [CELLS.get(cell.lower()) for cell in cells]
        if None in said:
            first = said.index(None)
            wrong[row] = f"column {names[first]!r} holds {cells[first]!r}, which is none of 0, 1, true and false"
        found.append(tuple(name for name, there in zip(names, said, strict=True) if there))
    return found, wrong


def _split(cell: str, separator: str) -> set[str]:
    return {name for piece in cell.split(separator) if (name := piece.strip())}


def _ask_about_several(cells: Sequence[str], line: Callable[[int], str]) -> None:
    labels = set(cells)
    for separator in JOINING + PERHAPS_JOINING:
        joined = {label: _split(label, separator) for label in labels if separator in label}
        if separator in PERHAPS_JOINING:
            met = Counter(name for names in joined.values() for name in names)
            joined = {
                label: names
                for label, names in joined.items()
                if any(name in labels or met[name] > 1 for name in names)
            }
        rows = [row for row, label in enumerate(cells) if label in joined]
        if rows:
            raise UserError(
                f"{line(rows[0])}: label {cells[rows[0]]!r} holds {separator} (rows like it: {len(rows)}); is it one "
                f"name or several? --data.label_separator='{separator}' reads several labels of an image, "
                "--data.label_separator=none takes each as one name"
            )
