"""Training, validation and test by the names that people give them: of folders, and in tables."""

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from imgcls.data.options import short
from imgcls.errors import UserError, printable
from imgcls.images.listing import has_images, subfolders
from imgcls.images.sources import Part

NAMES: dict[Part, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
# what a name may say beside: train_images, TestSet, val_data
BESIDE = frozenset("set images image img imgs photos pictures data dataset split part folder subset".split())
BY_NAME = {name: part for part, names in NAMES.items() for name in names}
AS_CLASSES = "--data.parts=none takes every folder for a class"


def part_named(name: str) -> Part | None:
    """The part that a name stands for, in upper or lower case, with numbers (test2017); None for any other name."""
    words = re.findall("[^\\W\\d_]+", re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower())
    telling = {word.removesuffix("set") for word in words if word not in BESIDE}
    return BY_NAME.get(telling.pop()) if len(telling) == 1 else None


def taken_in_words(taken: Mapping[Part, tuple[str, int]]) -> str:
    """From what each part was taken, and how many images it has."""
    return ", ".join(f"{part} from {printable(name)} ({count})" for part, (name, count) in taken.items())


def part_folders(root: Path, pass_over: bool = False) -> dict[Part, Path]:
    """The folders of training, validation and test images in a folder; {} without any.

    Args:
        root: The folder.
        pass_over: Leave out other folders with images.

    Raises:
        UserError: There are such folders, but other images beside them, or two for one part.
    """
    found: dict[Part, Path] = {}
    others = []
    for name in subfolders(root):
        part = part_named(name)
        if part is None:
            others.append(name)
        elif part in found:
            both = f"{printable(found[part].name)} and {printable(name)}"
            raise UserError(f"{root}: {both} both stand for the {part} part; keep one of them, or {AS_CLASSES}")
        else:
            found[part] = root / name
    if not found:
        return {}
    parts = ", ".join(printable(folder.name) for folder in found.values())
    beside = [] if pass_over else [printable(name) for name in others if has_images(root / name)]
    if beside:
        raise UserError(
            f"{root}: {parts} beside {short(beside)}: are they parts or classes? {AS_CLASSES}, "
            f"--data.parts=named passes over all but {parts}"
        )
    return {part: found[part] for part in NAMES if part in found}


def innermost(root: Path) -> Path:
    """The folder that holds classes or parts: archives unpack into a folder of their own, or into one within that."""
    while True:
        names = subfolders(root)
        if any(map(part_named, names)):
            return root
        with_images = list(islice((name for name in names if has_images(root / name)), 2))
        if len(with_images) != 1:
            return root
        inner = root / with_images[0]
        if not any(has_images(inner / name) for name in subfolders(inner)):
            return root
        root = inner


def refuse_parts_for_classes(folder: Path, classes: list[str]) -> None:
    """What is called like a part is neither a class nor a part of a class, unless the user says so.

    Raises:
        UserError: A class is called so, or a folder in one.
    """
    for name in classes:
        if part_named(name):
            raise UserError(f"{folder / name}: is called like a part, among classes; rename it, or {AS_CLASSES}")
        if inner := [below for below in subfolders(folder / name) if part_named(below)]:
            raise UserError(
                f"{folder / name / inner[0]}: is a part within a class; expected it the other way round, "
                f"{inner[0]}/{name}, or --data.parts=none takes all images of a class together"
            )
