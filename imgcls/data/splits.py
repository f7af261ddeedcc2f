"""Which images train, validate and test: stratified by their labels, groups whole, by a seed of their own."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from imgcls.data.options import check
from imgcls.data.sampling import with_unlabelled
from imgcls.errors import UserError
from imgcls.tasks import Pairs, Task

FoldPart = Literal["val", "test"]


def stratified_order(label: np.ndarray, seed: int, size: np.ndarray | None = None) -> np.ndarray:
    """A random permutation (N,) of which every stretch holds the classes in proportion, within one image.

    The image with random rank r among the n of its class gets the key (r + 1/2) / n; sorting by key spreads
    each class evenly. A prefix of the order is a stratified subset, and shorter prefixes are nested in longer.

    Args:
        label: Class of each image, (N,) int64.
        seed: Of the ranks.
        size: Images that each entry stands for, (N,) int64; its key is then the middle of its own. Default: one each.
    """
    rng = np.random.default_rng(seed)
    key = np.empty(len(label))
    size = np.ones(len(label), np.int64) if size is None else size
    for value in np.unique(label):
        members = rng.permutation(np.flatnonzero(label == value))
        key[members] = (np.cumsum(size[members]) - size[members] / 2) / size[members].sum()
    return np.lexsort((label, key))


@dataclass(frozen=True)
class Split:
    """Positions of the training, validation and test images among those of the training source."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray

    def fingerprint(self) -> dict[str, str]:
        """Hash of each part's positions; the order of the training part does not matter."""
        parts = {"val": self.val, "test": self.test}
        return {k: hashlib.blake2b(np.sort(v).tobytes(), digest_size=8).hexdigest() for k, v in parts.items()}


@dataclass(frozen=True)
class SplitOptions:
    """How images are divided; the options of a data module of these names, see `ImageDataModule`.

    Raises:
        UserError: An option is out of its range.
    """

    val_fraction: float = 0.1
    test_fraction: float = 0.1
    train_fraction: float = 1.0
    split_seed: int = 0
    folds: int | None = None
    fold: int = 0
    fold_part: FoldPart = "val"

    def __post_init__(self) -> None:
        for share in ("val_fraction", "test_fraction"):
            check(0 <= (value := getattr(self, share)) < 1, share, value, "a share from 0 to below 1")
        check(0 < self.train_fraction <= 1, "train_fraction", self.train_fraction, "a share above 0, at most 1")
        folds = self.folds or 1
        check(self.folds is None or folds > 1, "folds", folds, "at least 2")
        check(0 <= self.fold < folds, "fold", self.fold, f"a number from 0 to {folds - 1} (see --data.folds)")
        check(folds > 1 or not self.tests_fold, "fold_part", self.fold_part, "for a single split; give --data.folds")
        if self.tests_fold:
            wanted = f"below {1 - 1 / folds:.3g}, the share that a test fold leaves"
            check(self.val_fraction < 1 - 1 / folds, "val_fraction", self.val_fraction, wanted)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "SplitOptions":
        """From all options of a data module, by name."""
        return cls(**{field.name: options[field.name] for field in fields(cls)})

    @property
    def tests_fold(self) -> bool:
        """Whether the fold is the test part."""
        return self.fold_part == "test"

    def split(
        self,
        pairs: Pairs,
        count: int,
        group: np.ndarray | None = None,
        carve_val: bool = True,
        carve_test: bool = True,
    ) -> Split:
        """Carve stratified parts from N images: test first, then validation, then a part of the rest.

        With folds, fold number `fold` is the validation part, or the test part: then validation is `val_fraction` of
        all N from the folds behind it, in a circle, and `test_fraction` is not used.

        Args:
            pairs: Image and class of each label, (P,) int64 each. Images without one are a class of their own.
            count: Number of images N.
            group: Images of one group are never in two parts, (N,) int64; -1: an image of its own. Parts are then as
                large, and their classes in such shares, as groups allow, and likewise where images have several
                labels, see `apportion`.
            carve_val: Whether there is to be a validation part; a fold is one in any case.
            carve_test: Whether there is to be a test part, likewise.

        Raises:
            UserError: A part that was asked for would be empty.
        """
        if not (carve_val and carve_test):
            val_fraction, test_fraction = self.val_fraction * carve_val, self.test_fraction * carve_test
            return replace(self, val_fraction=val_fraction, test_fraction=test_fraction).split(pairs, count, group)
        if not (self.folds or self.val_fraction or self.test_fraction) and self.train_fraction == 1:
            return Split(np.arange(count), *(np.empty(0, np.int64) for _ in range(2)))
        image, of = pairs = with_unlabelled(pairs, count)
        unit = None if group is None else _units(group)
        stratum = rarest(pairs, count)
        order = stratified_order(stratum, self.split_seed) if unit is None else _whole(stratum, unit, self.split_seed)
        one_each = unit is None and len(image) == count

        def cut(images: np.ndarray, *ends: float) -> list[np.ndarray]:
            """Pieces of some images, as they are ordered; the first `ends[0]`, from there to `ends[1]`, and so on."""
            if one_each or not len(images):
                return np.split(images, [round(end) for end in ends])[: len(ends)]
            place = np.full(count, -1)
            place[images] = np.arange(len(images))
            theirs = place[image] >= 0
            together = images if unit is None else unit[images]
            wanted = np.diff(ends, prepend=0)
            piece = apportion((place[image[theirs]], of[theirs]), together, wanted, self.split_seed)
            return [images[piece == k] for k in range(len(ends))]

        test, val, rest = order[:0], order[:0], order
        if not self.tests_fold:
            test, rest = cut(order, count * self.test_fraction, count)
        if self.folds:
            pieces = cut(rest, *(len(rest) * (k + 1) / self.folds for k in range(self.folds)))
            if self.tests_fold:
                test, rest = pieces[self.fold], np.concatenate(pieces[self.fold + 1 :] + pieces[: self.fold])
            else:
                val, rest = pieces[self.fold], np.concatenate(pieces[: self.fold] + pieces[self.fold + 1 :])
        if self.tests_fold or not self.folds:
            val, rest = cut(rest, count * self.val_fraction, len(rest))
        num_train = round(len(rest) * self.train_fraction)
        if unit is not None and num_train:
            ends = np.flatnonzero(np.diff(unit[rest], append=-1)) + 1  # of groups
            num_train = ends[np.abs(ends - num_train).argmin()]
        found = Split(rest[:num_train], val, test)
        self._refuse_empty(found, f"{count} images" + ("" if unit is None else f" in {unit.max() + 1} groups"))
        return found

    def _refuse_empty(self, found: Split, images: str) -> None:
        folded = 1.0 if self.folds else 0.0
        wanted = {
            "training": (found.train, 1.0),
            "validation": (found.val, self.val_fraction if self.tests_fold else folded or self.val_fraction),
            "test": (found.test, folded if self.tests_fold else self.test_fraction),
        }
        for name, (part, share) in wanted.items():
            if share > 0 and len(part) == 0:
                raise UserError(
                    f"data: {images} are too few for a {name} part; give more images or change "
                    "--data.val_fraction, --data.test_fraction, --data.train_fraction or --data.folds"
                )


def _units(group: np.ndarray) -> np.ndarray | None:
    """Number (N,) from 0 of what stays together, where -1 in `group` (N,) is on its own; None if all are."""
    alone = group < 0
    unit = np.where(alone, group.max(initial=0) + 1 + np.cumsum(alone), group)
    unit = np.unique(unit, return_inverse=True)[1]
    return None if len(np.unique(unit)) == len(unit) else unit


def rarest(pairs: Pairs, count: int) -> np.ndarray:
    """Of the classes of each of N images, of which it has one at least, that of the fewest images, (N,) int64."""
    image, of = pairs
    common_first = np.argsort(-np.bincount(of)[of], kind="stable")
    rarest = np.empty(count, np.int64)
    rarest[image[common_first]] = of[common_first]  # the last that is written stays
    return rarest


def _whole(label: np.ndarray, unit: np.ndarray, seed: int) -> np.ndarray:
    """A stratified order (N,) of images in which those of one unit (N,) follow each other, by their commonest class."""
    pair, count = np.unique(unit * (label.max() + 1) + label, return_counts=True)
    of, value = np.divmod(pair[np.argsort(count, kind="stable")], label.max() + 1)
    main = np.empty(unit.max() + 1, np.int64)
    main[of] = value  # the last that is written stays
    rank = np.argsort(stratified_order(main, seed, np.bincount(unit)))
    return np.argsort(rank[unit], kind="stable")


def apportion(pairs: Pairs, unit: np.ndarray, wanted: np.ndarray, seed: int) -> np.ndarray:
    """Pieces in which units are whole, and classes in proportion as far as units allow.

    Large units first, as in Graham's rule (Bounds on multiprocessing timing anomalies, SIAM J. Appl. Math. 1969): each
    goes to the piece where the squared error of the numbers of images, of each class and in all, relative to what the
    piece is to hold, grows least. Units of about the same size, within a factor of two, come in random order; the last
    go to pieces that have none. Of single images, as there may be millions, most fill what each class lacks at once.

    Images with several labels come before those with one, those with most of them first. Where there are any, errors
    are also relative to the images of the class, so that the rarest count most, with which iterative stratification
    begins (Sechidis, Tsoumakas and Vlahavas, On the stratification of multi-label data, ECML PKDD 2011).

    Five folds of 300, 3,000 and 20,000 images with 20 labels, of the four kinds of `tests/test_multi_label_data.py`,
    mean of seeds 0 to 4 (20,000: seed 0): a label's images in a fold are wrong by 0.8 of an image at most, the least
    that whole numbers allow (once 0.9), and the fold's size by 1. The package iterative-stratification 0.1.9, which
    follows the paper: by 0.8 to 17, the most where labels are equally frequent, and sizes by up to 32. Both take 0.1 to
    0.5 s for 20,000 images, on one core.

    Five folds of seven kinds of synthetic data, mean of 20 seeds: beside cuts of a stratified order at the nearest end
    of a group, the largest error of a fold's size is 0.04 to 1 times as large (median 0.31), of a class's share in it
    0.02 to 0.99 times (median 0.48).

    Args:
        pairs: Image and class of each label, (P,) int64 each; each of N images has one at least.
        unit: What stays together, (N,) int64.
        wanted: Images that each piece is to hold, (P,).
        seed: Of the order.

    Returns:
        Number of each image's piece, (N,) int64.
    """
    (image, of), unit = pairs, np.unique(unit, return_inverse=True)[1]
    num_classes, size, real = of.max() + 1, np.bincount(unit), np.flatnonzero(wanted > 0)
    share = wanted[real] / len(unit)
    # of each unit its classes and, as one class more, all its images, with their numbers
    key = np.concatenate([unit[image] * (num_classes + 1) + of, unit * (num_classes + 1) + num_classes])
    key, number = np.unique(key, return_counts=True)
    in_unit, column = np.divmod(key, num_classes + 1)
    start = np.searchsorted(in_unit, np.arange(len(size) + 1))
    labels = np.diff(start) - 1
    total = np.append(np.bincount(of), len(unit))
    weight = 1 / np.maximum(total, 1) if len(of) > len(unit) else np.ones(len(total))
    excess = -np.outer(share, total)  # images beyond what is wanted
    piece, empty = np.full(len(size), -1), set(range(len(real)))

    def place(units: np.ndarray, waiting: int) -> None:
        for left, k in zip(range(waiting, 0, -1), units.tolist(), strict=False):
            columns, more = column[start[k] : start[k + 1]], number[start[k] : start[k + 1]]
            weighted = weight[columns] * more
            cost = (2 * excess[:, columns] @ weighted + more @ weighted) / share
            best = min(empty, key=cost.__getitem__) if len(empty) >= left else int(cost.argmin())
            empty.discard(best)
            piece[k] = real[best]
            excess[best, columns] += more

    order = np.random.default_rng(seed).permutation(len(size))
    alone = (size[order] == 1) & (labels[order] == 1)
    several, single = order[~alone], order[alone]
    large_first = np.lexsort((-labels[several] * (size[several] == 1), -np.floor(np.log2(size[several]))))
    place(several[large_first], len(size))
    class_of = column[start[single]]
    for value in np.unique(class_of):
        members, lack = single[class_of == value], np.maximum(-excess[:, value], 0)
        count = (lack / lack.sum() * len(members)).astype(np.int64)
        piece[members[: count.sum()]] = np.repeat(real, count)
        excess[:, [value, -1]] += count[:, None]
        empty -= {*np.flatnonzero(count).tolist()}
    left = single[piece[single] < 0]
    place(left, len(left))
    return piece[unit]


def mislabel(label: np.ndarray, index: np.ndarray, share: float, num_classes: int, seed: int, kind: Task) -> np.ndarray:
    """Labels of N images of which a share of those at `index` is replaced by another, see `Task.another`.

    Images that are wrong at a smaller share are wrong in the same way at a larger one.
    """
    rng = np.random.default_rng((seed, 1))
    other = kind.another(label, num_classes, rng)
    wrong = rng.permutation(np.sort(index))[: round(share * len(index))]
    noisy = label.copy()
    noisy[wrong] = other[wrong]
    return noisy
