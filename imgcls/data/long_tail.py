from typing import Any

import numpy as np

from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError
from imgcls.images.sources import Part, Source


class LongTail(ImageDataModule):
    """Another data set of whose training part each class keeps fewer images than the one before, for studies of that.

    Sizes fall exponentially in the order of the labels, as in Cui et al., Class-balanced loss based on effective number
    of samples, CVPR 2019, section 5.1. Validation and test parts stay as they are.

    Args:
        data: Where the images are. Of its own options only those that say so are used, such as root, name or table;
            how images are split, read and sampled is said here, beside it.
        imbalance: Images of the first class over those of the last.
        tail_seed: Of the choice of images: those of a larger imbalance lie in those of a smaller one. It is not the
            run's seed: runs with several seeds share them.
    """

    def __init__(self, data: ImageDataModule, imbalance: float = 100.0, tail_seed: int = 0, **kwargs: Any) -> None:
        if imbalance < 1:
            raise UserError(f"--data.imbalance: {imbalance:g} is not at least 1, where classes stay as they are")
        self.native_task, self.native_size, self.native_channels = data.task, data.native_size, data.native_channels
        self.native_mean, self.native_std, self.class_names = data.native_mean, data.native_std, data.class_names
        super().__init__(**kwargs)
        for option in ("root", "ordered"):
            if value := getattr(self, option):
                raise UserError(
                    f"--data.{option} {value}: LongTail has its images from another data module; give it to that one, "
                    f"--data.data.{option}, or name another class, --data=imgcls.data.folder.FolderData"
                )
        self.data, self.imbalance, self.tail_seed = data, imbalance, tail_seed
        self.problems, self.skipped = data.problems, data.skipped  # it adds to them where it opens a part

    def prepare_data(self) -> None:  # noqa: D102
        self.data.prepare_data()

    def has_official(self, part: Part) -> bool:  # noqa: D102
        return self.data.has_official(part)

    def open(self, part: Part) -> Source | None:  # noqa: D102
        return self.data.open(part)

    def setup_training_parts(self) -> None:
        """Open the training and validation parts, and leave out images of the training part."""
        super().setup_training_parts()
        source, index = self.parts["train"]
        self.parts["train"] = source, index[long_tailed(source.label[index], self.imbalance, self.tail_seed)]


def long_tailed(label: np.ndarray, imbalance: float, seed: int) -> np.ndarray:
    """Positions of images, ascending, of which each class is smaller than the one before.

    Args:
        label: Classes (N,) int64; of n images of the largest, class k of K keeps `n / imbalance ** (k / (K - 1))`, at
            least one and at most those that it has.
        imbalance: At least 1.
        seed: Of the choice.

    Raises:
        UserError: Images have several labels.
    """
    if label.ndim > 1:
        raise UserError("data: LongTail is for images of one class each, and these have several labels")
    classes, count = np.unique(label, return_counts=True)
    wanted = count.max() * imbalance ** -np.linspace(0, 1, len(classes))
    kept = np.minimum(np.maximum(np.round(wanted), 1), count).astype(int)
    order = np.random.default_rng(seed).permutation(len(label))
    chosen = [order[label[order] == value][:number] for value, number in zip(classes, kept, strict=True)]
    return np.sort(np.concatenate(chosen))
