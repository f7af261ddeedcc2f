"""What a test leaves behind: evaluation.json, its page, the temperature, robustness against a baseline."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from imgcls.data.table import TableData
from imgcls.errors import UserError
from imgcls.evaluate.accuracy import interval
from imgcls.evaluate.calibration import fit_temperature
from imgcls.evaluate.summary import evaluation
from imgcls.evaluate.variation import lighting, size
from imgcls.images.derived import JoinedSource
from imgcls.images.sources import ArraySource
from imgcls.runs.folder import RunFolder
from imgcls.runs.temperature import temperature, write_calibration
from imgcls.training.robustness import relative_error

from .conftest import QUIET, ROOT, TINY, write_image

read = lambda name: json.loads(Path(name).read_text())  # noqa: E731
ODD = "<i>red & 'x'"


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Photos of three classes, one without a test image, with columns that know more of each."""
    root = tmp_path_factory.mktemp("table")
    rows = [["path", "label", "split", "camera", "patient"]]
    for number in range(60 + 30):
        label, part = number % 3, "train" if number < 60 else "test"
        if part == "test" and label == 2:
            continue
        # a few look like another class, or every image would be right and no temperature best
        write_image(root / f"{number}.png", label + (number % 7 == 0), seed=number)
        rows.append(
            [f"{number}.png", (ODD, "green", "blue")[label], part, ("<b>a", "", "c")[number % 5 % 3], f"p{number}"]
        )
    with open(root / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root / "t.csv"


def words_for(table: Path) -> list:
    configs = [
        w for p in ("data/table", "model/cnn", "trainer/default") for w in ("--config", ROOT / f"configs/{p}.yaml")
    ]
    tiny = ["--data.image_size=16", "--data.batch_size=8", "--trainer.max_epochs=1", "--model.backbone.depth=2"]
    return [*configs, f"--data.table={table}", *tiny, "--model.backbone.width=8", "--data.val_fraction=0.3", *QUIET]


def stored(run: str):
    with np.load(f"{run}/predictions/test.npz") as arrays:
        return arrays["logits"], arrays["label"]


@pytest.mark.slow
def test_a_table_gives_a_full_report(table, imgcls):
    code, out, err = imgcls("fit", *words_for(table), "--test_after_fit=true", "--run_dir=run")
    assert code == 0, err
    logits, label = stored("run")
    found, metrics = read("run/evaluation.json"), read("run/metrics.json")
    names = sorted(["blue", "green", ODD])
    rows = [row for row in csv.DictReader(table.read_text().splitlines()) if row["split"] == "test"]
    wanted = evaluation(logits, label, names, {k: [row[k] for row in rows] for k in ("camera", "patient")})
    assert found["metrics"] == pytest.approx(wanted["metrics"]) and found["slices"] == wanted["slices"]
    for name, value in found["metrics"].items():
        assert metrics[f"test/{name}"] == pytest.approx(value, abs=1e-6), name
    assert re.search(rf"\n nll +{metrics['test/nll']:.4f} +negative log-likelihood", out)
    assert found["classes_without_image"] == ["blue"] and found["slices"]["patient"] is not None
    right = logits.argmax(1) == label
    cameras = np.array([row["camera"] for row in rows])
    for row in found["slices"]["camera"]:
        chosen = right[cameras == row["value"]]
        assert row["images"] == len(chosen) and row["acc"] == pytest.approx(chosen.mean())
        assert (row["acc_low"], row["acc_high"]) == interval(int(chosen.sum()), len(chosen))
    page = Path("run/report.html").read_text()
    assert "&lt;b&gt;a" in page and "&lt;i&gt;red &amp; &#39;x&#39;" in page and "<b>a" not in page and ODD not in page
    assert f"95 %: {metrics['test/acc_low']:.4f} to {metrics['test/acc_high']:.4f}" in page
    assert "Without a test image, and left out of all means: blue." in page
    for figure in ("Reliability", "Risk coverage", "Least certain", "Confusion matrix"):
        assert f"{figure} (test)" in page


def test_a_page_of_many_classes_lists_the_worst_and_columns_of_many_values_are_left_out(tmp_path):
    from imgcls.pages.report import write_report
    from imgcls.system.files import write_json

    rng = np.random.default_rng(0)
    label = rng.integers(70, size=3000)
    logits = rng.normal(size=(3000, 70)).astype(np.float32)
    logits[np.arange(3000), label] += np.linspace(0, 4, 70)[label]
    run = RunFolder(tmp_path)
    columns = {"patient": [f"p{i}" for i in range(3000)], "day": [f"{i % 50}" for i in range(3000)]}
    found = evaluation(logits, label, [f"class-{k:02}" for k in range(70)], columns)
    assert found["slices"]["patient"] is None and len(found["slices"]["day"]) == 50
    write_json(run.evaluation, found)
    write_report(run)
    page = run.report.read_text()
    assert "The 50 of 70 classes with the lowest F1" in page and "Not shown: more than 50 distinct values." in page
    order = sorted(found["classes"], key=lambda row: row["f1"])
    places = [page.find(f"<td>{row['class']}</td>") for row in order]
    assert 0 < places[0] and places[:50] == sorted(places[:50]) and set(places[50:]) == {-1}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Encountered `nan` values")
def test_calibration_fits_to_validation_images_and_goes_with_the_weights(table, imgcls):
    assert imgcls("fit", *words_for(table), "--run_dir=run", "--trainer.max_epochs=6", "--model.lr=1e-2")[0] == 0
    run = RunFolder("run")
    assert temperature(run) == 1.0
    assert imgcls("validate", "--run", "run", *QUIET)[0] == 0
    with np.load("run/predictions/val.npz") as arrays:
        wanted = fit_temperature(arrays["logits"], arrays["label"])
        images = len(arrays["label"])
    code, out, err = imgcls("test", "--run", "run", "--calibrate=true", *QUIET)
    assert code == 0, err
    found, metrics = read("run/calibration.json"), read("run/metrics.json")
    assert found["temperature"] == pytest.approx(wanted, rel=1e-4) and found["images"] == images == 18
    assert temperature(run) == found["temperature"] == metrics["test/temperature"]
    logits, label = stored("run")
    probability = softmax(logits / found["temperature"], 1)
    assert metrics["test/nll_calibrated"] == pytest.approx(-np.log(probability[np.arange(len(label)), label]).mean())
    assert "ece_calibrated" in out and "reliability_calibrated" in read("run/evaluation.json")
    # a test of the same weights goes on using it; a copy of the folder is of the same weights
    assert imgcls("test", "--run", "run", *QUIET)[0] == 0
    assert read("run/metrics.json")["test/temperature"] == found["temperature"]
    shutil.copytree("run", "copy")
    assert temperature(RunFolder("copy")) == found["temperature"]
    # other weights are not calibrated, and their scores do not stay
    shutil.copy("run/checkpoints/last.ckpt", "other.ckpt")
    state = torch.load("other.ckpt", weights_only=True)
    state["state_dict"]["head.bias"] += 1
    torch.save(state, run.best)
    code, out, err = imgcls("test", "--run", "run", *QUIET)
    assert code == 0 and "not used, it was fitted to other weights" in err + out
    assert "test/temperature" not in read("run/metrics.json") and "test/nll" in read("run/metrics.json")
    assert "reliability_calibrated" not in read("run/evaluation.json") and temperature(run) == 1.0
    # nor are logits evaluated that are not finite
    state["state_dict"]["head.bias"] *= torch.nan
    torch.save(state, run.best)
    code, out, err = imgcls("test", "--run", "run", *QUIET)
    assert code == 0 and "logits are not finite" in err + out and not run.evaluation.exists()
    assert "test/acc" in read("run/metrics.json") and "test/acc_low" not in read("run/metrics.json")


def test_a_temperature_belongs_to_one_checkpoint():
    run = RunFolder("run")
    run.checkpoints.mkdir(parents=True)
    run.best.write_bytes(b"best"), run.last.write_bytes(b"last")
    write_calibration(run, run.last, {"temperature": 2.0})
    assert temperature(run) == 1.0 and temperature(run, run.last) == 2.0
    run.last.write_bytes(b"trained on")
    assert temperature(run, run.last) == 1.0
    for text, reason in (
        ("{", "is damaged"),
        ('{"hash": ""}', "is damaged"),
        ('{"temperature": -1, "hash": ""}', "positive"),
    ):
        run.calibration.write_text(text)
        with pytest.raises(UserError, match=reason):
            temperature(run)


def test_the_temperature_is_known_without_torch():
    probe = "import sys, imgcls.runs.temperature; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stderr


def test_without_validation_images_calibration_says_so(table, imgcls):
    assert imgcls("fit", *words_for(table), "--run_dir=run")[0] == 0
    words = ("--data.val_fraction=0", "--data.verify_split=false")
    code, _, err = imgcls("test", "--run", "run", "--calibrate=true", *words, *QUIET)
    assert code == 2 and "--calibrate: the data have no validation images" in err


def test_sources_keep_what_a_table_knows(table):
    data = TableData(table=str(table), image_size=16)
    data.setup("test")
    source, index = data.parts["test"]
    rows = {row["path"]: row for row in csv.DictReader(table.read_text().splitlines())}
    assert set(source.columns) == {"camera", "patient"}
    assert [source.columns["patient"][i] for i in index] == [rows[source.names[i]]["patient"] for i in index]
    joined = JoinedSource(data.open("train"), data.open("test"))
    assert [joined.columns["patient"][i] for i in (0, 59, 60)] == ["p0", "p59", "p60"]
    plain = ArraySource(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), np.zeros(2, int), "test")
    assert plain.columns == {} and JoinedSource(plain, data.open("test")).columns == {}


def test_relative_error_is_the_mean_of_ratios_of_summed_errors():
    cells = {"fog": [{"acc": 0.9}, {"acc": 0.7}], "rain": [{"acc": 0.5}, {"acc": 0.5}]}
    other = {"fog": [{"acc": 0.8}, {"acc": 0.4}], "rain": [{"acc": 0.5}, {"acc": 0.0}]}
    assert relative_error(cells, other) == pytest.approx((0.4 / 0.8 + 1.0 / 1.5) / 2)
    assert relative_error(cells, cells) == pytest.approx(1)
    assert np.isnan(relative_error(cells, {**other, "fog": [{"acc": 1.0}, {"acc": 1.0}]}))


@pytest.mark.slow
def test_robustness_against_a_baseline(imgcls, monkeypatch):
    monkeypatch.setattr("imgcls.training.robustness.VARIATIONS", (size, lighting))
    assert imgcls("fit", *TINY, "--run_dir", "base")[0] == 0
    assert imgcls("fit", *TINY, "--model.lr=3e-2", "--run_dir", "run")[0] == 0
    against = ("--robustness_baseline", "base", *QUIET)
    code, _, err = imgcls("test", "--run", "run", *against)
    assert code == 2 and "base/robustness.json: is not there; first test --run base --robustness=true" in err
    assert imgcls("test", "--run", "base", "--robustness=true", *QUIET)[0] == 0
    code, out, err = imgcls("test", "--run", "run", *against)
    assert code == 0 and "robust/relative_error" in out, err
    cells, other = (read(f"{run}/robustness.json")["variations"] for run in ("run", "base"))
    wanted = [sum(1 - c["acc"] for c in cells[k]) / sum(1 - c["acc"] for c in other[k]) for k in cells]
    assert read("run/metrics.json")["robust/relative_error"] == pytest.approx(np.mean(wanted))
    assert imgcls("test", "--run", "base", *against)[0] == 0
    assert read("base/metrics.json")["robust/relative_error"] == pytest.approx(1)
    assert "baseline" not in Path("run/config.yaml").read_text()
    # without a baseline the number goes
    assert imgcls("test", "--run", "run", "--robustness=true", *QUIET)[0] == 0
    assert "robust/relative_error" not in read("run/metrics.json")
    split = ("--data.split_seed=1", "--data.test_fraction=0.2", "--data.verify_split=false")
    other_images = read("base/robustness.json") | {"images": "0" * 16}
    Path("base/robustness.json").write_text(json.dumps(other_images))
    code, _, err = imgcls("test", "--run", "run", *against, *split)
    assert code == 2 and "--robustness_baseline base: was tested on other images" in err
    Path("base/robustness.json").write_text(json.dumps({"severities": [1], "variations": {}}))
    assert "is of an earlier version" in imgcls("test", "--run", "run", *against)[2]


@pytest.mark.slow
def test_two_processes_report_and_calibrate_as_one(imgcls):
    assert imgcls("fit", *TINY, "--run_dir", "run")[0] == 0
    assert imgcls("test", "--run", "run", "--calibrate=true", *QUIET)[0] == 0
    alone = [read(f"run/{name}.json") for name in ("evaluation", "calibration")]
    command = [sys.executable, "-m", "imgcls", "test", "--run", "run", "--calibrate=true", *QUIET]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--data.batch_size=37"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    together = [read(f"run/{name}.json") for name in ("evaluation", "calibration")]
    assert together[0]["metrics"] == pytest.approx(alone[0]["metrics"], rel=1e-4)
    assert together[1]["temperature"] == pytest.approx(alone[1]["temperature"], rel=1e-4)
    assert together[1]["images"] == alone[1]["images"]
