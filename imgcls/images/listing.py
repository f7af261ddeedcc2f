"""Image files in a folder, found by their names."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from imgcls.errors import printable
from imgcls.images.decode import EXTENSIONS

log = logging.getLogger(__name__)


def list_images(folder: Path) -> list[Path]:
    """All images below a folder by extension, without hidden ones, sorted by path alike on every system."""
    found, others = [], Counter[str]()
    for path in _files(folder):
        if _is_image(path):
            found.append(path)
        else:
            others[path.suffix or path.name] += 1
    if others:
        kinds = ", ".join(f"{printable(kind)} ({count})" for kind, count in others.most_common(5))
        log.info(f"{printable(str(folder))}: passed over {others.total()} files that are no images by name: {kinds}")
    return sorted(found, key=lambda p: p.as_posix())


def has_images(folder: Path) -> bool:
    """Whether there is an image anywhere below a folder."""
    return any(map(_is_image, _files(folder)))


def first_image(folder: Path) -> Path | None:
    """One of the images below a folder, the same on every system; None without any."""
    return next(filter(_is_image, _files(folder)), None)


def images_directly_in(folder: Path) -> int:
    """How many images lie in a folder itself, without hidden ones."""
    with os.scandir(folder) as entries:
        return sum(_is_image(Path(e.name)) and not e.name.startswith(".") and e.is_file() for e in entries)


def subfolders(folder: Path) -> list[str]:
    """Names of a folder's own folders, without hidden ones, sorted."""
    with os.scandir(folder) as entries:  # which, unlike a Path, knows folders without asking for each file
        return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())


def _files(folder: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()  # a link to a folder above would go round and round
    for parent, folders, files in os.walk(folder, followlinks=True):
        here = os.stat(parent)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS
