import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imgcls.augment.base import Augmentation
from imgcls.data.channels import Asked
from imgcls.data.on_device import DeviceBatches, Parts
from imgcls.data.options import check_ranges, named_task, refuse_another_sampler, refuse_other_data, refuse_other_order
from imgcls.data.sampling import position
from imgcls.data.splits import FoldPart, SplitOptions, mislabel
from imgcls.errors import UserError
from imgcls.images.cache import Caches
from imgcls.images.checking import OnError, Processes, Skipped, check_images
from imgcls.images.decode import Interpolation
from imgcls.images.derived import JoinedSource
from imgcls.images.jpeg import require_decoder
from imgcls.images.sources import Part, Source
from imgcls.images.value_range import measured_range
from imgcls.tasks import SINGLE_LABEL

log = logging.getLogger(__name__)


class ImageDataModule(DeviceBatches, ABC):
    """Batches of images for training, validation and test, augmented and normalised on the device.

    A new kind of source is one class in one file: it sets `class_names`, defines `open`, and overrides
    `has_official` if it has no test part of its own. Batches are
    `{"image": (B, C, H, W), "label": (B,) int64 or (B, K) float32, "index": (B,) int64}`. Loaders yield uint8
    images; `DeviceBatches` turns them into normalised float ones, training batches after augmentation.

    The test part cannot be reached from `fit`: it is not in `parts` then. Where a source has no validation or no test
    part of its own, one is carved from its training part, stratified by class.

    Attributes:
        parts: Source of each part that is open, and numbers of its images in it, (N,) int64.
        check_test: Whether test images are checked before training, as those of a run that ends with a test.
        problems: What `open` found that cannot be used; images that cannot be read are named with it.
        skipped: What was left out of the parts that were checked.
        native_task: Kind of labels that the data have.
        task: Kind of labels, as a name.

    Args:
        root: Folder of the data.
        batch_size: Images of one batch of one process; `auto` measures, before training, which is fast and fits.
        image_size: Side of the square images that the model gets, in pixels. Default: what the backbone's
            weights were trained on, else the source's own size, else 224.
        train_size: Side of training images, where it differs: below the test size, objects appear as large in both
            (Touvron et al., Fixing the train-test resolution discrepancy, NeurIPS 2019). Default: image_size.
        channels: Any number of bands, 1 or 3 of photos. Default: the bands of files that have any (NumPy's, TIFF), for
            which 3, as weights expect it, makes way; else what the weights expect, else the source's own number.
        mean: Mean of each channel for normalisation, in 0..1. Default: the weights' own, else the source's.
        std: Standard deviation of each channel, likewise.
        interpolation: How images are resized. Default: as the weights were trained, else bilinear.
        crop_fraction: Share of the resized image's shorter side that the central crop keeps. Default: as the
            weights were trained, else 1.
        task: Kind of labels: `single_label`, `multi_label`, `ordered`, or a class of one's own by its dotted path.
            Default: as the data say.
        ordered: Classes have an order, such as grades: task `ordered`. A list names them from the lowest; else it is
            that of the data set's own numbers, where it has any, or of the numbers that classes are named by. A name
            that YAML reads as something else, such as 01 or no, needs quotes.
        value_range: Values that become 0 and 255 of images deeper than 8 bits, linearly, clipped and rounded; images of
            8 bits stay as they are. Of bands a list of one such pair for each channel, or one for all; values that are
            not finite become 0. Default: measured on the training part, see `measured_range`; a run keeps it. `none`:
            deeper images are errors, as for a run that was trained on images of 8 bits.
        bands: Which bands of each file are the channels, in this order, by numbers from 0. Default: all of files that
            have any. Given, or with channels other than 1 and 3, bands of photos and pages of TIFF files count too.
        num_bands: Bands that each file must have. Default: as the first training file.
        augment: Applied to training batches on the device.
        val_fraction: Share of the training part to validate on, where the source has no validation part; images of
            one group (see `group_column` of tables) never lie in two parts.
        test_fraction: Share of the training part to test on, where the source has no test part.
        split_seed: Seed of the carved parts. It is not the run's seed: runs with several seeds share a split.
        folds: Cross-validation: number of folds of the training (and official validation) part.
        fold: Which fold is held out, from 0.
        fold_part: What the fold is: `val`, or `test`, so that over all folds each image is tested once by a run that
            has not seen it; val_fraction is then taken from the other folds, and an official test part not used.
        train_fraction: Stratified share of the training part to train on; smaller shares lie in larger ones.
        label_noise: Share of the training images that get another class, or one more or less of several, for studies
            of annotation errors.
        repeats: Times that an image comes, augmented anew, in an epoch of unchanged length, which has so much fewer
            images (Hoffer et al., Augment your batch, CVPR 2020); several processes share the repeats.
        sampling: `shuffle` takes each image once an epoch; `balanced` samples classes evenly, with replacement.
        cache: Decode each image once: `memory` keeps what fits into a quarter of the free memory, a folder all on disk,
            for all processes and later runs; `none` decodes in each epoch. `device` keeps training and validation
            images in each process's device, as uint8; random crops are bilinear there. But for `none` they are of whole
            images with sides shrunk to 2.25 times the train_size, kept or not: 500×375 stays as it is at 224.
        decoder: `cuda`: workers read JPEG files and the device decodes them, by nvJPEG; other kinds of images, and what
            nvJPEG does not take, a CPU decodes. Nothing is kept in memory, except by `cache=device`. Pixels differ a
            little from those of `cpu`. It was not run on a GPU yet.
        on_error: Images that cannot be read, and rows of a table that cannot be used: `raise` stops before the first
            step and names them; `skip` leaves them out and lists them in the run's folder.
        num_workers: Processes that decode. Default: none for images in memory, else one per spare core, at most 8.
        verify_split: Refuse to test a checkpoint on a split other than its own.
        seed: Set by the run's seed.
    """

    class_names: list[str]  # in the order of the labels
    native_task = SINGLE_LABEL
    native_size: int | None = None
    native_channels: int = 3
    native_mean: Sequence[float] = (0.5,)
    native_std: Sequence[float] = (0.25,)

    def __init__(
        self,
        root: str | None = None,
        batch_size: int | Literal["auto"] = 64,
        image_size: int | None = None,
        train_size: int | None = None,
        channels: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        interpolation: Interpolation | None = None,
        crop_fraction: float | None = None,
        task: str | None = None,
        ordered: bool | list[str | int] = False,
        value_range: list[float] | list[list[float]] | Literal["none"] | None = None,
        bands: list[int] | None = None,
        num_bands: int | None = None,
        augment: Augmentation | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        folds: int | None = None,
        fold: int = 0,
        fold_part: FoldPart = "val",
        train_fraction: float = 1.0,
        label_noise: float = 0.0,
        repeats: int = 1,
        sampling: Literal["shuffle", "balanced"] = "shuffle",
        cache: str = "memory",
        decoder: Literal["cpu", "cuda"] = "cpu",
        on_error: OnError = "raise",
        num_workers: int | None = None,
        verify_split: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_ranges(locals())
        self.task = named_task(task, bool(ordered), self.native_task)
        self.ordered = [*map(str, ordered)] if isinstance(ordered, list) else ordered
        self.root = Path(root).expanduser() if root else None
        self.batch_size: int = batch_size  # type: ignore[assignment]  # the CLI replaces auto before it is used
        self.cache, self.decoder, self.num_workers = cache, decoder, num_workers
        self.caches = Caches("none" if decoder == "cuda" else cache)
        self.image_size = image_size or self.native_size or 224
        self.train_size = train_size or self.image_size
        native = self.native_channels, self.native_mean, self.native_std
        self._asked = Asked(channels, mean, std, bands, num_bands, value_range, native)
        if not self.has_bands:
            self.set_channels(None)
        self.interpolation: Interpolation = interpolation or "bilinear"
        self.crop_fraction, self.augment = crop_fraction or 1.0, augment
        self.value_range = value_range
        self.split_options, self.label_noise = SplitOptions.of(locals()), label_noise
        self.sampling, self.repeats, self.seed, self.verify_split = sampling, repeats, seed, verify_split
        self.parts: Parts = {}
        self.on_error, self.checked, self.check_test = on_error, set[Part](), False
        self.skipped: list[Skipped] = []
        self.problems: list[Skipped] = []
        self._test: tuple[Source, np.ndarray] | None = None
        self._resume_at, self.predict_from = (0, 0), 0
        self._resident = {}

    @property
    def num_classes(self) -> int:
        """Number of classes K; asked before any data is downloaded."""
        return len(self.class_names)

    def in_order(self, names: Sequence[str]) -> list[str]:
        """Names of classes in the order of their numbers, for data that number them only now.

        Raises:
            UserError: They have no order that is known, or are not those of the option `ordered`.
        """
        return self.kind.class_order(names, self.ordered if isinstance(self.ordered, list) else None)

    @abstractmethod
    def open(self, part: Part) -> Source | None:
        """The official part of that name, or None where the source has none.

        It is asked only for parts that `has_official` affirms.

        Raises:
            UserError: The data is not there or not as expected; the text names the file.
        """

    def setup(self, stage: str) -> None:
        """Open what `stage` needs and check its images: only the stages test and predict reach a test part."""
        refuse_another_sampler(self.trainer)
        if self.decoder == "cuda" and self.goes_to:
            require_decoder(self.goes_to)
        if "train" not in self.parts:
            self.setup_training_parts()
        if stage in ("test", "predict") and "test" not in self.parts:
            self.parts["test"] = self._test_part()
        if self.augment is not None:
            self.augment.check_channels(self.channels)
            self.augment.configure(self.train_size, self.num_classes)
        needed: dict[str, tuple[Part, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        parts = {part: self.parts[part] for part in needed.get(stage, ("test",))}
        if stage == "fit" and self.check_test:
            parts["test"] = self._test_part()
        if "test" in parts.keys() - self.checked and not len(parts["test"][1]):
            raise UserError("data: there are no test images; --data.test_fraction says how many are split off")
        if stage != "predict" or self.on_error == "raise":  # else it is seen while it is predicted
            kept = self._check_images(parts)
            self.parts |= {part: of for part, of in kept.items() if part in self.parts}

    @property
    def test_images(self) -> int:
        """Number of test images, once the training part is open."""
        return len(self._test_part()[1])

    def _test_part(self) -> tuple[Source, np.ndarray]:
        if self._test is None:
            own = self._require(self.open("test"), "test")
            self._test = own, np.arange(len(own))
        return self._test

    def _check_images(self, parts: Parts) -> Parts:
        """The parts without what cannot be read."""
        asked = {part: (*of, self.resize_crop(part)) for part, of in parts.items() if part not in self.checked}
        listing = Path(self.trainer.default_root_dir) / "broken.csv" if self.trainer else None
        of = Processes.of(self.trainer)
        kept, skipped = check_images(asked, self.problems, self.caches, self.on_error, self.num_workers, of, listing)
        self.skipped += [row for row in skipped if row.part in self.parts]
        self.checked |= asked.keys() & self.parts.keys()
        return parts | kept

    def pool(self) -> tuple[Source, Source | None]:
        """Images from which the training part is taken, and the official validation part beside them, if there is one.

        Raises:
            UserError: There are none to train on.
        """
        pool = self._require(self.open("train"), "training")
        official_val = self.open("val") if self.has_official("val") else None
        if self.split_options.folds and official_val is not None:
            return JoinedSource(pool, official_val), None
        return pool, official_val

    def setup_training_parts(self) -> None:
        """Open the training and validation parts; their images are not checked."""
        (pool, official_val), options = self.pool(), self.split_options
        official_test, first = self.has_official("test"), self._rank()[0] == 0
        self.kind.check(pool.label)
        if self.ordered:
            refuse_other_order(self.ordered, self.class_names)
            if first:
                log.info(f"classes, from the lowest: {' < '.join(self.class_names)}")
        pairs = self.kind.pairs(pool.label)
        chosen = options.split(pairs, len(pool), pool.group, official_val is None, not official_test)
        if options.tests_fold and official_test and first:
            log.info(f"fold {options.fold} of {options.folds} is the test part; the official test part is not used")
        if self.value_range is None:
            self.value_range = measured_range(pool, chosen.train, first, self.bands is not None) or "none"
        self.parts["train"] = (pool, chosen.train)
        self.parts["val"] = (pool, chosen.val) if official_val is None else (official_val, np.arange(len(official_val)))
        self.fingerprint = {"data": pool.fingerprint(), **chosen.fingerprint()}
        if options.tests_fold or not official_test:
            self._test = (pool, np.sort(chosen.test))
        if self.label_noise:
            share, seed = self.label_noise, options.split_seed
            noisy = mislabel(pool.label, chosen.train, share, self.num_classes, seed, self.kind)
            self.parts["train"] = (pool.relabelled(noisy), chosen.train)

    def has_official(self, part: Part) -> bool:
        """Whether the source brings that part itself. Answered without reading images."""
        return True

    def _require(self, source: Source | None, part: str) -> Source:
        if source is None or len(source) == 0:
            raise UserError(f"data: {self.root or type(self).__name__} has no {part} images")
        return source

    def class_counts(self) -> np.ndarray:
        """Number of training images of each class, (K,) int64."""
        source, index = self.parts["train"]
        return np.bincount(self.kind.pairs(source.label[index])[1], minlength=self.num_classes)

    def state_dict(self) -> dict[str, Any]:
        """Class names, fingerprints and the position in the training order, for the checkpoint."""
        return {"class_names": self.class_names, "fingerprint": self.fingerprint, "position": position(self.trainer)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the position up again.

        Raises:
            UserError: The classes or the split are not those of the checkpoint.
        """
        refuse_other_data(state, self.class_names, self.fingerprint if self.verify_split else None)
        self._resume_at = tuple(state["position"])
