"""Graded images end to end: fitted, tested on their own and on other images, exported, and shown."""

import csv
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk

from imgcls.data.folder import FolderData
from imgcls.data.long_tail import LongTail
from imgcls.data.shards import ShardData
from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.runs.load import load_run
from imgcls.runs.predictions import read_predictions

from .conftest import QUIET, ROOT, TINY
from .test_shards import packed

GRADES = ["none", "mild", "moderate", "severe"]
ORDER = f"--data.ordered=[{','.join(GRADES)}]"


def graded(root: Path, names: list[str], images: int = 20, seed: int = 0) -> Path:
    """Noise that is brighter the higher the grade, with overlap."""
    rng = np.random.default_rng(seed)
    for name in names:
        level = 60 + 40 * GRADES.index(name) if name in GRADES else 60
        (root / name).mkdir(parents=True)
        for k in range(images):
            pixels = rng.normal(rng.normal(level, 25), 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k:02d}.png")
    return root


@pytest.fixture
def words(tmp_path) -> list[str]:
    root = graded(tmp_path / "photos", GRADES)
    configs = "data/folder", "loss/cumulative_link"
    said = [*map(str, TINY), *(w for name in configs for w in ("--config", str(ROOT / f"configs/{name}.yaml")))]
    return [*said, f"--data.root={root}", ORDER, "--data.image_size=16", "--data.batch_size=16", *QUIET]


def columns(path: Path, names: list[str]) -> np.ndarray:
    with open(path, newline="") as file:
        return np.array([[float(row[name]) for name in names] for row in csv.DictReader(file)])


def test_a_run_of_grades_from_images_to_an_exported_file(words, tmp_path, imgcls):
    run = RunFolder(tmp_path / "run")
    options = ["--run_dir", str(run.path), "--test_after_fit=true", "--checkpoint.monitor=val/qwk"]
    code, out, err = imgcls("fit", *words, *options, "--data.test_fraction=0.3")
    assert code == 0, err
    assert "none < mild < moderate < severe" in out + err and "quadratic weighted kappa" in out

    # the figures are those of scikit-learn
    predicted = read_predictions(run.predictions / "test.npz")
    prediction, label = predicted.logits.argmax(1), predicted.label
    scores = json.loads(run.evaluation.read_text())["metrics"]
    assert scores["mae"] == pytest.approx(sk.mean_absolute_error(label, prediction))
    assert scores["qwk"] == pytest.approx(sk.cohen_kappa_score(label, prediction, weights="quadratic"))
    assert scores["within_one"] == pytest.approx((np.abs(prediction - label) <= 1).mean())

    # the logits are those of the link, by its formula
    loaded = load_run(run.path)
    loaded.model.eval()
    with torch.no_grad():
        image = torch.rand(5, 3, 16, 16)
        z = loaded.model.head(loaded.model.features(image)).double().numpy()
        logits = loaded.model.logits(image).numpy()
    odds = z[:, :1] - np.cumsum(np.log1p(np.exp(np.c_[np.full(5, -np.inf), z[:, 1:-1]])), 1)
    edges = np.c_[np.ones(5), 1 / (1 + np.exp(-odds)), np.zeros(5)]
    np.testing.assert_allclose(np.exp(logits), -np.diff(edges, axis=1), atol=1e-6)

    # an exported file gives the probabilities that `predict` writes
    assert imgcls("predict", "--run", run.path, f"--data.root={tmp_path}/photos/severe", *QUIET)[0] == 0
    assert imgcls("export", "--run", run.path)[0] == 0
    paths = sorted((tmp_path / "photos/severe").iterdir())
    pixels = np.stack([np.asarray(Image.open(path)).transpose(2, 0, 1) for path in paths])
    found = onnxruntime.InferenceSession(run.path / "model.onnx").run(None, {"image": pixels})[0]
    np.testing.assert_allclose(found, columns(run.predictions / "predict.csv", GRADES), atol=2e-6)

    page, card = run.report.read_text(), (run.path / "model.md").read_text()
    for name in ("mae", "qwk", "within_one"):
        assert f"<div>test/{name}<b>{scores[name]:.4f}</b>95 %: {scores[f'{name}_low']:.4f}" in page
        assert f"| test/{name} | {scores[name]:.4f} | {loaded.model.task.meaning[name]} |" in card
    assert "those of mae and qwk" in page.lower()


def test_other_images_are_graded_in_the_order_of_the_run(words, tmp_path, imgcls):
    """Of fewer grades, which their folders name in the order of the alphabet."""
    run = RunFolder(tmp_path / "run")
    assert imgcls("fit", *words, "--run_dir", str(run.path))[0] == 0
    other = graded(tmp_path / "other", ["severe", "none", "mild"], 6, seed=1)
    found = []
    for name, order in (("a", []), ("b", ["--data.ordered=[severe,mild,none]"])):
        code, _, err = imgcls("test", "--run", run.path, f"--data.root={other}", f"--name={name}", *order, *QUIET)
        assert code == 0, err
        predicted = read_predictions(run.evaluation_on(name).predictions / "test.npz")
        assert predicted.task.name == "ordered" and sorted(predicted.label) == [0] * 6 + [1] * 6 + [3] * 6
        found.append(json.loads(run.evaluation_on(name).evaluation.read_text())["metrics"])
        mae = sk.mean_absolute_error(predicted.label, predicted.logits.argmax(1))
        assert found[-1]["mae"] == pytest.approx(mae)
    assert found[0] == pytest.approx(found[1])


def test_numbers_name_classes_on_a_command_line(tmp_path, imgcls):
    root = graded(tmp_path / "photos", ["0", "1", "2"], 10)
    config = ROOT / "configs/data/folder.yaml"
    words = [*map(str, TINY), "--config", config, f"--data.root={root}", "--data.image_size=16", *QUIET]
    code, out, err = imgcls("fit", *words, "--data.ordered=[2,1,0]", "--dry_run=true")
    assert code == 0 and "from the lowest: 2 < 1 < 0" in out + err


def test_what_yaml_reads_otherwise_is_told(tmp_path):
    root = graded(tmp_path / "photos", ["no", "01", "yes"], 2)
    with pytest.raises(UserError, match=r"it lacks 01, no and it has what .* False, 1; .* in quotes where YAML"):
        FolderData(root=str(root), ordered=[False, 1, "yes"])
    assert FolderData(root=str(root), ordered=["no", "01", "yes"]).class_names == ["no", "01", "yes"]


def test_classes_that_were_numbered_without_an_order_get_none_afterwards(tmp_path):
    """A pack, and what a long tail is made of, have numbers by the alphabet."""
    root = graded(tmp_path / "photos", GRADES)
    pack = packed(FolderData(root=str(root), num_workers=0))
    for options in ({"ordered": True}, {"task": "ordered"}):
        with pytest.raises(UserError, match="mild, moderate, none, severe, do not tell their order"):
            ShardData(root=pack, **options)
    with pytest.raises(UserError, match="these data number their classes themselves, mild < moderate < none < severe"):
        ShardData(root=pack, ordered=GRADES)
    assert ShardData(root=pack, ordered=sorted(GRADES)).task == "ordered"
    with pytest.raises(UserError, match=r"--data.ordered True: LongTail .* give it to that one, --data.data.ordered"):
        LongTail(FolderData(root=str(root)), ordered=True)
    tail = LongTail(FolderData(root=str(root), ordered=GRADES), imbalance=5)
    assert (tail.task, tail.class_names) == ("ordered", GRADES)
