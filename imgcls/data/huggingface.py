import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.data.base import ImageDataModule, Part
from imgcls.data.options import named_task, short
from imgcls.data.parts import NAMES, part_named, taken_in_words
from imgcls.data.table import class_order
from imgcls.data.table_labels import Names
from imgcls.errors import UserError, near, one_line
from imgcls.images.checking import Skipped, first_of
from imgcls.images.decode import read_file
from imgcls.images.sources import EncodedSource, NumberedNames, Source

log = logging.getLogger(__name__)
LABELS = frozenset("label labels class classes class_name target targets category categories y".split())
FLAGS = ({"0", "1"}, {"False", "True"})
HIDDEN = "-1"  # as the hub writes a label that is not told


class HuggingFaceData(ImageDataModule):
    """A data set of the Hugging Face hub, or a folder of one: of `save_to_disk`, or of Parquet files.

    It is downloaded when it is made; that could not be tried here, folders were. Classes are those of the label
    column's ClassLabel, else the distinct labels of the training rows, as in a table. A split other than training
    whose labels are all hidden (-1, none, no column) is left out, and such a part carved from training. Images are
    decoded as files are, and rows without a label that can be used follow `on_error`. Where the column holds lists,
    images have several labels, or none.

    Args:
        name: Such as `uoft-cs/cifar10`, or a folder.
        config_name: Of a data set with several configurations.
        image_column: Default: the only column that holds images.
        label_column: Default: the only ClassLabel, or list of it, else the only column of texts or integers, or lists
            of them, with such a name as label, class, target or category.
        splits: Split of each part, such as {train: full}. Default: by their names, see `part_named`.
        root: Where downloads and what is made of Parquet files are kept. Default: the hub's own cache.
    """

    def __init__(
        self,
        name: str | None = None,
        config_name: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        splits: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if name is None:
            raise UserError("--data.name: give a data set of the Hugging Face hub, or a folder of one")
        self.name: str = name
        found = self._load(config_name)
        self.splits = self._splits_of(found, splits)
        self._items = {part: found[split].with_format(None) for part, split in self.splits.items()}
        features = self._items["train"].features
        images = [column for column, feature in features.items() if _holds_images(feature)]
        self.image_column = self._column("image_column", image_column, images)
        labels = [column for column, feature in features.items() if hasattr(feature, "names")]
        labels = labels or [column for column, feature in features.items() if hasattr(_each(feature), "names")]
        labels = labels or [c for c, feature in features.items() if c.lower() in LABELS and _is_plain(_each(feature))]
        self.label_column = self._column("label_column", label_column, labels)
        self._label: dict[Part, np.ndarray] = {}
        self._said = False
        held = features[self.label_column]
        each = _each(held)
        if each is not held:
            self.native_task = "multi_label"
            self.task = named_task(kwargs.get("task"), bool(self.ordered), self.native_task)
        if hasattr(each, "names"):
            self.class_names = list(each.names)
        elif _is_plain(each):
            self.class_names = self.in_order(class_order({name for of in self._names("train") for name in of or ()}))
            if each is not held and {*self.class_names} in FLAGS:
                raise UserError(
                    f"--data.label_column {self.label_column}: lists of {' and '.join(self.class_names)} seem to say "
                    "of each class whether it is there; give lists of those that are, or a table, --data.label_columns"
                )
        else:
            raise UserError(f"--data.label_column {self.label_column}: holds {held}; texts, integers or classes can be")
        self._hidden = [self.splits[part] for part in self.splits if part != "train" and self._is_hidden(part)]
        self._others = [split for split in found if split not in self.splits.values()]

    def has_official(self, part: Part) -> bool:  # noqa: D102
        return part in self.splits and self.splits[part] not in self._hidden

    def prepare_data(self) -> None:
        """Say once, in one process, which splits were taken for what."""
        if self._said:
            return
        self._said = True
        official = {part: split for part, split in self.splits.items() if self.has_official(part)}
        taken = taken_in_words({part: (split, len(self._items[part])) for part, split in official.items()})
        log.info(f"images of {self.name}: {taken}; classes: {short(self.class_names)}")
        over = [f"{split} (labels hidden)" for split in self._hidden] + self._others
        if over:
            log.warning(f"{self.name}: passed over the splits {', '.join(over)}; --data.splits names those of parts")

    def open(self, part: Part) -> Source:  # noqa: D102
        label, split = self._labels(part), self.splits[part]
        known, given = self.kind.known(label), self._names(part)
        good = np.flatnonzero(known)
        names: Any = NumberedNames(split, len(label))
        if len(good) < len(label):
            bad = [Skipped(part, names[row], self._reason(given[row])) for row in np.flatnonzero(~known).tolist()]
            if self.on_error == "raise":
                raise UserError(f"{self.name}: {first_of(bad)}; leave such rows out with --data.on_error=skip")
            self.skipped += bad
            names = [names[row] for row in good.tolist()]
        return DatasetSource(
            self._items[part], self.image_column, good, label[good], names, Path(self.name).expanduser()
        )

    def _load(self, config_name: str | None) -> dict[str, Any]:
        """The splits by name."""
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                "imgcls.data.huggingface needs the package datasets: pip install 'imgcls[huggingface]'"
            ) from error
        folder = Path(self.name).expanduser()
        if not folder.is_dir() and (folder.exists() or self.name[:1] in (".", "/", "~") or self.name.count("/") > 1):
            raise UserError(f"--data.name {self.name}: there is no such folder")
        try:
            if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
                found = datasets.load_from_disk(str(folder))
            else:
                where = str(folder.absolute()) if folder.is_dir() else self.name  # `parquet` names a format
                found = datasets.load_dataset(where, config_name, cache_dir=str(self.root) if self.root else None)
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"--data.name {self.name}: cannot be loaded ({one_line(error)})") from error
        return dict(found) if isinstance(found, dict) else {"train": found}

    def _splits_of(self, found: dict[str, Any], given: dict[str, str] | None) -> dict[Part, str]:
        """The split of each part."""
        has = f"{self.name} has the splits {', '.join(found)}"
        named: dict[str, str] = dict(given or {})
        for split in () if given else found:
            part = part_named(split)
            if part is not None and named.setdefault(part, split) != split:
                both = f"{named[part]} and {split} both stand for {part}"
                raise UserError(f"{has}: {both}; --data.splits={{train: NAME, …}} names the right ones")
        if not named and len(found) == 1:
            named = {"train": next(iter(found))}
        if "train" not in named:
            raise UserError(f"{has}, and none to train on; --data.splits={{train: NAME}} says which is")
        for name, split in named.items():
            if name not in NAMES or split not in found:
                wanted = f"expected a split for each of {', '.join(NAMES)}"
                raise UserError(f"--data.splits: {name}: {split}: {wanted}; {has}{near(split, found)}")
        return {part: named[part] for part in NAMES if part in named}

    def _column(self, option: str, given: str | None, candidates: list[str]) -> str:
        features = self._items["train"].features
        has = f"{self.name} has the columns " + ", ".join(f"{name} ({_kind(kind)})" for name, kind in features.items())
        if given is not None and given not in features:
            raise UserError(f"--data.{option}: there is no column {given!r}{near(given, features)}; {has}")
        if given is None and len(candidates) != 1:
            several = f"each of {', '.join(candidates)} could be it" if candidates else "none is it for certain"
            raise UserError(f"--data.{option}: name it, as {several}; {has}")
        return given or candidates[0]

    def _names(self, part: Part) -> list[Names | None]:
        """The labels of each row; by name, as splits may number classes differently. None where they are not known."""
        items = self._items[part]
        if self.label_column not in items.features:
            return [None] * len(items)
        held = items.features[self.label_column]
        classes, one_each = getattr(_each(held), "names", None), _each(held) is held

        def name_of(value: Any) -> str:
            if classes is None or value is None:
                return "" if value is None else str(value)
            return classes[value] if 0 <= value < len(classes) else ""

        rows = ([value] if one_each else value for value in items[self.label_column][:])
        named = [None if row is None else tuple(dict.fromkeys(map(name_of, row))) for row in rows]
        return [None if names is None or "" in names else names for names in named]

    def _labels(self, part: Part) -> np.ndarray:
        if part not in self._label:
            classes = set(self.class_names)
            names = [of if of is not None and classes.issuperset(of) else None for of in self._names(part)]
            self._label[part] = self.kind.numbered(names, self.class_names)
        return self._label[part]

    def _is_hidden(self, part: Part) -> bool:
        given = {name for of in self._names(part) for name in of or ()}
        return not self.kind.known(self._labels(part)).any() and given <= {HIDDEN}

    def _reason(self, names: Names | None) -> str:
        unknown = [name for name in names or () if name not in self.class_names]
        if not unknown or unknown == [HIDDEN]:
            return "has no label"
        return f"label {unknown[0]!r} is not one of {self.num_classes} classes{near(unknown[0], self.class_names)}"


class DatasetSource(EncodedSource):
    """Rows of a `datasets.Dataset`, whose images are not decoded by it.

    Args:
        items: The data set.
        column: That of the images.
        rows: Those that are taken, (N,) int64.
        label: Their labels.
        names: Their names.
        folder: Where relative paths of rows begin that hold a path alone.
    """

    def __init__(self, items: Any, column: str, rows: np.ndarray, label: np.ndarray, names: Any, folder: Path) -> None:
        import datasets

        super().__init__(label, names)
        try:
            self.items = items.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"--data.image_column {column}: holds no images ({one_line(error)})") from error
        self.column, self.rows, self.folder = column, rows, folder

    def encoded(self, number: int) -> bytes:  # noqa: D102
        content = self._entry(number)["bytes"]
        return read_file(self._path(number)) if content is None else content

    def fingerprint(self) -> str:
        """Hash of labels, names and sizes in bytes; images are not read."""
        size = self._sizes()
        for number in np.flatnonzero(size < 0).tolist():
            if (path := self._path(number)).is_file():
                size[number] = path.stat().st_size
        return hashlib.blake2b(super().fingerprint().encode() + size.tobytes(), digest_size=8).hexdigest()

    def stamps(self) -> np.ndarray | None:
        """Of the data set and the row's number; None where files may change."""
        if (self._sizes() < 0).any():
            return None
        digest = hashlib.blake2b(f"{self.items._fingerprint} {self.fingerprint()}".encode(), digest_size=8).digest()
        return np.frombuffer(digest, dtype=np.uint64) + self.rows.astype(np.uint64)

    def _sizes(self) -> np.ndarray:
        """Bytes of each image, (N,) int64; -1 where the row holds a path alone, or nothing."""
        import pyarrow.compute as arrow

        content = arrow.struct_field(self.items.with_format("arrow")[:].column(self.column), "bytes")
        return arrow.binary_length(content).fill_null(-1).to_numpy().astype(np.int64)[self.rows]

    def _entry(self, number: int) -> dict[str, Any]:
        return self.items[int(self.rows[number])][self.column] or {"bytes": b"", "path": None}

    def _path(self, number: int) -> Path:
        return self.folder / (self._entry(number)["path"] or "")


def _holds_images(feature: Any) -> bool:
    """Whether a column holds images, known as such or as bytes."""
    bytes_alone = getattr(feature, "dtype", None) in ("binary", "large_binary")
    return type(feature).__name__ == "Image" or bytes_alone or isinstance(feature, dict) and "bytes" in feature


def _each(feature: Any) -> Any:
    """What a column of lists holds in each of them; the feature itself of other columns."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", feature)


def _is_plain(feature: Any) -> bool:
    """Whether a column holds texts, integers or truth values."""
    return re.fullmatch(r"u?int\d+|(large_)?string|bool", str(getattr(feature, "dtype", ""))) is not None


def _kind(feature: Any) -> str:
    return str(feature.dtype) if type(feature).__name__ == "Value" else type(feature).__name__
