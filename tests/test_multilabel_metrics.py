"""Scores where an image has several labels: every one against scikit-learn or a computation by hand."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from sklearn import metrics as sk

from imgcls.evaluate import multilabel
from imgcls.evaluate.accuracy import interval
from imgcls.evaluate.multilabel import (
    average_precision,
    best_cuts,
    bootstrap,
    by_label,
    calibration,
    evaluation,
    fit_temperature,
    negative_log_likelihood,
)
from imgcls.evaluate.multilabel_scores import MultilabelScores

from .conftest import ROOT


def draw(images=300, labels=4, seed=0, decimals=None, share=(0.05, 0.5)):
    rng = np.random.default_rng(seed)
    label = (rng.random((images, labels)) < rng.uniform(*share, labels)).astype(np.int8)
    logits = rng.normal(-1, 1.5, (images, labels)) + 2 * label
    return (logits if decimals is None else logits.round(decimals)).astype(np.float32), label


def with_column(logits, label, column, value):
    changed = label.copy()
    changed[:, column] = value
    return logits, changed


CASES = {
    "four labels": draw(),
    "one label": draw(labels=1),
    "ties": draw(decimals=0),
    "a label never there": with_column(*draw(seed=1), 2, 0),
    "a label on all images": with_column(*draw(seed=2), 1, 1),
    "mostly images without labels": draw(share=(0.01, 0.1), seed=3),
}
each = pytest.mark.parametrize(("logits", "label"), CASES.values(), ids=CASES)


def of_decisions(label, decided):
    """Precision, recall and F1 of one label, by scikit-learn."""
    return [of[0] for of in sk.precision_recall_fscore_support(label, decided, labels=[1], zero_division=0)[:3]]


def by_scikit_learn(logits, label, cut):
    """Scores of all labels together; macro ones over the labels that have an image, and an image without for AUROC."""
    decided, there = logits > cut, np.flatnonzero(label.any(0))
    names = "precision", "recall", "f1"
    macro = [of_decisions(label[:, k], decided[:, k]) for k in there] or [[math.nan] * 3]
    micro = of_decisions(label.ravel(), decided.ravel()) if len(there) else [math.nan] * 3
    areas = [sk.roc_auc_score(label[:, k], logits[:, k]) for k in there if not label[:, k].all()]
    probability = expit(logits.astype(np.float64))
    return {
        "map": np.mean([sk.average_precision_score(label[:, k], logits[:, k]) for k in there] or [math.nan]),
        "auroc": np.mean(areas or [math.nan]),
        **dict(zip(names, np.mean(macro, axis=0), strict=True)),
        **dict(zip((f"{name}_micro" for name in names), micro, strict=True)),
        "hamming": sk.hamming_loss(label.ravel(), decided.ravel()),
        "nll": sk.log_loss(label.ravel(), probability.ravel(), labels=[0, 1]),
        "brier": np.square(probability - label).mean(),
        "ece": np.mean([ece(probability[:, k], label[:, k]) for k in range(label.shape[1])]),
    }


@each
def test_scores_are_those_of_scikit_learn(logits, label):
    cut = np.linspace(-1, 0.5, label.shape[1])
    found = evaluation(logits, label, list("abcd"[: len(cut)]), {}, cut)
    got, probability = found["metrics"], expit(logits.astype(np.float64))
    wanted = by_scikit_learn(logits, label, cut)
    assert {name: got[name] for name in wanted} == pytest.approx(wanted)
    assert got["acc"] == pytest.approx(((logits > cut) == label).all(1).mean())
    assert (got["acc_low"], got["acc_high"]) == interval(round(got["acc"] * len(label)), len(label))
    assert got["map_micro"] == pytest.approx(sk.average_precision_score(label.ravel(), logits.ravel()))
    assert got["nll"] == pytest.approx(sk.log_loss(label.ravel(), probability.ravel(), labels=[0, 1]))
    assert got["brier"] == pytest.approx(sk.brier_score_loss(label.ravel(), probability.ravel(), pos_label=1))
    assert found["classes_without_image"] == [
        name for k, name in enumerate("abcd"[: len(cut)]) if not label[:, k].any()
    ]
    for k, row in enumerate(found["classes"]):
        own, decided = label[:, k], logits[:, k] > cut[k]
        counts = (row["images"], row["predicted"], row["right"])
        assert counts == (own.sum(), decided.sum(), (own & decided).sum()) and all(type(n) is int for n in counts)
        assert row["threshold"] == pytest.approx(expit(cut[k])) and row["hamming"] == pytest.approx(
            (own != decided).mean()
        )
        scores = [row[name] for name in ("precision", "recall", "f1", "ap", "ap_low", "ap_high", "auroc")]
        if not own.any():
            assert all(math.isnan(score) for score in scores)
            continue
        assert scores[:3] == pytest.approx(of_decisions(own, decided))
        assert row["ap"] == pytest.approx(sk.average_precision_score(own, logits[:, k]))
        assert row["ap_low"] <= row["ap"] <= row["ap_high"] and math.isnan(row["auroc"]) == own.all()


def test_average_precision_by_hand():
    score = np.array([4.0, 3, 3, 2, 1])
    positive = np.array([True, False, True, False, True])
    assert average_precision(score, positive) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    assert average_precision(np.zeros(4), np.array([True, False, False, False])) == 0.25
    assert average_precision(score, np.ones(5, bool)) == 1
    assert math.isnan(average_precision(score, np.zeros(5, bool))) and math.isnan(
        average_precision(score[:0], positive[:0])
    )


def test_a_label_that_is_never_decided_on_has_precision_0_and_one_without_an_image_has_none():
    logits, label = CASES["a label never there"]
    found = by_label(logits, label, np.full(4, 100.0))
    assert np.isnan(found["precision"][2]) and found["precision"][[0, 1, 3]].tolist() == [0, 0, 0]
    assert found["hamming"] == pytest.approx(label.mean(0)) and not np.isnan(found["ece"]).any()


def every_cut(logits, label):
    """The best F1 of each label over cuts below, between and above all logits; the slow way."""
    best = []
    for z, own in zip(logits.T.astype(np.float64), label.T, strict=True):
        values = np.unique(z)
        cuts = [values[0] - 1, *((values[1:] + values[:-1]) / 2), values[-1] + 1]
        best.append(max(sk.f1_score(own, z > cut, zero_division=0) for cut in cuts))
    return best


@each
def test_cuts_have_the_best_f1(logits, label):
    logits, label = logits[:60], label[:60]
    cut = best_cuts(logits, label)
    reached = [sk.f1_score(label[:, k], logits[:, k] > cut[k], zero_division=0) for k in range(len(cut))]
    best = np.array(every_cut(logits, label))
    told = best >= 0.2
    assert np.array(reached)[told] == pytest.approx(best[told], abs=1e-12)
    assert (cut[~told] == 0).all()


def test_cuts_by_hand():
    def cut(logits, label):
        return best_cuts(np.array([*logits], np.float32)[:, None], np.array(label)[:, None]).tolist()

    assert cut([-3, -2, 1, 2], [0, 0, 1, 1]) == [-0.5]  # midway between the two
    assert cut([4, 2, 0, -2], [1, 0, 1, 0]) == [-1]  # F1 of 2/3, 1/2, 4/5, 2/3 below each
    # 2/3, 1/2, 2/5, 2/3 below each: of two that are equally good, the one nearest 0
    assert cut([3, 2, 1, 0], [1, 0, 0, 1]) == [-1] and cut([1.5, 1, 0, -5], [1, 0, 0, 1]) == [1.25]
    assert cut([3, 2, 1, 0, -1, -2, -3], [0, 0, 0, 0, 0, 0, 1]) == [-4]  # 1/4 for all
    assert cut(range(9, -1, -1), [0] * 9 + [1]) == [0]  # 2/11 for all: better none than nearly all
    assert cut([-4, -5], [1, 1]) == [-6] and cut([4, 5], [1, 1]) == [0]  # all of them
    assert cut([1, 1], [1, 0]) == [0] and cut([2], [1]) == [0] and cut([-2], [1]) == [-3]
    assert best_cuts(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int8)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("case", ["ties", "mostly images without labels", "one label", "a label on all images"])
def test_intervals_are_those_of_explicit_resamples(case, monkeypatch):
    """The same draws, each image repeated as often as it was drawn, scored one resample after the other."""
    monkeypatch.setattr(multilabel, "RESAMPLES", 80)
    monkeypatch.setattr(multilabel, "FEWEST_RESAMPLES", 80)
    logits, label = (of[:30] for of in CASES[case])
    cut, images = np.full(label.shape[1], -0.3), len(label)
    found = bootstrap(logits, label, cut)
    drawn = np.random.default_rng(0).integers(images, size=(images, 80)).T
    scores = [by_scikit_learn(logits[of], label[of], cut) for of in drawn]
    for name in scores[0]:
        values = [of[name] for of in scores]
        wanted = np.nanpercentile(values, [2.5, 97.5])
        if name in ("map", "ece"):
            wanted = np.clip(wanted - 2 * (np.nanmean(values) - by_scikit_learn(logits, label, cut)[name]), 0, 1)
        assert found[name] == pytest.approx(wanted, abs=1e-6), name
    of_labels = found.pop("of_labels")
    assert found.keys() == scores[0].keys()
    assert of_labels.keys() == {"ap", "auroc", "precision", "recall", "f1", "ece"}
    for k in range(label.shape[1]):
        alone = [by_scikit_learn(logits[of, k : k + 1], label[of, k : k + 1], cut[k : k + 1]) for of in drawn]
        whole = by_scikit_learn(logits[:, k : k + 1], label[:, k : k + 1], cut[k : k + 1])
        for name, of in of_labels.items():
            values = np.array([one["map" if name == "ap" else name] for one in alone])
            if np.isnan(values).all():
                assert np.isnan(of[:, k]).all()
                continue
            wanted = np.nanpercentile(values, [2.5, 97.5])
            if name == "ece":
                wanted = np.clip(wanted - 2 * (values.mean() - whole["ece"]), 0, 1)
            assert of[:, k] == pytest.approx(wanted, abs=1e-6), name


def test_there_are_fewer_resamples_of_many_labels_and_they_come_in_parts():
    for (images, labels), count in {(5000, 20): 1000, (50000, 80): 250, (3000, 10**6): 200}.items():
        parts = list(multilabel._resamples(images, labels))
        assert sum(part.shape[1] for part in parts) == count
        assert all(part.size <= 2**22 and (part.sum(0) == images).all() for part in parts)
    first, second = (np.concatenate(list(multilabel._resamples(50, 2)), 1) for _ in range(2))
    assert np.array_equal(first, second) and len(np.unique(first, axis=1).T) == 1000
    assert first.var() == pytest.approx(1 - 1 / 50, rel=0.02)  # that of a multinomial distribution


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of 60 samples of 300 images, against what 200,000 images give."""
    share = np.array([0.1, 0.2, 0.4])

    def sample(images, seed):
        rng = np.random.default_rng(seed)
        label = (rng.random((images, 3)) < share).astype(np.int8)
        return (rng.normal(-1.5, 1.5, (images, 3)) + 2 * label).astype(np.float32), label

    cut = np.zeros(3)
    truth = by_scikit_learn(*sample(200_000, 0), cut)
    found = [bootstrap(*sample(300, seed), cut) for seed in range(1, 61)]
    for name, value in truth.items():
        inside = sum(of[name][0] <= value <= of[name][1] for of in found)
        assert (42 if name == "ece" else 50) <= inside <= 60, name  # chance makes calibration errors larger
        assert np.mean([np.ptp(of[name]) for of in found]) < 0.2, name


def test_the_interval_of_a_mean_over_rare_labels_holds_the_truth():
    """Of ten labels with about five images each: percentiles alone hold it in 3 of 30 sets."""

    def sample(images, seed):
        rng = np.random.default_rng(seed)
        label = (rng.random((images, 10)) < 0.02).astype(np.int8)
        return (rng.normal(size=(images, 10)) + label).astype(np.float32), label

    truth = np.mean(
        [sk.average_precision_score(of, z) for z, of in zip(*(a.T for a in sample(200_000, 0)), strict=True)]
    )
    found = [bootstrap(*sample(250, seed), np.zeros(10))["map"] for seed in range(1, 31)]
    assert sum(low <= truth <= high for low, high in found) >= 25


def test_the_confidence_of_an_image_is_the_least_of_its_decisions():
    probability = np.array([[0.7, 0.3], [0.99, 0.4], [0.4, 0.05]])
    label = np.array([[1, 0], [1, 1], [0, 0]], np.int8)
    found = evaluation(logit(probability), label, "ab", {"site": ["x", "y", "y"]}, logit(np.array([0.3, 0.5])))
    # a is decided on each time, also where it is not likely, and b never: confidence 0.7, 0.6, 0.4; the first is right
    assert found["metrics"]["acc"] == pytest.approx(1 / 3)
    assert [row["risk"] for row in found["risk_coverage"]] == pytest.approx([0, 1 / 2, 2 / 3])
    assert [(row["value"], row["images"], row["acc"]) for row in found["slices"]["site"]] == [("x", 1, 1), ("y", 2, 0)]


def ece(probability, label, bins=15):
    """Of one label, bin by bin."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [abs((probability[place == b] - label[place == b]).sum()) for b in range(bins)]
    return sum(gaps) / len(label)


@each
def test_the_calibration_error_is_the_mean_of_each_labels_own(logits, label):
    probability = expit(logits.astype(np.float64))
    found = evaluation(logits, label, range(label.shape[1]), {}, np.zeros(label.shape[1]))
    wanted = [ece(probability[:, k], label[:, k]) for k in range(label.shape[1])]
    assert [row["ece"] for row in found["classes"]] == pytest.approx(wanted, abs=1e-7)
    assert found["metrics"]["ece"] == pytest.approx(np.mean(wanted), abs=1e-7)
    assert sum(row["images"] for row in found["reliability"]) == label.size
    last = found["reliability"][-1]
    pooled = probability >= 14 / 15
    assert last["images"] == pooled.sum() and (
        not pooled.any() or last["accuracy"] == pytest.approx(label[pooled].mean())
    )


@each
def test_the_temperature_has_the_least_nll(logits, label):
    found = fit_temperature(logits, label)
    assert fit_temperature(logits * 3, label) == pytest.approx(3 * found, rel=1e-5)
    z, y = torch.from_numpy(logits).double(), torch.from_numpy(label).double()
    inverse = torch.tensor(1 / found, dtype=torch.double, requires_grad=True)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(z * inverse, y)
    loss.backward()
    assert inverse.grad.item() == pytest.approx(0, abs=1e-7)
    assert negative_log_likelihood(logits / found, label) == pytest.approx(loss.item())


def test_a_planted_temperature_is_found_and_changes_no_decision():
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 2, (8000, 5)).astype(np.float32)
    label = (rng.random(logits.shape) < expit(logits)).astype(np.int8)
    found = calibration(logits * 2.5, label)
    assert found["temperature"] == pytest.approx(2.5, rel=0.03) and found["images"] == 8000
    assert found["ece_calibrated"] < 0.02 < 0.05 < found["ece"] and found["nll_calibrated"] < found["nll"]
    cut = np.linspace(-2, 2, 5)
    with_it, without = (evaluation(logits * 2.5, label, "abcde", {}, cut, t) for t in (found["temperature"], 1.0))
    assert {name: with_it["metrics"][name] for name in without["metrics"]} == without["metrics"]
    for name in ("temperature", "nll", "ece", "nll_calibrated", "ece_calibrated"):
        assert with_it["metrics"][name] == pytest.approx(found[name])
    assert with_it["reliability_calibrated"] != with_it["reliability"] and "reliability_calibrated" not in without
    threshold = [row["threshold"] for row in with_it["classes"]]
    assert threshold == pytest.approx(expit(cut / found["temperature"]))


def test_without_a_best_temperature_there_is_none():
    right = np.array([[2.0, -1.0], [-3.0, 3.0]], np.float32)
    assert fit_temperature(right, (right > 0).astype(np.int8)) is None
    assert fit_temperature(right, (right < 0).astype(np.int8)) is None
    assert calibration(right, (right > 0).astype(np.int8)) is None


def test_log_likelihoods_of_extreme_logits_are_finite():
    logits = np.array([[1000.0, -1000.0]], np.float32)
    assert negative_log_likelihood(logits, np.array([[1, 0]])) == 0
    assert negative_log_likelihood(logits, np.array([[0, 0]])) == 500


def test_scores_of_labels_by_their_number_of_training_images():
    logits, label = draw(labels=5)
    label[:, 4] = 0
    found = evaluation(logits, label, "abcde", {}, np.zeros(5), class_counts=[500, 200, 50, 19, 1])
    classes, rows = found["classes"], found["shots"]
    assert [(row["shots"], row["classes"]) for row in rows] == [("many", 2), ("medium", 1), ("few", 2)]
    assert rows[0]["images"] == label[:, :2].any(1).sum()
    assert rows[0]["map"] == pytest.approx((classes[0]["ap"] + classes[1]["ap"]) / 2)
    assert rows[2]["f1"] == pytest.approx(classes[3]["f1"]) and found["metrics"]["map_few"] == rows[2]["map"]
    rare = with_column(*with_column(logits, label, 3, 0), 4, 0)
    found = evaluation(*rare, "abcde", {}, np.zeros(5), class_counts=[500, 200, 50, 19, 1])
    assert [row["shots"] for row in found["shots"]] == ["many", "medium"] and "map_few" not in found["metrics"]
    assert evaluation(logits, label, "abcde", {}, np.zeros(5), class_counts=[5] * 5)["shots"] == []


@pytest.mark.parametrize("label", [[[0]], [[1]], [[0, 0]], [[1, 0]], [[1, 1]]])
def test_one_image_is_enough(label):
    label = np.array(label, np.int8)
    found = evaluation(
        np.full(label.shape, 0.5, np.float32), label, range(label.shape[1]), {}, np.zeros(label.shape[1])
    )
    metrics = found["metrics"]
    assert metrics["hamming"] == metrics["hamming_low"] == metrics["hamming_high"] == (label == 0).mean()
    assert metrics["map"] == pytest.approx(1 if label.any() else math.nan, nan_ok=True)
    assert math.isnan(metrics["auroc"]) and metrics["acc"] == label.all()


def test_the_record_is_plain_json_with_the_keys_that_pages_read():
    from imgcls.evaluate.summary import evaluation as of_one_label
    from imgcls.runs.folder import RunFolder
    from imgcls.system.files import write_json

    run, columns, counts = RunFolder("run"), {"x": ["1"] * 300}, [9, 300, 4, 1]
    logits, label = CASES["a label never there"]
    found = evaluation(logits, label, "abcd", columns, np.zeros(4), 2.0, counts)
    write_json(run.evaluation, found)
    text = run.evaluation.read_text()
    assert "NaN" not in text and json.loads(text)["classes"][2]["ap"] is None
    other = of_one_label(logits, label.argmax(1), "abcd", columns, 2.0, counts)
    assert found.keys() == other.keys() and other["classes"][0].keys() <= found["classes"][0].keys()
    for table in ("reliability", "reliability_calibrated", "risk_coverage"):
        assert found[table][0].keys() == other[table][0].keys()


# ---- while training ----


def collected(logits, label, parts=7, cut=None):
    scores = MultilabelScores(label.shape[1], "val")
    for part in np.array_split(np.arange(len(label)), parts):
        z, y = torch.from_numpy(logits[part]), torch.from_numpy(label[part]).float()
        scores.update(z, y, torch.nn.functional.binary_cross_entropy_with_logits(z, y))
    return scores, {name: value.item() for name, value in scores.collect(cut).items()}


@each
def test_scores_logged_while_testing_are_the_same(logits, label):
    """Also where torchmetrics alone takes the logits of a batch for probabilities."""
    for z in (logits, logits * 20, (logits - logits.min()) / np.ptp(logits)):
        best = best_cuts(z, label).astype(np.float32)
        for given in (None, np.zeros_like(best)):
            cut = best if given is None else given
            scores, logged = collected(z, label, cut=None if given is None else torch.from_numpy(given))
            found = evaluation(z, label, range(label.shape[1]), {}, cut)["metrics"]
            wanted = {"val/loss": found["nll"], **{f"val/{name}": found[name] for name in ("acc", "map", "f1", "ece")}}
            assert logged == pytest.approx(wanted, rel=1e-5)
            assert np.array_equal(scores.best_cut().numpy(), cut)


def test_an_epoch_starts_from_nothing_and_its_cuts_stay_till_the_next_is_collected():
    scores, _ = collected(*CASES["four labels"])
    first = scores.best_cut()
    logits, label = draw(50, seed=9)
    scores.update(torch.from_numpy(logits), torch.from_numpy(label).float(), torch.tensor(1.0))
    assert torch.equal(scores.best_cut(), first) and not scores.state_dict()
    best = best_cuts(logits, label).astype(np.float32)
    assert scores.collect()["val/acc"].item() == pytest.approx(((logits > best) == label).all(1).mean())
    assert np.array_equal(scores.best_cut().numpy(), best)
    assert MultilabelScores(3, "val").best_cut().tolist() == [0, 0, 0]


def test_scores_without_any_positive_are_nan():
    logits, label = draw(20)
    _, logged = collected(logits, np.zeros_like(label), 1)
    assert math.isnan(logged["val/map"]) and math.isnan(logged["val/f1"]) and logged["val/ece"] > 0


PROCESS = """
import sys, torch
from imgcls.evaluate.multilabel_scores import MultilabelScores
from tests.test_multilabel_metrics import draw

rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
logits, label = (torch.from_numpy(of)[rank * 100 : 100 + rank * 37] for of in draw(137))
scores = MultilabelScores(4, "val")
scores.update(logits, label.float(), torch.nn.functional.binary_cross_entropy_with_logits(logits, label.float()))
print({name: value.item() for name, value in scores.collect().items()}, scores.best_cut().tolist())
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_collect_what_one_does(tmp_path):
    """Shares of 100 and 37 images."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [[sys.executable, "-c", PROCESS, str(rank), str(tmp_path / "meeting")] for rank in (0, 1)]
    started = [subprocess.Popen(of, stdout=subprocess.PIPE, text=True, env=environment) for of in words]
    said = [process.communicate(timeout=120)[0] for process in started]
    scores, logged = collected(*draw(137), parts=1)
    expected = {name: pytest.approx(value, rel=1e-6) for name, value in logged.items()}
    for line in said:
        found, _, cuts = line.strip().rpartition(" [")
        assert json.loads(found.replace("'", '"')) == expected
        assert json.loads(f"[{cuts}") == pytest.approx(scores.best_cut().tolist())
