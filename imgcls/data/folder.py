import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.data.base import ImageDataModule, Part
from imgcls.errors import UserError, near, printable
from imgcls.images.checking import Skipped
from imgcls.images.decode import EXTENSIONS
from imgcls.images.sources import FileSource, Source

log = logging.getLogger(__name__)
SYNONYMS = {"val": ("val", "valid", "validation"), "train": ("train",), "test": ("test",)}


class FolderData(ImageDataModule):
    """A folder with one sub-folder of images per class, or with train, val and test folders of that kind.

    A folder `train` that holds class folders decides; val may also be called valid or validation. Class names
    are the sub-folders of the training part, sorted. Images may lie deeper. Hidden files are passed over, and files
    with other extensions, which are counted in a message. A class folder without images is an error; with
    `on_error` set to `skip` it is no class.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.root is None:
            raise UserError("--data.root: give the folder of the images")
        if not self.root.is_dir():
            raise UserError(f"--data.root {self.root}: there is no such folder")
        self.folders = {part: self._folder(part) for part in SYNONYMS}
        train = self.folders["train"]
        self.has_parts = train is not None and bool(_subfolders(train))
        self._top = train if train is not None and self.has_parts else self._root()
        self._classes = _subfolders(self._top)  # as the file system writes them
        if self.on_error == "skip":
            empty = [name for name in self._classes if not list_images(self._top / name)]
            self._classes = [name for name in self._classes if name not in empty]
            for name in empty:
                self._skip("train", self._top / name, "the folder has no images")
        self.class_names = [printable(name) for name in self._classes]
        if not self.class_names:
            raise UserError(
                f"--data.root {self.root}: has no sub-folders; expected one per class, "
                "or train/, val/ and test/ with one per class in each"
            )

    def has_official(self, part: Part) -> bool:  # noqa: D102
        return part == "train" or self.has_parts and self.folders[part] is not None

    def open(self, part: Part) -> Source | None:  # noqa: D102
        folder = self.folders[part] if self.has_parts else self.root if part == "train" else None
        if folder is None:
            return None
        found = {name: list_images(folder / name) for name in _subfolders(folder)}
        for name in found:
            if name in self._classes:
                continue
            if self.on_error == "raise":
                hint = near(name, self.class_names)
                raise UserError(f"{printable(str(folder / name))}: is not a class of the training images{hint}")
            for path in found[name]:  # none in the training part, where only empty folders are no class
                self._skip(part, path, "its folder is no training class")
        empty = [printable(str(folder / name)) for name in self._classes if not found.get(name)]
        if empty and part == "train":
            raise UserError(
                f"{', '.join(empty)}: holds no images ({', '.join(sorted(EXTENSIONS))}); remove what is no class, "
                "or --data.on_error=skip does without"
            )
        files = [(path, number) for number, name in enumerate(self._classes) for path in found.get(name, [])]
        names = [path.relative_to(self._root()).as_posix() for path, _ in files]
        return FileSource(self._root(), names, np.array([number for _, number in files], dtype=np.int64))

    def _skip(self, part: Part, path: Path, reason: str) -> None:
        self.skipped.append(Skipped(part, printable(path.relative_to(self._root()).as_posix()), reason))

    def _root(self) -> Path:
        assert self.root is not None  # checked at the start
        return self.root

    def _folder(self, part: str) -> Path | None:
        return next((self._root() / name for name in SYNONYMS[part] if (self._root() / name).is_dir()), None)


def list_images(folder: Path) -> list[Path]:
    """All images below a folder by extension, without hidden ones, sorted by path alike on every system."""
    found, others = [], Counter[str]()
    seen: set[tuple[int, int]] = set()  # a link to a folder above would go round and round
    for parent, folders, files in os.walk(folder, followlinks=True):
        here = os.stat(parent)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = [f for f in folders if not f.startswith(".")]
        visible = [Path(parent, f) for f in files if not f.startswith(".")]
        found += [path for path in visible if path.suffix.lower() in EXTENSIONS]
        others.update(path.suffix or path.name for path in visible if path.suffix.lower() not in EXTENSIONS)
    if others:
        kinds = ", ".join(f"{printable(kind)} ({count})" for kind, count in others.most_common(5))
        log.info(f"{printable(str(folder))}: passed over {others.total()} files that are no images by name: {kinds}")
    return sorted(found, key=lambda p: p.as_posix())


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
