import csv
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.data.base import ImageDataModule, Part
from imgcls.data.parts import part_named
from imgcls.data.table_labels import Names, in_cells, in_columns, several_labels
from imgcls.errors import UserError, near, printable
from imgcls.images.checking import LISTED, Skipped, first_of
from imgcls.images.sources import FileSource, Source

log = logging.getLogger(__name__)
OTHERWISE = "with another label or part"


class TableData(ImageDataModule):
    """A CSV or Parquet table with a row per image: its path, its label or labels, and perhaps its part.

    Classes are the distinct labels of the training rows, sorted, as numbers if all of them are whole numbers. Rows
    without a label, with one that is no class, or with an image that another row has, cannot be used: see `on_error`.
    Where images may have several labels, they may also have none. Test results are also shown for each value of every
    further column that has at most 50 of them.

    Args:
        table: The file, .csv or .parquet.
        path_column: Paths, absolute or relative to `root` (default: the table's own folder).
        label_column: Labels, of any kind.
        label_separator: What stands between the labels of an image that has several, such as `|`, by which lists of a
            Parquet file are joined; `none`: a label is one name, whatever it holds. Default: one name, but labels that
            look like several are asked about.
        label_columns: Columns of 0 and 1, or true and false, one for each class, in place of a column of labels; the
            classes are in this order, and an empty cell is 0.
        leave_out_column: Images for which it says anything are not trained on, such as `suggested` of an audit's
            table; they are still validated and tested on, with the labels that they have.
        split_column: train, val or test (or validation, dev …, see `part_named`). Default: a column `split`, if there
            is one; `none`: all rows are divided anew.
        group_column: What images have in common that must not be in two parts, such as a patient or a place; an empty
            cell is an image of its own. Parts that the table gives stay as they are.
    """

    root: Path
    has_bands = True

    def __init__(
        self,
        table: str | None = None,
        path_column: str = "path",
        label_column: str = "label",
        label_separator: str | None = None,
        label_columns: list[str] | None = None,
        leave_out_column: str | None = None,
        split_column: str | None = None,
        group_column: str | None = None,
        **kwargs: Any,
    ) -> None:
        several = several_labels(label_separator, label_columns)
        if several:
            self.native_task = "multi_label"
        super().__init__(**kwargs)
        if table is None:
            raise UserError("--data.table: give the table of the images, a .csv or .parquet file")
        self.table = Path(table).expanduser()
        if not self.table.is_file():
            raise UserError(f"--data.table {table}: there is no such file")
        self.root = self.root or self.table.parent
        columns = read_columns(self.table)
        self.leave_out_column = leave_out_column
        if split_column is None and "split" in columns:
            split_column = "split"
        paths = column(self.table, columns, path_column, "path_column")
        if label_columns is None:
            cells = column(self.table, columns, label_column, "label_column")
            labels, bad = in_cells(cells, label_separator, self._line), dict[int, str]()
        else:
            of_class = {name: column(self.table, columns, name, "label_columns") for name in label_columns}
            labels, bad = in_columns(of_class)
        splits = None if split_column in (None, "none") else column(self.table, columns, split_column, "split_column")
        self._group = [] if group_column is None else column(self.table, columns, group_column, "group_column")
        self._said = False
        known_columns = (path_column, label_column, split_column, *(label_columns or ()))
        self._further = {k: v for k, v in columns.items() if k and k not in known_columns and any(v)}
        if not paths:
            raise UserError(f"{self.table}: has no rows")
        if leave_out_column is not None:
            self._further[leave_out_column] = column(self.table, columns, leave_out_column, "leave_out_column")
        parts: list[Part] = self._parts_of(splits) if splits else ["train"] * len(paths)
        # without training rows, as in a set that is only tested on, all classes that there are
        tell_classes = {"train"} & set(parts) or set(parts)

        def classes(rows: Iterable[int]) -> set[str]:
            """Of training rows, unless columns are named for them."""
            return {*(label_columns or (name for row in rows if parts[row] in tell_classes for name in labels[row]))}

        bad |= _bad_rows(self.root, paths, labels, parts, classes(range(len(paths))), several)
        if bad and self.on_error == "raise":
            found = [f"{self._line(row)}: {reason}" for row, reason in sorted(bad.items())]
            one_row = any(reason.endswith(OTHERWISE) for reason in bad.values())
            way = " (several labels of an image go into one row, see --data.label_separator)" if one_row else ""
            raise UserError(f"{first_of(found)}; mend the table{way}, or leave such rows out with --data.on_error=skip")
        good = [(row, *of) for row, of in enumerate(zip(paths, labels, parts, strict=True)) if row not in bad]
        known = classes(row for row, *_ in good)
        self._rows = [row for row in good if known.issuperset(row[2])]
        for row, _, label, _ in good:
            if lost := [name for name in label if name not in known]:
                bad[row] = f"label {lost[0]!r} has no training row left"
        for row, reason in sorted(bad.items()):
            self.skipped.append(Skipped(parts[row], printable(f"{self._line(row)}: {paths[row]}"), reason))
        if not known:
            raise UserError(f"{self.table}: has no row with a label that can be used")
        self.class_names = self.in_order(label_columns or class_order(known))
        self.set_channels(self.root / path for _, path, _, part in self._rows if part in tell_classes)

    def prepare_data(self) -> None:
        """Say once, in one process, which groups the table's own parts divide."""
        parts: dict[str, set[str]] = {}
        for row, *_, part in self._rows if self._group else []:
            together = "train" if part == "val" and self.split_options.folds else part
            if self._group[row] and not (part == "test" and self.split_options.tests_fold):
                parts.setdefault(self._group[row], set()).add(together)
        divided = [group for group, of in parts.items() if len(of) > 1]
        if divided and not self._said:
            self._said = True
            log.warning(
                f"{self.table}: {len(divided)} of {len(parts)} groups have images in several parts, such as "
                f"{printable(divided[0])} in {', '.join(sorted(parts[divided[0]]))}: figures may be too good; "
                "--data.split_column=none divides anew"
            )

    def has_official(self, part: Part) -> bool:  # noqa: D102
        return any(of == part for *_, of in self._rows)

    def open(self, part: Part) -> Source:  # noqa: D102
        rows = [(row, path, label) for row, path, label, of in self._rows if of == part]
        label = self.kind.numbered([names for *_, names in rows], self.class_names)
        source = self.file_source(
            self.root, [path for _, path, _ in rows], label, [self._line(row) for row, *_ in rows]
        )
        source.columns = {name: [values[row] for row, *_ in rows] for name, values in self._further.items()}
        if self._group:  # numbers are those of the whole table: other parts may be joined
            number = {name: k for k, name in enumerate(sorted(set(self._group) - {""}))} | {"": -1}
            source.group = np.array([number[self._group[row]] for row, *_ in rows], dtype=np.int64)
        refuse_if_none_is_there(source, f"files of the {part} part")
        return source

    def setup_training_parts(self) -> None:  # noqa: D102
        super().setup_training_parts()
        if self.leave_out_column is not None:
            source, index = self.parts["train"]
            said = source.columns[self.leave_out_column]
            kept = np.array([number for number in index if not said[number]], dtype=np.int64)
            if not len(kept):
                raise UserError(f"--data.leave_out_column {self.leave_out_column}: leaves no image to train on")
            self.parts["train"] = source, kept

    def _parts_of(self, values: list[str]) -> list[Part]:
        parts = []
        for row, value in enumerate(values):
            part = part_named(value)
            if part is None:
                raise UserError(f"{self._line(row)}: split {value!r} is no name of a part: train, val, test …")
            parts.append(part)
        return parts

    def _line(self, row: int) -> str:
        # the header is line 1 of a CSV file; a Parquet file has rows only
        return f"{self.table}:{row + 2}" if self.table.suffix != ".parquet" else f"{self.table} row {row}"


def class_order(labels: set[str]) -> list[str]:
    """Labels sorted, as numbers if all of them are whole numbers."""
    whole_numbers = all(re.fullmatch("-?\\d+", label) for label in labels)
    return sorted(labels, key=lambda label: (int(label) if whole_numbers else 0, label))


def _bad_rows(
    root: Path, paths: list[str], labels: list[Names], parts: Sequence[str], known: set[str], may_have_none: bool
) -> dict[int, str]:
    """Rows that cannot be used, by number, and why: of rows that say the same of an image, the first is good."""
    bad: dict[int, str] = {}
    first: dict[str, int] = {}
    for row, (path, label, part) in enumerate(zip(paths, labels, parts, strict=True)):
        same = first.setdefault(os.path.abspath(root / path), row) if path else row
        if not path or not (label or may_have_none):
            bad[row] = f"has no {'label' if path else 'path'}"
        elif unknown := [name for name in label if name not in known]:
            bad[row] = f"label {unknown[0]!r} is not one of {len(known)} classes"
            bad[row] += near(unknown[0], known) if len(bad) <= LISTED else ""  # slow where there are thousands
        elif same != row and (labels[same], parts[same]) == (label, part):
            bad[row] = f"{path} is there twice"
        elif same != row:
            # nobody can tell which is right: both go
            bad[same] = bad[row] = f"{path} is there twice, {OTHERWISE}"
    return bad


def column(table: Path, columns: dict[str, list[str]], name: str, option: str) -> list[str]:
    """A column that an option names.

    Raises:
        UserError: The table has none of that name.
    """
    if name not in columns:
        raise UserError(
            f"{table}: has no column {name!r}{near(name, columns)}; it has {', '.join(columns)} "
            f"(--data.{option} names another)"
        )
    return columns[name]


def refuse_if_none_is_there(source: FileSource, files: str) -> None:
    """Raise a UserError if a table's paths all lead nowhere: they are relative to another folder then."""
    if len(source) and (source.sizes[:, 0] < 0).all():
        raise UserError(
            f"{source.describe(0)}: is not there, nor is any of {len(source)} {files} "
            f"(relative paths begin at {source.root}; --data.root names another folder)"
        )


def read_columns(table: Path) -> dict[str, list[str]]:
    """Columns of a table as text, by name."""
    if table.suffix == ".parquet":
        return _read_parquet(table)
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=header.count)
            rows = list(csv.reader(file, delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: is not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise UserError(f"{table}: is empty; give a line with the names of the columns and a line for each image")
    names = [name.strip() for name in rows[0]]
    body = [row for row in rows[1:] if row]
    for number, row in enumerate(body):
        if len(row) != len(names):
            raise UserError(f"{table}:{number + 2}: has {len(row)} fields, the header {len(names)}")
    return {name: [row[k].strip() for row in body] for k, name in enumerate(names)}


def _read_parquet(table: Path) -> dict[str, list[str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{table}: Parquet needs the package pyarrow: pip install 'imgcls[parquet]'") from error
    try:
        columns = pyarrow.parquet.read_table(table).to_pydict()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{table}: cannot be read as Parquet ({error})") from error
    return {name: [_text(value) for value in values] for name, values in columns.items()}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "|".join(map(_text, value))
    return "" if value is None or value != value else str(value)
