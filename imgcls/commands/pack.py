"""Images into shards, to stream from a disk or a store: --config FILE… --out FOLDER.

A pack is tar files that any WebDataset reader knows, and an index.

OUT/pack.json          class names, size and statistics, fingerprint; images and bytes of each shard
    train-000000.tar   000000000.png, 000000000.cls (the number of its class, or of all, by spaces), 000000001.png …
    train.index        of each image four int64: first byte and bytes in its shard, label, first byte of its line
    train.label        of each image that may have several labels, whether it is of each class, uint8; the index has -1
    train.jsonl        of each image a line ["name", "value of a further column", …]
    train.group        of each image its group, int64, if the data have groups
    skipped.csv        what --data.on_error=skip left out
"""

import io
import json
import logging
import os
import shutil
import tarfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from imgcls import __version__
from imgcls.cli.lightning import LightningVerb
from imgcls.data.base import ImageDataModule, Part
from imgcls.errors import UserError
from imgcls.images.cache import Caches
from imgcls.images.checking import each_once
from imgcls.images.decode import to_channels
from imgcls.images.depth import ValueRange, eight_bits
from imgcls.images.shard_files import FACTS, FORMAT
from imgcls.images.shards import shard_name
from imgcls.images.sources import Source
from imgcls.runs.record import write_skipped
from imgcls.system.resources import cores

log = logging.getLogger(__name__)
MB = 1e6
PARTS: tuple[Part, ...] = ("train", "val", "test")


class Pack(LightningVerb):
    """`python -m imgcls pack`."""

    needs_model = False

    def work(self, out: Path | None = None, shard_mb: float = 100, size: int | None = None) -> None:
        """Write all images into shards that `configs/data/shards.yaml` streams from a folder or a URL.

        Args:
            out: The folder, which must not be there yet, or be empty.
            shard_mb: Size of a shard, in MB.
            size: Longest shorter side in pixels: larger images are resized to it, into JPEG of quality 95. Default:
                the bytes of the files as they are, and PNG of what comes from memory.
        """
        if out is None:
            raise UserError("--out: name a folder for the pack")
        if shard_mb <= 0 or size is not None and size < 1:
            raise UserError(f"--shard_mb {shard_mb} and --size {size}: give positive numbers")
        self.datamodule.trainer = self.trainer
        facts = pack(self.datamodule, out, shard_mb, size)
        for name, part in facts["parts"].items():
            size_mb = sum(size for _, size in part["shards"]) / MB
            print(f"{name}: {part['images']} images, {len(part['shards'])} shards, {size_mb:.1f} MB")
        print(f"pack: {out}" + (f", without {facts['skipped']}: {out}/skipped.csv" if facts["skipped"] else ""))


main = Pack.main


def pack(data: ImageDataModule, out: Path, shard_mb: float, size: int | None) -> dict[str, Any]:
    """Write training, validation and test part, as the data module splits them, into a new folder.

    The folder is there when all of it is. Images keep the bytes of their files; what comes from memory becomes PNG.

    Args:
        data: The data; every image is read before the first is written.
        out: The folder.
        shard_mb: Size of a shard, in MB.
        size: Images with a longer shorter side, in pixels, are resized to it, into JPEG of quality 95.

    Returns:
        What pack.json holds.

    Raises:
        UserError: Images cannot be read, or the folder cannot be written or holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is not an empty folder; name another")
    if data.label_noise:
        raise UserError("--data.label_noise: a pack holds labels as they are; give it to fit")
    if data.bands is not None:
        raise UserError("data: a pack holds photos, and these images have bands; give their files to fit")
    data.caches = Caches("none")
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    fingerprint = dict(data.fingerprint)
    if size:
        fingerprint["data"] += f"@{size}"
    parts = {part: data.parts[part] for part in PARTS if len(data.parts[part][1])}
    columns = [n for n in parts["train"][0].columns if all(n in source.columns for source, _ in parts.values())]
    grouped = all(source.group is not None for source, _ in parts.values())
    whole = out.resolve()
    fresh = whole.with_name(f".{whole.name}.part")
    try:
        shutil.rmtree(fresh, ignore_errors=True)  # what an interrupted pack left
        fresh.mkdir(parents=True)
        written = {}
        for part, (source, index) in parts.items():
            order = np.sort(index)
            if part == "train":  # an epoch reads shard after shard: each must hold all classes
                np.random.default_rng(data.split_options.split_seed).shuffle(order)
            value_range = data.resize_crop(part).value_range
            # copying is as fast as handing over from one process to another
            workers = (cores() if data.num_workers is None else data.num_workers) if size else 0
            contents = _in_order(_Encoder(source, size, value_range), order.tolist(), workers)
            if grouped and source.group is not None:
                source.group[order].astype("<i8").tofile(fresh / f"{part}.group")
            if source.label.ndim == 2:
                source.label[order].astype(np.uint8).tofile(fresh / f"{part}.label")
            written[part] = _write(fresh, data, part, order, columns, shard_mb * MB, contents)
        facts = {
            "format": FORMAT,
            "made_by": f"imgcls {__version__}",
            "class_names": data.class_names,
            "channels": data.native_channels,
            "size": min(size, data.native_size) if size and data.native_size else data.native_size,
            "mean": list(data.native_mean),
            "std": list(data.native_std),
            "value_range": data.value_range,
            "fingerprint": fingerprint,
            "columns": columns,
            "grouped": grouped,
            "skipped": len(data.skipped),
            "parts": written,
        }
        if data.task != ImageDataModule.native_task:  # else as earlier versions wrote it
            facts |= {"task": data.task, "multi_hot": parts["train"][0].label.ndim == 2}
        if data.skipped:
            write_skipped(fresh / "skipped.csv", PARTS, data.skipped)
        (fresh / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
        if whole.exists():
            whole.rmdir()
        os.replace(fresh, whole)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error})") from error
    return facts


def _write(
    folder: Path,
    data: ImageDataModule,
    part: Part,
    order: np.ndarray,
    columns: list[str],
    limit: float,
    contents: Iterator[bytes],
) -> dict[str, Any]:
    """Write the images `order` (N,) of a part; images and bytes of each shard, bytes of the text."""
    source = data.parts[part][0]
    index = np.memmap(folder / f"{part}.index", np.dtype("<i8"), "w+", shape=(len(order), 4))
    shards: list[list[int]] = []
    with open(folder / f"{part}.jsonl", "wb") as text:
        number = 0
        while number < len(order):
            first = number
            with open(folder / shard_name(part, len(shards)), "wb") as shard:
                while number < len(order) and (number == first or shard.tell() < limit):
                    image = int(order[number])
                    content = next(contents)
                    label = source.label[[image]]
                    start = _add(shard, f"{number:09d}.{_extension(content)}", content)
                    index[number] = start, len(content), label[0] if label.ndim == 1 else -1, text.tell()
                    _add(shard, f"{number:09d}.cls", " ".join(map(str, data.kind.pairs(label)[1].tolist())).encode())
                    line = [source.names[image], *(source.columns[name][image] for name in columns)]
                    text.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    number += 1
                shard.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar file
                shards.append([number - first, shard.tell()])
            if 10 * number // len(order) > 10 * first // len(order):
                log.info(f"{part}: {number} of {len(order)} images in {len(shards)} shards")
        index.flush()
        return {"images": len(order), "text": text.tell(), "shards": shards}


def _add(shard: BinaryIO, name: str, content: bytes) -> int:
    """Append a member to a tar file; where its content begins."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    shard.write(header.tobuf(tarfile.USTAR_FORMAT))
    start = shard.tell()
    shard.write(content + bytes(-len(content) % tarfile.BLOCKSIZE))
    return start


class _Encoder(Dataset):
    """Numbers of images in; out comes what a pack holds of each, or what is wrong with it."""

    def __init__(self, source: Source, size: int | None, value_range: ValueRange | None) -> None:
        self.source, self.size, self.value_range = source, size, value_range

    def __getitem__(self, numbers: list[int]) -> list[bytes | UserError]:
        try:
            return [_encoded(self.source, number, self.size, self.value_range) for number in numbers]
        except UserError as error:  # raised in the main process, without a worker's traceback
            return [error]


def _in_order(encoder: _Encoder, numbers: list[int], workers: int) -> Iterator[bytes]:
    for content in chain.from_iterable(each_once(encoder, numbers, workers)):
        if isinstance(content, UserError):
            raise content
        yield content


def _encoded(source: Source, number: int, size: int | None, value_range: ValueRange | None) -> bytes:
    try:
        content = source.encoded(number)
    except OSError as error:
        raise UserError(f"{source.describe(number)}: cannot be read ({error})") from error
    if size is None:
        return content
    with Image.open(io.BytesIO(content)) as image:
        scale = size / min(image.size)
        if scale >= 1:
            return content
        upright = ImageOps.exif_transpose(eight_bits(image, value_range))
        gray = upright.mode == "1" or upright.mode[0] in "LIF" and not upright.has_transparency_data
        upright = to_channels(upright, 1 if gray else 3)
        smaller = upright.resize([round(side * scale) for side in upright.size], Image.Resampling.BICUBIC)
    file = io.BytesIO()
    smaller.save(file, "JPEG", quality=95)
    return file.getvalue()


def _extension(content: bytes) -> str:
    """Extension by content, as readers of WebDataset know it: a name may say something else."""
    with Image.open(io.BytesIO(content)) as image:
        kind = str(image.format).lower()
    return {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif", "jpeg2000": "jp2"}.get(kind, kind)
