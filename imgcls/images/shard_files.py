"""The files of a pack: in a folder, or at a URL, from which they come into a folder of limited size when needed."""

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from imgcls.errors import UserError, one_line
from imgcls.system.files import replacing
from imgcls.system.resources import user_cache

FORMAT = 1
FACTS = "pack.json"
TRIES = 4  # a store that serves thousands of readers refuses one now and then


class ShardFiles:
    """The files of a pack in a folder.

    Args:
        place: The folder.

    Raises:
        UserError: There is no pack.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        try:
            text = self._read(FACTS)
            self.facts: dict[str, Any] = json.loads(text)
            known = self.facts["format"]
        except FileNotFoundError as error:
            raise UserError(f"--data.root {place}: holds no {FACTS}; python -m imgcls pack makes a pack") from error
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{place}/{FACTS}: is damaged; make the pack anew") from error
        if known != FORMAT:
            raise UserError(f"{place}/{FACTS}: is of format {known}, known here is {FORMAT}; make the pack anew")
        self.name = hashlib.blake2b(place.encode() + text, digest_size=8).hexdigest()

    def _read(self, name: str) -> bytes:
        return Path(self.place, name).read_bytes()

    def path(self, name: str, size: int) -> Path:
        """Where a file that is read all the time lies.

        Raises:
            UserError: It is not there, or not of that many bytes.
        """
        path = Path(self.place, name)
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found} bytes"
            raise UserError(f"{path}: {state}, expected {size} bytes; copy or make the pack anew")
        return path

    def check(self, name: str, size: int) -> None:
        """Raise a UserError now if a shard is not as expected, where that is quickly known."""
        self.path(name, size)

    def open(self, name: str, size: int) -> int:
        """A descriptor of a shard, for reading."""
        return os.open(self.path(name, size), os.O_RDONLY)

    def ahead(self, name: str, size: int) -> None:
        """A shard will be opened soon, in this process or another."""


class RemoteFiles(ShardFiles):
    """The files of a pack at a URL of fsspec's: s3://, gs://, https:// …; whole files come when first needed.

    All processes of a machine share the folder. Where it would hold more than `limit` bytes, the shards that were
    opened longest ago go.

    Args:
        place: The URL.
        folder: Where packs are kept.
        limit: Bytes of shards there.
    """

    def __init__(self, place: str, folder: Path, limit: float) -> None:
        super().__init__(place)
        self.folder, self.limit = folder / self.name, limit
        self.folder.mkdir(parents=True, exist_ok=True)

    def _read(self, name: str) -> bytes:
        with explained(self.place):
            system, path = _connect(self.place)
            return system.cat_file(f"{path}/{name}")

    def check(self, name: str, size: int) -> None:  # noqa: D102
        pass  # known when it comes

    def path(self, name: str, size: int) -> Path:  # noqa: D102
        os.close(self.open(name, size))
        return self.folder / name

    def open(self, name: str, size: int) -> int:  # noqa: D102
        path = self.folder / name
        while True:
            with suppress(FileNotFoundError):  # another process may remove it at any moment
                descriptor = os.open(path, os.O_RDONLY)
                os.utime(path)
                return descriptor
            self._fetch(path, size)

    def ahead(self, name: str, size: int) -> None:  # noqa: D102
        def fetch() -> None:
            with suppress(Exception):  # who needs the shard will say what is wrong
                os.close(self.open(name, size))

        threading.Thread(target=fetch, daemon=True).start()

    def _fetch(self, path: Path, size: int) -> None:
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # others wait for one download instead of making their own
            if path.exists():
                return
            with explained(f"{self.place}/{path.name}"), replacing(path) as part:
                for trial in range(TRIES):
                    try:
                        system, place = _connect(self.place)
                        system.get_file(f"{place}/{path.name}", str(part))
                        break
                    except OSError as error:
                        if trial == TRIES - 1 or isinstance(error, FileNotFoundError | PermissionError):
                            raise
                        time.sleep(2**trial)
                if (found := part.stat().st_size) != size:
                    raise UserError(f"{self.place}/{path.name}: has {found} bytes, expected {size}; copy the pack anew")
        if path.suffix == ".tar":
            self._make_room(path)

    def _make_room(self, newest: Path) -> None:
        found = []
        for path in self.folder.glob("*.tar"):
            with suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total > self.limit and path != newest:
                path.unlink(missing_ok=True)
                total -= size


def _connect(url: str) -> Any:
    """File system and path; asked for anew after a fork, across which connections do not live."""
    from fsspec.core import url_to_fs

    return url_to_fs(url)


@contextmanager
def explained(place: str) -> Iterator[None]:
    """What goes wrong on the way to a URL as a mistake of the user's, a missing file aside."""
    try:
        yield
    except (UserError, FileNotFoundError):
        raise
    except ImportError as error:
        raise UserError(f"{place}: {error}; for s3:// pip install 'imgcls[shards]'") from error
    except Exception as error:  # each store has errors of its own
        raise UserError(f"{place}: cannot be read ({one_line(error)})") from error


def shard_files(place: str, folder: str | None, limit: float) -> ShardFiles:
    """The files of the pack at a folder or URL; `folder` keeps what comes from a URL, up to `limit` bytes of shards."""
    if "://" not in place:
        return ShardFiles(str(Path(place).expanduser()))
    return RemoteFiles(place.rstrip("/"), Path(folder).expanduser() if folder else user_cache() / "shards", limit)
