"""Images with several labels each, or none, from a table to every page and file that comes of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sk

import imgcls as package
from imgcls.evaluate.multilabel import best_cuts

from .conftest import QUIET, ROOT

COLORS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230), "rare": (220, 200, 40)}
FILES = ("data/table", "augment/none", "model/cnn", "finetune/full", "trainer/default")
PARTS = {"train": 100, "val": 30, "test": 30}


def write_pictures(root: Path) -> Path:
    """Coloured squares on grey, a class for each colour, one of them rare; a table with a row for each picture."""
    rng = np.random.default_rng(0)
    rows = []
    for part, count in PARTS.items():
        for number in range(count):
            classes = [name for name in COLORS if (number % 25 == 7 if name == "rare" else rng.random() < 0.5)]
            pixels = rng.normal(128, 20, (24, 24, 3))
            for place, name in zip(rng.permutation(4), classes, strict=False):
                pixels[place // 2 * 12 :, place % 2 * 12 :][:12, :12] = rng.normal(COLORS[name], 20, (12, 12, 3))
            path = root / f"{part}-{number}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
            rows.append((path.name, "|".join(classes), part))
    with open(root / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *rows])
    return root / "table.csv"


def words_for(table: Path, epochs: int = 4) -> list:
    words = [word for name in FILES for word in ("--config", ROOT / f"configs/{name}.yaml")]
    words += [f"--data.table={table}", "--data.label_separator=|", "--data.image_size=16", "--data.batch_size=16"]
    words += ["--model.backbone.width=8", "--model.backbone.depth=2", "--model.lr=0.02", "--trainer.accelerator=cpu"]
    return [*words, f"--trainer.max_epochs={epochs}", "--test_after_fit=true", *QUIET]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """The table, and the folder of a calibrated run."""
    from imgcls.__main__ import main

    root = tmp_path_factory.mktemp("several")
    table = write_pictures(root)
    run = root / "run"
    assert main([str(w) for w in ["fit", *words_for(table), "--run_dir", run, "--calibrate=true"]]) == 0
    return table, run


def arrays(run: Path, part: str) -> dict[str, np.ndarray]:
    with np.load(run / f"predictions/{part}.npz") as found:
        return dict(found)


def kept_cut(run: Path) -> np.ndarray:
    """What the run's best checkpoint compares logits with."""
    return torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]["cut"].numpy()


def test_cuts_are_chosen_on_validation_images_alone_and_travel(trained):
    _, run = trained
    val, test = arrays(run, "val"), arrays(run, "test")
    wanted = best_cuts(val["logits"], val["label"]).astype(np.float32)
    assert np.any(wanted) and np.array_equal(kept_cut(run), wanted) and np.array_equal(test["cut"], wanted)
    loaded = package.load(run)
    found = loaded.predict([run.parent / f"test-{number}.png" for number in range(PARTS["test"])])
    decided = test["logits"] > wanted
    assert found.class_names == ["|".join(np.array(loaded.class_names)[of]) for of in decided]
    scaled = test["logits"].astype(np.float64) / json.loads((run / "calibration.json").read_text())["temperature"]
    assert found.probability == pytest.approx(1 / (1 + np.exp(-scaled)), abs=1e-4)


def test_figures_are_those_of_scikit_learn(trained):
    _, run = trained
    test, found = arrays(run, "test"), json.loads((run / "evaluation.json").read_text())
    label, logits, decided = test["label"], test["logits"], test["logits"] > test["cut"]
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    wanted = {
        "acc": sk.accuracy_score(label, decided),
        "hamming": sk.hamming_loss(label, decided),
        "map": sk.average_precision_score(label, logits),
        "map_micro": sk.average_precision_score(label, logits, average="micro"),
        "auroc": sk.roc_auc_score(label, logits),
        "f1": sk.f1_score(label, decided, average="macro", zero_division=0),
        "f1_micro": sk.f1_score(label, decided, average="micro"),
        "precision_micro": sk.precision_score(label, decided, average="micro"),
        "recall_micro": sk.recall_score(label, decided, average="micro"),
        "brier": np.square(probability - label).mean(),
        "nll": np.mean([sk.log_loss(y, p) for y, p in zip(label.T, probability.T, strict=True)]),
    }
    assert found["metrics"] == pytest.approx({**found["metrics"], **wanted}, abs=1e-6)
    metrics = json.loads((run / "metrics.json").read_text())
    assert {name: metrics[f"test/{name}"] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    of_val = arrays(run, "val")
    assert metrics["val/map"] == pytest.approx(sk.average_precision_score(of_val["label"], of_val["logits"]), abs=1e-6)


def test_the_report_shows_classes_of_unequal_size(trained):
    _, run = trained
    page = (run / "report.html").read_text()
    evaluation = json.loads((run / "evaluation.json").read_text())
    by_size = {row["shots"]: row for row in evaluation["shots"]}
    assert by_size["few"]["classes"] == 1 and by_size["medium"]["classes"] == 3
    table = page[page.index("By the number of training images") :]
    for size, row in by_size.items():
        assert f"<td>{size}</td><td>{row['classes']}</td><td>{row['images']}</td><td>{row['map']:.4f}</td>" in table
    assert "<!-- mAP -->" in page  # the curve's title


def test_images_are_sorted_into_the_folders_of_all_their_classes(trained, imgcls):
    _, run = trained
    words = ["--run", run, f"--data.root={run.parent}/test-*.png", *QUIET]
    code, out, err = imgcls("predict", *words, "--sort_into", "sorted", "--out", "table.csv")
    assert code == 0 and f"sorted: {PARTS['test']} images" in out, err
    with open("table.csv") as file:
        rows = {Path(row["path"]).name: row["prediction"] for row in csv.DictReader(file)}
    assert any("|" in of for of in rows.values())
    found = {(path.name, path.parent.name) for path in Path("sorted").rglob("*.png")}
    assert found == {(name, folder) for name, of in rows.items() for folder in of.split("|") if folder} | {
        (name, "none") for name, of in rows.items() if not of
    }


def test_other_images_are_tested_as_images_with_several_labels(trained, imgcls):
    """A table like the run's own, but for an image that has moved and is of a class that the run does not know."""
    table, run = trained
    with open(table) as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    with open(table.parent / "other.csv", "w", newline="") as file:
        pairs = [(row["path"], row["label"]) for row in rows]
        csv.writer(file).writerows([("path", "label"), *pairs[1:], (pairs[0][0], "red|zebra")])
    other = [f"--data.table={table.parent / 'other.csv'}", *QUIET]
    code, _, err = imgcls("test", "--run", run, *other)
    assert code == 2 and "zebra (1) is no class of the run" in err.splitlines()[-1]
    code, _, err = imgcls("test", "--run", run, *other, "--unknown_classes=leave_out")
    assert code == 0, err
    own, found = arrays(run, "test"), arrays(run / "evaluations/other", "test")
    assert np.array_equal(found["label"], own["label"][1:])
    assert found["logits"] == pytest.approx(own["logits"][1:], abs=1e-4)


def test_averaged_weights_have_the_cuts_that_are_best_for_them(trained, imgcls):
    table, _ = trained
    config = ROOT / "configs/trainer/ema.yaml"
    code, _, err = imgcls("fit", *words_for(table, 3), "--config", config, "--run_dir=run")
    assert code == 0, err
    val = arrays(Path("run"), "val")
    wanted = best_cuts(val["logits"], val["label"]).astype(np.float32)
    assert np.any(wanted) and np.array_equal(kept_cut(Path("run")), wanted)
