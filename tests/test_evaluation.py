"""What a model is worth: every score against scikit-learn, torchmetrics or a computation by hand."""

import itertools
import json
import math
import warnings

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import norm
from sklearn import metrics as sk
from torchmetrics.functional.classification import multiclass_calibration_error

from imgcls.evaluate.accuracy import auroc, by_class, interval, mean_of, slices, top_k
from imgcls.evaluate.calibration import (
    brier_score,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)
from imgcls.evaluate.scores import Scores
from imgcls.evaluate.selective import covered, margin, risk_by_coverage
from imgcls.evaluate.summary import calibration, evaluation


def draw(images=400, classes=5, seed=0, scale=1.5, decimals=None):
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=images)
    logits = rng.normal(0, scale, (images, classes))
    logits[np.arange(images), label] += 1.2
    return (logits if decimals is None else logits.round(decimals)).astype(np.float32), label


CASES = {
    "five classes": draw(),
    "two classes": draw(classes=2),
    "ties": draw(decimals=0),
    "a class without image": (draw(classes=6, seed=3)[0], draw(classes=6, seed=3)[1] % 5),
}


def off_edges(logits, label):
    """Without images whose confidence lies on an edge: torch's own edges are off by a last digit here and there."""
    place = softmax(logits.astype(np.float64), 1).max(1) * 15
    keep = (np.abs(place - place.round()) > 1e-4) | (place > 14.5)
    return logits[keep], label[keep]


each = pytest.mark.parametrize(("logits", "label"), CASES.values(), ids=CASES)


@each
def test_scores_are_those_of_scikit_learn(logits, label):
    classes = logits.shape[1]
    probability = softmax(logits.astype(np.float64), 1)
    prediction, there = probability.argmax(1), np.unique(label)
    found = evaluation(logits, label, list("abcdef"[:classes]), {})
    got = found["metrics"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is predicted and has no image
        assert got["balanced_acc"] == pytest.approx(sk.balanced_accuracy_score(label, prediction))
    assert got["acc"] == sk.accuracy_score(label, prediction)
    macro = sk.precision_recall_fscore_support(label, prediction, labels=there, average="macro", zero_division=0)
    assert [got[name] for name in ("precision", "recall", "f1")] == pytest.approx(macro[:3])
    areas = [sk.roc_auc_score(label == k, probability[:, k]) for k in there]
    assert got["auroc"] == pytest.approx(np.mean(areas))
    assert got["nll"] == pytest.approx(sk.log_loss(label, probability, labels=range(classes)))
    assert got["brier"] == pytest.approx(np.square(probability - np.eye(classes)[label]).sum(1).mean())
    each_class = sk.precision_recall_fscore_support(label, prediction, labels=there, zero_division=0)
    rows = [found["classes"][k] for k in there]
    for name, wanted in zip(("precision", "recall", "f1", "images"), each_class, strict=True):
        assert [row[name] for row in rows] == pytest.approx(wanted)
    assert [row["auroc"] for row in rows] == pytest.approx(areas)
    assert found["classes_without_image"] == [name for k, name in enumerate("abcdef"[:classes]) if k not in there]
    for name in found["classes_without_image"]:
        row = next(row for row in found["classes"] if row["class"] == name)
        assert row["images"] == 0 and all(math.isnan(row[k]) for k in ("precision", "recall", "f1", "auroc"))


@each
def test_scores_logged_while_testing_are_the_same(logits, label):
    """Also where torchmetrics alone takes the logits of a batch for probabilities, and where confidence is 1.0."""
    classes = logits.shape[1]
    for z in (logits, logits * 20, (logits - logits.min()) / np.ptp(logits) * 0.99):
        scores = Scores(classes, "test")
        z, y = off_edges(z, label)
        for part in np.array_split(np.arange(len(y)), 7):
            z_part, y_part = torch.from_numpy(z[part]), torch.from_numpy(y[part])
            scores.update(z_part, y_part, torch.nn.functional.cross_entropy(z_part, y_part))
        logged = {k: v.item() for k, v in scores.collect().items()}
        found = evaluation(z, y, range(classes), {})["metrics"]
        for name in ("acc", "f1", "ece", "top5"):
            if f"test/{name}" in logged:
                assert logged[f"test/{name}"] == pytest.approx(found[name], abs=1e-6), name
        assert logged["test/loss"] == pytest.approx(found["nll"], rel=1e-5)


def test_two_classes_have_one_area_and_half_the_brier_score_of_scikit_learn():
    logits, label = CASES["two classes"]
    probability = softmax(logits.astype(np.float64), 1)
    assert np.ptp(by_class(probability, label)["auroc"]) < 1e-12
    assert brier_score(probability, label) == pytest.approx(2 * sk.brier_score_loss(label, probability[:, 1]))
    assert "top3" not in evaluation(logits, label, "ab", {})["metrics"]


def test_a_share_has_wilsons_interval():
    for right, images in ((7, 10), (0, 5), (5, 5), (812, 1000)):
        z, p = norm.ppf(0.975), right / images
        middle = (p + z**2 / (2 * images)) / (1 + z**2 / images)
        half = z / (1 + z**2 / images) * math.sqrt(p * (1 - p) / images + z**2 / (4 * images**2))
        assert interval(right, images) == pytest.approx((middle - half, middle + half), abs=1e-12)


def test_top_k_is_that_of_scikit_learn_and_the_first_of_equals_is_the_larger():
    logits, label = draw(classes=7)
    for k in (1, 3, 5):
        assert top_k(logits, label, k) == pytest.approx(sk.top_k_accuracy_score(label, logits, k=k))
    equal = np.zeros((4, 4), np.float32)
    assert [top_k(equal, np.arange(4), k) for k in (1, 2, 3)] == [0.25, 0.5, 0.75]
    logits, label = CASES["ties"]
    assert top_k(logits, label, 1) == (logits.argmax(1) == label).mean()


def test_areas_under_degenerate_curves():
    assert auroc(np.array([0.5, 0.5, 0.5]), np.array([True, False, False])) == 0.5
    assert auroc(np.array([0.1, 0.9]), np.array([False, True])) == 1
    assert math.isnan(auroc(np.array([0.1, 0.9]), np.array([True, True])))
    one_class = evaluation(np.eye(3, dtype=np.float32)[[0, 0]], np.array([0, 0]), "abc", {})
    assert math.isnan(one_class["metrics"]["auroc"]) and one_class["metrics"]["f1"] == 1
    assert math.isnan(mean_of(np.array([np.nan])))


@each
def test_the_calibration_error_is_that_of_torchmetrics(logits, label):
    logits, label = off_edges(logits, label)
    probability = softmax(logits.astype(np.float64), 1)
    wanted = multiclass_calibration_error(
        torch.from_numpy(probability), torch.from_numpy(label), logits.shape[1], n_bins=15
    )
    bins = reliability(probability.max(1), probability.argmax(1) == label)
    assert expected_calibration_error(bins) == pytest.approx(wanted.item(), abs=1e-6)


def test_bins_hold_what_lies_in_them():
    bins = reliability(np.array([0.1, 0.19, 0.95, 1.0]), np.array([True, False, True, True]))
    assert bins["images"].tolist() == [0, 1, 1, *[0] * 11, 2]
    assert bins["accuracy"][[1, 2, 14]].tolist() == [1, 0, 1] and np.isnan(bins["accuracy"][0])
    assert bins["confidence"][14] == pytest.approx(0.975)
    assert expected_calibration_error(bins) == pytest.approx((0.9 + 0.19 + 2 * 0.025) / 4)


def test_risk_by_coverage_by_hand():
    risk = risk_by_coverage(np.array([0.6, 0.9, 0.8, 0.7]), np.array([False, True, False, True]))
    assert risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])


def test_images_of_equal_confidence_share_mistakes_as_on_average_over_their_orders():
    confidence, right = np.array([0.9, 0.7, 0.7, 0.7, 0.2]), np.array([True, False, True, True, False])
    orders = [(0, *middle, 4) for middle in itertools.permutations((1, 2, 3))]
    each_order = [np.cumsum(~right[list(order)]) / np.arange(1, 6) for order in orders]
    assert risk_by_coverage(confidence, right) == pytest.approx(np.mean(each_order, axis=0))


def test_coverage_counts_whole_images():
    assert [covered(10, p) for p in (1, 80, 85, 100)] == [1, 8, 9, 10]
    found = evaluation(*draw(images=1000), "abcde", {})
    probability = softmax(draw(images=1000)[0].astype(np.float64), 1)
    order = np.argsort(-probability.max(1), kind="stable")
    right = (probability.argmax(1) == draw(images=1000)[1])[order]
    assert found["metrics"]["acc_at_80"] == pytest.approx(right[:800].mean())
    assert found["metrics"]["aurc"] == pytest.approx(np.mean(np.cumsum(~right) / np.arange(1, 1001)))
    assert [p["coverage"] for p in found["risk_coverage"]] == pytest.approx(np.arange(1, 101) / 100)
    assert found["risk_coverage"][-1]["risk"] == pytest.approx(1 - found["metrics"]["acc"])
    assert len(evaluation(*draw(images=7), "abcde", {})["risk_coverage"]) == 7


def test_the_margin_is_between_the_two_best():
    assert margin(np.array([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4]])) == pytest.approx([0.2, 0])


def test_slices_count_the_images_of_each_value():
    right = np.array([True, False, True, True])
    found = slices(right, {"camera": ["b", "a", "b", ""], "patient": list("wxyz")}, most=3)
    assert [(row["value"], row["images"], row["acc"]) for row in found["camera"]] == [
        ("", 1, 1),
        ("a", 1, 0),
        ("b", 2, 1),
    ]
    assert (found["camera"][2]["acc_low"], found["camera"][2]["acc_high"]) == interval(2, 2)
    assert found["patient"] is None


def by_gradient(logits, label):
    """Temperature by L-BFGS on its logarithm: another way to the same minimum."""
    z, y = torch.from_numpy(logits).double(), torch.from_numpy(label)
    log_temperature = torch.zeros((), dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_temperature], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(z / log_temperature.exp(), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_temperature.exp().item()


@each
def test_the_temperature_has_the_least_nll(logits, label):
    found = fit_temperature(logits, label)
    assert found == pytest.approx(by_gradient(logits, label), rel=1e-5)
    assert fit_temperature(logits * 3, label) == pytest.approx(3 * found, rel=1e-5)
    least = negative_log_likelihood(logits / found, label)
    assert all(least <= negative_log_likelihood(logits / (found * f), label) for f in (0.9, 0.99, 1.01, 1.1))


def test_a_planted_temperature_is_found_and_calibrates():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20000, 6)).astype(np.float32)
    chance = softmax(logits.astype(np.float64), 1)
    label = (chance.cumsum(1) > rng.random((20000, 1))).argmax(1)
    found = calibration(logits * 2.5, label)
    assert found["temperature"] == pytest.approx(2.5, rel=0.03) and found["images"] == 20000
    assert found["ece_calibrated"] < 0.015 < 0.1 < found["ece"] and found["nll_calibrated"] < found["nll"]
    again = evaluation(logits * 2.5, label, range(6), {}, found["temperature"])
    for name in ("nll", "ece", "nll_calibrated", "ece_calibrated"):
        assert again["metrics"][name] == pytest.approx(found[name])
    assert again["reliability_calibrated"] != again["reliability"]


def test_without_a_best_temperature_there_is_none():
    right = np.array([[2.0, 1.0], [0.0, 3.0]], np.float32)
    assert fit_temperature(right, np.array([0, 1])) is None and fit_temperature(right, np.array([1, 0])) is None
    assert calibration(right, np.array([0, 1])) is None


def test_the_record_is_plain_json():
    from imgcls.runs.folder import RunFolder
    from imgcls.system.files import write_json

    run = RunFolder("run")
    write_json(run.evaluation, evaluation(*CASES["a class without image"], "abcdef", {"x": ["1"] * 400}, 2.0))
    text = run.evaluation.read_text()
    assert "NaN" not in text and json.loads(text)["classes"][5]["recall"] is None
