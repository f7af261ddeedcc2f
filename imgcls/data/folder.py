import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imgcls.data.base import ImageDataModule, Part
from imgcls.data.options import short
from imgcls.data.parts import innermost, part_folders, refuse_parts_for_classes, taken_in_words
from imgcls.errors import UserError, near, printable
from imgcls.images.checking import Skipped
from imgcls.images.listing import first_image, has_images, images_directly_in, list_images, subfolders
from imgcls.images.sources import Source

log = logging.getLogger(__name__)
PartsBy = Literal["auto", "named", "none"]


class FolderData(ImageDataModule):
    """A folder with one sub-folder of images per class, or with folders of training, validation and test images.

    The latter have such names as train, Valid, test_images or TESTING (see `part_named`), and a folder for each class
    in each of them. All that may lie in a folder within `root`, if there is no other. Where a name leaves open whether
    a folder is a part or a class, that is an error.

    Class names are the sub-folders of the training part, sorted. Images may lie deeper. Hidden files are passed over,
    and files with other extensions, which are counted in a message. A class folder without images is an error; with
    `on_error` set to `skip` it is no class.

    Args:
        parts: `auto` goes by the folders' names; `named` does, and passes over folders of other names beside parts;
            `none` takes all folders of `root` for classes.
    """

    root: Path
    has_bands = True

    def __init__(self, parts: PartsBy = "auto", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.root is None:
            raise UserError("--data.root: give the folder of the images")
        if not self.root.is_dir():
            raise UserError(f"--data.root {self.root}: there is no such folder")
        self._inner, self.folders = folders_of(self.root, parts)
        self._listed: dict[Part, dict[str, list[Path]]] = {}
        # without training images, as in a set that is only tested on, all classes that there are
        tell_classes = [self.folders["train"]] if "train" in self.folders else self.folders.values() or [self._inner]
        found = {folder: subfolders(folder) for folder in tell_classes}
        for folder in self.folders.values():
            if not subfolders(folder):
                way_out = "; move it away if its images have no labels"
                raise UserError(f"{folder}: has no sub-folders; expected one per class{way_out}")
        if parts != "none":
            for folder, names in found.items():
                refuse_parts_for_classes(folder, names)
        self._classes = sorted({name for names in found.values() for name in names})  # as the file system writes them
        if self.on_error == "skip":
            empty = [name for name in self._classes if not any(has_images(folder / name) for folder in found)]
            self._classes = [name for name in self._classes if name not in empty]
            for name in empty:
                self._skip("train", next(iter(found)) / name, "the folder has no images")
        if not self._classes:
            raise UserError(
                f"--data.root {self._inner}: has no sub-folders; expected one per class, "
                "or train/, val/ and test/ with one per class in each"
            )
        self.class_names = self.in_order([printable(name) for name in self._classes])
        self._classes.sort(key=lambda name: self.class_names.index(printable(name)))
        first = (first_image(folder / name) for folder, names in found.items() for name in names)
        self.set_channels(path for path in first if path is not None)

    def has_official(self, part: Part) -> bool:  # noqa: D102
        return part in (self.folders or ("train",))

    def prepare_data(self) -> None:
        """Say once, in one process, which folders were taken for what, and how many images they hold."""
        if self._listed:
            return

        def count(part: Part) -> int:
            return sum(len(found) for found in self._images(part).values())

        taken = taken_in_words({part: (folder.name, count(part)) for part, folder in self.folders.items()})
        taken = taken or f"{count('train')}, not divided into parts"
        log.info(f"images in {self._inner}: {taken}; classes: {short(self.class_names)}")
        above = [folder for folder in (self._inner, *self._inner.parents) if folder.is_relative_to(self.root)]
        loose = {folder: images_directly_in(folder) for folder in (*above, *self.folders.values())}
        if any(loose.values()):
            where = ", ".join(f"{number} in {printable(str(folder))}" for folder, number in loose.items() if number)
            log.warning(f"passed over images that lie beside the folders of classes: {where}")

    def open(self, part: Part) -> Source:  # noqa: D102
        if self.folders and part not in self.folders:
            parts = ", ".join(printable(folder.name) for folder in self.folders.values())
            raise UserError(f"{self._inner}: {parts}, and no folder of training images, such as train")
        folder, found = self.folders.get(part, self._inner), self._images(part)
        for name in found:
            if name in self._classes:
                continue
            if self.on_error == "raise":
                self._problem(part, folder / name, f"is no class of the training images{near(name, self.class_names)}")
            for path in found[name]:  # none in the training part, where only empty folders are no class
                self._skip(part, path, "its folder is no training class")
        for name in self._classes if part == "train" else ():
            if not found.get(name):
                self._problem(part, folder / name, "holds no images")
        files = [(path, number) for number, name in enumerate(self._classes) for path in found.get(name, [])]
        names = [path.relative_to(self.root).as_posix() for path, _ in files]
        return self.file_source(self.root, names, np.array([number for _, number in files], dtype=np.int64))

    def _problem(self, part: Part, folder: Path, reason: str) -> None:
        problem = Skipped(part, printable(str(folder)), reason)
        if problem not in self.problems:
            self.problems.append(problem)

    def _skip(self, part: Part, path: Path, reason: str) -> None:
        self.skipped.append(Skipped(part, printable(path.relative_to(self.root).as_posix()), reason))

    def _images(self, part: Part) -> dict[str, list[Path]]:
        """Images of each sub-folder of a part."""
        if part not in self._listed:
            folder = self.folders.get(part, self._inner)
            self._listed[part] = {name: list_images(folder / name) for name in subfolders(folder)}
        return self._listed[part]


def folders_of(root: Path, parts: PartsBy) -> tuple[Path, dict[Part, Path]]:
    """The folder within `root` that holds classes or parts, and the folders of the parts, {} without any."""
    if parts == "none":
        return root, {}
    inner = innermost(root)
    return inner, part_folders(inner, pass_over=parts == "named")


def names_classes(root: Path, parts: PartsBy) -> bool:
    """Whether at least two folders of images could be classes: one alone tells nothing apart."""
    inner, folders = folders_of(root, parts)
    top = folders.get("train", inner)
    return sum(has_images(top / name) for name in subfolders(top)) > 1
