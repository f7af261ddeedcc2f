"""Which images train, validate and test: stratified by class, by a seed of their own."""

import hashlib
from dataclasses import dataclass

import numpy as np

from imgcls.errors import UserError


def stratified_order(label: np.ndarray, seed: int) -> np.ndarray:
    """A random permutation (N,) of which every stretch holds the classes in proportion, within one image.

    The image with random rank r among the n of its class gets the key (r + 1/2) / n; sorting by key spreads
    each class evenly. A prefix of the order is a stratified subset, and shorter prefixes are nested in longer.
    """
    rng = np.random.default_rng(seed)
    key = np.empty(len(label))
    for value in np.unique(label):
        members = np.flatnonzero(label == value)
        key[rng.permutation(members)] = (np.arange(len(members)) + 0.5) / len(members)
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


def split(
    label: np.ndarray,
    *,
    val_fraction: float,
    test_fraction: float,
    train_fraction: float = 1.0,
    seed: int = 0,
    folds: int | None = None,
    fold: int = 0,
) -> Split:
    """Carve stratified parts from labels (N,): test first, then validation, then a part of the rest.

    Args:
        label: Class of each image, (N,) int64.
        val_fraction: Share of all N images to validate on; ignored when `folds` is given.
        test_fraction: Share of all N images to test on.
        train_fraction: Share of the remaining images to train on; smaller shares are nested in larger ones.
        seed: Seed of the split alone.
        folds: Number of folds for cross-validation; validation is then fold number `fold`.
        fold: From 0 to `folds` - 1.

    Raises:
        UserError: A part that was asked for would be empty.
    """
    if not (folds or val_fraction or test_fraction) and train_fraction == 1:
        return Split(np.arange(len(label)), *(np.empty(0, np.int64) for _ in range(2)))
    order = stratified_order(label, seed)
    num_test = round(len(order) * test_fraction)
    test, rest = order[:num_test], order[num_test:]
    if folds is None:
        start, stop = 0, round(len(order) * val_fraction)
    else:
        start, stop = (round(len(rest) * (fold + k) / folds) for k in (0, 1))
    val, train = rest[start:stop], np.concatenate([rest[:start], rest[stop:]])
    train = train[: round(len(train) * train_fraction)]
    wanted = {
        "training": (train, 1.0),
        "validation": (val, 1.0 if folds else val_fraction),
        "test": (test, test_fraction),
    }
    for name, (part, share) in wanted.items():
        if share > 0 and len(part) == 0:
            raise UserError(
                f"data: {len(label)} images are too few for a {name} part; give more images or change "
                "--data.val_fraction, --data.test_fraction, --data.train_fraction or --data.folds"
            )
    return Split(train, val, test)


def mislabel(label: np.ndarray, index: np.ndarray, share: float, num_classes: int, seed: int) -> np.ndarray:
    """Labels (N,) of which a share of those at `index` is replaced by another class, sampled evenly from all others.

    Images that are wrong at a smaller share are wrong in the same way at a larger one.
    """
    rng = np.random.default_rng((seed, 1))
    shift = rng.integers(1, num_classes, len(label))
    wrong = rng.permutation(np.sort(index))[: round(share * len(index))]
    noisy = label.copy()
    noisy[wrong] = (label[wrong] + shift[wrong]) % num_classes
    return noisy
