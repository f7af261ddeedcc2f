"""Scores of classes in an order: against scikit-learn, torchmetrics' counterparts, or by hand."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from imgcls.evaluate.accuracy import interval
from imgcls.evaluate.ordinal import mean_absolute_error, ordinal_scores, quadratic_weighted_kappa, within_one
from imgcls.evaluate.ordinal_scores import OrdinalScores
from imgcls.evaluate.scores import Scores


def draw(images=300, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=images)
    prediction = np.clip(label + rng.integers(-2, 2, images), 0, classes - 1)
    return prediction, label, classes


CASES = {
    "five classes": draw(),
    "two classes": draw(classes=2),
    "classes without image": (*draw(classes=3)[:2], 7),
    "gaps between classes": (draw(classes=3)[0] * 2, draw(classes=3)[1] * 2, 6),
    "worse than chance": (4 - draw()[1], draw()[1], 5),
    "one image": (np.array([2]), np.array([0]), 4),
}
each = pytest.mark.parametrize(("prediction", "label", "classes"), CASES.values(), ids=CASES)


def kappa(prediction, label, classes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one class alone
        return sk.cohen_kappa_score(label, prediction, labels=range(classes), weights="quadratic")


@each
def test_scores_are_those_of_scikit_learn(prediction, label, classes):
    found = ordinal_scores(prediction, label, classes)
    assert found["mae"] == mean_absolute_error(prediction, label) == sk.mean_absolute_error(label, prediction)
    assert found["qwk"] == pytest.approx(kappa(prediction, label, classes), abs=1e-12)
    assert found["qwk"] == quadratic_weighted_kappa(prediction, label, classes)
    near = sum(abs(int(p) - int(y)) <= 1 for p, y in zip(prediction, label, strict=True))
    assert found["within_one"] == within_one(prediction, label) == near / len(label)
    assert (found["within_one_low"], found["within_one_high"]) == interval(near, len(label))
    for name in ("mae", "qwk"):
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"]


def test_kappa_by_hand():
    """Labels 0, 0, 1, 2 predicted 0, 1, 1, 0: squares of 0, 1, 0, 4 against (5 + 3 + 3 + 5) / 4 by chance."""
    prediction, label = np.array([0, 1, 1, 0]), np.array([0, 0, 1, 2])
    assert quadratic_weighted_kappa(prediction, label, 3) == -0.25
    assert quadratic_weighted_kappa(label, label, 3) == 1
    assert quadratic_weighted_kappa(np.array([1, 1]), np.array([0, 2]), 3) == 0  # what says nothing of the class


def test_kappa_of_one_class_is_not_defined():
    ones = np.ones(5, np.int64)
    found = ordinal_scores(ones, ones, 3)
    assert all(math.isnan(found[name]) for name in ("qwk", "qwk_low", "qwk_high"))
    assert found["mae"] == found["mae_low"] == found["mae_high"] == 0 and found["within_one"] == 1
    assert math.isnan(kappa(ones, ones, 3))


def test_intervals_are_those_of_resampled_images():
    """Images drawn one by one, from another seed; 4,000 times, so that ends are known to a hundredth of the width."""
    prediction, label, classes = draw(120)
    found = ordinal_scores(prediction, label, classes)
    rng = np.random.default_rng(7)
    samples = rng.integers(120, size=(4000, 120))
    absolute = [np.abs(prediction[of] - label[of]).mean() for of in samples]
    kappas = [quadratic_weighted_kappa(prediction[of], label[of], classes) for of in samples]
    for name, values in (("mae", absolute), ("qwk", kappas)):
        low, high = np.percentile(values, [2.5, 97.5])
        width = high - low
        assert found[f"{name}_low"] == pytest.approx(low, abs=0.1 * width)
        assert found[f"{name}_high"] == pytest.approx(high, abs=0.1 * width)
    assert found == ordinal_scores(prediction, label, classes)


@each
def test_scores_logged_while_testing_are_the_same(prediction, label, classes):
    scores, others = OrdinalScores(classes, "val"), Scores(classes, "val")
    logits = np.eye(classes, dtype=np.float32)[prediction] * 2 - 0.3
    for part in np.array_split(np.arange(len(label)), min(5, len(label))):
        z, y = torch.from_numpy(logits[part]), torch.from_numpy(label[part])
        for of in (scores, others):
            of.update(z, y, torch.nn.functional.cross_entropy(z, y))
    logged = {name: value.item() for name, value in scores.collect().items()}
    assert logged.pop("val/mae") == pytest.approx(mean_absolute_error(prediction, label), rel=1e-6)
    assert logged.pop("val/qwk") == pytest.approx(quadratic_weighted_kappa(prediction, label, classes), abs=1e-6)
    assert logged == {name: value.item() for name, value in others.collect().items()}


def test_logged_kappa_of_one_class_is_nan_and_the_next_epoch_starts_from_nothing():
    scores = OrdinalScores(3, "test")
    scores.update(torch.eye(3)[[1, 1]], torch.tensor([1, 1]), torch.tensor(0.1))
    found = scores.collect()
    assert found["test/qwk"].isnan() and found["test/mae"] == 0
    scores.update(torch.eye(3)[[0, 2]], torch.tensor([0, 1]), torch.tensor(0.1))
    assert scores.collect()["test/mae"] == 0.5
