from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from imgcls.errors import UserError
from imgcls.finetune.base import Features, FineTune
from imgcls.losses import Loss, shares
from imgcls.models.base import Stage
from imgcls.tasks import Task


class Vote(nn.Module):
    """The most similar training images vote, by cosine similarity s with weight `exp(s / temperature)`.

    After Wu et al., Unsupervised feature learning via non-parametric instance discrimination, CVPR 2018, 3.4.

    Args:
        num_features: Length F of a feature vector.
        num_classes: Number of classes K.
        k: Number of neighbours.
        temperature: Smaller: the nearest count more.
        task: The kind of labels.
    """

    feature: Tensor
    label: Tensor
    k: Tensor

    def __init__(self, num_features: int, num_classes: int, k: int, temperature: float, task: Task) -> None:
        super().__init__()
        self.num_classes, self.temperature, self.task = num_classes, temperature, task
        self.register_buffer("k", torch.tensor(k))  # chosen on validation, so it belongs into the checkpoint
        self.register_buffer("feature", torch.empty(0, num_features))
        self.register_buffer("label", task.example(0, num_classes))

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (B, K) of the shares of the votes, of features (B, F)."""
        if not len(self.label):  # before training: Lightning's check of the validation loop
            return feature.new_zeros(len(feature), self.num_classes)
        similarity_BN = F.normalize(feature) @ self.feature.T
        nearest = similarity_BN.topk(min(int(self.k), len(self.label)))
        share_BJ = (nearest.values / self.temperature).softmax(1)
        label_BJK = shares(self.label[nearest.indices.flatten()], self.num_classes).unflatten(0, share_BJ.shape)
        vote_BK = (share_BJ[:, :, None] * label_BJK).sum(1)  # a matrix product would be rounded to 16 bits
        # no class is certain, nor without a vote ruled out: one part in a thousand is as if nothing were known
        return self.task.log_odds(0.999 * vote_BK + 0.001 * self.task.chance(self.num_classes))


class Neighbours(FineTune):
    """Nothing is trained: an image has the classes of its nearest training images in the backbone's feature space.

    The features of the training images become part of the model. Learning rate, optimiser, schedule and number of
    epochs have no say.

    Args:
        k: Numbers of neighbours to choose from, on the validation images.
        temperature: Similarities are divided by it before they weigh the votes.
        views: Number of augmented versions of each training image to vote beside the plain one.
        feature_dir: Folder of cached features that several runs share; the run's own by default.
    """

    solves = True
    data_sized = ("head.feature", "head.label")

    def __init__(
        self,
        k: Sequence[int] = (1, 5, 10, 20, 50),
        temperature: float = 0.07,
        views: int = 0,
        feature_dir: str | None = None,
    ) -> None:
        super().__init__()
        if not k or min(k) < 1:
            raise UserError(f"--model.finetune.k: {list(k)} must be positive numbers")
        self.k, self.temperature, self.views, self.feature_dir = list(k), temperature, views, feature_dir

    def scales(self, stages: Sequence[Stage]) -> list[float | None]:  # noqa: D102
        return [None] * len(stages)

    def head(self, num_features: int, num_classes: int, task: Task) -> nn.Module:  # noqa: D102
        return Vote(num_features, num_classes, self.k[0], self.temperature, task)

    def solve(  # noqa: D102
        self, head: nn.Module, train: Features, val: Features | None, loss: Loss
    ) -> dict[str, float]:
        assert isinstance(head, Vote)
        head.feature = F.normalize(train.feature.flatten(0, 1))
        head.label = train.label.repeat_interleave(train.feature.shape[1], 0)
        if val is not None and len(self.k) > 1:
            losses = {}
            for k in self.k:
                head.k.fill_(k)
                losses[k] = loss.evaluate(head(val.feature[:, 0]), val.label).item()
            head.k.fill_(min(losses, key=losses.__getitem__))
        return {"k": int(head.k)}
