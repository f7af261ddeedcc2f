"""Files that are whole or not there, whatever happens while they are written."""

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from imgcls.errors import UserError, one_line

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, ten times as fast, where PyYAML was built with it


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its name at the end of the block, or goes if the block fails.

    A reader, or a crash, sees the old file or the new one and nothing between.

    Args:
        path: The file.
        shared: Several processes may write it at once.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part" if shared else f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write text or bytes in one go, see `replacing`.

    Raises:
        UserError: The disk is full, or the folder cannot be written to.
    """
    try:
        with replacing(path) as part:
            part.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room or mend the folder") from error


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file in one go."""
    write_atomic(path, csv_text([header, *rows]))


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as lines of CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by the names in its first line."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file, indented, in one go; a number that is not finite becomes null, as JSON has no word for it."""
    write_atomic(path, json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n")


def read_yaml(path: Path, expected: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Args:
        path: The file.
        expected: What it should hold, for the message.

    Raises:
        UserError: It holds none.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds no mapping; {expected}")
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
