"""Which images are left out of a cleaned data set, and why. Shapes: N images, in the order in which copies are kept."""

from enum import StrEnum

import numpy as np

from imgcls.evaluate.duplicates import groups_of


class Reason(StrEnum):
    """Why an image is left out; the first that holds."""

    KEPT = ""
    BROKEN = "broken"
    TWO_LABELS = "two labels"  # copies of the image say different things: nobody can tell which is right
    LEAK = "leak"  # a copy is in a part that is to judge what this part taught
    COPY = "copy"  # an earlier image of the part is the same
    NEAR_LEAK = "near leak"  # a leak with other pixels
    LABEL_ERROR = "label error"


def clean(
    rank: np.ndarray, label: np.ndarray, exact: np.ndarray, near: np.ndarray, broken: np.ndarray, wrong: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decide for each image: of copies the first is kept, of a leak the one in the part of lower rank.

    Args:
        rank: Of each image's part, (N,) int64, in rising order: test 0, validation 1, training 2.
        label: (N,) int64.
        exact: Group of each image among those with equal pixels, (N,) int64.
        near: Group of each image among those that look alike, (N,) int64; copies need not be in their first's.
        broken: Images that cannot be read, (N,) bool; each is in groups of its own.
        wrong: Images to leave out for their label, (N,) bool.

    Returns:
        Why each image is left out, (N,) of `Reason`, and of which image it is a copy, (N,) int64; -1: of none.
    """
    reason, of = np.full(len(rank), Reason.KEPT, dtype=object), np.full(len(rank), -1)

    def leave_out(chosen: np.ndarray, why: Reason, first: np.ndarray | None = None) -> None:
        chosen = chosen & (reason == Reason.KEPT)
        reason[chosen] = why
        if first is not None:
            of[chosen] = first[chosen]

    leave_out(broken, Reason.BROKEN)
    leave_out(disagreeing(exact, label), Reason.TWO_LABELS)
    first = _first(exact)
    copy = first != np.arange(len(rank))
    leave_out(copy & (rank != rank[first]), Reason.LEAK, first)
    leave_out(copy, Reason.COPY, first)
    left = np.flatnonzero(reason == Reason.KEPT)
    first = np.arange(len(rank))
    first[left] = left[_first(near[left])]
    leave_out(rank != rank[first], Reason.NEAR_LEAK, first)
    leave_out(wrong, Reason.LABEL_ERROR)
    return reason, of


def together(near: np.ndarray, given: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """What no split of the kept images may divide: those that look alike, and those that the data group.

    Args:
        near: Group of each image among those that look alike, (N,) int64.
        given: Its group in the data, (N,) int64; -1: none.
        kept: Images that are kept, (N,) bool.

    Returns:
        Number of each image's group from 1, (N,) int64; -1: no other image that is kept is in it.
    """
    given = np.where(given < 0, given.max(initial=0) + 1 + np.arange(len(given)), given)
    unit = groups_of(np.concatenate([np.stack([_first(of), np.arange(len(of))], 1) for of in (near, given)]), len(near))
    _, place, count = np.unique(unit[kept], return_inverse=True, return_counts=True)
    group = np.full(len(unit), -1)
    group[kept] = np.where(count > 1, np.cumsum(count > 1), -1)[place]
    return group


def disagreeing(group: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Whether the images (N,) of each one's group have more than one label."""
    differs = label != label[_first(group)]
    return np.isin(group, group[differs])


def _first(group: np.ndarray) -> np.ndarray:
    """Position (N,) of the first image of each one's group."""
    _, first, place = np.unique(group, return_index=True, return_inverse=True)
    return first[place]
