"""What would go wrong is said before the first step."""

import re
from pathlib import Path

import pytest

from .conftest import QUIET, ROOT, TINY, write_image

FOLDER = ("--config", ROOT / "configs/data/folder.yaml", "--data.image_size=16", "--data.batch_size=8")


@pytest.fixture
def root(tmp_path) -> Path:
    """Two classes; the official test part has a broken image, and the training part another, and an empty class."""
    for part, count in {"train": 8, "val": 4, "test": 4}.items():
        for label, name in enumerate("ab"):
            for k in range(count):
                write_image(tmp_path / "data" / part / name / f"{k}.png", label, seed=k)
    return tmp_path / "data"


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("option", ["--test_after_fit=true", "--dry_run=true"])
def test_all_parts_and_empty_folders_are_named_at_once(root, tmp_path, imgcls, option):
    (root / "train/c").mkdir()
    write_image(root / "test/d/1.png", 0)
    broken = [root / "train/a/3.png", root / "val/b/1.png", root / "test/a/2.png"]
    for path in broken:
        spoil(path)
    code, _, err = imgcls("fit", *TINY, *FOLDER, f"--data.root={root}", "--run_dir=run", option)
    line = err.strip().splitlines()[-1]
    assert code == 2 and "2 folders cannot be used and 3 of 32 images cannot be read" in line
    assert all(f"{path.parent.parent.name}/{path.parent.name}/{path.name} (" in line for path in broken)
    assert "train/c (holds no images" in line and "test/d (is no class of the training images" in line
    assert not (tmp_path / "run/metrics.csv").exists()


def test_without_a_test_its_images_are_not_looked_at(root, imgcls):
    spoil(root / "test/a/2.png")
    words = (f"--data.root={root}", "--run_dir=run", "--test_after_fit=false")
    assert imgcls("fit", *TINY, *FOLDER, *words)[0] == 0
    code, _, err = imgcls("test", "--run=run", *QUIET)
    assert code == 2 and "test/a/2.png: cannot be read as an image" in err


def test_what_is_skipped_is_listed_once(root, tmp_path, imgcls):
    spoil(root / "test/a/2.png")
    write_image(root / "test/d/1.png", 0)
    words = ("--test_after_fit=true", "--data.on_error=skip")
    assert imgcls("fit", *TINY, *FOLDER, f"--data.root={root}", "--run_dir=run", *words)[0] == 0
    rows = (tmp_path / "run/skipped.csv").read_text().splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [["test", "test/a/2.png"], ["test", "test/d/1.png"]]


@pytest.mark.parametrize("finetune", ["full", "gradual", "logistic_probe"])
def test_a_dry_run_says_what_would_be_done_and_leaves_nothing(root, tmp_path, imgcls, finetune):
    before = files(tmp_path)
    config = ("--config", ROOT / f"configs/finetune/{finetune}.yaml")
    words = ("--trainer.max_epochs=5", "--trainer.limit_train_batches=1.0", "--dry_run=true")
    code, out, err = imgcls("fit", *TINY, *FOLDER, *config, f"--data.root={root}", *words)
    assert code == 0, err
    said = {line.partition(" ")[0]: line for line in out.splitlines()}
    assert "train 16, val 8, test 8 images; classes a, b (2)" in said["data"]
    assert finetune == "logistic_probe" or "5 epochs, 10 batches of 8 images, on cpu" in said["training"]
    trained, total = (int(re.search(rf"{how} ([\d,]+)|([\d,]+) {how}", said["model"])[k].replace(",", ""))
                      for how, k in (("trains", 1), ("parameters", 2)))  # fmt: skip
    assert 0 < trained <= total and (trained == total) == (finetune != "logistic_probe")
    assert {"one", "time", "memory", "image"} <= said.keys()
    assert files(tmp_path) == before


def test_a_dry_run_finds_what_a_training_would(imgcls, root):
    code, _, err = imgcls("fit", *TINY, *FOLDER, f"--data.root={root}", "--dry_run=true", "--trainer.max_epochs=-1")
    assert code == 2 and "--trainer.max_epochs: give a number" in err


def test_no_test_images(imgcls, root):
    for part in ("train", "test"):
        (root / part).rename(root / f"{part}-of-before")
    (root / "val").rename(root / "classes")
    words = (*TINY, *FOLDER, f"--data.root={root / 'classes'}", "--data.test_fraction=0", "--data.val_fraction=0.5")
    code, _, err = imgcls("fit", *words, "--run_dir=run")
    assert code == 2 and "there are no test images; --data.test_fraction" in err
    assert imgcls("fit", *words, "--dry_run=true", "--test_after_fit=false")[0] == 0
    assert imgcls("fit", *words, "--run_dir=run", "--test_after_fit=false")[0] == 0
    code, _, err = imgcls("test", "--run=run", *QUIET)
    assert code == 2 and "there are no test images; --data.test_fraction" in err
