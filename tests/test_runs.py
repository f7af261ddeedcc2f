import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix as sklearn_confusion

from imgcls.evaluate.confusion import confusion_matrix
from imgcls.evaluate.figures import confusion_figure, save
from imgcls.pages.report import write_report
from imgcls.runs.folder import RunFolder
from imgcls.runs.predictions import Predictions
from imgcls.runs.record import add_metrics, add_summary, best_row, read_metrics
from imgcls.system.files import write_json


def test_confusion_matrix_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 5, 200), rng.integers(0, 4, 200)
    assert np.array_equal(confusion_matrix(label, prediction, 5), sklearn_confusion(label, prediction, labels=range(5)))


def test_worst_mistakes_are_wrong_and_most_confident_first():
    logits = np.log([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    assert Predictions(logits, np.array([1, 0, 0, 0]), np.arange(4)).worst_mistakes(2).tolist() == [0, 1]
    assert Predictions(logits, logits.argmax(1), np.arange(4)).worst_mistakes(2).tolist() == []


def test_softmax_holds_for_large_logits():
    found = Predictions(np.array([[1000.0, 1000.0, -1000.0]]), np.zeros(1, int), np.zeros(1, int)).probability
    np.testing.assert_allclose(found, [[0.5, 0.5, 0.0]])


def test_metrics_keep_one_row_per_epoch_and_split(tmp_path):
    run = RunFolder(tmp_path)
    for epoch, accuracy in enumerate([0.1, 0.9, 0.9]):
        add_metrics(run, {"val/acc": accuracy, "val/loss": 1.0}, epoch, 10 * epoch)
        add_metrics(run, {"train/acc": accuracy}, epoch, 10 * epoch)
    add_metrics(run, {"val/acc": 0.5, "val/new": 2.0}, 1, 10)  # epoch 1 is run again: what followed never was
    rows = read_metrics(run)
    assert [(r["epoch"], r["acc"]) for r in rows if r["split"] == "val"] == [("0", "0.1"), ("1", "0.5")]
    assert [r["new"] for r in rows if r["split"] == "val"] == ["", "2.0"]
    assert best_row(rows, "val/acc", "max")["epoch"] == "1" and best_row(rows, "val/acc", "min")["epoch"] == "0"
    assert best_row(rows, "val/none", "max") is None
    tied = [{"split": "val", "epoch": str(e), "acc": a} for e, a in enumerate(["0.8", "0.9", "0.9", "0.7"])]
    assert best_row(tied, "val/acc", "max")["epoch"] == "2"


def test_a_summary_is_valid_json_even_when_training_failed(tmp_path):
    run = RunFolder(tmp_path)
    add_summary(run, {"val/loss": float("nan"), "fit/epochs": 2})
    add_summary(run, {"val/acc": 0.5})
    assert json.loads(run.metrics_json.read_text()) == {"val/loss": None, "fit/epochs": 2, "val/acc": 0.5}


def test_prediction_tables_quote_what_data_brings(tmp_path):
    path = tmp_path / "p.csv"
    Predictions(np.array([[2.0, 1.0]]), np.array([1]), np.array([0])).write(path, ['a, "b".png'], ["x,y", "z"])
    assert path.read_text().splitlines()[1] == '0,"a, ""b"".png",1,0,0.731059,z,"x,y"'


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "$\\frac{", "größe & co"])
def test_names_from_data_are_only_text_in_pages_and_figures(tmp_path, name):
    run = RunFolder(tmp_path)
    add_metrics(run, {"val/acc": 0.5, "val/loss": 0.5}, 0, 1)
    add_summary(run, {"val/acc": 0.5})
    write_json(run.environment, {"data": {"class_names": [name, "b"]}})
    run.config.write_text(f"name: {name}\n")
    pixels = save(confusion_figure(np.eye(2, dtype=int), [name, "b"]), run.figures / "val_confusion_matrix.png")
    assert pixels.dtype == np.uint8 and pixels.shape[-1] == 3
    write_report(run)
    page = run.report.read_text()
    assert "<script" not in page and ("&lt;script&gt;" in page) == ("script" in name)
