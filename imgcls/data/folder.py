import os
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.data.base import ImageDataModule, Part
from imgcls.data.decode import EXTENSIONS
from imgcls.data.sources import FileSource, Source
from imgcls.errors import UserError, near

SYNONYMS = {"val": ("val", "valid", "validation"), "train": ("train",), "test": ("test",)}


class FolderData(ImageDataModule):
    """A folder with one sub-folder of images per class, or with train, val and test folders of that kind.

    A folder `train` that holds class folders decides; val may also be called valid or validation. Class names
    are the sub-folders of the training part, sorted. Images may lie deeper; hidden files and files with other
    extensions are passed over.
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
        self.class_names = _subfolders(train) if train is not None and self.has_parts else _subfolders(self.root)
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
        strange = [name for name in _subfolders(folder) if name not in self.class_names]
        if strange:
            raise UserError(
                f"{folder / strange[0]}: is not a class of the training images{near(strange[0], self.class_names)}"
            )
        names: list[str] = []
        label: list[int] = []
        for number, class_name in enumerate(self.class_names):
            found = list_images(folder / class_name)
            if not found and part == "train":
                raise UserError(f"{folder / class_name}: holds no images ({', '.join(sorted(EXTENSIONS))})")
            names += [p.relative_to(self._root()).as_posix() for p in found]
            label += [number] * len(found)
        return FileSource(self._root(), names, np.array(label, dtype=np.int64))

    def _root(self) -> Path:
        assert self.root is not None  # checked at the start
        return self.root

    def _folder(self, part: str) -> Path | None:
        return next((self._root() / name for name in SYNONYMS[part] if (self._root() / name).is_dir()), None)


def list_images(folder: Path) -> list[Path]:
    """All images below a folder by extension, without hidden ones, sorted by path alike on every system."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += [Path(parent, f) for f in files if not f.startswith(".") and Path(f).suffix.lower() in EXTENSIONS]
    return sorted(found, key=lambda p: p.as_posix())


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
