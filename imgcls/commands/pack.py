"""Writes the images of a data module into shards: tar files that any WebDataset reader knows, and an index.

OUT/pack.json          class names, size and statistics, fingerprint; images and bytes of each shard
    train-000000.tar   000000000.png, 000000000.cls (the label's number), 000000001.png …
    train.index        of each image four int64: first byte and bytes in its shard, label, first byte of its line
    train.jsonl        of each image a line ["name", "value of a further column", …]
    skipped.csv        what --data.on_error=skip left out
"""

import io
import json
import logging
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

from imgcls import __version__
from imgcls.data.base import ImageDataModule, Part
from imgcls.data.cache import Caches
from imgcls.data.decode import to_channels
from imgcls.data.shard_files import FACTS, FORMAT
from imgcls.data.shards import shard_name
from imgcls.data.sources import Source
from imgcls.errors import UserError
from imgcls.runs.record import write_skipped

log = logging.getLogger(__name__)
MB = 1e6
PARTS: tuple[Part, ...] = ("train", "val", "test")


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
    data.caches = Caches("none")
    data.prepare_data()
    for stage in ("fit", "test"):
        data.setup(stage)
    fingerprint = dict(data.fingerprint)
    if size:
        fingerprint["data"] += f"@{size}"
    parts = {part: data.parts[part] for part in PARTS if len(data.parts[part][1])}
    columns = [n for n in parts["train"][0].columns if all(n in source.columns for source, _ in parts.values())]
    whole = out.resolve()
    fresh = whole.with_name(f".{whole.name}.part")
    try:
        shutil.rmtree(fresh, ignore_errors=True)  # what an interrupted pack left
        fresh.mkdir(parents=True)
        written = {}
        for part, (source, index) in parts.items():
            order = np.sort(index)
            if part == "train":  # an epoch reads shard after shard: each must hold all classes
                np.random.default_rng(data.split_seed).shuffle(order)
            written[part] = _write(fresh, part, source, order, columns, shard_mb * MB, size)
        facts = {
            "format": FORMAT,
            "made_by": f"imgcls {__version__}",
            "class_names": data.class_names,
            "channels": data.native_channels,
            "size": min(size, data.native_size) if size and data.native_size else data.native_size,
            "mean": list(data.native_mean),
            "std": list(data.native_std),
            "fingerprint": fingerprint,
            "columns": columns,
            "skipped": len(data.skipped),
            "parts": written,
        }
        if data.skipped:
            write_skipped(fresh / "skipped.csv", PARTS, [(row.part, row.name, row.reason) for row in data.skipped])
        (fresh / FACTS).write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
        if whole.exists():
            whole.rmdir()
        os.replace(fresh, whole)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error})") from error
    return facts


def _write(
    folder: Path, part: Part, source: Source, order: np.ndarray, columns: list[str], limit: float, size: int | None
) -> dict[str, Any]:
    """Write the images `order` (N,) of a source as a part; images and bytes of each shard, bytes of the text."""
    index = np.memmap(folder / f"{part}.index", np.dtype("<i8"), "w+", shape=(len(order), 4))
    shards: list[list[int]] = []
    with open(folder / f"{part}.jsonl", "wb") as text:
        number = 0
        while number < len(order):
            first = number
            with open(folder / shard_name(part, len(shards)), "wb") as shard:
                while number < len(order) and (number == first or shard.tell() < limit):
                    image = int(order[number])
                    content = _encoded(source, image, size)
                    label = int(source.label[image])
                    start = _add(shard, f"{number:09d}.{_extension(content)}", content)
                    index[number] = start, len(content), label, text.tell()
                    _add(shard, f"{number:09d}.cls", str(label).encode())
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


def _encoded(source: Source, number: int, size: int | None) -> bytes:
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
        upright = ImageOps.exif_transpose(image)
        gray = upright.mode == "1" or upright.mode[0] in "LIF" and not upright.has_transparency_data
        upright = to_channels(upright, 1 if gray else 3)
        smaller = upright.resize(
            (round(upright.width * scale), round(upright.height * scale)), Image.Resampling.BICUBIC
        )
    file = io.BytesIO()
    smaller.save(file, "JPEG", quality=95)
    return file.getvalue()


def _extension(content: bytes) -> str:
    """Extension by content, as readers of WebDataset know it: a name may say something else."""
    with Image.open(io.BytesIO(content)) as image:
        kind = str(image.format).lower()
    return {"jpeg": "jpg", "mpo": "jpg", "tiff": "tif", "jpeg2000": "jp2"}.get(kind, kind)
