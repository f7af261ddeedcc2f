"""Files sorted into a folder for each class; what is there is never moved or overwritten."""

import errno
import filecmp
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Literal

from imgcls.errors import UserError, printable

Link = Literal["symbolic", "hard"]
UNSURE = "unsure"
NO_CLASS = "none"
PART = ".imgcls.part"  # a copy that is not complete
LONGEST = 100  # characters: file systems allow 255 bytes
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows, whatever the extension


def folder_names(class_names: Sequence[str], taken: Iterable[str] = ()) -> list[str]:
    """A name for the folder of each class that every file system takes, no two alike even where case does not count.

    A class keeps its own name where that is possible.

    Args:
        class_names: The classes.
        taken: Names that are given already.
    """
    safe = [_safe(name) for name in class_names]
    used, found = {name.casefold() for name in taken}, dict[int, str]()
    for number in sorted(range(len(safe)), key=lambda k: safe[k] != class_names[k]):  # those that keep theirs first
        found[number] = _free(safe[number], used)
        used.add(found[number].casefold())
    return [found[number] for number in range(len(safe))]


def sort_files(
    files: Iterable[tuple[Path, Sequence[str], float]],
    folder: Path,
    class_names: Sequence[str],
    link: Link | None = None,
    min_confidence: float | None = None,
) -> tuple[int, int]:
    """Copy or link files into `folder/<class>/`, those below a confidence into `folder/unsure/`.

    A file of several classes goes into the folder of each, one of none into `folder/none/`. Files of one name get
    numbers, `cat.jpg` and `cat-2.jpg`. Done again, it does what is missing.

    Args:
        files: Each file with its classes and confidence.
        folder: Made if it is not there.
        class_names: The classes, whose folders are named by `folder_names`.
        link: Link to the files in place of copying them.
        min_confidence: The least for a class's own folder.

    Returns:
        How many files were sorted, and how many of them are unsure.

    Raises:
        UserError: The folder cannot be written, or not linked to.
    """
    taken = [UNSURE] if min_confidence is not None else []
    *own, no_class = folder_names([*class_names, NO_CLASS], taken)
    names = dict(zip(class_names, own, strict=True))
    given, last = set[str](), dict[str, int]()  # places of this round; the last number that a name got
    total = unsure = 0
    for file, of, confidence in files:
        is_unsure = min_confidence is not None and confidence < min_confidence
        for place in [UNSURE] if is_unsure else [names[name] for name in of] or [no_class]:
            try:
                _put_into(folder / place, file, link, given, last)
            except OSError as error:
                raise UserError(f"--sort_into {folder}: {_reason(error, file, link)}") from error
        total, unsure = total + 1, unsure + is_unsure
    return total, unsure


def _put_into(place: Path, file: Path, link: Link | None, given: set[str], last: dict[str, int]) -> None:
    """Copy or link a file into a folder, under a name that is free there, unless it is there from an earlier round."""
    place.mkdir(parents=True, exist_ok=True)
    name = str(place / file.name).casefold()
    while True:
        number = last[name] = last.get(name, 0) + 1
        target = place / (file.name if number == 1 else f"{file.stem}-{number}{file.suffix}")
        key = str(target).casefold()
        if key not in given and (not os.path.lexists(target) or _same(file, target)):
            break
    given.add(key)
    if not os.path.lexists(target):
        _put(file, target, link)


def _put(file: Path, target: Path, link: Link | None) -> None:
    if link == "symbolic":
        os.symlink(os.path.abspath(file), target)
    elif link == "hard":
        os.link(os.path.realpath(file), target)
    else:
        part = target.with_name(PART)
        shutil.copy2(file, part)
        os.rename(part, target)  # whole, or not there


def _same(file: Path, target: Path) -> bool:
    """Whether a target is this file's link or copy, from an earlier round."""
    if not target.is_file():
        return False
    return os.path.samefile(file, target) or filecmp.cmp(file, target, shallow=False)


def _reason(error: OSError, file: Path, link: Link | None) -> str:
    if link == "hard" and error.errno == errno.EXDEV:
        return "is on another file system than the images; use --link symbolic, or copy without --link"
    return f"{printable(str(file))} cannot be put there ({error.strerror or error})"


def _safe(name: str) -> str:
    """A class's name as that of a folder: no separators, no leading dot, nothing that Windows forbids."""
    text = re.sub(r'[\\/:*?"<>|\x00-\x1f\x7f]', "_", name)[:LONGEST]
    while len(text.encode()) > 2 * LONGEST:
        text = text[:-1]
    text = re.sub(r"^[.\s]+", "_", text.rstrip(" ."))
    return f"_{text}" if not text or RESERVED.fullmatch(text) else text


def _free(name: str, used: set[str]) -> str:
    candidates = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(candidate for candidate in candidates if candidate.casefold() not in used)
