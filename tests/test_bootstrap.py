"""Comparisons by metrics that are no mean over images: against scikit-learn on resamples, and on planted runs."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn import metrics as sk

from imgcls.evaluate.resampled import mean, mean_average_precision, quadratic_weighted_kappa
from imgcls.runs.folder import RunFolder
from imgcls.runs.predictions import Predictions
from imgcls.runs.run import find_runs
from imgcls.science import bootstrap
from imgcls.science.bootstrap import RESAMPLES, chance_of_images, compare_resampled, resample
from imgcls.science.comparison import compare, higher_is_better
from imgcls.science.groups import group_runs
from imgcls.science.planning import outlook
from imgcls.science.resampling import compare_splits, image_by_image
from imgcls.science.statistics import compare_images, compare_scores, verdict
from imgcls.tasks import find


def several_labels(rng: np.random.Generator, images: int = 80, labels: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits with ties, and labels of which one is rare and one is never there."""
    label = rng.random((images, labels)) < np.linspace(0.0, 0.6, labels)
    label[0, 1] = True
    return np.round(rng.normal(size=label.shape) + label, 1), label.astype(np.int8)


def weights_of(rng: np.random.Generator, images: int, count: int = 40) -> np.ndarray:
    return rng.multinomial(images, np.full(images, 1 / images), count).T.astype(np.int16)


def test_mean_average_precision_is_that_of_scikit_learn_on_explicit_resamples():
    rng = np.random.default_rng(0)
    logits, label = several_labels(rng)
    assert len(np.unique(logits[:, 2])) < 60 and not label[:, 0].any(), "ties, and a label that is never there"
    weights = np.hstack([np.ones((80, 1), np.int16), weights_of(rng, 80)])
    for value, chosen in zip(mean_average_precision(logits, label)(weights), weights.T, strict=True):
        drawn = np.repeat(np.arange(80), chosen)
        there = label[drawn].any(0)
        assert value == pytest.approx(sk.average_precision_score(label[drawn][:, there], logits[drawn][:, there]))
        one_by_one = [
            sk.average_precision_score(label[:, k], logits[:, k], sample_weight=chosen) for k in np.flatnonzero(there)
        ]
        assert value == pytest.approx(np.mean(one_by_one))


@pytest.mark.parametrize("labels", [1, 4])
def test_without_a_positive_there_is_no_average_precision(labels):
    weights = np.array([[1, 2, 0], [1, 0, 1], [1, 1, 2]], np.int16)
    nothing = np.zeros((3, labels), np.int8)
    assert np.isnan(mean_average_precision(np.zeros((3, labels)), nothing)(weights)).all()
    nothing[0, 0] = 1  # which the last resample lacks
    found = mean_average_precision(np.zeros((3, labels)), nothing)(weights)
    assert found[:2] == pytest.approx([1 / 3, 2 / 3]) and math.isnan(found[2]), "all tied: precision is prevalence"


def test_kappa_and_absolute_error_are_scikit_learns_on_explicit_resamples():
    rng = np.random.default_rng(1)
    label = rng.choice([0, 1, 2, 4], 60)  # a class without an image
    prediction = np.clip(label + rng.integers(-1, 3, 60), 0, 4)
    weights = weights_of(rng, 60)
    kappa = quadratic_weighted_kappa(prediction, label)(weights)
    error = mean(np.abs(prediction - label))(weights)
    for k, chosen in enumerate(weights.T):
        drawn = np.repeat(np.arange(60), chosen)
        assert kappa[k] == pytest.approx(sk.cohen_kappa_score(label[drawn], prediction[drawn], weights="quadratic"))
        assert error[k] == pytest.approx(sk.mean_absolute_error(label[drawn], prediction[drawn]))
    constant = np.zeros(60, np.int64)
    assert np.isnan(quadratic_weighted_kappa(constant, constant)(weights)).all(), "no chance to agree beyond"


def test_of_no_image_there_is_no_metric():
    """As when a resample has none of a fold's images."""
    value = np.array([0, 1, 2])
    for metric_of in (
        mean(value),
        quadratic_weighted_kappa(value, value),
        mean_average_precision(value[:, None], np.ones((3, 1))),
    ):
        assert metric_of(np.array([[0, 1], [0, 1], [0, 1]], np.int16)) == pytest.approx([np.nan, 1.0], nan_ok=True)


def test_all_metrics_are_resampled_alike_and_as_often(monkeypatch):
    value = np.random.default_rng(2).normal(size=50)
    resampled = resample(mean(value), 50)
    assert len(resampled) == RESAMPLES and np.array_equal(resampled, resample(mean(value), 50))
    assert np.allclose(resample(mean(2 * value + 1), 50), 2 * resampled + 1)
    assert resampled.std() == pytest.approx(value.std() / math.sqrt(50), rel=0.1)
    monkeypatch.setattr(bootstrap, "WEIGHTS_AT_ONCE", 50 * 7)  # as if there were more than fit at once
    assert np.allclose(resample(mean(value), 50), resampled)


def right(rng: np.random.Generator, seeds: int, images: int = 400, shift: float = 0.0) -> np.ndarray:
    ease = np.random.default_rng(99).normal(1.5, 1.5, images)
    noisy = ease + shift + rng.normal(0, 0.2, (seeds, 1)) + rng.normal(0, 0.5, (seeds, images))
    return rng.random(noisy.shape) < 1 / (1 + np.exp(-noisy))


@pytest.mark.parametrize("seeds, paired", [((5, 5), False), ((5, 5), True), ((3, 4), False), ((1, 4), False)])
def test_of_accuracies_it_is_the_test_of_accuracies(seeds, paired):
    rng = np.random.default_rng(3)
    for _ in range(5):
        group, base = (right(rng, count, shift=shift) for count, shift in zip(seeds, (0.3, 0.0), strict=True))
        exact = compare_images(group, base, paired)
        found = compare_resampled([*map(mean, group)], [*map(mean, base)], 400, paired)
        assert found.difference.value == pytest.approx(exact.difference.value) and found.method == exact.method
        assert found.difference.high - found.difference.low == pytest.approx(
            exact.difference.high - exact.difference.low, rel=0.1
        )
        assert found.p_value == pytest.approx(exact.p_value, rel=0.35, abs=0.01)
        parts = [(c.design.of_seeds, c.design.of_images, c.design.of_both) for c in (found, exact)]
        assert np.allclose(*parts, rtol=0.15, atol=0.1 * exact.design.variance)
        assert found.design.images == 400
        assert outlook(found).detectable == pytest.approx(outlook(exact).detectable, rel=0.1)


def test_one_model_of_each_has_percentiles():
    rng = np.random.default_rng(4)
    value = rng.normal(0.1, 1, 300)
    nothing = mean(np.zeros(300))
    found = compare_resampled([mean(value)], [nothing], 300)
    drawn = [value[rng.integers(300, size=300)].mean() for _ in range(4000)]
    assert (found.difference.low, found.difference.high) == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.02)
    assert found.p_value == pytest.approx(
        2 * min(np.mean(np.array(drawn) <= 0), np.mean(np.array(drawn) >= 0)), abs=0.02
    )
    assert not found.of_seeds and outlook(found) is None and "these two models" in verdict(found, 0.01)
    assert compare_resampled([mean(value)], [mean(value)], 300).p_value == 1.0, "the same model"
    assert compare_resampled([mean(value + 9)], [nothing], 300).p_value == pytest.approx(2 / (RESAMPLES + 1))


def planted(rng: np.random.Generator, seeds: int, images: int, spread: float):
    """Two groups that are equal but for chance: what images, seeds, and both together do to logits of two labels."""
    label = rng.random((images, 2)) < 0.25
    ease = rng.normal(size=label.shape) + rng.normal(0, 0.5, (2, 1, *label.shape))  # for both methods, and for each
    signal = 1.5 * label * (1 + rng.normal(0, spread, (2, seeds, 1, 1)))
    logits = signal + ease + rng.normal(0, 0.5, (2, seeds, *label.shape))
    return [[mean_average_precision(run, label) for run in group] for group in logits]


@pytest.mark.parametrize("seeds", [1, 3, 5])
def test_equal_groups_are_as_often_called_different_as_is_said(seeds):
    rng = np.random.default_rng(seeds)
    spread = 0.0 if seeds == 1 else 0.05  # one seed speaks of the two models, whose luck is part of them
    p_values = np.array([compare_resampled(*planted(rng, seeds, 100, spread), 100).p_value for _ in range(200)])
    # 5 and 50 % are expected; bounds are some three standard errors off, where the truth is a little below
    assert np.mean(p_values < 0.05) <= 0.10
    assert 0.33 <= np.mean(p_values < 0.5) <= 0.61


def test_a_metric_that_few_resamples_have_is_compared_by_scores():
    label = np.zeros((40, 1), np.int8)
    label[0] = 1  # 0.63 of the resamples have it
    rng = np.random.default_rng(5)
    runs = [[mean_average_precision(rng.normal(size=(40, 1)), label) for _ in range(3)] for _ in range(2)]
    assert compare_resampled(*runs, 40).design.images == 40
    nothing = [lambda weights: np.where(weights[0] == 2, 1.0, np.nan) for _ in range(3)]
    assert math.isnan(compare_resampled(nothing, nothing, 40).p_value)
    seldom = [
        lambda weights, k=k: np.where((weights[0] == 2) | (weights == 1).all(0), float(k), np.nan) for k in range(3)
    ]
    assert compare_resampled(seldom, seldom[:2], 40) == compare_scores([0.0, 1.0, 2.0], [0.0, 1.0])
    assert chance_of_images([np.arange(40)], [(seldom, [])]) is None
    one = [[mean(np.array([value])) for value in side] for side in ((1.0, 0.0), (0.0, 0.0))]
    assert compare_resampled(*one, 1) == compare_scores([1.0, 0.0], [0.0, 0.0])


def test_of_accuracies_splits_are_those_of_accuracies():
    rng = np.random.default_rng(6)
    order = np.concatenate([rng.permutation(300) for _ in range(2)])  # each image is tested twice
    indices = order.reshape(10, 60)
    ours, theirs = right(rng, 2, 300, 0.4), right(rng, 2, 300)
    exact = image_by_image([(index, ours[:, index].mean(0) - theirs[:, index].mean(0)) for index in indices])
    found = chance_of_images(
        indices, [([mean(r[index]) for r in ours], [mean(r[index]) for r in theirs]) for index in indices]
    )
    assert found.images == exact.images == 300
    assert found.of_mean == pytest.approx(exact.of_mean, rel=0.12)
    assert found.of_splits.mean() == pytest.approx(exact.of_splits.mean(), rel=0.12)
    scores = [ours[:, index].mean() - theirs[:, index].mean() for index in indices]
    p_values = [compare_splits(scores, np.zeros(10), 1 / 4, images).p_value for images in (found, exact)]
    assert p_values[0] == pytest.approx(p_values[1], rel=0.3)
    one_side = chance_of_images(indices, [([mean(r[index]) for r in ours], []) for index in indices])
    assert one_side.of_mean == pytest.approx(ours.mean(0).var() / 300, rel=0.12)


# ---- runs on disk ----


def of_kind(folder: Path, task: str) -> list:
    """The groups below a folder, as if their labels were of a kind."""
    for path in folder.rglob("environment.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({"data": record["data"] | {"task": task}}))
    return group_runs(find_runs([str(folder)]))


def write_run(folder: Path, prediction: np.ndarray, label: np.ndarray, index: np.ndarray, seed: int, **options) -> None:
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    data = {"class_path": "imgcls.data.sample.SampleData", "init_args": {"fold": options.pop("fold", None)}}
    run.config.write_text(yaml.safe_dump({"seed_everything": seed, "data": data, "model": options}))
    logits, names = np.eye(5, dtype=np.float32)[prediction], [f"{i}.png" for i in range(1000)]
    Predictions(logits, label, index, find("ordered")).write(run.predictions / "test.csv", names, list("abcde"))
    kappa = sk.cohen_kappa_score(label, prediction, weights="quadratic")
    scores = {"test/qwk": kappa, "test/mae": float(np.abs(prediction - label).mean())}
    run.metrics_json.write_text(json.dumps(scores))
    record = {"data": "abc", "test": str(index[0]), "images": {"train": 4 * len(label), "test": len(label)}}
    run.environment.write_text(json.dumps({"data": record}))


@pytest.fixture
def grades(tmp_path) -> Path:
    """Ordered classes of 250 images, tested in five folds, and all in one: a better model and a worse one."""
    rng = np.random.default_rng(7)
    label = rng.integers(0, 5, 250)
    for lr, spread in ((0.1, 1.2), (0.2, 0.7)):
        for seed in range(3):
            prediction = np.clip(np.round(label + spread * rng.normal(size=250)), 0, 4).astype(int)
            write_run(tmp_path / f"all/{lr}-{seed}", prediction, label, np.arange(250), seed, lr=lr)
            for fold, index in enumerate(np.split(np.arange(250), 5)):
                path = tmp_path / f"folds/{lr}-{seed}-{fold}"
                write_run(path, prediction[index], label[index], index, seed, lr=lr, fold=fold)
    return tmp_path


@pytest.mark.parametrize("metric, sign", [("test/qwk", 1), ("test/mae", -1)])
def test_runs_are_compared_by_their_predictions(grades, metric, sign):
    kinds = "single_label", "ordered"
    scores, known = (compare(of_kind(grades / "all", kind), metric, None)["groups"][1] for kind in kinds)
    assert known["method"] == "t-test over seeds and test images" and scores["method"] == "Welch's t-test over seeds"
    assert known["difference"]["value"] == pytest.approx(scores["difference"]["value"])
    assert sign * known["difference"]["value"] > 0 and known["verdict"] == "better"
    for path in (grades / "all").rglob("environment.json"):
        path.write_text(path.read_text().replace("abc", str(path.parent)))
    found = compare(group_runs(find_runs([str(grades / "all")])), metric, None)
    assert found["groups"][1]["p_value"] == scores["p_value"]
    assert any("no test predictions in common" in note for note in found["notes"])


def test_folds_are_compared_by_their_predictions(grades):
    groups = of_kind(grades / "folds", "single_label")
    scores = compare(groups, "test/qwk", None)["groups"]
    known = compare(of_kind(grades / "folds", "ordered"), "test/qwk", None)["groups"]
    assert known[1]["method"] == "t-test over test images and 5 splits" and known[1]["verdict"] == "better"
    assert scores[1]["method"] == "corrected resampled t-test over 5 splits"
    assert known[1]["difference"]["value"] == pytest.approx(scores[1]["difference"]["value"])
    width = {
        name: rows[1]["difference"]["high"] - rows[1]["difference"]["low"]
        for name, rows in (("k", known), ("s", scores))
    }
    assert 0.3 * width["s"] < width["k"] < 1.5 * width["s"]
    assert known[0]["mean"]["low"] < known[0]["mean"]["value"] < known[0]["mean"]["high"]
    # by hand: all images of the folds at once, each with its three predictions
    runs = sorted(groups[0].runs, key=lambda run: run.folder.path.name)
    shutil.rmtree(runs[0].folder.predictions)
    without = compare(group_runs(find_runs([str(grades / "folds")])), "test/qwk", None)["groups"][1]
    assert without["p_value"] == scores[1]["p_value"]


@pytest.mark.parametrize("metric, higher", [("test/map", True), ("test/qwk", True), ("test/mae", False),
                                            ("elsewhere/hamming", False), ("test/acc", True)])  # fmt: skip
def test_what_is_better_is_known_by_name(metric, higher):
    assert higher_is_better(metric) == higher
