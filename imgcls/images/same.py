"""Which images of one source are those of another, by their bytes."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress

from imgcls.images.sources import Source


def same_images(source: Source, index: Sequence[int], other: Source, other_index: Sequence[int]) -> dict[int, int]:
    """Images `index` of a source that are among the images `other_index` of another: their numbers there.

    Images in files are read only where a file of the same size is on the other side.
    """
    sizes, other_sizes = _sizes(source, index), _sizes(other, other_index)
    if sizes is not None and other_sizes is not None:
        shared = set(sizes) & set(other_sizes)
        index = [i for i, size in zip(index, sizes, strict=True) if size in shared]
        other_index = [i for i, size in zip(other_index, other_sizes, strict=True) if size in shared]
    numbers = dict(_digests(other, other_index))
    return {i: numbers[digest] for digest, i in _digests(source, index) if digest in numbers}


def _sizes(source: Source, index: Sequence[int]) -> list[int] | None:
    paths = [path for number in index if (path := source.file(number)) is not None]
    if len(paths) < len(index):
        return None
    return [path.stat().st_size if path.is_file() else -1 for path in paths]


def _digests(source: Source, index: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    for number in index:
        path = source.file(number)
        if path is not None and not path.is_file():
            continue
        with suppress(OSError):  # what cannot be read is the same as nothing, and is named where it is decoded
            yield hashlib.blake2b(source.encoded(number), digest_size=16).digest(), number
