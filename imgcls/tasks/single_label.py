from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from imgcls.errors import UserError
from imgcls.tasks.base import Mistakes, Numbers, Pairs, Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from imgcls.losses import Loss


class SingleLabel(Task):
    """Each image is of one class: softmax, and the class of the largest logit."""

    def pairs(self, label: np.ndarray) -> Pairs:  # noqa: D102
        image = np.flatnonzero(label >= 0)
        return image, label[image]

    def text(self, label: np.ndarray, class_names: Sequence[str]) -> list[str]:  # noqa: D102
        return [class_names[k] if k >= 0 else "" for k in label.tolist()]

    def numbered(self, names: Sequence[Sequence[str] | None], class_names: Sequence[str]) -> np.ndarray:  # noqa: D102
        if any(of is not None and len(of) > 1 for of in names):
            raise UserError(f"--data.task {self.name}: is for images with {self.labels}, and these have several labels")
        number = {name: k for k, name in enumerate(class_names)}
        return np.array([number[of[0]] if of else -1 for of in names], dtype=np.int64)

    def unknown(self, images: int, num_classes: int) -> np.ndarray:  # noqa: D102
        return np.full(images, -1)

    def renumbered(self, label: np.ndarray, number_of: np.ndarray, num_classes: int) -> np.ndarray:  # noqa: D102
        return np.append(number_of, -1)[label]  # the last is what -1, not known, stays

    def another(self, label: np.ndarray, num_classes: int, rng: np.random.Generator) -> np.ndarray:
        """Sampled evenly from all other classes."""
        return (label + rng.integers(1, num_classes, len(label))) % num_classes

    def loss(self) -> Loss:  # noqa: D102
        from imgcls.losses import CrossEntropy

        return CrossEntropy()

    def scores(self, num_classes: int, stage: str) -> nn.Module:  # noqa: D102
        from imgcls.evaluate.scores import Scores

        return Scores(num_classes, stage)

    def example(self, images: int, num_classes: int) -> Tensor:  # noqa: D102
        import torch

        return torch.arange(images) % num_classes

    def hits(self, logits: Tensor, label: Tensor) -> Tensor:
        """Of a mixed label the class with the largest share counts."""
        return logits.argmax(1) == (label if label.ndim == 1 else label.argmax(1))

    def divergence(self, logits: Tensor, target: Tensor) -> Tensor:  # noqa: D102
        from torch.nn import functional as F

        of_target = F.log_softmax(target, 1)
        return F.kl_div(F.log_softmax(logits, 1), of_target, reduction="batchmean", log_target=True)

    def probability(self, logits: Tensor) -> Tensor:  # noqa: D102
        return logits.softmax(1)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:  # noqa: D102
        return scipy.special.softmax(logits.astype(np.float64), axis=1)

    def log_odds(self, probability: Tensor) -> Tensor:  # noqa: D102
        return probability.log()

    def decided(self, logits: Numbers, cut: Numbers | None) -> Numbers:  # noqa: D102
        return logits.argmax(1)

    def plausible(self, probability: np.ndarray) -> bool:  # noqa: D102
        return bool((probability >= 0).all() and np.allclose(probability.sum(1), 1, atol=0.01))  # NaN fails both

    def confidence(self, probability: np.ndarray, label: np.ndarray) -> np.ndarray:  # noqa: D102
        return probability[np.arange(len(label)), label]

    def runner_up(self, probability: np.ndarray, decided: np.ndarray) -> np.ndarray:
        """The second of the most probable classes; of two alike the first one."""
        others = probability.copy()
        others[np.arange(len(decided)), decided] = -1
        return others.argmax(1)

    def margin(self, probability: np.ndarray, decided: np.ndarray) -> np.ndarray:
        """Distance between the probabilities of the two best classes."""
        from imgcls.evaluate.selective import margin

        return margin(probability)

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
        from imgcls.evaluate.summary import evaluation

        return evaluation(logits, label, class_names, columns, temperature, class_counts)

    def calibration(self, logits: np.ndarray, label: np.ndarray) -> dict[str, Any] | None:  # noqa: D102
        from imgcls.evaluate.summary import calibration

        return calibration(logits, label)

    def interval(self, logits: np.ndarray, label: np.ndarray, cut: np.ndarray | None) -> tuple[float, float]:  # noqa: D102
        from imgcls.evaluate.accuracy import interval

        return interval(int((self.decided(logits, cut) == label).sum()), len(label))

    def label_errors(self, probability: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # noqa: D102
        from imgcls.evaluate.label_errors import label_errors

        found = label_errors(probability, label)
        return found, probability[found].argmax(1)

    def mistakes(self, label: np.ndarray, decided: np.ndarray) -> Mistakes:
        """Pairs of class and prediction."""
        wrong, images = decided != label, np.bincount(label)
        pairs = Counter(zip(label[wrong].tolist(), decided[wrong].tolist(), strict=True)).most_common()
        return {("most often confused", "taken for"): [((of, to), n, int(images[of])) for (of, to), n in pairs]}

    def figures(  # noqa: D102
        self, probability: np.ndarray, decided: np.ndarray, label: np.ndarray, class_names: Sequence[str]
    ) -> dict[str, Figure]:
        from imgcls.evaluate.confusion import confusion_matrix
        from imgcls.evaluate.figures import confusion_figure

        matrix = confusion_matrix(label, decided, len(class_names))
        return {"confusion_matrix": confusion_figure(matrix, class_names)}

    def caption(  # noqa: D102
        self, probability: np.ndarray, decided: np.ndarray, label: np.ndarray, class_names: Sequence[str], guesses: int
    ) -> str:
        best = np.argsort(-probability, kind="stable")[:guesses]
        return "\n".join([*(f"{class_names[k]} {probability[k]:.2f}" for k in best), f"is {class_names[int(label)]}"])

    def telling(self, probability: np.ndarray, decided: np.ndarray, label: np.ndarray) -> tuple[int, int]:
        """What is predicted; and what is right, or where that is predicted, the second guess."""
        first, second = np.argsort(-probability, kind="stable")[[0, min(1, len(probability) - 1)]].tolist()
        return first, int(label) if label not in (-1, first) else second
