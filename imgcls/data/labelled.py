"""All labelled images of any data, as a test set of a model that was trained on other data."""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from typing import Any, Literal

import numpy as np

from imgcls.data.base import ImageDataModule, Part
from imgcls.data.options import refuse_another_sampler, short
from imgcls.errors import UserError, near
from imgcls.images.derived import JoinedSource
from imgcls.images.sources import Source
from imgcls.tasks import known

log = logging.getLogger(__name__)
PARTS: tuple[Part, ...] = ("train", "val", "test")
UnknownClasses = Literal["raise", "leave_out", "mistake"]


class LabelledSet(ImageDataModule):
    """The images of a data module, whatever their part, as one test part; classes are matched by name.

    Args:
        data: Where the images are. It may have fewer classes than the model, in any order.
        class_names: The classes that the model knows.
        unknown_classes: Images of a class that the model does not know: `raise` names the class, `leave_out` goes on
            without them, and so does `mistake`: the test counts them, as none of them can be predicted right.
    """

    has_bands = True

    def __init__(
        self,
        data: ImageDataModule,
        class_names: Sequence[str],
        unknown_classes: UnknownClasses = "raise",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.set_channels(())
        if data.bands != self.bands:
            theirs = "are photos" if data.bands is None else f"have {data.num_bands} bands"
            raise UserError(f"data: these images {theirs}, unlike those that the run was trained on")
        self.data, self.class_names, self.unknown_classes = data, list(class_names), unknown_classes

    def prepare_data(self) -> None:  # noqa: D102
        self.data.prepare_data()

    def open(self, part: Part) -> Source:  # noqa: D102
        return self.source

    @cached_property
    def source(self) -> Source:
        """All images, labelled by the model's classes; not known where one is of a class that it does not know."""
        sources = [self._require(self.data.open(of), of) for of in PARTS if self.data.has_official(of)]
        whole = reduce(JoinedSource, sources)
        if whole.label.ndim != self.kind.unknown(0, self.num_classes).ndim:
            raise UserError(
                f"data: labels of these images are of the kind {self.data.task}, those of the run {self.task}; "
                "for several labels an image see --data.label_separator and --data.label_columns of tables"
            )
        number = {name: k for k, name in enumerate(self.class_names)}
        number_of = np.array([number.get(name, -1) for name in self.data.class_names], dtype=np.int64)
        unknown = [
            self.data.class_names[k] for k in np.unique(self.data.kind.pairs(whole.label)[1]) if number_of[k] < 0
        ]
        if unknown and self.unknown_classes == "raise":
            raise UserError(
                f"data: {short(unknown)} is no class of the run{near(unknown[0], self.class_names)}; it knows "
                f"{short(self.class_names)}; --unknown_classes=leave_out tests the other images, "
                "--unknown_classes=mistake counts these as mistakes"
            )
        if unknown:
            log.info(f"images of classes that the run does not know are left out: {short(unknown)}")
        return whole.relabelled(self.kind.renumbered(whole.label, number_of, self.num_classes))

    @property
    def known(self) -> np.ndarray:
        """Numbers of the images of which the model knows all classes, (M,) int64."""
        return np.flatnonzero(known(self.source.label))

    def is_data_of(self, fingerprint: Mapping[str, Any]) -> bool:
        """Whether these are the images that a run was trained on, by the fingerprint of its data."""
        return self.data.has_official("train") and self.data.pool()[0].fingerprint() == fingerprint["data"]

    def setup(self, stage: str) -> None:
        """Open all images and check them; nothing is split."""
        if "test" in self.parts:
            return
        self.data.trainer = self.trainer
        refuse_another_sampler(self.trainer)
        if not len(self.known):
            raise UserError("data: no image is of a class that the run knows")
        self.parts = {"test": (self.source, self.known)}
        self.fingerprint, self.problems = {"data": self.source.fingerprint()}, self.data.problems
        self.parts = self._check_images(self.parts)
        self.skipped = [*self.data.skipped, *self.skipped]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The images are other ones than those that the checkpoint knows, and the classes are its own."""
