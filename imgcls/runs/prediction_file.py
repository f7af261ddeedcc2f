"""The table of `predict`: it grows while images are predicted, and a stopped one is taken up again."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imgcls.errors import UserError
from imgcls.system.files import csv_text, read_json, write_json
from imgcls.tasks import SINGLE_LABEL, Task, find

SINGLE = find(SINGLE_LABEL)
SKIPPED = ("path", "reason")


class PredictionFile:
    """A CSV file `path,prediction,confidence` and a probability per class, a row per image in the order of `names`.

    Several labels of an image are written as `cat|dog`.

    Images that cannot be read are listed in `<name>.skipped.csv` beside it, `path,reason`. As long as images are
    missing, `<name>.progress.json` says of what it is a part, so that it is never completed with anything else.

    Args:
        path: The file; an older one that is complete is replaced.
        class_names: The classes, in the order of the logits.
        names: Of all images, as the table shows them.
        identity: What the table follows from, such as the checkpoint's hash, by what a user calls it.
        task: The kind of labels.
    """

    def __init__(
        self,
        path: Path,
        class_names: Sequence[str],
        names: Sequence[str],
        identity: Mapping[str, str],
        task: Task = SINGLE,
    ) -> None:
        self.path, self.task, self.class_names, self.names = path, task, class_names, names
        self.skipped = path.with_name(f"{path.stem}.skipped.csv")
        self.progress = path.with_name(f"{path.stem}.progress.json")
        self.identity = {"file": path.name, **identity}
        self.done = self.num_skipped = 0  # images dealt with, and how many of them could not be read
        self._header = ("path", "prediction", "confidence", *class_names)
        self._number = ",".join(["%.6f"] * (len(class_names) + 1))  # a tenth of the time of as many f-strings
        self._files: dict[Path, BinaryIO] = {}

    def open(self, step: int) -> int:
        """Start the file, or cut off what is torn at the end of one that is not complete.

        Args:
            step: Images that are predicted together: the file is cut between such groups, so that the rest is
                predicted in the same groups, to the same last digit, as if nothing had happened.

        Returns:
            How many images are done, a multiple of `step` or all of them.

        Raises:
            UserError: The file is a part of another table, or cannot be written.
        """
        try:
            if self.progress.is_file():
                self._refuse_another()
                ends = self._find_end(step)
                for path, end in ends.items():
                    if path.is_file():
                        os.truncate(path, end)
            else:
                for path in (self.path, self.skipped):
                    path.unlink(missing_ok=True)  # before the mark, that no row of an older table is taken for ours
                write_json(self.progress, self.identity)
            if self.num_skipped == 0:
                self.skipped.unlink(missing_ok=True)
            self._append(self.path, self._header, "")
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be written ({error.strerror})") from error
        return self.done

    def write(
        self, position: Sequence[int], logits: np.ndarray, broken: Mapping[int, str], cut: np.ndarray | None = None
    ) -> None:
        """Add the next images; those that are there already are passed over.

        Args:
            position: Of each image among `names`, in order, (B,).
            logits: (B, K) float.
            broken: Why an image could not be read, by its position; its logits mean nothing.
            cut: What logits are compared with, (K,), where the kind of labels does that.

        Raises:
            UserError: The disk is full, or the file cannot be written for another reason.
        """
        rows: list[Sequence[str]] = []
        skipped: list[Sequence[str]] = []
        probability, decided = self.task.probabilities(logits), self.task.decided(logits, cut)
        text, confidence = self.task.text(decided, self.class_names), self.task.confidence(probability, decided)
        each = zip(position, text, confidence.tolist(), probability.tolist(), strict=True)
        for number, prediction, sure, values in each:
            if number < self.done:
                continue
            self.done = number + 1
            if number in broken:
                skipped.append((self.names[number], broken[number]))
                self.num_skipped += 1
                continue
            numbers = (self._number % (sure, *values)).split(",")
            rows.append((self.names[number], prediction, *numbers))
        with self._told():
            self._append(self.skipped, SKIPPED, csv_text(skipped))
            self._append(self.path, self._header, csv_text(rows))

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The position and the fields of each row."""
        return ((position, row) for position, (row, _) in enumerate(self._walk()) if row)

    def close(self) -> None:
        """Leave the table as it is, to go on another time."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def complete(self) -> None:
        """Nothing is missing any more."""
        with self._told():  # some file systems tell of a full disk only now
            self.close()
            self.progress.unlink(missing_ok=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); the same command goes on behind the last row"
            ) from error

    def _refuse_another(self) -> None:
        try:
            found = read_json(self.progress)
        except ValueError:
            found = {}
        differing = [what for what, value in self.identity.items() if found.get(what) != value]
        if differing:
            raise UserError(
                f"--out {self.path}: is part of another table, which was stopped (not the same "
                f"{' and '.join(differing)}); name another file, or remove {self.progress} to start this one anew"
            )

    def _find_end(self, step: int) -> dict[Path, int]:
        """The byte of both files at which the next group of images begins."""
        ends = dict.fromkeys((self.path, self.skipped), 0)
        here, skipped = ends, 0
        for position, (row, here) in enumerate(self._walk()):
            skipped += row is None
            if (position + 1) % step == 0 or position + 1 == len(self.names):
                self.done, self.num_skipped, ends = position + 1, skipped, here
        return ends

    def _walk(self) -> Iterator[tuple[list[str] | None, dict[Path, int]]]:
        """For each image in turn its row, None if it was skipped, and where both files go on; up to what is missing."""
        files = {self.path: _records(self.path, self._header), self.skipped: _records(self.skipped, SKIPPED)}
        following = {path: next(records, None) for path, records in files.items()}
        ends = dict.fromkeys(files, 0)
        for name in self.names:
            for path, records in files.items():
                found = following[path]
                if found is not None and found[0][0] == name:
                    following[path] = next(records, None)
                    ends = {**ends, path: found[1]}
                    yield found[0] if path == self.path else None, ends
                    break
            else:
                return

    def _append(self, path: Path, header: Sequence[str], text: str) -> None:
        """Write to the end of a file, its header first; one without rows that nobody asked for is not made."""
        if not text and path != self.path:
            return
        if path not in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[path] = open(path, "ab")
            if self._files[path].tell() == 0:
                text = csv_text([header]) + text
        self._files[path].write(text.encode())
        self._files[path].flush()


def _records(path: Path, header: Sequence[str]) -> Iterator[tuple[list[str], int]]:
    """The complete records of a CSV file behind its header, with the byte behind each."""
    if not path.is_file():
        return
    with open(path, "rb") as file:
        start = csv_text([header]).encode()
        if file.read(len(start)) != start:
            return
        lines = (line.decode(errors="replace") for line in file if line.endswith(b"\n"))
        with suppress(csv.Error):  # what a crash of the machine may leave
            for record in csv.reader(lines):
                if len(record) != len(header):
                    return
                yield record, file.tell()
