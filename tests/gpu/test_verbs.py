"""Every verb that computes, end to end on the device."""

import csv
import json
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from imgcls.deploy.formats import run_onnx
from imgcls.runs.load import load_data, load_run

from ..conftest import ROOT, write_image
from .conftest import TOY, words

pytestmark = pytest.mark.gpu
ON = f"--trainer.accelerator={'cpu' if TOY else 'gpu'}"
SHORT = ("--rounds=1", "--steps=3")


def rows(path) -> list[dict[str, str]]:
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def test_fit_learns_and_says_where(run):
    metrics, environment = json.loads((run / "metrics.json").read_text()), (run / "environment.json").read_text()
    assert metrics["test/acc"] > (0.1 if TOY else 0.65)
    assert TOY or torch.cuda.get_device_name() in environment


@pytest.mark.slow
def test_test_calibrates_and_is_robust(imgcls, run):
    code, _, err = imgcls("test", "--run", run, "--calibrate=true", "--robustness=true", ON)
    assert code == 0, err
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 < metrics["robust/acc"] <= 1
    assert json.loads((run / "calibration.json").read_text())["temperature"] > 0


def test_validate_repeats_what_training_found(imgcls, run):
    best = max(float(row["acc"]) for row in rows(run / "metrics.csv") if row["split"] == "val")
    code, out, err = imgcls("validate", "--run", run, ON)
    assert code == 0 and f"{best:.3f}" in out, out + err


def test_predict_repeats_the_test(imgcls, run):
    code, _, err = imgcls("predict", "--run", run, "--out", "p.csv", ON)
    assert code == 0, err
    predicted, tested = rows("p.csv"), rows(run / "predictions/test.csv")
    names = load_run(run).class_names
    assert [names.index(row["prediction"]) for row in predicted] == [int(row["prediction"]) for row in tested]


def test_explain_draws(imgcls, run):
    code, _, err = imgcls("explain", "--run", run, "--count=2", "--out", "pictures", ON)
    assert code == 0, err
    assert any(Path("pictures").glob("*.png"))


def test_annotate_chooses(imgcls, run):
    for number in range(20):
        write_image(Path(f"pile/{number}.png"), number, seed=number)
    code, out, err = imgcls("annotate", "--run", run, "--data.root=pile", "--count=5", "--out=a", ON)
    assert code == 0, err
    assert out.startswith("chosen: 5 of 20 images\n") and len({row["path"] for row in rows("a/annotate.csv")}) == 5


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("onnxscript"), reason="needs onnxscript")
def test_the_exported_file_answers_as_the_device(imgcls, run, device, exact):
    code, _, err = imgcls("export", "--run", run, "--out", "m.onnx", "--count=16")
    assert code == 0, err
    data = load_data(run)
    data.setup("test")
    images = next(iter(data.test_dataloader()))["image"][:16].numpy()
    theirs = np.asarray(run_onnx(Path("m.onnx").read_bytes())(images))
    ours = load_run(run, device).predict(list(images[:, 0])).probability
    assert np.abs(theirs - ours).max() < 1e-3


@pytest.mark.parametrize("verb", ["preview", "find_lr"])
def test_pictures_come_out(verb, imgcls):
    steps = ["--steps=20"] if verb == "find_lr" else []
    code, _, err = imgcls(verb, *words(), "--out=p.png", *steps)
    assert code == 0, err
    assert Path("p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_audit_reads_the_run(imgcls, run):
    code, _, err = imgcls("audit", *words("--out=a", "--runs", f"[{run}]"))
    assert code == 0, err
    assert Path("a/audit.html").stat().st_size > 1000 and json.loads(Path("a/audit.json").read_text())


def test_benchmark_times_the_device(imgcls, device):
    code, _, err = imgcls("benchmark", *words(*SHORT, "--json=b.json"))
    assert code == 0, err
    found = json.loads(Path("b.json").read_text())
    assert found["device"].startswith(device.type) and found["stages"]["whole trainer"]["images_per_second"] > 0


def arm(path: Path, lr: float) -> None:
    """A config of the smallest run: what `words` says, as a file."""
    given = [word.removeprefix("--").split("=") for word in words() if "=" in word]
    tree: dict = {"model": {"lr": lr}}
    for key, value in given:
        *sections, last = key.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = yaml.safe_load(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# An arm.\nbase: [{ROOT}/experiments/demo.yaml]\n{yaml.safe_dump(tree)}")


@pytest.fixture
def elsewhere(monkeypatch):
    """Verbs that start fits as processes find the package from any folder."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.slow
def test_an_experiment_is_run_and_compared(imgcls, elsewhere):
    for name, lr in {"low": 1e-6, "high": 1e-2}.items():
        arm(Path(f"experiments/rates/{name}.yaml"), lr)
    question = 'question = "Is a rate needed?"\nseeds = [0]\nbaseline = "low"\n'
    Path("experiments/rates/question.toml").write_text(question)
    code, out, err = imgcls("experiment", "experiments/rates", "--jobs=2")
    assert code == 0 and "high" in out, out + err
    code, out, err = imgcls("compare", "runs/rates", "--json=c.json", "--out=c.html")
    assert code == 0 and len(json.loads(Path("c.json").read_text())["groups"]) == 2, err
    code, out, err = imgcls("answers", "experiments/rates")
    assert code == 0 and "Is a rate needed?" in Path("answers.md").read_text(), err


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("optuna"), reason="needs Optuna")
def test_a_sweep_finds_the_best(imgcls, elsewhere):
    arm(Path("arm.yaml"), 1e-3)
    sweep = {
        "program": "imgcls",
        "method": "random",
        "metric": {"name": "val/acc", "goal": "maximize"},
        "command": ["${interpreter}", "-m", "imgcls", "fit", "--config", "arm.yaml", "${args}"],
        "parameters": {"model.lr": {"values": [1e-3, 1e-2]}},
    }
    Path("sweep.yaml").write_text(yaml.safe_dump(sweep))
    code, _, err = imgcls("sweep", "sweep.yaml", "--count=1", "--out=found")
    assert code == 0, err
    assert yaml.safe_load(Path("found/best.yaml").read_text())["model"]["lr"] in (1e-3, 1e-2)
