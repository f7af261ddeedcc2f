"""Runs that are looked at again and again while they train: what did not change is not read anew."""

from collections.abc import Sequence
from pathlib import Path

from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.runs.run import Run, run_folders

Stamp = tuple[tuple[int, int], ...]


class Watched:
    """The runs in and below some folders.

    Args:
        folders: Where they lie, or will.

    Attributes:
        runs: By their folders, in order.
        broken: Why a run could not be read, by its folder.
        version: Grows with each change.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = folders
        self.runs: dict[Path, Run] = {}
        self.broken: dict[Path, str] = {}
        self.version = 0
        self._stamps: dict[Path, Stamp] = {}

    def look(self) -> None:
        """Read what is new or changed, and forget what is gone."""
        stamps = {folder: _stamp(RunFolder(folder)) for given in self.folders for folder in run_folders(given)}
        if stamps == self._stamps:
            return
        kept, self.broken = self.runs, {k: why for k, why in self.broken.items() if stamps.get(k) == self._stamps[k]}
        self.runs = {}
        for folder, stamp in stamps.items():
            if folder in kept and stamp == self._stamps[folder]:
                self.runs[folder] = kept[folder]
            elif folder not in self.broken:
                self._read(folder)
        self._stamps = stamps
        self.version += 1

    def written(self, folder: Path) -> float:
        """When something of a run was last written, in seconds since 1970."""
        return max(time for time, _ in self._stamps[folder]) / 1e9

    def _read(self, folder: Path) -> None:
        try:
            run = Run(RunFolder(folder))
            _ = run.rows  # read now, so that what is wrong with them is known
        except (UserError, OSError, ValueError) as error:  # a file of theirs, or one that went in between
            self.broken[folder] = str(error)
        else:
            self.runs[folder] = run


def _stamp(run: RunFolder) -> Stamp:
    """Time of the last change (ns) and size of the files that tell a run; zeros for one that is not there."""
    others = [other.metrics_json for other in run.evaluations()]
    found = []
    for path in (run.config, run.metrics_json, run.metrics_csv, run.environment, *others):
        try:
            state = path.stat()
            found.append((state.st_mtime_ns, state.st_size))
        except FileNotFoundError:
            found.append((0, 0))
    return tuple(found)
