from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from imgcls.errors import UserError

Labels = Literal["one label", "ordered classes", "several labels"]


class Loss(ABC):
    """A loss of logits (B, K), and of class labels (B,) int64 or class probabilities (B, K) float32.

    Where images have several labels, or none, labels are (B, K): 1 for each class that is there, else 0, or what
    augmentation mixes of them. A new loss is one class in one file.

    Attributes:
        takes: What images may have for it.
        label_smoothing: Share of each label that gives way to `chance`.
        chance: Probability of each class where nothing is known of an image; None: `1 / K`, as of one label.
    """

    takes: ClassVar[tuple[Labels, ...]] = ("one label", "ordered classes")
    label_smoothing: float = 0.0
    chance: float | None = None

    def prepare(self, labels: Labels, chance: float, solved: bool = False) -> None:
        """Take note of what labels are like, when a model is built; without it, each image has one.

        Args:
            labels: What images have.
            chance: Probability of each class where nothing is known of an image.
            solved: Whether the head is not trained by this loss, but solved for, and gives logits already.

        Raises:
            UserError: The loss is for other labels, or has a link of its own and the head is solved for.
        """
        name = type(self).__name__
        if labels not in self.takes:
            raise UserError(
                f"--model.loss {name}: is for images with {' or '.join(self.takes)}, and these have {labels}; leave it "
                "out, take another of configs/loss, or say by --data.ordered or --data.task what the labels are"
            )
        if solved and type(self).link is not Loss.link:
            raise UserError(
                f"--model.loss {name}: makes logits of its own, and --model.finetune solves for a head without it; "
                "leave the loss out, or train the head by steps (configs/finetune/linear_probe.yaml)"
            )
        self.chance = chance

    def configure(self, class_counts: Tensor, images: int) -> None:
        """Take note of what is trained on, before training begins; nothing of it is kept in a checkpoint.

        Args:
            class_counts: Number of training images of each class, (K,) float32, on the device of the logits.
            images: Number of training images; of several labels it is not the sum of the counts.
        """
        return

    def link(self, outputs: Tensor) -> Tensor:
        """Logits (B, K) of what the head gives for B images, (B, K); in training, evaluation and exported files."""
        return outputs

    @abstractmethod
    def __call__(self, logits: Tensor, label: Tensor, class_weight: Tensor | None) -> Tensor:
        """Mean loss of a training batch, a scalar; before `configure`, as if all classes were of one size.

        Args:
            logits: (B, K) float.
            label: (B,) int64 or (B, K) float32.
            class_weight: Factor of each class (K,), or None.
        """

    def evaluate(self, logits: Tensor, label: Tensor) -> Tensor:
        """Mean loss of a batch outside of training, a scalar: images count alike, so that it is exact on any batching.

        A loss that `configure` changes leaves that out: a test may be of other images than the training's.
        """
        return self(logits, label, None)

    def smooth(self, label: Tensor, num_classes: int) -> Tensor:
        """Probabilities (B, K) of labels (B,) or (B, K), a share of which gives way to chance.

        Of one label an image it is spread evenly over all classes (Szegedy et al., CVPR 2016, section 7); of several,
        where each class is a question of yes or no, each answer moves towards 1/2.
        """
        chance = 1 / num_classes if self.chance is None else self.chance
        return shares(label, num_classes) * (1 - self.label_smoothing) + self.label_smoothing * chance


def shares(label: Tensor, num_classes: int) -> Tensor:
    """Labels (B,) int64 or (B, K) float32 as shares of each class, (B, K) float32."""
    # F.one_hot looks at the labels, which on some devices makes the host wait
    classes_K = torch.arange(num_classes, device=label.device)
    return (label[:, None] == classes_K).float() if label.ndim == 1 else label
