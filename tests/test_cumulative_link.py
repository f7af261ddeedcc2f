"""Ordered classes: the cumulative link, its probabilities and loss, in training, evaluation and exported files."""

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from imgcls.classifier import Classifier
from imgcls.data.sample import SampleData
from imgcls.deploy import formats
from imgcls.deploy.graph import Exported
from imgcls.errors import UserError
from imgcls.finetune.logistic_probe import LogisticProbe
from imgcls.finetune.neighbours import Neighbours
from imgcls.images.decode import ResizeCrop
from imgcls.losses import CrossEntropy, Loss
from imgcls.losses.cumulative_link import CumulativeLink

from .test_classifier import classifier, fit, small


def outputs(classes: int, images: int = 50, dtype: torch.dtype = torch.float64) -> Tensor:
    return 3 * torch.randn(images, classes, generator=torch.Generator().manual_seed(classes), dtype=dtype)


def above(z: np.ndarray) -> np.ndarray:
    """Probabilities of "above class k", (B, K-1), by their definition."""
    steps = np.log1p(np.exp(z[:, 1:-1]))
    odds = np.concatenate([z[:, :1], z[:, :1] - np.cumsum(steps, 1)], 1)
    return 1 / (1 + np.exp(-odds))


# ---- the link ----


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_probabilities_are_differences_of_sigmoids_sum_to_one_and_agree_on_the_order(classes):
    z = outputs(classes)
    logits = CumulativeLink().link(z)
    edges = np.concatenate([np.ones((50, 1)), above(z.numpy()), np.zeros((50, 1))], 1)
    np.testing.assert_allclose(logits.exp(), -np.diff(edges, axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(logits.exp().sum(1), 1, atol=1e-12)
    torch.testing.assert_close(logits.softmax(1), logits.exp())  # as evaluation and exported files make them
    higher = logits.exp().flip(1).cumsum(1).flip(1)[:, 1:].numpy()
    np.testing.assert_allclose(higher, above(z.numpy()), atol=1e-12)
    assert (np.diff(higher, axis=1) < 0).all()


def test_two_classes_are_logistic_regression():
    z = outputs(2).requires_grad_()
    label = torch.arange(50) % 2
    loss = CumulativeLink()
    found = loss(loss.link(z), label, None)
    theirs = nn.functional.binary_cross_entropy_with_logits(z[:, 0], label.double())
    torch.testing.assert_close(found, theirs)
    (gradient,) = torch.autograd.grad(found, z)
    assert (gradient[:, 1] == 0).all() and (gradient[:, 0] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_at_extremes_logits_and_gradients_are_finite(dtype):
    values = [-60_000.0, -90, 0, 90, 60_000]
    z = torch.cartesian_prod(*[torch.tensor(values, dtype=dtype)] * 4).requires_grad_()
    loss = CumulativeLink()
    logits = loss.link(z)
    assert logits.dtype == torch.float32 and logits.isfinite().all()
    for label in range(4):
        (gradient,) = torch.autograd.grad(loss(logits, torch.full((625,), label), None), z, retain_graph=True)
        assert gradient.isfinite().all()
    near = (z.abs() <= 90).all(1)  # beyond, differences of outputs are no longer known to five digits
    exact = loss.link(z[near].detach().double())
    torch.testing.assert_close(logits[near].double(), exact, rtol=1e-5, atol=1e-5)


# ---- the loss ----


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_negative_log_likelihood(smoothing):
    z, label = outputs(4), torch.arange(50) % 4
    edges = np.concatenate([np.ones((50, 1)), above(z.numpy()), np.zeros((50, 1))], 1)
    surprise = -np.log(-np.diff(edges, axis=1))
    loss = CumulativeLink(smoothing)
    logits = loss.link(z)
    hard = (1 - smoothing) * np.eye(4)[label] + smoothing / 4
    assert loss(logits, label, None).item() == pytest.approx((hard * surprise).sum(1).mean())
    soft = torch.rand(50, 4, dtype=torch.float64)
    soft /= soft.sum(1, keepdim=True)
    mixed = (1 - smoothing) * soft.numpy() + smoothing / 4
    assert loss(logits, soft, None).item() == pytest.approx((mixed * surprise).sum(1).mean())
    weight = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    weighted = (hard * surprise * weight.numpy()).sum() / weight[label].sum().item()
    assert loss(logits, label, weight).item() == pytest.approx(weighted)


def grades(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ten features (N, 10) of which three say of a latent severity, and its five grades, of unequal width."""
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(count, 10, generator=generator)
    severity = feature[:, :3] @ torch.tensor([2.0, -1.5, 1.0]) + 0.8 * torch.randn(count, generator=generator)
    return feature, torch.bucketize(severity, torch.tensor([-3.0, -1.0, 0.0, 2.5]))


def test_few_graded_images_are_learnt_with_smaller_errors_than_by_cross_entropy():
    def error(loss: Loss, seed: int) -> float:
        """Mean absolute error of the median grade on 2,000 others, of a linear model of 100."""
        feature, label = grades(100, seed)
        torch.manual_seed(seed)
        model = nn.Linear(10, 5)
        solver = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

        def value() -> Tensor:
            solver.zero_grad()
            found = loss(loss.link(model(feature)), label, None) + 0.005 * model.weight.square().sum()
            found.backward()
            return found

        solver.step(value)
        feature, label = grades(2000, 1000 + seed)
        with torch.no_grad():
            p = loss.link(model(feature)).softmax(1)
        median = (p.cumsum(1) < 0.5).sum(1)
        return (median - label).abs().float().mean().item()

    ordinal, nominal = ([error(loss, seed) for seed in range(8)] for loss in (CumulativeLink(), CrossEntropy()))
    assert np.mean(ordinal) < np.mean(nominal) - 0.02, (ordinal, nominal)
    assert sum(a < b for a, b in zip(ordinal, nominal, strict=True)) >= 6


# ---- in a classifier ----


def test_logits_of_a_classifier_are_log_probabilities_in_training_and_evaluation():
    model = classifier(task="ordered", loss=CumulativeLink())
    image = torch.rand(6, 1, 28, 28)
    fit(model, SampleData(batch_size=32))
    model.eval()
    with torch.no_grad():
        z, logits = model.head(model.features(image)), model.logits(image)
    edges = np.concatenate([np.ones((6, 1)), above(z.double().numpy()), np.zeros((6, 1))], 1)
    np.testing.assert_allclose(logits.softmax(1), -np.diff(edges, axis=1), atol=1e-6)


@pytest.mark.parametrize("flip", [False, True])
def test_an_exported_file_answers_as_its_model(flip):
    torch.manual_seed(0)
    model = Classifier(small, 5, 1, 28, task="ordered", loss=CumulativeLink(), flip_at_test=flip).eval()
    image = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    feature = model.requires_grad_(False).features((image / 255 - 0.4) / 0.3)
    model.head.weight.normal_().div_((feature - feature.mean(0)).std())
    model.head.bias.copy_(-model.head.weight @ feature.mean(0))
    logits = model.logits((image / 255 - 0.4) / 0.3)
    expected = (logits / 1.7).softmax(1).numpy()
    assert np.ptp(expected, 0).max() > 0.05
    exported = Exported(model, ResizeCrop(1, 28, 28), [0.4], [0.3], 1.7).eval()
    written = formats.onnx_bytes(formats.to_onnx(exported, 1), {})
    content = formats.torch_export_bytes(exported, 1, {})
    module = torch.export.load(io.BytesIO(content)).module()
    for runner in (formats.run_onnx(written), formats.run_torch(module), formats.run_torch(exported)):
        np.testing.assert_allclose(runner(image.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize("finetune", [LogisticProbe, Neighbours])
def test_a_head_that_is_solved_for_refuses_a_loss_with_a_link_of_its_own(finetune):
    with pytest.raises(UserError, match="--model.loss CumulativeLink: makes logits of its own, and --model.finetune"):
        classifier(task="ordered", loss=CumulativeLink(), finetune=finetune())
    classifier(task="ordered", loss=CrossEntropy(0.1), finetune=finetune())


def test_classes_without_an_order_are_refused():
    with pytest.raises(UserError, match="CumulativeLink: is for images with ordered classes, and these have one label"):
        classifier(loss=CumulativeLink())
