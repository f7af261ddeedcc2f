"""Questions that take a person's own images: what their arms say, that they train, and that an audit's table fits."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from imgcls.cli.configs import with_bases
from imgcls.science.question import read_question

from .conftest import QUIET, ROOT

OWN = ROOT / "experiments/own"
QUESTIONS = sorted(path.parent for path in OWN.rglob("question.toml"))
ARMS = sorted(path for folder in QUESTIONS for path in folder.glob("*.yaml"))
# of data, what an arm may say: how training images are chosen and changed, not where they are
HOW = ("augment", "sampling", "train_fraction", "image_size", "leave_out_column")
SMALL = ("mobilenet_v3_small", "mobilenetv3_small_050")  # of torchvision and of timm


@pytest.mark.parametrize("folder", QUESTIONS, ids=lambda p: p.name)
def test_a_question_says_what_it_did_not_try_and_its_arms_say_nothing_of_where_images_are(folder):
    question = read_question(folder)
    assert (
        question.not_tried.endswith(".") and f"experiments/own/{folder.name} " in (folder / "question.toml").read_text()
    )
    for arm in question.arms.values():
        said = yaml.safe_load(arm.config.read_text())
        assert OWN / "few_images.yaml" in [path.resolve() for path in with_bases(arm.config)]
        assert all(key in HOW for key in said.get("data", {}))


def test_rates_and_weights_that_tell_arms_apart_come_after_the_command_line():
    """A file for another network says both too, and is given there."""
    told = {}
    for arm in (arm for folder in QUESTIONS for arm in read_question(folder).arms.values()):
        said = yaml.safe_load(arm.config.read_text()).get("model", {})
        own = {"model.lr": said.get("lr"), "model.backbone.weights": said.get("backbone", {}).get("weights")}
        for key, value in own.items():
            if value is not None:
                last = [word.partition("=")[2] for word in arm.options if word.startswith(f"--{key}=")]
                told[arm.config.stem, key] = [float(w) if key == "model.lr" else w for w in last] == [value]
    assert told.pop(("scratch", "model.lr")) and told and all(told.values())


@pytest.mark.slow
@pytest.mark.parametrize("path", ARMS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_arm_takes_two_steps(path, photos, imgcls, tmp_path):
    """With a small network, but for arms that name one, or need none of its weights."""
    words = [f"--data.root={photos}", *QUIET, "--trainer.accelerator=cpu", "--trainer.limit_train_batches=2"]
    words += ["--trainer.max_epochs=1", "--data.image_size=32"]
    if path.parent.name == "cleaned_labels":
        words.append(f"--data.table={table(photos, tmp_path / 't.csv')}")
    if path.parent.name == "backbones":
        words += ["--model.backbone.weights=none", f"--model.backbone.name={SMALL[path.stem == 'vit_small_dino']}"]
    elif not path.stem.startswith("scratch"):
        words += ["--config", ROOT / "configs/model/cnn.yaml", "--model.backbone.depth=2", "--model.backbone.width=8"]
    else:
        words += ["--model.backbone.name=mobilenet_v3_small", "--model.backbone.weights=none"]
    code, _, err = imgcls("fit", "--config", path, *words, "--run_dir", "run")
    assert code == 0, err
    assert "test/acc" in json.loads(Path("run/metrics.json").read_text())


def table(photos: Path, file: Path) -> Path:
    """A table of the photos, of each class with one training, validation and test label that an audit doubts."""
    rows = []
    for folder in sorted(photos.iterdir()):
        for number, path in enumerate(sorted(folder.iterdir())):
            part = "test" if number < 4 else "val" if number < 8 else "train"
            suggested = "other" if number in (0, 4, 8) else ""
            rows.append([path.relative_to(photos), folder.name, part, suggested])
    with open(file, "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([["path", "label", "split", "suggested"], *rows])
    return file


def test_a_table_takes_the_folders_place_and_options_that_arms_share_stay(photos, imgcls, tmp_path, capsys):
    words = ["--config", OWN / "balancing/sampling.yaml", "--config", ROOT / "configs/data/table.yaml"]
    with pytest.raises(SystemExit):
        imgcls("fit", *words, f"--data.table={table(photos, tmp_path / 't.csv')}", "--print_config")
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert data["class_path"] == "imgcls.data.table.TableData"
    assert data["init_args"]["sampling"] == "balanced" and data["init_args"]["batch_size"] == 16


def test_left_out_images_are_not_trained_on_and_all_else_stays(photos, tmp_path):
    from imgcls.data.table import TableData
    from imgcls.errors import UserError

    file = table(photos, tmp_path / "t.csv")
    parts = {}
    for column in (None, "suggested"):
        data = TableData(str(file), root=str(photos), leave_out_column=column)
        data.setup("fit")
        data.setup("test")
        parts[column] = (
            {part: [of.names[k] for k in index] for part, (of, index) in data.parts.items()},
            data.fingerprint,
        )
    (whole, fingerprint), (cleaned, same) = parts[None], parts["suggested"]
    assert set(whole["train"]) - set(cleaned["train"]) == {n for n in whole["train"] if n.endswith("08.png")}
    assert len(whole["train"]) == len(cleaned["train"]) + 3 and fingerprint == same
    assert whole["val"] == cleaned["val"] and whole["test"] == cleaned["test"]
    with pytest.raises(UserError, match="has no column 'suggestd' .did you mean 'suggested'"):
        TableData(str(file), root=str(photos), leave_out_column="suggestd")
    data = TableData(str(file), root=str(photos), leave_out_column="label")
    with pytest.raises(UserError, match="--data.leave_out_column label: leaves no image to train on"):
        data.setup("fit")
