"""A run is tested on labelled images from elsewhere."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from imgcls.runs.folder import RunFolder
from imgcls.runs.predictions import read_predictions
from imgcls.runs.run import Run

from .conftest import QUIET, ROOT, TINY, write_image

CLASSES = {"red fox": 0, "grüner Frosch": 1, "blue bird": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos):
    """A tested and calibrated run on photos that differ by colour."""
    from imgcls.__main__ import main

    folder = tmp_path_factory.mktemp("elsewhere") / "run"
    words = [*map(str, TINY), "--config", str(ROOT / "configs/data/folder.yaml"), f"--data.root={photos}"]
    words += ["--data.image_size=16", "--data.batch_size=16", "--run_dir", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        patch.setattr(sys, "argv", ["imgcls"])
        patch.delenv("IMGCLS_RUN_DIR", raising=False)
        assert main(["fit", *words, "--calibrate=true", "--test_after_fit=true"]) == 0
        patch.delenv("IMGCLS_RUN_DIR", raising=False)
    return RunFolder(folder)


def write_set(root: Path, names: list[str], count: int = 4) -> Path:
    for name in names:
        for k in range(count):
            write_image(root / name / f"{k}.png", CLASSES.get(name.rpartition("/")[2], 3), seed=100 + k)
    return root


def contents(run: RunFolder) -> dict[str, bytes]:
    kept = [run.metrics_json, run.report, run.evaluation, run.calibration, run.environment]
    return {path.name: path.read_bytes() for path in [*kept, *sorted(run.predictions.iterdir())]}


@pytest.mark.parametrize("parts", [("",), ("Test/",), ("Train/", "Test/")])
def test_all_images_are_tested_against_the_runs_classes(run, tmp_path, imgcls, parts):
    """Fewer classes, in another order, whatever the part; the run's own results stay."""
    before = contents(run)
    root = write_set(tmp_path / "outdoor", [f"{part}{name}" for part in parts for name in ("red fox", "blue bird")])
    name = f"set-{len(parts)}{parts[0].strip('/')}"
    code, out, err = imgcls("test", "--run", run.path, f"--data.root={root}", f"--name={name}", *QUIET)
    assert code == 0, err
    found = run.evaluation_on(name)
    assert str(found.path) in out and found.report.is_file() and found.evaluation.is_file()
    predicted = read_predictions(found.predictions / "test.npz")
    assert predicted.logits.shape == (8 * len(parts), 3)
    with open(found.predictions / "test.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert all(row["label_name"] == Path(row["path"]).parent.name for row in rows)
    assert json.loads(found.evaluation.read_text())["metrics"]["ece_calibrated"] >= 0
    assert contents(run) == before
    again = Run(run)
    assert again.metrics[f"{name}/acc"] == (predicted.logits.argmax(1) == predicted.label).mean()
    assert imgcls("compare", run.path, "--metric", f"{name}/acc", "--out", "page.html")[0] == 0
    assert "the page shows no images" not in out


def test_a_table_has_its_own_class_of_data_and_a_name(run, tmp_path, imgcls):
    root = write_set(tmp_path / "more", ["blue bird"])
    rows = "".join(f"more/{path.parent.name}/{path.name},{path.parent.name}\n" for path in sorted(root.rglob("*.png")))
    (tmp_path / "lab.csv").write_text("file,label\n" + rows)
    words = ("--data.table=lab.csv", "--data.path_column=file", "--data.batch_size=3")
    code, _, err = imgcls("test", "--run", run.path, *words, *QUIET)
    assert code == 0, err
    assert len(read_predictions(run.evaluation_on("lab").predictions / "test.npz").label) == 4
    config = ("--config", ROOT / "configs/data/table.yaml", "--data.table=lab.csv", "--data.path_column", "file")
    assert imgcls("test", "--run", run.path, *config, *QUIET)[0] == 0  # the same images, the same name
    write_set(tmp_path / "more", ["red fox"])
    (tmp_path / "lab.csv").write_text("file,label\n" + rows + "more/red fox/0.png,red fox\n")
    code, _, err = imgcls("test", "--run", run.path, *words, *QUIET)
    assert code == 2 and "holds the results of other images" in err and "--name" in err


def test_unknown_classes(run, tmp_path, imgcls):
    root = write_set(tmp_path / "zoo", ["red fox", "blue brid"])
    words = ("test", "--run", run.path, f"--data.root={root}", *QUIET)
    code, _, err = imgcls(*words)
    assert code == 2 and "blue brid (1) is no class of the run (did you mean 'blue bird'?)" in err
    assert not run.evaluation_on("zoo").path.exists()
    assert imgcls(*words, "--unknown_classes=leave_out", "--name=out")[0] == 0
    assert imgcls(*words, "--unknown_classes=mistake")[0] == 0
    metrics = Run(run).metrics
    assert metrics["zoo/unknown_images"] == 4 and "out/unknown_images" not in metrics
    assert metrics["zoo/acc"] == metrics["out/acc"]
    assert metrics["zoo/acc_with_unknown"] == pytest.approx(metrics["zoo/acc"] * 4 / 8)


def test_images_that_were_trained_on_are_named(run, tmp_path, imgcls, photos, messages):
    root = write_set(tmp_path / "leaky", ["red fox"])
    with open(run.predictions / "val.csv", newline="", encoding="utf-8") as file:
        seen = next(csv.DictReader(file))["path"]
    with open(run.predictions / "test.csv", newline="", encoding="utf-8") as file:
        tested = next(row["path"] for row in csv.DictReader(file) if row["path"].startswith("red fox"))
    shutil.copy(photos / seen, root / "red fox" / "copy.png")
    shutil.copy(photos / tested, root / "red fox" / "fresh.png")
    assert imgcls("test", "--run", run.path, f"--data.root={root}", *QUIET)[0] == 0
    assert "1 of 6 images were trained or validated on" in messages.text and "red fox/copy.png" in messages.text
    listing = (run.evaluation_on("leaky").path / "trained_on.csv").read_text()
    assert listing.splitlines()[1:] == [f"val,red fox/copy.png,{seen}"]


def test_the_runs_own_data_at_another_place_is_its_test_part(run, tmp_path, imgcls, photos, messages):
    before = np.load(run.predictions / "test.npz")["index"]
    shutil.copytree(photos, tmp_path / "moved")
    code, out, _ = imgcls("test", "--run", run.path, f"--data.root={tmp_path / 'moved'}", *QUIET)
    assert code == 0 and "the run's own data, at another place" in messages.text
    assert f"run: {run.path}\n" in out and not run.evaluation_on("moved").path.exists()
    assert np.array_equal(np.load(run.predictions / "test.npz")["index"], before)


@pytest.mark.parametrize(
    "words, message",
    [
        (("--data.root=nowhere",), "--data.root nowhere: there is no such folder"),
        (("--data.table=nowhere.csv",), "--data.table nowhere.csv: there is no such file"),
        (("--data.root=.", "--data.rooot=x"), "rooot"),
        (("--data.root=set", "--name=val"), "--name val"),
        (("--data.root=set", "--name=../x"), "--name ../x"),
        (("--name=val",), "--name val: goes with other data"),
    ],
)
def test_mistakes_are_named(run, tmp_path, imgcls, words, message):
    write_set(tmp_path / "set", ["red fox"])
    code, _, err = imgcls("test", "--run", run.path, *words, *QUIET)
    assert code == 2 and message in err and len(err.strip().splitlines()[-1]) > 10
