"""Losses of images with several labels, or none: a sigmoid a class; and which losses are for which labels."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from imgcls.data.long_tail import LongTail
from imgcls.data.sample import SampleData
from imgcls.errors import UserError
from imgcls.losses import BinaryCrossEntropy, CrossEntropy, Loss
from imgcls.losses.asymmetric import Asymmetric
from imgcls.losses.binary_cross_entropy import LARGEST_WEIGHT
from imgcls.losses.cumulative_link import CumulativeLink
from imgcls.tasks.multi_label import MultiLabel

from .test_classifier import classifier, fit
from .test_imbalance import SAMPLE_COUNTS, losses

BOTH = (BinaryCrossEntropy, Asymmetric)


def batch(images: int = 64, classes: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits (B, K) and multi-hot labels (B, K) float32, of which some rows are empty and some full."""
    generator = torch.Generator().manual_seed(0)
    label = (torch.rand(images, classes, generator=generator) < torch.linspace(0.1, 0.9, classes)).float()
    label[0], label[1] = 0, 1
    return 3 * torch.randn(images, classes, generator=generator).to(dtype), label


def prepared(loss: Loss) -> Loss:
    loss.prepare(MultiLabel.labels, 0.5)
    return loss


# ---- binary cross-entropy ----


def test_binary_cross_entropy_is_scikit_learns_log_loss_summed_over_labels():
    logits, label = batch()
    p = torch.sigmoid(logits.double()).numpy()
    each = [log_loss(y, np.stack([1 - q, q], 1), labels=[0, 1]) for y, q in zip(label.numpy().T, p.T, strict=True)]
    assert prepared(BinaryCrossEntropy())(logits, label, None).item() == pytest.approx(sum(each), rel=1e-5)
    of_mean = prepared(BinaryCrossEntropy(reduction="mean"))(logits, label, None).item()
    assert of_mean == pytest.approx(np.mean(each), rel=1e-5)
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0, 5.0])
    weighted = prepared(BinaryCrossEntropy())(logits, label, weight).item()
    assert weighted == pytest.approx(np.dot(each, weight.numpy()), rel=1e-5)


@pytest.mark.parametrize("cls", BOTH)
def test_several_labels_are_smoothed_towards_one_half_and_one_label_over_all_classes(cls):
    logits, label = batch()
    found = prepared(cls(label_smoothing=0.2))(logits, label, None)
    torch.testing.assert_close(found, cls()(logits, 0.8 * label + 0.1, None))
    one = cls(label_smoothing=0.2)
    one.prepare("one label", 1 / 5)
    for loss in (one, cls(label_smoothing=0.2)):
        spread = cls()(logits, 0.8 * F.one_hot(torch.arange(64) % 5, 5) + 0.04, None)
        torch.testing.assert_close(loss(logits, torch.arange(64) % 5, None), spread)


@pytest.mark.parametrize("cls", BOTH)
def test_the_loss_of_mixed_labels_is_the_mixture_of_losses(cls):
    logits, label = batch()
    loss, other = prepared(cls(label_smoothing=0.1)), label.flip(0)
    mixed = loss(logits, 0.3 * label + 0.7 * other, None)
    torch.testing.assert_close(mixed, 0.3 * loss(logits, label, None) + 0.7 * loss(logits, other, None))


def test_a_positive_weight_is_a_factor_of_the_classes_that_are_there():
    logits, label = batch()
    p = torch.sigmoid(logits.double())
    by_hand = -(3 * label * p.log() + (1 - label) * (1 - p).log()).sum(1).mean().item()
    loss = prepared(BinaryCrossEntropy(positive_weight=3))
    assert loss(logits, label, None).item() == pytest.approx(by_hand, rel=1e-5)
    torch.testing.assert_close(loss.evaluate(logits, label), BinaryCrossEntropy()(logits, label, None))
    with pytest.raises(UserError, match="--model.loss.positive_weight: 0 is not above 0"):
        BinaryCrossEntropy(positive_weight=0)


def test_balanced_terms_of_a_label_weigh_alike_where_nothing_is_known():
    _, label = batch(1000)
    count = label.sum(0)
    loss = prepared(BinaryCrossEntropy(positive_weight="balanced"))
    plain = BinaryCrossEntropy()(torch.zeros(1000, 5), label, None)
    torch.testing.assert_close(loss(torch.zeros(1000, 5), label, None), plain)  # before it knows the training part
    loss.configure(count, 1000)
    np.testing.assert_allclose(loss.balance, (1000 - count) / count)
    bias = nn.Parameter(torch.zeros(5))
    loss(bias.expand(1000, 5), label, None).backward()
    np.testing.assert_allclose(bias.grad, 0, atol=1e-6)  # 1/2 is where the mean of training is smallest, for each label


def test_a_balanced_weight_has_a_largest_value_and_none_for_classes_that_all_images_have():
    loss = BinaryCrossEntropy(positive_weight="balanced")
    loss.configure(torch.tensor([0.0, 1.0, 5000.0, 10_000.0]), 10_000)
    assert loss.balance.tolist() == [LARGEST_WEIGHT, LARGEST_WEIGHT, 1.0, 0.0]


def test_a_classifier_tells_its_loss_how_many_images_there_are():
    trained = classifier(loss=BinaryCrossEntropy(positive_weight="balanced"))
    fit(trained, LongTail(SampleData(), batch_size=32))
    count = np.array(SAMPLE_COUNTS)
    np.testing.assert_allclose(trained.loss.balance, np.minimum((1340 - count) / count, 100), rtol=1e-6)


# ---- the asymmetric loss ----


@pytest.mark.parametrize("options", [(4, 1, 0.05), (4, 0, 0.05), (2, 2, 0), (0.5, 0.3, 0.2), (0, 0, 0), (0, 0, 0.1)])
def test_the_asymmetric_loss_is_its_formula(options):
    logits, label = batch(dtype=torch.float64)
    negative, positive, margin = options
    p, y = 1 / (1 + np.exp(-logits.numpy())), label.double().numpy()
    shifted = np.maximum(p - margin, 0)
    each = -(y * (1 - p) ** positive * np.log(p) + (1 - y) * shifted**negative * np.log(1 - shifted))
    assert Asymmetric(*options)(logits, label, None).item() == pytest.approx(each.sum(1).mean(), rel=1e-9)
    assert Asymmetric(*options, reduction="mean")(logits, label, None).item() == pytest.approx(each.mean(), rel=1e-9)
    weight = torch.tensor([1.0, 2.0, 0.0, 1.0, 5.0])
    weighted = (each * weight.numpy()).sum(1).mean()
    assert Asymmetric(*options)(logits, label, weight).item() == pytest.approx(weighted, rel=1e-9)


def test_without_its_asymmetries_it_is_the_focal_loss_of_sigmoids_or_cross_entropy():
    logits, label = batch()
    theirs = sigmoid_focal_loss(logits, label, alpha=-1, gamma=2.0, reduction="none").sum(1).mean()
    torch.testing.assert_close(Asymmetric(2, 2, 0)(logits, label, None), theirs)
    torch.testing.assert_close(Asymmetric(0, 0, 0)(logits, label, None), BinaryCrossEntropy()(logits, label, None))


@pytest.mark.parametrize("options", [(4, 1, 0.05), (4, 1, 0), (0.5, 0.5, 0.05)])
def test_its_gradient_is_that_of_finite_differences_and_none_below_the_margin(options):
    logits, label = batch(8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: Asymmetric(*options)(x, label, None), logits.requires_grad_())
    below = torch.full((1, 1), math.log(0.04 / 0.96), requires_grad=True)  # a probability of 0.04
    Asymmetric(4, 1, 0.05)(below, torch.zeros(1, 1), None).backward()
    assert below.grad == 0


@pytest.mark.parametrize("options", [(4, 1, 0.05), (2, 2, 0), (0.5, 0.5, 0.05), (0, 0, 0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_at_extremes_it_and_its_gradient_are_finite(options, dtype):
    extreme = torch.tensor([-60_000.0, -90, -20, 0, 20, 90, 60_000], dtype=dtype)[:, None].requires_grad_()
    for label in (torch.zeros(7, 1), torch.ones(7, 1), torch.full((7, 1), 0.5)):
        loss = Asymmetric(*options)(extreme, label, None)
        (gradient,) = torch.autograd.grad(loss, extreme)
        assert loss.isfinite() and gradient.isfinite().all() and loss.dtype == torch.float32
        exact = Asymmetric(*options)(extreme.detach().double(), label, None)
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)


def test_a_margin_that_is_no_probability_is_named():
    with pytest.raises(UserError, match="--model.loss.margin: 1 is not from 0 to below 1"):
        Asymmetric(margin=1.0)


# ---- which loss is for which labels ----


@pytest.mark.parametrize("cls", losses(), ids=lambda cls: cls.__name__)
def test_a_loss_refuses_labels_that_it_is_not_for(cls):
    takes = {"one label": cls is not CumulativeLink, "ordered classes": True, "several labels": cls in BOTH}
    for labels, fits in takes.items():
        if fits:
            cls().prepare(labels, 0.5)
        else:
            with pytest.raises(UserError, match=f"--model.loss {cls.__name__}: .* these have {labels}; leave it out"):
                cls().prepare(labels, 0.5)


def test_a_classifier_of_several_labels_has_a_loss_of_sigmoids_by_default_and_refuses_a_softmax():
    assert isinstance(classifier(task="multi_label").loss, BinaryCrossEntropy)
    assert classifier(task="multi_label").loss.chance == 0.5 and classifier().loss.chance == 0.1
    with pytest.raises(UserError, match="--model.loss CrossEntropy: is for images with one label or ordered classes"):
        classifier(task="multi_label", loss=CrossEntropy())
