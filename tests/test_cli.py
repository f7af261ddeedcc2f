import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image

from imgcls.classifier import Classifier

from .conftest import QUIET, ROOT, TINY, write_image


def fit(imgcls, *words, run="run"):
    code, out, err = imgcls("fit", *TINY, "--run_dir", run, *words)
    assert code == 0, err
    return Path(run)


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_run_leaves_what_the_design_promises(imgcls):
    run = fit(imgcls)
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"val/acc", "test/acc", "test/ece", "fit/seconds", "fit/images_per_second"} <= metrics.keys()
    assert [(r["epoch"], r["split"]) for r in rows(run / "metrics.csv")][:2] == [("0", "val"), ("0", "train")]
    table = rows(run / "predictions/test.csv")
    assert list(table[0])[:5] == ["index", "path", "label", "prediction", "confidence"] and len(table) == 1000
    assert [int(r["index"]) for r in table] == list(range(1000))
    accuracy = np.mean([r["label"] == r["prediction"] for r in table])
    assert metrics["test/acc"] == pytest.approx(accuracy, abs=1e-6)
    arrays = np.load(run / "predictions/test.npz")
    assert (
        arrays["logits"].shape == (1000, 10)
        and (arrays["logits"].argmax(1) == [int(r["prediction"]) for r in table]).all()
    )
    for name in ("best", "last"):
        state = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert state["SampleData"]["class_names"][9] == "Ankle boot"
    environment = json.loads((run / "environment.json").read_text())
    assert environment["seed"] == 0 and environment["data"]["val"] and environment["packages"]["torch"]
    page = (run / "report.html").read_text()
    assert page.count("<svg ") == 2 and page.count("data:image/png") == 7
    assert not re.search(r"""(src|href|action)="(?!data:|#)|url\((?!#)|@import""", page.replace('xlink:href="#', "#"))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["mean"] == [0.286] and config["data"]["init_args"]["image_size"] == 28
    assert not {"run_dir", "base", "ckpt_path", "config"} & config.keys()


def test_without_a_validation_part_the_last_epoch_is_kept(imgcls):
    run = fit(imgcls, "--data.val_fraction=0", "--trainer.max_epochs=2", "--test_after_fit=true")
    assert same(weights(run / "checkpoints/best.ckpt"), weights(run / "checkpoints/last.ckpt"))
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["fit/epochs"] == 2 and 0 <= metrics["test/acc"] <= 1 and "val/acc" not in metrics
    code, out, err = imgcls("test", "--run", str(run))
    assert code == 0, err


def test_a_run_repeats_from_its_config(imgcls):
    first = fit(imgcls)
    code, _, err = imgcls("fit", "--config", first / "config.yaml", *QUIET, "--run_dir", "again")
    assert code == 0, err
    assert same(weights(first / "checkpoints/last.ckpt"), weights("again/checkpoints/last.ckpt"))
    assert rows(first / "metrics.csv") == rows("again/metrics.csv")
    assert (first / "config.yaml").read_text() == Path("again/config.yaml").read_text()


def test_test_validate_and_predict_agree_with_the_run(imgcls):
    run = fit(imgcls)
    before, history = json.loads((run / "metrics.json").read_text()), (run / "metrics.csv").read_text()
    for verb, part, name in (("validate", "val", "validation"), ("test", "test", "test")):
        code, out, err = imgcls(verb, "--run", run, "--trainer.enable_progress_bar=false")
        assert code == 0 and f"\n{name} accuracy {before[f'{part}/acc']:.3f}, 95 % " in out, err
    after = json.loads((run / "metrics.json").read_text())
    assert after.keys() == before.keys()
    assert all(after[k] == pytest.approx(before[k], abs=1e-6) for k in before)
    assert (run / "metrics.csv").read_text() == history
    code, out, err = imgcls("predict", "--run", run, "--trainer.enable_progress_bar=false")
    assert code == 0, err
    table, tested = rows(run / "predictions/predict.csv"), rows(run / "predictions/test.csv")
    assert [r["prediction"] for r in table] == [r["prediction_name"] for r in tested]
    assert sum(float(v) for k, v in list(table[0].items())[3:]) == pytest.approx(1, abs=1e-5)


def test_predict_reads_any_folder(imgcls):
    run = fit(imgcls)
    for name in ("a b.png", "sub/ü.jpg", "sub/.hidden.png"):
        write_image(Path("images") / name, 1)
    code, out, err = imgcls(
        "predict", "--run", run, "--data.root", "images", "--out", "p.csv", "--trainer.enable_progress_bar=false"
    )
    assert code == 0, err
    assert [r["path"] for r in rows("p.csv")] == ["a b.png", "sub/ü.jpg"]
    Path("images/broken.png").write_bytes(b"no image")
    code, _, err = imgcls(
        "predict", "--run", run, "--data.root=images", "--data.on_error=raise", "--trainer.enable_progress_bar=false"
    )
    assert code == 2 and "broken.png: cannot be read as an image" in err


def test_test_refuses_another_split_and_another_model(imgcls):
    run = fit(imgcls, "--test_after_fit=false")
    assert not (run / "predictions/test.csv").exists()
    assert "test/acc" not in json.loads((run / "metrics.json").read_text())
    code, _, err = imgcls("test", "--run", run, "--data.split_seed=5")
    assert code == 2 and "val differ from those that the checkpoint was trained on" in err
    code, _, err = imgcls("test", "--run", run, "--model.backbone.width=4")
    assert code == 2 and "the checkpoint does not fit the model" in err


@pytest.mark.parametrize("point", ["epoch", "middle"])
def test_a_resumed_run_ends_where_the_whole_one_does(imgcls, monkeypatch, point):
    words = ["--trainer.max_epochs=3", "--config", ROOT / "configs/augment/mix.yaml", "--model.dropout=0.1"]
    words += ["--trainer.limit_train_batches=4", "--test_after_fit=false"]
    words += (
        ["--last_checkpoint.every_n_train_steps=2", "--last_checkpoint.save_on_train_epoch_end=false"]
        if point == "middle"
        else []
    )
    whole = fit(imgcls, *words, run="whole")
    original = Classifier.training_step

    def step(self, batch, batch_idx):
        if self.global_step == 7:
            raise RuntimeError("power cut")
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Classifier, "training_step", step)
        fit(imgcls, *words, run="part")
    state = torch.load("part/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == (6 if point == "middle" else 4)
    code, _, err = imgcls("fit", "--resume", Path("part").resolve(), *QUIET)
    assert code == 0, err
    assert same(weights(whole / "checkpoints/last.ckpt"), weights("part/checkpoints/last.ckpt"))
    assert rows(whole / "metrics.csv") == rows("part/metrics.csv")


def test_a_new_run_does_not_overwrite_an_old_one(imgcls):
    run = fit(imgcls)
    code, _, err = imgcls("fit", *TINY, "--run_dir", run)
    assert code == 2 and f"--run_dir {run}: holds a run already" in err


def test_a_run_gets_a_folder_named_for_its_experiment(imgcls):
    code, _, err = imgcls("fit", *TINY, "--seed_everything=7")
    assert code == 0, err
    (run,) = Path("runs/demo").iterdir()
    assert run.name.split("-")[2] == "7"


def test_wandb_keeps_config_and_media_offline(imgcls):
    words = [w for w in TINY if not str(w).startswith("--trainer.logger")]
    code, out, err = imgcls("fit", *words, "--run_dir", "run")
    assert code == 0, err
    assert wandb.run is None, "a second run of this process would be added to the first one's record"
    (record,) = Path("run/wandb").glob("offline-run-*")
    drawn = {p.name.split("_")[0] for p in (record / "files/media/images/test").iterdir()}
    assert drawn == {"confusion", "mistakes", "least", "reliability", "risk"}
    tool = Path(sys.executable).with_name("wandb")
    seen = subprocess.run([tool, "leet", "inspect", "--json", record], capture_output=True, text=True, timeout=60)
    assert "val/acc" in seen.stdout, seen.stderr


def test_wandb_shows_the_kept_epoch_and_groups_seeds(imgcls):
    words = [w for w in TINY if not str(w).startswith("--trainer.logger")]
    words += ["--trainer.max_epochs=3", "--trainer.limit_train_batches=10", "--checkpoint.mode=min"]
    code, _, err = imgcls("fit", *words, "--run_dir", "kept", "--experiment=question/arm", "--seed_everything=5")
    assert code == 0, err
    table = csv.DictReader(Path("kept/metrics.csv").read_text().splitlines())
    rows = [float(r["acc"]) for r in table if r["split"] == "val"]
    assert min(rows) < rows[-1]  # the checkpoint of the lowest accuracy is kept here, and it is not the last
    (record,) = Path("kept/wandb").glob("offline-run-*")
    tool = Path(sys.executable).with_name("wandb")
    seen = subprocess.run(
        [tool, "leet", "inspect", "--json", record], capture_output=True, text=True, timeout=60
    ).stdout
    records = [json.loads(line) for line in seen.splitlines()]
    (run,) = [r["run"] for r in records if r["type"] == "run"]
    assert run["run_group"] == "question/arm" and run["job_type"] == "seed 5"
    assert run["tags"] == ["SampleData", "CNN", "Full"]
    # what is logged later does not reach the summary, which was last set for the kept epoch
    (metric,) = [r["metric"] for r in records if r["type"] == "metric" and r["metric"].get("name") == "val/acc"]
    assert metric["summary"] == {"none": True}
    summary = [r["summary"]["update"] for r in records if r["type"] == "summary"]
    assert [s["val/acc"] for s in summary if "val/acc" in s][-1] == pytest.approx(min(rows))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--modle.lr=3"], "--modle.lr: there is no such option (did you mean 'model.lr'"),
        (["--model.lrr=3"], "--model.lrr: Classifier has no option 'lrr' (did you mean 'lr'?)"),
        (["--model.lr=fast"], "--model.lr: fast is not allowed; expected float"),
        (["--model.backbone.wdith=3"], "--model.backbone.wdith: CNN has no option 'wdith' (did you mean 'width'"),
        (["--trainer.max_epoch=3"], "--trainer.max_epoch: there is no such option (did you mean 'trainer.max_epochs'"),
        (["--data.batch_size=-1"], "--data.batch_size: -1 is not a positive number"),
        (
            ["--model.backbone=imgcls.models.cnn.CN"],
            "imgcls.models.cnn.CN: there is no such class (did you mean 'CNN'?)",
        ),
        (
            ["--model.teacher=imgcls.distill.Teacher"],  # where it was in version 0.1
            "imgcls.distill.Teacher: there is no such class; name it imgcls.training.distillation.Teacher",
        ),
        (["--config", "gone.yaml"], "--config gone.yaml: there is no such file"),
        (["--model.optimizer.lr=0.3"], "--model.optimizer.lr=0.3: give --model.lr instead"),
        (["--resume", "nowhere"], "--resume nowhere: does not exist"),
        (["--ckpt_path", "gone.ckpt"], "--ckpt_path gone.ckpt: there is no such file"),
        (["--trainer.accelerator=gpu"], "trainer: no supported gpu backend"),
    ],
)
def test_mistakes_on_the_command_line_get_one_line(imgcls, words, message):
    code, _, err = imgcls("fit", *TINY, *words)
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and message.lower() in last.lower()
    assert not Path("runs").exists() or not list(Path("runs").rglob("config.yaml"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("modle: {lr: 3}", "bad.yaml: modle.lr: there is no such key (did you mean 'model'?)"),
        ("model: {lrr: 3}", "bad.yaml: lrr: Classifier has no option 'lrr' (did you mean 'lr'?)"),
        (
            "trainer: {max_epoch: 3}",
            "bad.yaml: trainer.max_epoch: there is no such key (did you mean 'trainer.max_epochs'",
        ),
        ("model: cnn.yaml", "bad.yaml: key 'model' holds the text 'cnn.yaml'; list such a file under 'base'"),
        ("config: cnn.yaml", "bad.yaml: key 'config' cannot be used inside a file"),
        ("base: gone.yaml", "bad.yaml: base gone.yaml: there is no such file"),
        ("base: bad.yaml", "bad.yaml leads back to bad.yaml"),
        ("base: 3", "bad.yaml: base: is not a list of files"),
        (
            "model: {optimizer: {init_args: {weight_decay: 1}}}",
            "bad.yaml: model.optimizer.weight_decay: give model.weight",
        ),
        ("model: [", "bad.yaml: is not YAML"),
        (
            "trainer: {callbacks: [{class_path: imgcls.callbacks.robustness.Robustness}]}",
            "bad.yaml: imgcls.callbacks.robustness.Robustness: there is no such class; name it imgcls.training.robust",
        ),
        ("- 3", "bad.yaml: holds no mapping"),
    ],
)
def test_mistakes_in_a_config_name_the_file(imgcls, text, message):
    Path("bad.yaml").write_text(text)
    code, _, err = imgcls("fit", *TINY, "--config", "bad.yaml")
    assert code == 2 and message in err.strip().splitlines()[-1]


def test_help_shows_the_options_of_the_verb_then_of_the_configs_classes_and_the_trainers_last(imgcls, capsys):
    def help_of_fit(*words):
        with pytest.raises(SystemExit, match="0"):
            imgcls("fit", *words, "--help")
        return capsys.readouterr().out

    text = help_of_fit("--config", ROOT / "configs/data/table.yaml")
    wanted = "resume seed_everything data.table data.root data.batch_size model.backbone model.lr checkpoint.monitor"
    places = [text.find(f"\n  --{option} ") for option in [*wanted.split(), "trainer.devices"]]
    assert -1 not in places and places == sorted(places), places
    assert text.index("--trainer") > text.index("--checkpoint.monitor")
    assert "--data.table" not in help_of_fit()


def test_bases_merge_before_their_file_and_the_command_line_last(imgcls):
    Path("one.yaml").write_text("model: {lr: 0.1, weight_decay: 0.2}\nseed_everything: 1")
    Path("sub").mkdir()
    Path("sub/two.yaml").write_text("base: ../one.yaml\nmodel: {lr: 0.3, dropout: 0.4}")
    run = fit(imgcls, "--config", "sub/two.yaml", "--model.dropout=0.5")
    config = yaml.safe_load((run / "config.yaml").read_text())
    options = config["model"]["init_args"]
    assert (options["lr"], options["weight_decay"], options["dropout"], config["seed_everything"]) == (0.3, 0.2, 0.5, 1)


def test_another_optimiser_takes_the_models_rate_and_decay(imgcls):
    run = fit(imgcls, "--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=0.9", "--model.lr=0.05")
    config = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["optimizer"]
    assert config["class_path"] == "torch.optim.SGD" and config["init_args"]["momentum"] == 0.9
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["optimizer_states"][0]
    assert [(g["initial_lr"], g["weight_decay"]) for g in state["param_groups"]] == [(0.05, 0.05), (0.05, 0.0)]


def test_checkpoints_that_cannot_be_read_are_named(imgcls):
    run = fit(imgcls)
    whole = (run / "checkpoints/best.ckpt").read_bytes()
    for name, content in {"cut.ckpt": whole[: len(whole) // 2], "empty.ckpt": b"", "text.ckpt": b"hello"}.items():
        Path(name).write_bytes(content)
        code, _, err = imgcls("test", "--run", run, "--ckpt_path", name)
        assert code == 2 and name in err.strip().splitlines()[-1], err


def test_a_damaged_training_image_is_named_through_worker_processes(imgcls, photos):
    shutil.copytree(photos, "data")
    for path in Path("data/red fox").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    words = ["--config", ROOT / "configs/data/folder.yaml", "--config", ROOT / "configs/model/cnn.yaml", *QUIET]
    code, _, err = imgcls("fit", *words, "--data.root=data", "--data.image_size=16", "--trainer.max_epochs=1")
    assert code == 2 and "red fox" in err.strip().splitlines()[-1] and "cannot be read" in err


def test_preview_draws_originals_and_augmented_images(imgcls):
    code, _, err = imgcls(
        "preview", *TINY, "--config", ROOT / "configs/augment/mix.yaml", "--out", "p.png", "--count", "4"
    )
    assert code == 0, err
    with Image.open("p.png") as image:
        assert image.width > 300 and np.asarray(image.convert("L")).std() > 20


def test_preview_needs_no_model(imgcls):
    code, _, err = imgcls("preview", "--config", ROOT / "configs/data/sample.yaml", "--out", "p.png", "--count", "2")
    assert code == 0 and Path("p.png").is_file(), err


def test_a_module_beside_an_experiment_is_found(imgcls, monkeypatch):
    Path("study").mkdir()
    Path("study/my_net.py").write_text(
        "from imgcls.models.cnn import CNN\n\nclass Mine(CNN):\n"
        "    def __init__(self, channels: int, image_size: int):\n"
        "        super().__init__(channels, image_size, depth=1, width=4)\n"
    )
    sample = ROOT / "configs/data/sample.yaml"
    Path("study/arm.yaml").write_text(
        f"base: {sample}\nmodel: {{class_path: imgcls.classifier.Classifier, init_args: {{backbone: my_net.Mine}}}}\n"
        "trainer: {max_epochs: 1, limit_train_batches: 1}"
    )
    code, _, err = imgcls("fit", "--config", "study/arm.yaml", *QUIET, "--run_dir", "run")
    assert code == 0, err
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "study" not in p])
    sys.modules.pop("my_net")
    code, _, err = imgcls("test", "--run", "run", "--trainer.enable_progress_bar=false")
    assert code == 0, err


@pytest.mark.slow
def test_two_processes_agree_with_one(imgcls):
    """Each test image once, the same metrics, one folder, and augmentation of its own in each process."""
    run = fit(imgcls, "--test_after_fit=false")
    command = [
        sys.executable,
        "-m",
        "imgcls",
        "test",
        "--run",
        str(run.resolve()),
        "--trainer.enable_progress_bar=false",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--data.batch_size=37"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((run / "metrics.json").read_text())
    assert [int(r["index"]) for r in rows(run / "predictions/test.csv")] == list(range(1000))
    code, _, err = imgcls("test", "--run", run, "--trainer.enable_progress_bar=false")
    one = json.loads((run / "metrics.json").read_text())
    assert all(one[k] == pytest.approx(two[k], abs=1e-5) for k in one if k.startswith("test/"))


@pytest.mark.slow
def test_two_processes_train_one_run(imgcls):
    command = [sys.executable, "-m", "imgcls", "fit", *map(str, TINY), "--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--trainer.accelerator=cpu"], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = Path("runs/demo").iterdir()
    metrics = json.loads((run / "metrics.json").read_text())
    table = rows(run / "predictions/test.csv")
    assert len(table) == 1000 and metrics["test/acc"] == pytest.approx(
        np.mean([r["label"] == r["prediction"] for r in table])
    )


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(imgcls):
    words = [*TINY, "--trainer.max_epochs=6", "--trainer.limit_train_batches=20", "--test_after_fit=false"]
    code, _, err = imgcls("fit", *words, "--run_dir", "whole")
    assert code == 0, err
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "imgcls", "fit", *map(str, words), "--run_dir", "killed"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not Path("killed/checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    code, _, err = imgcls("fit", "--resume", "killed", *QUIET)
    assert code == 0, err
    assert same(weights("whole/checkpoints/last.ckpt"), weights("killed/checkpoints/last.ckpt"))
    assert rows("whole/metrics.csv") == rows("killed/metrics.csv")
