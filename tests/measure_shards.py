"""Memory and speed of packs: `python tests/measure_shards.py FOLDER [--images 2000] [--workers 2] [--speed]`.

Writes packs of 1, 10 and 100 times so many images (the bundled sample, again and again) into FOLDER, runs one epoch
of each in a process of its own, and prints the highest memory of it and its workers together: RSS, in which what they
share (torch itself, the mapped index) counts for each, and anonymous memory, each page once, which is what the system
cannot drop. With --speed: images/s of a pack against the same files in folders, in turns.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from imgcls.commands.pack import pack
from imgcls.data.folder import FolderData
from imgcls.data.sample import SampleData
from imgcls.data.shards import ShardData
from imgcls.images.sources import Part, Source
from imgcls.training.trainer import Trainer

BATCH, SIDE = 128, 28


class Again(Source):
    """A source that comes several times."""

    def __init__(self, source: Source, count: int) -> None:
        super().__init__(np.resize(source.label, count), range(count))  # type: ignore[arg-type]
        self.file = [source.encoded(k) for k in range(len(source))]
        self.verified = True

    def images(self, index, resize_crop):
        raise NotImplementedError

    def encoded(self, number: int) -> bytes:
        return self.file[number % len(self.file)]


class AgainData(SampleData):
    """So many training images, and few to validate and test."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def has_official(self, part: Part) -> bool:
        return True

    def open(self, part: Part) -> Source:
        source = super().open("train" if part == "train" else "test")
        assert source is not None
        return Again(source, self.count if part == "train" else 100)


def memory(pid: int) -> tuple[int, int]:
    """RSS and its share of anonymous memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    size = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return size["Rss"], size["Pss_Anon"]


def epoch(root: str, workers: int) -> dict[str, float]:
    """Run one epoch of a pack while watching the memory."""
    data = ShardData(root=root, batch_size=BATCH, cache="none", num_workers=workers, window=10)
    data.setup("fit")
    loader = data.train_dataloader()
    peak, done = [0, 0], threading.Event()
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children")

    def watch() -> None:
        while not done.wait(0.2):
            total = [0, 0]
            for pid in ["self", *children.read_text().split()]:
                try:
                    total = [a + b for a, b in zip(total, memory(pid), strict=True)]  # type: ignore[arg-type]
                except (FileNotFoundError, ProcessLookupError):
                    continue
            peak[:] = [max(a, b) for a, b in zip(peak, total, strict=True)]

    watcher = threading.Thread(target=watch)
    started, seen = time.perf_counter(), 0
    watcher.start()
    for batch in loader:
        seen += len(batch["image"])
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return {"images": seen, "rss": peak[0], "anon": peak[1], "per_second": seen / seconds}


def curves(folder: Path, images: int, workers: int) -> None:
    for times in (1, 10, 100):
        root = folder / f"pack-{images * times}"
        if not root.exists():
            data = AgainData(images * times)
            data.trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
            # shards of 500 images: the window of ten is smaller than each pack but the first
            pack(data, root, 500 * 2300 / 1e6, None)
        words = [sys.executable, __file__, str(folder), "--epoch", str(root), "--workers", str(workers)]
        found = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        index = sum(path.stat().st_size for path in root.glob("train.*"))
        print(
            f"{times:>4}×  {found['images']:>9,} images  RSS {found['rss'] / 1e6:7.1f} MB  anonymous "
            f"{found['anon'] / 1e6:7.1f} MB  {found['per_second']:8,.0f} images/s  index {index / 1e6:6.1f} MB"
        )


def speed(folder: Path, workers: int) -> None:
    files, root = folder / "files", folder / "pack-files"
    if not files.exists():
        source = SampleData().open("train")
        assert source is not None
        for k in range(len(source)):
            path = files / str(source.label[k]) / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source.encoded(k))
    kinds = {"folder": lambda **words: FolderData(root=str(files), **words)}
    if not root.exists():
        data = kinds["folder"](image_size=SIDE)
        data.trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
        pack(data, root, 1, None)
    kinds["shards"] = lambda **words: ShardData(root=str(root), **words)  # type: ignore[dict-item, return-value]
    kinds["shards again"] = kinds["shards"]
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(9):
        for kind, make in kinds.items():
            data = make(image_size=SIDE, batch_size=BATCH, cache="none", num_workers=workers)
            data.setup("fit")
            loader = data.train_dataloader()
            started = time.perf_counter()
            seen = sum(len(batch["image"]) for batch in loader)
            found[kind].append(seen / (time.perf_counter() - started))
    for kind, values in found.items():
        print(f"{kind:<13} {statistics.median(values):8,.0f} images/s ({min(values):,.0f} to {max(values):,.0f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--epoch", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.epoch:
        print(json.dumps(epoch(given.epoch, given.workers)))
    elif given.speed:
        speed(given.folder, given.workers)
    else:
        curves(given.folder, given.images, given.workers)
