"""Classes of unequal size: losses that know of it, a long-tailed part, a new head, accuracies by class size."""

import importlib
import inspect
import json
import pkgutil
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F

import imgcls.losses
from imgcls.data.long_tail import LongTail, long_tailed
from imgcls.data.sample import SampleData
from imgcls.errors import UserError
from imgcls.evaluate.accuracy import interval
from imgcls.evaluate.summary import evaluation
from imgcls.losses import CrossEntropy, Focal, Loss
from imgcls.losses.class_balanced import ClassBalanced
from imgcls.losses.logit_adjustment import LogitAdjustment

from .conftest import QUIET, ROOT
from .test_classifier import classifier, fit

COUNTS = torch.tensor([500.0, 40.0, 3.0, 0.0])
SAMPLE_COUNTS = [540, 324, 194, 116, 70, 42, 25, 15, 9, 5]


def batch(seed: int = 0, images: int = 32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (B, 4), class labels (B,) and mixed labels (B, 4)."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.rand(images, 4, generator=generator)
    label = torch.randint(3, (images,), generator=generator)
    return 3 * torch.randn(images, 4, generator=generator), label, mixed / mixed.sum(1, keepdim=True)


def losses() -> list[type[Loss]]:
    modules = [importlib.import_module(f"imgcls.losses.{m.name}") for m in pkgutil.iter_modules(imgcls.losses.__path__)]
    found = {c for m in modules for c in vars(m).values() if inspect.isclass(c) and issubclass(c, Loss)}
    return sorted((c for c in found if not inspect.isabstract(c)), key=lambda c: c.__name__)


each = pytest.mark.parametrize("cls", losses(), ids=lambda cls: cls.__name__)


def configured(cls: type[Loss], counts: torch.Tensor = COUNTS, **options) -> Loss:
    loss = cls(**options)
    loss.configure(counts, int(counts.sum()))
    return loss


# ---- what holds for each loss of the package ----


@each
def test_class_and_one_hot_labels_are_one(cls):
    logits, label, _ = batch()
    loss = configured(cls)
    torch.testing.assert_close(loss(logits, label, None), loss(logits, F.one_hot(label, 4).float(), None))


@each
def test_classes_of_equal_size_change_nothing(cls):
    logits, label, mixed = batch()
    for of in (label, mixed):
        loss = configured(cls, torch.full((4,), 7.0))(logits, of, None)
        torch.testing.assert_close(loss, cls()(logits, of, None))


@each
def test_outside_of_training_a_loss_knows_nothing_of_the_training_part(cls):
    logits, label, _ = batch()
    found = configured(cls).evaluate(logits, label)
    torch.testing.assert_close(found, cls().evaluate(logits, label))
    parts = [cls().evaluate(logits[part], label[part]) * len(part) for part in torch.arange(32).split([5, 27])]
    torch.testing.assert_close(found, sum(parts) / 32)


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_logits_of_sixteen_bits_lose_no_digit(cls, dtype, smoothing):
    logits, label, mixed = batch()
    short = (20 * logits).to(dtype)
    loss = configured(cls, label_smoothing=smoothing)
    for of in (label, mixed):
        with torch.autocast("cpu", dtype=dtype):
            found = loss(leaf := short.clone().requires_grad_(), of, None)
        found.backward()
        assert leaf.grad.isfinite().all()
        torch.testing.assert_close(found.float(), loss(short.float(), of, None), rtol=1e-5, atol=1e-5)


# ---- each by its formula ----


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_logit_adjustment_is_equation_10(tau, smoothing):
    logits, label, mixed = batch()
    prior = np.array([500, 40, 3, 1]) / 544
    shifted = np.exp(logits.double().numpy()) * prior**tau
    log_p = np.log(shifted / shifted.sum(1, keepdims=True))
    loss = configured(LogitAdjustment, tau=tau, label_smoothing=smoothing)
    for given, target in ((label, np.eye(4)[label]), (mixed, mixed.double().numpy())):
        target = (1 - smoothing) * target + smoothing / 4
        assert loss(logits, given, None).item() == pytest.approx(-(target * log_p).sum(1).mean(), rel=1e-5)
    with pytest.raises(UserError, match=r"--model.loss.tau: -1 "):
        LogitAdjustment(tau=-1)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_class_balanced_weighs_by_the_effective_number(beta, gamma):
    logits, label, mixed = batch()
    effective = (1 - beta ** np.array([500.0, 40.0, 3.0, 1.0])) / (1 - beta)
    weight = 1 / effective / np.mean(1 / effective[:3])  # of the three that have images: they sum to their number
    p = torch.softmax(logits.double(), 1).numpy()
    each_class = -weight * (1 - p) ** gamma * np.log(p)
    loss = configured(ClassBalanced, beta=beta, gamma=gamma)
    assert loss.weight[:3].sum().item() == pytest.approx(3)
    for given, target in ((label, np.eye(4)[label]), (mixed, mixed.double().numpy())):
        assert loss(logits, given, None).item() == pytest.approx((target * each_class).sum(1).mean(), rel=1e-4)
    factor = torch.tensor([1.0, 2.0, 3.0, 4.0])
    both = (np.eye(4)[label] * each_class * factor.numpy()).sum(1).mean()
    assert loss(logits, label, factor).item() == pytest.approx(both, rel=1e-4)
    with pytest.raises(UserError, match="--model.loss.beta: 1 is not"):
        ClassBalanced(beta=1.0)


def test_a_beta_close_to_one_is_inverse_frequency():
    loss = configured(ClassBalanced, COUNTS[:3], beta=1 - 1e-7)
    inverse = 1 / COUNTS[:3]
    torch.testing.assert_close(loss.weight, inverse / inverse.mean(), rtol=1e-4, atol=0)


def test_a_focal_loss_of_an_image_that_is_certain_has_a_gradient():
    logits = torch.tensor([[200.0, 0.0], [0.0, 1.0]], requires_grad=True)
    Focal(gamma=0.5)(logits, torch.tensor([0, 0]), None).backward()
    assert logits.grad.isfinite().all() and logits.grad[0].abs().sum() == 0 < logits.grad[1].abs().sum()


# ---- in a classifier ----


def test_a_classifier_tells_its_loss_the_counts_and_neither_checkpoint_nor_test_needs_them():
    data = LongTail(SampleData(), batch_size=32)
    trained = classifier(loss=LogitAdjustment())
    trainer = fit(trained, data, limit_train_batches=4)
    torch.testing.assert_close(trained.loss.shift.exp() * 1340, torch.tensor(SAMPLE_COUNTS).float())
    assert set(trained.state_dict()) == set(classifier(loss=CrossEntropy()).state_dict())
    (wanted,) = trainer.test(trained, datamodule=data, verbose=False)
    for loss in (LogitAdjustment(), CrossEntropy()):
        other = classifier(loss=loss)
        other.load_state_dict(trained.state_dict())
        assert trainer.test(other, datamodule=data, verbose=False) == [wanted]


# ---- a long-tailed training part ----


def test_sizes_fall_exponentially_and_only_in_the_training_part():
    whole, thin = SampleData(), LongTail(SampleData(), imbalance=100)
    for data in (whole, thin):
        data.setup("test")
    assert thin.class_counts().tolist() == SAMPLE_COUNTS and whole.class_counts().tolist() == [540] * 10
    for part in ("val", "test"):
        np.testing.assert_array_equal(thin.parts[part][1], whole.parts[part][1])
    assert np.isin(thin.parts["train"][1], whole.parts["train"][1]).all() and thin.fingerprint == whole.fingerprint
    assert (thin.image_size, thin.channels, thin.mean, thin.std) == (28, 1, whole.mean, whole.std)


def test_a_larger_imbalance_keeps_some_of_the_images_of_a_smaller_one():
    label = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [90, 100, 20, 60]))
    kept = {ratio: long_tailed(label, ratio, seed=1) for ratio in (1, 8, 1000)}
    counts = {ratio: np.bincount(label[index]).tolist() for ratio, index in kept.items()}
    assert counts == {1: [90, 100, 20, 60], 8: [90, 50, 20, 12], 1000: [90, 10, 1, 1]}
    assert np.isin(kept[1000], kept[8]).all() and (np.diff(kept[8]) > 0).all()
    assert kept[8].tolist() != long_tailed(label, 8, seed=2).tolist()


def test_what_a_long_tail_cannot_be_is_said(tmp_path):
    with pytest.raises(UserError, match=r"--data.imbalance: 0.5 is not at least 1"):
        LongTail(SampleData(), imbalance=0.5)
    with pytest.raises(
        UserError, match=r"--data.root .*: LongTail has its images from another data module; .*--data.data"
    ):
        LongTail(SampleData(), root=str(tmp_path))


# ---- accuracies by the number of training images ----


def test_accuracy_of_classes_with_many_a_medium_number_of_and_few_images():
    rng = np.random.default_rng(0)
    label, logits = rng.integers(5, size=300), rng.normal(size=(300, 6)).astype(np.float32)
    counts = [101, 100, 20, 19, 0, 500]  # the last has no test image
    found = evaluation(logits, label, list("abcdef"), {}, class_counts=counts)
    right = logits.argmax(1) == label
    for row, (name, classes, number) in zip(
        found["shots"], (("many", [0], 2), ("medium", [1, 2], 2), ("few", [3, 4], 2)), strict=True
    ):
        of = right[np.isin(label, classes)]
        low, high = interval(int(of.sum()), len(of))
        assert row == {
            "shots": name,
            "classes": number,
            "images": len(of),
            "acc": of.mean(),
            "acc_low": low,
            "acc_high": high,
        }
        assert [found["metrics"][f"acc_{name}{end}"] for end in ("", "_low", "_high")] == [of.mean(), low, high]


def test_classes_of_about_one_size_are_not_told_apart():
    label, logits = np.array([0, 1, 1]), np.eye(2, dtype=np.float32)[[0, 0, 1]]
    for counts in (None, [99, 10]):
        found = evaluation(logits, label, "ab", {}, class_counts=counts)
        assert found["shots"] == [] and not any(name.startswith("acc_m") for name in found["metrics"])
    found = evaluation(logits, label, "ab", {}, class_counts=[50, 5])
    assert [row["shots"] for row in found["shots"]] == ["medium", "few"] and "acc_many" not in found["metrics"]


# ---- from the command line ----


@pytest.mark.slow
def test_a_head_is_trained_anew_on_a_run_and_the_run_may_go(imgcls):
    configs = [w for p in ("data/long_tail", "model/cnn") for w in ("--config", ROOT / f"configs/{p}.yaml")]
    words = [*configs, "--config", ROOT / "configs/trainer/default.yaml", *QUIET, "--model.backbone.depth=2"]
    words += ["--model.backbone.width=8", "--trainer.max_epochs=1", "--trainer.limit_train_batches=3"]
    words += ["--seed_everything=3", "--test_after_fit=true"]
    code, out, err = imgcls("fit", *words, "--run_dir=first-3")
    assert code == 0, err
    assert "acc_few" in out and "on classes of < 20" in out
    metrics, found = (json.loads(Path(f"first-3/{name}.json").read_text()) for name in ("metrics", "evaluation"))
    assert json.loads(Path("first-3/environment.json").read_text())["data"]["class_counts"] == SAMPLE_COUNTS
    assert [row["classes"] for row in found["shots"]] == [4, 3, 3]
    weighted = sum(row["classes"] * metrics[f"test/acc_{row['shots']}"] for row in found["shots"])
    assert weighted / 10 == pytest.approx(metrics["test/balanced_acc"]) == pytest.approx(metrics["test/acc"])
    page = Path("first-3/report.html").read_text()
    assert "By the number of training images" in page and "<td>medium</td><td>3</td><td>300</td>" in page

    again = ["--config", ROOT / "configs/finetune/retrained_head.yaml", "--run_dir=second"]
    code, _, err = imgcls("fit", *words, *again, "--model.backbone.weights=first-{seed}/checkpoints/best.ckpt")
    assert code == 0, err
    options = yaml.safe_load(Path("second/config.yaml").read_text())
    assert options["model"]["init_args"]["backbone"]["init_args"]["weights"] == "first-{seed}/checkpoints/best.ckpt"
    assert options["data"]["init_args"]["sampling"] == "balanced"
    first, second = (
        torch.load(f"{run}/checkpoints/best.ckpt", weights_only=True)["state_dict"] for run in ("first-3", "second")
    )
    same = {name for name in first if torch.equal(first[name], second[name])}
    assert first.keys() - same == {"head.weight", "head.bias"}

    shutil.rmtree("first-3")
    before = json.loads(Path("second/metrics.json").read_text())["test/acc"]
    assert imgcls("test", "--run", "second", *QUIET)[0] == 0
    assert json.loads(Path("second/metrics.json").read_text())["test/acc"] == before
    code, _, err = imgcls("fit", *words, "--model.backbone.weights=default", "--run_dir=third")
    assert code == 2 and "--model.backbone.weights default: this network has none of its own; give a file, none" in err


def test_cached_features_are_sampled_by_class():
    data = LongTail(SampleData(), batch_size=67, sampling="balanced")
    data.setup("fit")
    data.use_features("train", torch.zeros(1340, 1, 2))
    count = np.bincount(torch.cat([batch["label"] for batch in data.train_dataloader()]), minlength=10)
    assert count.sum() == 1340 and np.abs(count - 134).max() < 4 * np.sqrt(134)
