"""Images read from shards by their number."""

import json
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.errors import UserError
from imgcls.images.shard_files import ShardFiles
from imgcls.images.sources import Blocks, EncodedSource, Part

OPEN = 16  # shards that a process keeps open


class ShardSource(EncodedSource):
    """One part of a pack; in memory are a few numbers per shard, the rest is mapped or read when it is needed.

    Args:
        files: Of the pack.
        part: Its name.
        window: Shards that are mixed.
    """

    verified = True

    def __init__(self, files: ShardFiles, part: Part, window: int) -> None:
        facts = files.facts["parts"][part]
        count, size = sum(images for images, _ in facts["shards"]), facts["text"]
        # of each image: where it begins in its shard, its bytes, its label or -1, where its line begins in the text
        index = np.memmap(files.path(f"{part}.index", 32 * count), np.dtype("<i8"), "r", shape=(count, 4))
        text = files.path(f"{part}.jsonl", size)
        classes = len(files.facts["class_names"])
        label = index[:, 2]
        if files.facts.get("multi_hot"):
            label = np.memmap(files.path(f"{part}.label", count * classes), np.int8, "r", shape=(count, classes))
        super().__init__(label, Texts(text, index[:, 3], 0))
        columns = enumerate(files.facts["columns"], 1)
        self.columns = {name: Texts(text, index[:, 3], field) for field, name in columns}
        if files.facts.get("grouped"):  # packs of earlier versions do not say
            self.group = np.memmap(files.path(f"{part}.group", 8 * count), np.dtype("<i8"), "r", shape=count)
        self.files, self.part, self.window, self.position = files, part, window, index
        self.shards = facts["shards"]
        self.start = np.cumsum([0, *(images for images, _ in self.shards)])[:-1]
        self._open: dict[int, int] = {}
        if label.min() < 0 or label.max() >= (classes if label.ndim == 1 else 2):
            raise UserError(f"{files.place}: labels of the {part} part are no numbers of classes; make the pack anew")
        self._forget()
        for number, (_, size) in enumerate(self.shards):
            files.check(shard_name(part, number), size)

    def describe(self, number: int) -> str:  # noqa: D102
        return f"{self.files.place}/{shard_name(self.part, self._shard(number))}: {self.names[number]}"

    def encoded(self, number: int) -> bytes:  # noqa: D102
        shard = self._shard(number)
        if shard not in self._open:
            if len(self._open) >= OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[shard] = self.files.open(shard_name(self.part, shard), self.shards[shard][1])
            self._forget()
        start, size = self.position[number, :2].tolist()
        return os.pread(self._open[shard], size, start)

    def _forget(self) -> None:
        """Give back pages of the index that were looked at; the system keeps them where there is room."""
        if isinstance(self.position.base, mmap.mmap):  # not in a process that was not forked
            self.position.base.madvise(mmap.MADV_DONTNEED)

    def _shard(self, number: int) -> int:
        return int(np.searchsorted(self.start, number, side="right")) - 1

    def blocks(self, index: np.ndarray) -> Blocks:  # noqa: D102
        return Blocks(np.searchsorted(index, self.start), self.window, self._ahead)

    def _ahead(self, shard: int) -> None:
        self.files.ahead(shard_name(self.part, shard), self.shards[shard][1])

    def fingerprint(self) -> str:  # noqa: D102
        return f"{self.files.facts['fingerprint']['data']}:{self.part}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # descriptors mean nothing in a process that was not forked


class Texts(Sequence[str]):
    """A field of the lines of a file, each a JSON list, read when it is asked for.

    Args:
        path: The file.
        start: Where each line begins, (N,) int64.
        field: Number of the field.
    """

    def __init__(self, path: Path, start: np.ndarray, field: int) -> None:
        self.path, self.start, self.field = path, start, field

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, number):  # type: ignore[no-untyped-def]
        with open(self.path, "rb") as file:
            file.seek(int(self.start[number]))
            return json.loads(file.readline())[self.field]


def shard_name(part: str, number: int) -> str:
    """Name of a shard's file."""
    return f"{part}-{number:06d}.tar"
