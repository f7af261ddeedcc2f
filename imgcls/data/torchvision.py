import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from torchvision import datasets

from imgcls.data.base import ImageDataModule, Part
from imgcls.errors import UserError, near
from imgcls.images.sources import ArraySource, ItemSource, Source

Arguments = dict[str, Any]
NO_TEST: dict[Part, Arguments] = {"train": {}}
TRAIN_FLAG: dict[Part, Arguments] = {"train": {"train": True}, "test": {"train": False}}


def _splits(train: str, test: str, val: str | None = None) -> dict[Part, Arguments]:
    parts: dict[Part, Arguments] = {"train": {"split": train}, "test": {"split": test}}
    return parts | ({"val": {"split": val}} if val else {})


@dataclass(frozen=True)
class Known:
    """What must be known of a data set before it is downloaded.

    Attributes:
        classes: Number of classes K.
        parts: Constructor arguments of each official part that has labels.
        size: Side in pixels, where all images have one size.
        channels: 1 or 3.
        stats: Mean and standard deviation of the training images, where commonly used.
        options: Further constructor arguments, which the user may replace.
        classes_by: Number of classes by the value of the only option, where it depends on that.
    """

    classes: int
    parts: Mapping[Part, Arguments] = field(default_factory=lambda: TRAIN_FLAG)
    size: int | None = None
    channels: int = 3
    stats: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    options: Arguments = field(default_factory=dict)
    classes_by: Mapping[str, int] = field(default_factory=dict)

    def num_classes(self, given: Arguments) -> int:
        """Number of classes with these constructor arguments."""
        if not self.classes_by:
            return given.get("num_classes", self.classes)  # an argument of FakeData alone
        (option,) = self.options
        if given[option] not in self.classes_by:
            raise UserError(f"--data.options: {option} {given[option]!r} is not one of {', '.join(self.classes_by)}")
        return self.classes_by[given[option]]


TRAIN_TEST, ALL_THREE = _splits("train", "test"), _splits("train", "test", "val")
# The labels of the official test part are not public: the official validation part is what papers report
# accuracy on. It must not choose the checkpoint as well, so it is the test part here, and validation is carved
# from training.
TEST_IS_VAL = _splits("train", "val")

EMNIST_CLASSES = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}
AIRCRAFT_CLASSES = {"variant": 100, "family": 70, "manufacturer": 41}
KNOWN = {
    "MNIST": Known(10, size=28, channels=1, stats=((0.1307,), (0.3081,))),
    "FashionMNIST": Known(10, size=28, channels=1, stats=((0.2860,), (0.3530,))),
    "KMNIST": Known(10, size=28, channels=1, stats=((0.1918,), (0.3483,))),
    "QMNIST": Known(10, size=28, channels=1, stats=((0.1307,), (0.3081,))),
    "EMNIST": Known(
        47, size=28, channels=1, stats=((0.1751,), (0.3332,)), options={"split": "balanced"}, classes_by=EMNIST_CLASSES
    ),
    "USPS": Known(10, size=16, channels=1),
    "CIFAR10": Known(10, size=32, stats=((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    "CIFAR100": Known(100, size=32, stats=((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))),
    "SVHN": Known(10, TRAIN_TEST, size=32, stats=((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970))),
    "STL10": Known(10, TRAIN_TEST, size=96),
    "Food101": Known(101, TRAIN_TEST),
    "Flowers102": Known(102, ALL_THREE),
    "OxfordIIITPet": Known(37, _splits("trainval", "test")),
    "FGVCAircraft": Known(100, ALL_THREE, options={"annotation_level": "variant"}, classes_by=AIRCRAFT_CLASSES),
    "DTD": Known(47, ALL_THREE),
    "EuroSAT": Known(10, NO_TEST, size=64),
    "GTSRB": Known(43, TRAIN_TEST),
    "Caltech101": Known(101, NO_TEST),
    "Caltech256": Known(257, NO_TEST),
    "Country211": Known(211, _splits("train", "test", "valid")),
    "Places365": Known(365, _splits("train-standard", "val"), options={"small": True}),
    "ImageNet": Known(1000, TEST_IS_VAL),
    "Imagenette": Known(10, TEST_IS_VAL),
    "PCAM": Known(2, ALL_THREE, size=96),
    "RenderedSST2": Known(2, ALL_THREE),
    "SUN397": Known(397, NO_TEST),
    "StanfordCars": Known(196, TRAIN_TEST),
    # an image's number plus an offset seeds its pixels: parts must not overlap
    "FakeData": Known(
        10,
        {"train": {}, "test": {"random_offset": 1_000_000}},
        size=32,
        options={"size": 1000, "image_size": (3, 32, 32)},
    ),
}


class TorchvisionData(ImageDataModule):
    """A classification data set of torchvision's, by name, with its official parts.

    Parts that it does not have are carved from training. ImageNet, Imagenette and Places365 have no public test
    labels: their official validation part is the test part here.

    Args:
        name: Such as CIFAR10, as torchvision writes it.
        root: Folder of data sets.
        download: Download what is not there.
        options: Further arguments of torchvision's constructor, such as {split: letters} or {size: 160px}.
        classes: Number of classes of a data set that is not in the table here.
    """

    def __init__(
        self,
        name: str | None = None,
        root: str = "datasets",
        download: bool = False,
        options: dict[str, Any] | None = None,
        classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        if name is None:
            raise UserError(f"--data.name: give a data set of torchvision's: {', '.join(KNOWN)}")
        self.name: str = name
        self.known = _known(name, classes)
        self.options = {**self.known.options, **(options or {})}
        self.download = download
        self.native_size, self.native_channels = self.known.size, self.known.channels
        if self.known.stats:
            self.native_mean, self.native_std = self.known.stats
        self._num_classes = classes or self.known.num_classes(self.options)
        super().__init__(root=root, **kwargs)

    @property
    def num_classes(self) -> int:  # noqa: D102
        return self._num_classes

    @cached_property
    def class_names(self) -> list[str]:  # type: ignore[override]  # noqa: D102
        return self._names_of(self._construct("train"))

    def has_official(self, part: Part) -> bool:  # noqa: D102
        return part in self.known.parts

    def prepare_data(self) -> None:
        """Download, in one process, if asked to."""
        if self.download:
            for part in self.known.parts:
                self._construct(part, download=True)

    def open(self, part: Part) -> Source:  # noqa: D102
        items = self._construct(part)
        label = _labels(items)
        if self._is_letters():
            label = label - 1  # they count from 1; class 0 is 'N/A' and empty
        self.class_names = self._names_of(items)
        if len(self.class_names) != self.num_classes or label.min() < 0 or label.max() >= self.num_classes:
            raise UserError(
                f"--data.name {self.name}: has {len(self.class_names)} class names and labels {label.min()} to "
                f"{label.max()}, expected {self.num_classes} classes; --data.classes sets their number"
            )
        image = _array(items)
        return ItemSource(items, label, part) if image is None else ArraySource(image, label, part)

    def _construct(self, part: Part, download: bool = False) -> Any:
        constructor = getattr(datasets, self.name)
        arguments = {**self.options, **self.known.parts[part]}
        accepted = inspect.signature(constructor.__init__).parameters
        if "root" in accepted:
            arguments["root"] = str(self.root)
        if download and "download" in accepted:
            arguments["download"] = True
        try:
            return constructor(**arguments)
        except (URLError, ConnectionError, TimeoutError) as error:
            raise UserError(f"--data.name {self.name}: the download failed ({error})") from error
        except TypeError as error:
            raise UserError(f"--data.options: {self.name} does not take them ({error})") from error
        except (RuntimeError, OSError, ValueError, KeyError, ModuleNotFoundError) as error:
            reason = " ".join(str(error).split())
            if download:
                raise UserError(f"--data.name {self.name}: cannot be downloaded to {self.root} ({reason})") from error
            way = "--data.download=true downloads it" if "download" in accepted else "torchvision cannot download it"
            raise UserError(f"--data.name {self.name}: is not in {self.root} ({reason}); {way}") from error

    def _is_letters(self) -> bool:
        return self.name == "EMNIST" and self.options["split"] == "letters"

    def _names_of(self, items: Any) -> list[str]:
        names = getattr(items, "classes", None) or getattr(items, "categories", None)
        if names is None:
            return [str(k) for k in range(self.num_classes)]
        names = [name if isinstance(name, str) else name[0] for name in names]  # ImageNet gives tuples of synonyms
        return names[1:] if self._is_letters() else names


def _known(name: str, classes: int | None) -> Known:
    if name in KNOWN:
        return KNOWN[name]
    constructor = getattr(datasets, name, None) if name in datasets.__all__ else None
    takes_train = constructor and "train" in inspect.signature(constructor.__init__).parameters
    if takes_train and classes:
        return Known(classes)
    if takes_train:
        raise UserError(f"--data.name {name}: give the number of its classes with --data.classes")
    hint = near(name, KNOWN) or f"; it has {', '.join(KNOWN)}"
    raise UserError(f"--data.name: torchvision has no classification data set {name!r}{hint}")


def _labels(items: Any) -> np.ndarray:
    """Labels (N,) int64 without decoding an image where the data set has them at hand."""
    if isinstance(items, datasets.PCAM):
        with items.h5py.File(items._base_folder / items._FILES[items._split]["targets"][0]) as file:
            return file["y"][:, 0, 0, 0].astype(np.int64)
    for attribute in ("targets", "labels", "_labels", "y", "_samples", "samples"):
        if (found := getattr(items, attribute, None)) is not None:
            found = np.asarray([label for _, label in found] if attribute.endswith("samples") else found)
            return (found[:, 0] if found.ndim == 2 else found).astype(np.int64)  # QMNIST has columns of metadata
    return np.array([int(items[i][1]) for i in range(len(items))], dtype=np.int64)


def _array(items: Any) -> torch.Tensor | None:
    """All images (N, C, H, W) uint8 of a data set that holds them in one array, else None.

    The order of the axes is not asked of a table but tried: first and last image must come out as the data set
    itself gives them.
    """
    data = getattr(items, "data", None)
    if data is None or not hasattr(data, "shape") or str(data.dtype).removeprefix("torch.") != "uint8":
        return None
    data = torch.as_tensor(data)
    layouts = [data[:, None]] if data.ndim == 3 else [data, data.permute(0, 3, 1, 2)] if data.ndim == 4 else []
    wanted = {i: np.asarray(items[i][0]) for i in (0, len(items) - 1)}
    for layout in layouts:
        shown = {i: layout[i].permute(1, 2, 0).numpy() for i in wanted}
        if all(np.array_equal(shown[i].squeeze(), wanted[i].squeeze()) for i in wanted):
            return layout.contiguous()
    return None
