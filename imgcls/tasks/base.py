"""What differs between kinds of labels, in one place: a task. Importing it loads neither torch nor scipy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from imgcls.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from imgcls.losses import Labels, Loss

Pairs = tuple[np.ndarray, np.ndarray]
"""Image and class of each label that is given, (P,) int64 each, by image."""

Metric = Callable[[np.ndarray], np.ndarray]
"""How often each image is in each of B resamples, (N, B), to values (B,); see `imgcls.evaluate.resampled`."""

Numbers = TypeVar("Numbers", np.ndarray, "Tensor")

Mistakes = dict[tuple[str, ...], list[tuple[tuple[int, ...], int, int]]]
"""By the titles of columns, rows of as many classes, images with that mistake, and of how many."""


def known(label: np.ndarray) -> np.ndarray:
    """Whether the label of each image is known, (N,) bool."""
    return np.asarray((label >= 0).all(tuple(range(1, label.ndim))))


def agree(label: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether each image has the same label in both, (N,) bool."""
    return np.asarray((label == other).all(tuple(range(1, label.ndim))))


class Task(ABC):
    """How labels of one kind are learnt, predicted, measured and written down.

    A new kind is one class in one file: of this package, and `--data.task` names the module, or of one's own, and it
    names the class by its dotted path. Classifier, data modules, tables and pages ask the task, and know no kind of
    labels themselves.

    Shapes: N images or B of a batch, K classes. Labels of images are an array (N,) int64 or (N, K) int8, -1 where they
    are not known; a batch has them as a tensor (B,) int64 or (B, K) float32.

    Attributes:
        labels: What images have, which a loss must be for.
        metric: Without its part: by `val/…` a checkpoint is chosen, by `test/…` runs are compared. More is better.
        metric_name: In words.
        score_of_class: By which classes are listed, the worst first.
        fewest_classes: That can be told apart.
        link: From logits to probabilities: softmax or sigmoid.
        probabilities_are: What numbers must be to be probabilities of classes, in words.
        options: That a table of `text` is read with, beside its columns.
        limits: What a model card says of any image, `{}` being the number of classes.
        resampled: Metrics beside accuracy that are compared image by image, see `resample`.
        reliability: What bins of calibration are of, how often it happens, and what is counted, in words.
        meaning: Of metrics that this kind alone has, in a few words each.
    """

    labels: Labels = "one label"
    metric = "acc"
    metric_name = "accuracy"
    score_of_class = "f1"
    fewest_classes = 2
    link = "softmax"
    probabilities_are = "from 0 up and 1 in all"
    options = ""
    limits = "Any image gets one of the {} classes, also one that is unlike the training data or of no class."
    resampled: Sequence[str] = ()
    reliability = "confidence", "accuracy", "images"
    meaning: Mapping[str, str] = {}

    @property
    def name(self) -> str:
        """As `--data.task` takes it."""
        module, _, own = type(self).__module__.rpartition(".")
        return own if module == "imgcls.tasks" else f"{type(self).__module__}.{type(self).__name__}"

    # labels

    @abstractmethod
    def pairs(self, label: np.ndarray) -> Pairs:
        """Image and class of each label that is given."""

    @abstractmethod
    def text(self, label: np.ndarray, class_names: Sequence[str]) -> list[str]:
        """The label of each of N images in words, empty where it is not known."""

    def names(self, text: str) -> list[str]:
        """Names of the classes of an image, from its label in words."""
        return [text]

    @abstractmethod
    def numbered(self, names: Sequence[Sequence[str] | None], class_names: Sequence[str]) -> np.ndarray:
        """Labels of N images by the names of the classes of each; None where they are not known.

        Raises:
            UserError: An image has more names than this kind allows.
        """

    @abstractmethod
    def unknown(self, images: int, num_classes: int) -> np.ndarray:
        """Labels of images whose labels are not known."""

    @abstractmethod
    def renumbered(self, label: np.ndarray, number_of: np.ndarray, num_classes: int) -> np.ndarray:
        """Labels in terms of other classes; not known where an image has a class that is none of them.

        Args:
            label: Labels in terms of J classes.
            number_of: Number of each of them among the K classes, (J,) int64; -1: none of them.
            num_classes: Number of classes K.
        """

    @abstractmethod
    def another(self, label: np.ndarray, num_classes: int, rng: np.random.Generator) -> np.ndarray:
        """For each of N images another label than its own, at random."""

    def class_order(self, names: Sequence[str], order: Sequence[str] | None = None) -> list[str]:
        """Classes in the order of their numbers.

        Args:
            names: As the data have them, in an order of their own.
            order: As the user asks for them.

        Raises:
            UserError: The order is that of other classes, or this kind needs one.
        """
        return list(names)

    def check(self, label: np.ndarray) -> None:
        """Raise a UserError if labels have the form of another kind."""
        if label.ndim != self.unknown(0, 1).ndim:
            theirs = "one label" if label.ndim == 1 else "several labels"
            raise UserError(f"--data.task {self.name}: is for images with {self.labels}, and these have {theirs}")

    # learning

    @abstractmethod
    def loss(self) -> Loss:
        """The loss where none is asked for."""

    def chance(self, num_classes: int) -> float:
        """Probability of each of K classes where nothing is known of an image."""
        return 1 / num_classes

    @abstractmethod
    def scores(self, num_classes: int, stage: str) -> nn.Module:
        """Metrics of an epoch, see `imgcls.evaluate.scores.Scores`."""

    @abstractmethod
    def example(self, images: int, num_classes: int) -> Tensor:
        """Labels of a batch, as many of each class as can be, to measure with."""

    @abstractmethod
    def hits(self, logits: Tensor, label: Tensor) -> Tensor:
        """Whether each image of a training batch is predicted right, (B,) bool; labels may be mixed, (B, K)."""

    @abstractmethod
    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Kullback-Leibler divergence of predictions from a teacher's, both as logits (B, K); mean over images."""

    # prediction

    def cut(self, num_classes: int) -> Tensor | None:
        """What logits are compared with to decide on labels, (K,) float32, until validation finds better ones.

        It is kept with the weights, as a buffer of the model. None: nothing is compared with.
        """
        return None

    @abstractmethod
    def probability(self, logits: Tensor) -> Tensor:
        """Of each class, (B, K)."""

    @abstractmethod
    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Of each class, (N, K) float64."""

    @abstractmethod
    def log_odds(self, probability: Tensor) -> Tensor:
        """Logits (B, K) of probabilities."""

    @abstractmethod
    def decided(self, logits: Numbers, cut: Numbers | None) -> Numbers:
        """Labels of N images, (N,) int64 or (N, K) bool, by their logits (N, K) and cuts (K,).

        A temperature that divides both changes nothing. Written in what arrays and tensors share: an exported graph
        decides by it too.
        """

    @abstractmethod
    def plausible(self, probability: np.ndarray) -> bool:
        """Whether numbers (N, K) from elsewhere can be probabilities."""

    @abstractmethod
    def confidence(self, probability: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Probability (N,) of labels, such as those that were decided on."""

    @abstractmethod
    def runner_up(self, probability: np.ndarray, decided: np.ndarray) -> np.ndarray:
        """The class (N,) int64 of which another decision is the nearest."""

    @abstractmethod
    def margin(self, probability: np.ndarray, decided: np.ndarray) -> np.ndarray:
        """How far each image is from being decided on otherwise, (N,)."""

    # measuring

    @abstractmethod
    def evaluation(
        self,
        logits: np.ndarray,
        label: np.ndarray,
        class_names: Sequence[str],
        columns: Mapping[str, Sequence[str]],
        cut: np.ndarray | None = None,
        temperature: float = 1.0,
        class_counts: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """All that logits and labels say of a model, see `imgcls.evaluate.summary.evaluation`."""

    @abstractmethod
    def calibration(self, logits: np.ndarray, label: np.ndarray) -> dict[str, Any] | None:
        """The temperature fitted to images, and what it changes, see `imgcls.evaluate.summary.calibration`."""

    def score(self, logits: np.ndarray, label: np.ndarray, cut: np.ndarray | None) -> float:
        """The kind's metric."""
        return float(agree(self.decided(logits, cut), label).mean())

    @abstractmethod
    def interval(self, logits: np.ndarray, label: np.ndarray, cut: np.ndarray | None) -> tuple[float, float]:
        """95 % interval of the kind's metric."""

    def resample(self, metric: str, logits: np.ndarray, label: np.ndarray, cut: np.ndarray | None) -> Metric:
        """One of the metrics `resampled`, of images that are resampled."""
        raise NotImplementedError

    @abstractmethod
    def label_errors(self, probability: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images whose label is probably wrong, (M,) int64, the surest first; and what it should be, M labels."""

    # showing

    @abstractmethod
    def mistakes(self, label: np.ndarray, decided: np.ndarray) -> Mistakes:
        """The kinds of mistakes, the most frequent first."""

    @abstractmethod
    def figures(
        self, probability: np.ndarray, decided: np.ndarray, label: np.ndarray, class_names: Sequence[str]
    ) -> dict[str, Figure]:
        """Pictures of what is predicted for N images, by their names."""

    @abstractmethod
    def caption(
        self, probability: np.ndarray, decided: np.ndarray, label: np.ndarray, class_names: Sequence[str], guesses: int
    ) -> str:
        """What is said of one image: its best guesses with their probabilities (K,), and what it is."""

    @abstractmethod
    def telling(self, probability: np.ndarray, decided: np.ndarray, label: np.ndarray) -> tuple[int, int]:
        """Two classes of one image of which one wants to know where the model sees them, by its probabilities (K,)."""
