"""Images that are there more than once: the same pixels, or the same picture saved, resized, lit or cropped anew.

Shapes: N images, P pairs.
"""

import numpy as np
from scipy.fft import dct
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

COARSE, FINE = 8, 16  # lowest frequencies, in each direction: to find pairs, and to check them
REFERENCES = 2000  # images that tell how far apart images of this data set are
NEIGHBOUR = 0.005  # share of them that may be closer to an image than what counts as near for it
NEAR = 0.2  # a duplicate is closer than this share of the distance to that neighbour
COPY = 0.15  # references closer than this may be copies of each other: one of them is enough
ALIKE = 0.9  # cosine of the finer descriptors of a pair
CONTRAST = 0.7  # the weaker contrast of a pair as a share of the stronger
FLAT = 4.0  # contrast, in gray levels, below which a picture is noise and rounding
UNRELATED = 1.25  # a usual distance of two photographs
ROWS, COLUMNS, PER_ROW = 1024, 4096, 16  # of a block of pairs; candidates kept of each row of a block


def groups_of(pairs: np.ndarray, count: int) -> np.ndarray:
    """Number of the group (N,) int64 of each of `count` images, where pairs (P, 2) are in the same group."""
    edges = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(edges, directed=False)[1].astype(np.int64)


def members(group: np.ndarray) -> list[list[int]]:
    """Positions of the images of each group (N,) that has more than one, in their order."""
    found: dict[int, list[int]] = {}
    for position, number in enumerate(group.tolist()):
        found.setdefault(number, []).append(position)
    return [positions for positions in found.values() if len(positions) > 1]


def near_duplicates(gray: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs that show the same picture, also mirrored.

    As in a perceptual hash (Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010) an image
    is described by its 8 by 8 lowest frequencies (DCT) without the mean. They are kept as numbers, weighted by their
    frequency and scaled to length 1: a sign flips by chance where a frequency is weak. How close is too close
    differs between data sets, 28-pixel shoes and photographs: the distance of a pair is held against that to the
    nearest 0.5 % of other images, found in a sample. What passes is checked at 16 by 16 frequencies and by contrast.
    All pairs are tried, in blocks: 5 · 10⁹ for 100,000 images. Pictures with next to no contrast match none.

    Args:
        gray: The images, (N, 32, 32) uint8.
        seed: Of the sample.

    Returns:
        Pairs (P, 2) int64, first the lower number: enough to connect all that belong together, not all of them; their
        likeness (P,), at most 1; whether they are mirror images (P,) bool.
    """
    coarse, contrast = _describe(gray, COARSE)
    usable = np.flatnonzero(contrast >= FLAT)
    coarse, contrast = coarse[usable], contrast[usable]
    reach = NEAR * _neighbour_distance(coarse, seed)
    group = np.arange(len(usable))
    found = [(np.empty((0, 2), np.int64), np.empty(0, np.float32), np.empty(0, bool))]
    for mirrored in (False, True):
        other = coarse * _mirror(COARSE) if mirrored else coarse
        for start in range(0, len(coarse), ROWS):
            i, j = _candidates(coarse, other, reach, start)
            weaker, stronger = np.sort([contrast[i], contrast[j]], axis=0)
            worth = (group[i] != group[j]) & (weaker >= CONTRAST * stronger)
            i, j = i[worth], j[worth]
            alike = _likeness(gray, usable[i], usable[j], mirrored)
            pairs = np.stack([i, j], 1)[alike >= ALIKE]
            if len(pairs):
                found.append((pairs, alike[alike >= ALIKE], np.full(len(pairs), mirrored)))
                group = groups_of(np.concatenate([pairs for pairs, _, _ in found]), len(usable))
    pairs, alike, flipped = (np.concatenate(column) for column in zip(*found, strict=True))
    return usable[pairs], alike, flipped


def _describe(gray: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors (N, side²) float32 of length 1 of images (N, 32, 32), and their contrast (N,) in gray levels.

    The order of frequencies is vertical, horizontal.
    """
    size = gray.shape[-1]
    wave = dct(np.eye(size, dtype=np.float32), axis=0, norm="ortho")[:side]  # (side, 32)
    weight = np.hypot(*np.mgrid[:side, :side]).astype(np.float32)  # the mean, frequency 0, counts nothing
    descriptor = np.empty((len(gray), side * side), np.float32)
    for start in range(0, len(gray), ROWS):
        spectrum = wave @ gray[start : start + ROWS].astype(np.float32) @ wave.T
        descriptor[start : start + ROWS] = (spectrum * weight).reshape(-1, side * side)
    length = np.linalg.norm(descriptor, axis=1)
    descriptor /= np.maximum(length, 1e-6)[:, None]
    return descriptor, length / size


def _mirror(side: int) -> np.ndarray:
    """Signs (side²,) by which the descriptor of an image becomes that of its mirror image."""
    return np.where(np.arange(side * side) % side % 2, -1, 1).astype(np.float32)


def _neighbour_distance(descriptor: np.ndarray, seed: int) -> np.ndarray:
    """Distance (N,) from each image to one that is among its nearest, copies aside."""
    count = len(descriptor)
    reference = np.sort(np.random.default_rng(seed).choice(count, min(REFERENCES, count), replace=False))
    closeness = descriptor[reference] @ descriptor[reference].T
    reference = reference[~np.tril(_distance(closeness) < COPY, -1).any(1)]
    rank = max(2, round(NEIGHBOUR * len(reference)))
    found = np.empty(count, np.float32)
    for start in range(0, count, ROWS):
        rows = descriptor[start : start + ROWS]
        distance = np.full((len(rows), len(reference) + rank + 1), UNRELATED, np.float32)  # where there are too few
        distance[:, : len(reference)] = _distance(rows @ descriptor[reference].T)
        own = np.flatnonzero((reference >= start) & (reference < start + len(rows)))
        distance[reference[own] - start, own] = UNRELATED
        found[start : start + ROWS] = np.partition(distance, rank, axis=1)[:, rank]
    return np.minimum(found, UNRELATED)


def _distance(cosine: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(2 - 2 * cosine, 0))


def _candidates(
    descriptor: np.ndarray, other: np.ndarray, reach: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs i < j (C,) with i in a block of rows that are closer than both may reach; of a row, some at least."""
    rows = descriptor[start : start + ROWS]
    least = 1 - reach**2 / 2  # the same as cosines
    found = []
    for column in range(start, len(other), COLUMNS):
        cosine = rows @ other[column : column + COLUMNS].T
        i, j = np.divmod(np.flatnonzero(cosine > least[start : start + ROWS, None]), cosine.shape[1])
        near = (i + start < j + column) & (cosine[i, j] > least[j + column])
        i, j = i[near], j[near]
        place = np.arange(len(i)) - np.searchsorted(i, i)  # among those of its row
        found.append(np.stack([i[place < PER_ROW] + start, j[place < PER_ROW] + column]))
    i, j = np.concatenate(found, axis=1)
    return i, j


def _likeness(gray: np.ndarray, i: np.ndarray, j: np.ndarray, mirrored: bool) -> np.ndarray:
    """Cosine (C,) of the finer descriptors of pairs."""
    alike = np.empty(len(i), np.float32)
    for start in range(0, len(i), ROWS):
        part = slice(start, start + ROWS)
        first, second = _describe(gray[i[part]], FINE)[0], _describe(gray[j[part]], FINE)[0]
        alike[part] = np.einsum("cd,cd->c", first, second * _mirror(FINE) if mirrored else second)
    return alike
