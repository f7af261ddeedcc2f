import csv
import os
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.data.base import ImageDataModule, Part
from imgcls.data.sources import FileSource, Source
from imgcls.errors import UserError, near

PARTS: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


class TableData(ImageDataModule):
    """A CSV or Parquet table with a row per image: its path, its label, and perhaps its part.

    Classes are the distinct labels, sorted, as numbers if all of them are whole numbers.

    Args:
        table: The file, .csv or .parquet.
        path_column: Paths, relative to `root` (default: the table's own folder).
        label_column: Labels, of any kind.
        split_column: train, val or test (or validation, dev …). Default: a column `split` if there is one.
        allow_outside: Let paths leave `root`.
    """

    def __init__(
        self,
        table: str | None = None,
        path_column: str = "path",
        label_column: str = "label",
        split_column: str | None = None,
        allow_outside: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if table is None:
            raise UserError("--data.table: give the table of the images, a .csv or .parquet file")
        self.table = Path(table).expanduser()
        if not self.table.is_file():
            raise UserError(f"--data.table {table}: there is no such file")
        self.root = self.root or self.table.parent
        self.allow_outside = allow_outside
        columns = _read(self.table)
        if split_column is None and "split" in columns:
            split_column = "split"
        for option, name in {"path": path_column, "label": label_column, "split": split_column}.items():
            if name is not None and name not in columns:
                raise UserError(
                    f"{self.table}: has no column {name!r}{near(name, columns)}; it has {', '.join(columns)} "
                    f"(--data.{option}_column names another)"
                )
        self._paths, self._labels = columns[path_column], columns[label_column]
        self._row_parts = self._parts_of(columns[split_column]) if split_column else ["train"] * len(self._paths)
        for row, (path, label) in enumerate(zip(self._paths, self._labels, strict=True)):
            if not path or not label:
                raise UserError(f"{self._line(row)}: has no {'label' if path else 'path'}")
        self.class_names = sorted(set(self._labels), key=_as_number if _all_numbers(self._labels) else None)
        if not self.class_names:
            raise UserError(f"{self.table}: has no rows")

    def has_official(self, part: Part) -> bool:  # noqa: D102
        return part in self._row_parts

    def open(self, part: Part) -> Source | None:  # noqa: D102
        rows = [row for row, of in enumerate(self._row_parts) if of == part]
        if not rows:
            return None
        assert self.root is not None  # set at the start
        names = [self._checked(row, self.root) for row in rows]
        missing = [(row, name) for row, name in zip(rows, names, strict=True) if not (self.root / name).is_file()]
        if missing:
            listing = ", ".join(f"{self._line(row)} {name}" for row, name in missing[:5])
            raise UserError(
                f"{len(missing)} of {len(rows)} files are not there: {listing}{' …' if missing[5:] else ''} "
                f"(paths are relative to {self.root}; --data.root names another folder)"
            )
        number = {name: k for k, name in enumerate(self.class_names)}
        return FileSource(self.root, names, np.array([number[self._labels[row]] for row in rows], dtype=np.int64))

    def _checked(self, row: int, root: Path) -> str:
        name = self._paths[row]
        outside = os.path.isabs(name) or os.path.normpath(name).startswith("..")
        if outside and not self.allow_outside:
            raise UserError(f"{self._line(row)}: {name} leaves {root}; --data.allow_outside=true permits that")
        return name

    def _parts_of(self, values: list[str]) -> list[str]:
        for row, value in enumerate(values):
            if value.lower() not in PARTS:
                raise UserError(f"{self._line(row)}: split {value!r} is not one of {', '.join(PARTS)}")
        return [PARTS[value.lower()] for value in values]

    def _line(self, row: int) -> str:
        # the header is line 1 of a CSV file; a Parquet file has rows only
        return f"{self.table}:{row + 2}" if self.table.suffix != ".parquet" else f"{self.table} row {row}"


def _read(table: Path) -> dict[str, list[str]]:
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
    names = [name.strip() for name in rows[0]] if rows else []
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
    return {name: ["" if v is None else str(v) for v in values] for name, values in columns.items()}


def _all_numbers(labels: list[str]) -> bool:
    return all(label.lstrip("-").isdecimal() for label in labels)


def _as_number(label: str) -> tuple[int, str]:
    return int(label), label
