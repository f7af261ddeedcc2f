import glob
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.data.base import ImageDataModule, Part
from imgcls.data.table import column, read_columns, refuse_if_none_is_there
from imgcls.errors import UserError
from imgcls.images.decode import EXTENSIONS
from imgcls.images.listing import list_images
from imgcls.images.sources import FileSource, Source

log = logging.getLogger(__name__)
# options that say how images are prepared: what images from elsewhere share with a run
PREPARATION = (
    *("image_size", "channels", "mean", "std", "interpolation", "crop_fraction", "value_range"),
    *("bands", "num_bands", "task"),
)
TABLES = (".txt", ".csv", ".tsv", ".parquet")


class FilesData(ImageDataModule):
    """Images without labels, to predict, each once.

    They are a file, a folder with everything below it, or what a pattern such as `photos/**/*.jpg` matches (`root`),
    sorted by path; or a `table` names them, in its order.

    Args:
        class_names: The classes that the model knows.
        table: A text file with a path on each line, or a .csv or .parquet file with a column of paths. They are
            absolute, or relative to `root` (default: the table's own folder).
        path_column: The column's name.
    """

    has_bands = True

    def __init__(
        self, class_names: Sequence[str], table: str | None = None, path_column: str = "path", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.set_channels(())
        self.class_names, self.path_column = list(class_names), path_column
        self.table = Path(table).expanduser() if table else None

    def open(self, part: Part) -> Source:  # noqa: D102
        if self.table is not None:
            return self._listed(self.table)
        folder, paths = self._found()
        return self.file_source(folder, paths, self.kind.unknown(len(paths), self.num_classes))

    def setup(self, stage: str) -> None:
        """Open the files; there is no training part."""
        test = self._require(self.open("test"), "")
        self.parts = {"test": (test, np.arange(len(test)))}
        if self.on_error == "raise":
            self.parts = self._check_images(self.parts)

    def _found(self) -> tuple[Path, list[str]]:
        """The folder of `root`, and the paths in it."""
        root = self.root
        if root is None:
            raise UserError("--data.root: give a file, a folder or a pattern of images")
        if root.is_dir():
            paths = [p.relative_to(root).as_posix() for p in list_images(root)]
            if not paths:
                raise UserError(f"--data.root {root}: holds no image ({', '.join(sorted(EXTENSIONS))})")
            return root, paths
        if root.exists():
            if root.suffix.lower() in TABLES:
                raise UserError(f"--data.root {root}: is no image; a list of images is given with --data.table={root}")
            return root.parent, [root.name]
        parts = root.parts
        wild = [k for k, part in enumerate(parts) if re.search(r"[*?\[]", part)]
        first = next((k for k in wild if not Path(*parts[: k + 1]).exists()), None)  # a folder's name may look like one
        if first is None:
            raise UserError(f"--data.root {root}: there is no such file or folder")
        folder = Path(*parts[:first])
        matched = glob.glob(os.path.join(*parts[first:]), root_dir=folder, recursive=True)
        paths = sorted(path for path in matched if (folder / path).is_file())
        if not paths:
            raise UserError(f"--data.root {root}: matches no file")
        return folder, paths

    def _listed(self, table: Path) -> FileSource:
        if not table.is_file():
            raise UserError(f"--data.table {table}: there is no such file")
        first: dict[str, tuple[int, str]] = {}
        lines = self._lines(table)
        folder = self.root or table.parent
        for number, path in lines:
            first.setdefault(os.path.abspath(folder / path), (number, path))
        if len(first) < len(lines):
            log.info(f"{table}: {len(lines) - len(first)} of {len(lines)} images are there again, and predicted once")
        origins = [f"{table}:{number}" for number, _ in first.values()]
        label = self.kind.unknown(len(first), self.num_classes)
        source = self.file_source(folder, [path for _, path in first.values()], label, origins)
        refuse_if_none_is_there(source, "files")
        return source

    def _lines(self, table: Path) -> list[tuple[int, str]]:
        """Number and path of each line that names an image."""
        if table.suffix.lower() == ".txt":
            # a file's name may be any bytes
            text = table.read_text(encoding="utf-8-sig", errors="surrogateescape")
            return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line]
        paths = column(table, read_columns(table), self.path_column, "path_column")
        return [(row, path) for row, path in enumerate(paths, 2) if path]
