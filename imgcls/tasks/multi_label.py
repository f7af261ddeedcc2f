from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from imgcls.errors import UserError
from imgcls.tasks.base import Metric, Mistakes, Numbers, Pairs, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from imgcls.losses import Labels, Loss

JOINED_BY = "|"


class MultiLabel(Task):
    """Each image is of any number of classes, or of none: one sigmoid each, compared with a threshold each."""

    labels: Labels = "several labels"
    metric, metric_name, score_of_class = "map", "mAP", "ap"
    fewest_classes = 1
    link, probabilities_are, options = "sigmoid", "from 0 to 1", f" --data.label_separator='{JOINED_BY}'"
    limits = (
        "Any image gets those of the {} classes whose probability is above their threshold, or none, also one that is "
        "unlike the training data."
    )
    resampled = "map", "hamming"
    reliability = "probability of a label", "share that has the label", "labels of images"
    meaning: Mapping[str, str] = {
        "loss": "",
        "map": "average precision, mean of the classes",
        "map_micro": "of all decisions as one class",
        "auroc": "mean of the classes",
        "acc": "share with all labels right",
        "hamming": "share of wrong decisions",
        "precision": "right among the labels given",
        "recall": "found among the labels that are",
        "f1": "both in one, mean of the classes",
        "precision_micro": "of all decisions as one class",
        "recall_micro": "likewise",
        "f1_micro": "likewise",
        "nll": "mean of the decisions, in nats",
        "ece": "gap of probability and frequency",
        "brier": "squared error, from 0 to 1",
        "robust/map": "mean over the variations below",
    }

    def pairs(self, label: np.ndarray) -> Pairs:  # noqa: D102
        image, of = np.nonzero(label > 0)
        return image, of

    def text(self, label: np.ndarray, class_names: Sequence[str]) -> list[str]:
        """Names in the order of the classes, joined by `|`; empty also of an image that has none."""
        return [JOINED_BY.join(class_names[k] for k in np.flatnonzero(of > 0).tolist()) for of in label]

    def names(self, text: str) -> list[str]:  # noqa: D102
        return text.split(JOINED_BY) if text else []

    def numbered(self, names: Sequence[Sequence[str] | None], class_names: Sequence[str]) -> np.ndarray:  # noqa: D102
        number = {name: k for k, name in enumerate(class_names)}
        label = np.zeros((len(names), len(class_names)), np.int8)
        for row, of in zip(label, names, strict=True):
            row[[number[name] for name in of or ()]] = 1
            if of is None:
                row[:] = -1
        return label

    def unknown(self, images: int, num_classes: int) -> np.ndarray:  # noqa: D102
        return np.full((images, num_classes), -1, np.int8)

    def renumbered(self, label: np.ndarray, number_of: np.ndarray, num_classes: int) -> np.ndarray:  # noqa: D102
        known = number_of >= 0
        there = np.zeros((len(label), num_classes), np.int8)
        there[:, number_of[known]] = label[:, known]
        there[(label < 0).any(1) | (label[:, ~known] > 0).any(1)] = -1
        return there

    def another(self, label: np.ndarray, num_classes: int, rng: np.random.Generator) -> np.ndarray:
        """One class, sampled evenly from all, is turned round: there if it was not, and the other way."""
        other, image = label.copy(), np.arange(len(label))
        turned = rng.integers(num_classes, size=len(label))
        other[image, turned] = 1 - label[image, turned]
        return other

    def class_order(self, names: Sequence[str], order: Sequence[str] | None = None) -> list[str]:  # noqa: D102
        for name in names:
            if JOINED_BY in name:
                raise UserError(
                    f"data: class {name!r} holds {JOINED_BY}, which joins the labels of an image; rename it, or "
                    f"if it is several labels, give --data.label_separator='{JOINED_BY}'"
                )
        return list(names)

    def example(self, images: int, num_classes: int) -> Tensor:
        """Of one class each, in turn, so that all are there and are lacking alike."""
        import torch
        from torch.nn.functional import one_hot

        return one_hot(torch.arange(images) % num_classes, num_classes).float()

    def loss(self) -> Loss:  # noqa: D102
        from imgcls.losses import BinaryCrossEntropy

        return BinaryCrossEntropy()

    def chance(self, num_classes: int) -> float:  # noqa: D102
        return 0.5

    def scores(self, num_classes: int, stage: str) -> nn.Module:  # noqa: D102
        from imgcls.evaluate.multilabel_scores import MultilabelScores

        return MultilabelScores(num_classes, stage)

    def hits(self, logits: Tensor, label: Tensor) -> Tensor:
        """Whether all classes are told right at a probability of 0.5; of a mixed label larger shares count."""
        return ((logits > 0) == (label > 0.5)).all(1)

    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:
        """Sum over classes."""
        from torch.nn import functional as F

        of_one = F.binary_cross_entropy_with_logits(logits, target.sigmoid(), reduction="sum")
        entropy = F.binary_cross_entropy_with_logits(target, target.sigmoid(), reduction="sum")
        return (of_one - entropy) / len(logits)

    def cut(self, num_classes: int) -> Tensor:  # noqa: D102
        import torch

        return torch.zeros(num_classes)

    def probability(self, logits: Tensor) -> Tensor:  # noqa: D102
        return logits.sigmoid()

    def probabilities(self, logits: np.ndarray) -> np.ndarray:  # noqa: D102
        return scipy.special.expit(logits.astype(np.float64))

    def log_odds(self, probability: Tensor) -> Tensor:  # noqa: D102
        return probability.logit()

    def decided(self, logits: Numbers, cut: Numbers | None) -> Numbers:  # noqa: D102
        return logits > (0 if cut is None else cut)

    def plausible(self, probability: np.ndarray) -> bool:  # noqa: D102
        return bool(((probability >= 0) & (probability <= 1)).all())

    def confidence(self, probability: np.ndarray, label: np.ndarray) -> np.ndarray:
        """That of the class of which it is the least."""
        return _agreement(probability, label).min(1)

    def runner_up(self, probability: np.ndarray, decided: np.ndarray) -> np.ndarray:  # noqa: D102
        return _agreement(probability, decided).argmin(1)

    def margin(self, probability: np.ndarray, decided: np.ndarray) -> np.ndarray:
        """Probability of the decision of which it is the least."""
        return self.confidence(probability, decided)

    def evaluation(  # noqa: D102
        self,
        logits: np.ndarray,
        label: np.ndarray,
        class_names: Sequence[str],
        columns: Mapping[str, Sequence[str]],
        cut: np.ndarray | None = None,
        temperature: float = 1.0,
        class_counts: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        from imgcls.evaluate.multilabel import evaluation

        cut = np.zeros(len(class_names)) if cut is None else cut
        return evaluation(logits, label, class_names, columns, cut, temperature, class_counts)

    def calibration(self, logits: np.ndarray, label: np.ndarray) -> dict[str, Any] | None:  # noqa: D102
        from imgcls.evaluate.multilabel import calibration

        return calibration(logits, label)

    def score(self, logits: np.ndarray, label: np.ndarray, cut: np.ndarray | None) -> float:  # noqa: D102
        return float(self.resample("map", logits, label, cut)(np.ones((len(label), 1)))[0])

    def interval(self, logits: np.ndarray, label: np.ndarray, cut: np.ndarray | None) -> tuple[float, float]:  # noqa: D102
        from imgcls.evaluate.multilabel import bootstrap

        low, high = bootstrap(logits, label, np.zeros(label.shape[1]) if cut is None else cut)["map"]
        return float(low), float(high)

    def resample(self, metric: str, logits: np.ndarray, label: np.ndarray, cut: np.ndarray | None) -> Metric:  # noqa: D102
        from imgcls.evaluate.resampled import mean, mean_average_precision

        if metric == "hamming":
            return mean((self.decided(logits, cut) != label).mean(1))
        return mean_average_precision(logits, label)

    def label_errors(self, probability: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each class by itself, as one that is there or not; the images with the least probable of such labels first.

        As Thyagarajan et al., Identifying incorrect annotations in multi-label classification data, 2022, do.
        """
        from imgcls.evaluate.label_errors import label_errors

        suggested, doubt = label.copy(), np.ones(len(label))
        for k in range(label.shape[1]):
            of_class = probability[:, k]
            found = label_errors(np.stack([1 - of_class, of_class], 1), label[:, k].astype(np.int64))
            suggested[found, k] = 1 - label[found, k]
            doubt[found] = np.minimum(doubt[found], _agreement(of_class[found], label[found, k]))
        wrong = np.flatnonzero((suggested != label).any(1))
        wrong = wrong[np.argsort(doubt[wrong], kind="stable")]
        return wrong, suggested[wrong]

    def mistakes(self, label: np.ndarray, decided: np.ndarray) -> Mistakes:
        """Classes that are missed, and that are seen where they are not."""
        there, seen = label.astype(bool), decided.astype(bool)
        kinds = {"most often missed": (there & ~seen, there), "most often seen wrongly": (~there & seen, ~there)}
        found: Mistakes = {}
        for title, (wrong, of) in kinds.items():
            images, among = wrong.sum(0), of.sum(0)
            order = [k for k in np.argsort(-images, kind="stable").tolist() if images[k]]
            found[title,] = [((k,), int(images[k]), int(among[k])) for k in order]
        return found

    def figures(  # noqa: D102
        self, probability: np.ndarray, decided: np.ndarray, label: np.ndarray, class_names: Sequence[str]
    ) -> dict[str, Figure]:
        from imgcls.evaluate.figures import bars_figure
        from imgcls.evaluate.multilabel import average_precision

        there = label.astype(bool)
        score = np.array([average_precision(probability[:, k], there[:, k]) for k in range(len(class_names))])
        known = np.flatnonzero(~np.isnan(score))
        order = known[np.argsort(score[known], kind="stable")]
        names = [class_names[k] for k in order]
        return {"average_precision": bars_figure(names, score[order], there.mean(0)[order], "average precision")}

    def caption(
        self, probability: np.ndarray, decided: np.ndarray, label: np.ndarray, class_names: Sequence[str], guesses: int
    ) -> str:
        """First the classes whose probabilities agree least with the label."""
        worst = np.argsort(_agreement(probability, label), kind="stable")[:guesses]
        truth = self.text(label[None], class_names)[0] or "of no class"
        return "\n".join([*(f"{class_names[k]} {probability[k]:.2f}" for k in worst), f"is {truth}"])

    def telling(self, probability: np.ndarray, decided: np.ndarray, label: np.ndarray) -> tuple[int, int]:
        """The most probable class; and of what is wrongly told the worst, or where all is right, the second."""
        first, second = np.argsort(-probability, kind="stable")[[0, min(1, len(probability) - 1)]].tolist()
        wrong = [k for k in np.flatnonzero(decided != label).tolist() if k != first and label[k] >= 0]
        return first, min(wrong, key=lambda k: _agreement(probability, label)[k], default=second)


def _agreement(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Probability of what labels say of each class, both of one shape."""
    return np.where(label > 0, probability, 1 - probability)
