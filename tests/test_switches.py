"""Lightning's own switches: each works with a run's own parts, or is refused in one line."""

import csv
import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from imgcls.cli import max_epochs
from imgcls.data.sampling import TrainBatches

from .conftest import ROOT, TINY
from .test_cli import same, weights

SMALL = (*TINY, "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1", "--data.batch_size=32")
STOPS_AT_ONCE = (  # at the first validation, within the epoch
    'callbacks=[{"class_path": "lightning.pytorch.callbacks.EarlyStopping", '
    '"init_args": {"monitor": "val/acc", "mode": "max", "stopping_threshold": -1.0}}]'
)
CONSTANT = "--model.schedule=imgcls.optim.Constant"
PLATEAU = "--model.schedule=torch.optim.lr_scheduler.ReduceLROnPlateau"
TORCH = "--model.schedule=torch.optim.lr_scheduler."
LOGGER = "--trainer.logger=lightning.pytorch.loggers."
LOGISTIC = f"--config={ROOT}/configs/finetune/logistic_probe.yaml"

# options, and the (epoch, step) of each validation in metrics.csv
WORKS = [
    ("overfit_batches=2 max_epochs=2", [(0, 2), (1, 4)]),
    ("overfit_batches=0.1", [(0, 16)]),
    ("limit_train_batches=0.02 limit_val_batches=0.2", [(0, 3)]),
    ("max_steps=2", [(0, 2)]),
    ("max_steps=4 max_epochs=null", [(0, 3), (1, 4)]),
    ("max_steps=9 max_epochs=2", [(0, 3), (1, 6)]),
    ("min_epochs=2 max_epochs=2 max_time=00:10:00", [(0, 3), (1, 6)]),
    ("val_check_interval=2", [(0, 2)]),
    ("val_check_interval=0.5", [(0, 1), (0, 2), (0, 3)]),
    ("val_check_interval=2 check_val_every_n_epoch=null max_epochs=2", [(0, 2), (1, 4), (1, 6)]),
    ("check_val_every_n_epoch=2 max_epochs=3", [(1, 6)]),
    ("check_val_every_n_epoch=5 max_time=00:00:10:00", []),
    ("gradient_clip_val=0.1 accumulate_grad_batches=2", [(0, 2)]),
    ("gradient_clip_val=0.1 gradient_clip_algorithm=value accumulate_grad_batches=7", [(0, 1)]),
    ("profiler=simple detect_anomaly=true inference_mode=false log_every_n_steps=0", [(0, 3)]),
    ("num_sanity_val_steps=0 benchmark=true sync_batchnorm=true precision=64-true", [(0, 3)]),
    ("num_sanity_val_steps=-1 use_distributed_sampler=true precision=bf16-mixed", [(0, 3)]),
]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Three quarters of a small run's time; other tests look at them."""
    monkeypatch.setattr("imgcls.training.outputs.Outputs._draw", lambda *given: None)
    monkeypatch.setattr("imgcls.training.record.write_report", lambda run: None)


def tiny(*words: str) -> list:
    return [*SMALL, "--test_after_fit=false", *words, "--run_dir=run"]


def validations() -> list[dict]:
    with open("run/metrics.csv", newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "val"]


@pytest.mark.parametrize(("options", "validated"), WORKS, ids=[options for options, _ in WORKS])
def test_a_switch_works(imgcls, options, validated):
    """There is a best checkpoint whether or not there was a validation, and the figures kept are its own."""
    code, _, err = imgcls("fit", *tiny(*(f"--trainer.{option}" for option in options.split())))
    assert code == 0, err
    rows = validations()
    assert [(int(row["epoch"]), int(row["step"])) for row in rows] == validated
    assert Path("run/checkpoints/best.ckpt").is_file() and Path("run/checkpoints/last.ckpt").is_file()
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics.get("val/acc") == max((float(row["acc"]) for row in rows), default=None)


NOTHING_LEFT = "leaves no step to train"
REFUSED = [
    ("--trainer.limit_train_batches=0", NOTHING_LEFT),
    ("--trainer.max_steps=0", NOTHING_LEFT),
    ("--trainer.overfit_batches=0.001", NOTHING_LEFT),
    ("--trainer.accumulate_grad_batches=0", NOTHING_LEFT),
    ("--trainer.max_epochs=-1", "give a number from 1 on"),
    ("--trainer.max_epochs=auto", "give --trainer.max_time=HH:MM:SS with it"),
    ("--trainer.max_epochs=soon", "expected int or 'auto'"),
    ("--trainer.max_time=soon", "not a valid duration"),
    ("--trainer.val_check_interval=50", "must be less than or equal to the number of the training batches"),
    ("--trainer.gradient_clip_algorithm=none", "Allowed algorithms"),
    ("--trainer.barebones=true", "see the verb benchmark"),
    ("--trainer.accelerator=none", "invalid accelerator name"),
    ("--trainer.strategy=fsdp --trainer.accelerator=cpu", "requires a GPU"),
    ("--trainer.devices=-1 --trainer.accelerator=cpu", "should be an int > 0"),
    ("--trainer.precision=33", "expected 64, 32, 16"),
    ("--model.optimizer=torch.optim.LBFGS", "--model.optimizer: LBFGS doesn't support"),
    ("--model.optimizer=torch.optim.SparseAdam", "--model.optimizer: SparseAdam does not support dense"),
    (f"{TORCH}ExponentialLR", "would take the number of steps for its gamma"),
    (f"{TORCH}StepLR --model.schedule.step_size=3", "StepLR has no option 'step_size': the run gives it"),
    (f"{PLATEAU} --trainer.limit_val_batches=0", "it watches val/loss, and there is no validation"),
    (f"{LOGGER}CSVLogger", "CSVLogger needs save_dir"),
    (f"{LOGISTIC} --trainer.gradient_clip_val=1", "not supported for manual optimization"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[options for options, _ in REFUSED])
def test_a_switch_is_refused_in_one_line(imgcls, options, message):
    code, _, err = imgcls("fit", *tiny(*options.split()))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and message in errors[0], err
    assert "Traceback" not in err


@pytest.mark.parametrize("option", ["--trainer.fast_dev_run=true", "--trainer.enable_checkpointing=false"])
def test_without_checkpoints_the_last_weights_are_tested(imgcls, option):
    code, _, err = imgcls("fit", *SMALL, option, "--run_dir=run")
    assert code == 0, err
    assert "test/acc" in json.loads(Path("run/metrics.json").read_text())
    assert not list(Path("run").rglob("*.ckpt"))


def test_an_evaluation_of_nothing_is_refused(imgcls):
    assert imgcls("fit", *tiny())[0] == 0
    for verb, limit in {"validate": "val", "test": "test", "predict": "predict"}.items():
        code, _, err = imgcls(verb, "--run=run", f"--trainer.limit_{limit}_batches=0", "--trainer.logger=false")
        assert code == 2 and f"--trainer.limit_{limit}_batches=0: nothing is left to do" in err


def test_overfitting_takes_the_same_batches_in_each_epoch():
    batches = TrainBatches(100, 8, seed=0)
    batches.fixed = True
    first = list(batches)
    batches.set_epoch(3)
    assert list(batches) == first
    batches.fixed = False
    assert list(batches) != first


def test_a_schedule_stops_where_the_run_does(imgcls):
    """Of max_steps and max_epochs, what comes first is the schedule's length."""
    assert imgcls("fit", *tiny("--trainer.max_steps=1000", "--trainer.max_epochs=2"))[0] == 0
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize(
    ("options", "first", "whole"),
    [
        ((PLATEAU, "--model.schedule.patience=0", "--model.lr=0.5"), "max_epochs=2", "max_epochs=4"),
        ((CONSTANT, "--trainer.max_epochs=9", "--trainer.val_check_interval=2"), "max_steps=4", "max_steps=9"),
        ((CONSTANT, "--trainer.max_epochs=9", "--trainer.overfit_batches=2"), "max_steps=3", "max_steps=5"),
        ((CONSTANT, "--trainer.max_epochs=3", "--trainer.val_check_interval=2"), STOPS_AT_ONCE, "callbacks=null"),
    ],
    ids=["plateau", "max_steps", "overfit_batches", "early_stopping"],
)
def test_what_stopped_goes_on_as_if_it_had_not(imgcls, options, first, whole):
    assert imgcls("fit", *tiny(*options, f"--trainer.{whole}"))[0] == 0
    Path("run").rename("whole")
    assert imgcls("fit", *tiny(*options, f"--trainer.{first}"))[0] == 0
    code, _, err = imgcls("fit", "--resume=run", f"--trainer.{whole}")
    assert code == 0, err
    assert same(weights("run/checkpoints/last.ckpt"), weights("whole/checkpoints/last.ckpt"))
    if PLATEAU in options:
        states = [torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("run", "whole")]
        schedules = [state["lr_schedulers"][0] for state in states]
        assert schedules[0] == schedules[1] and schedules[0]["last_epoch"] == 4
        assert states[0]["optimizer_states"][0]["param_groups"][0]["lr"] < 0.5


def test_reloading_the_loaders_changes_nothing(imgcls):
    assert imgcls("fit", *tiny("--trainer.max_epochs=3"))[0] == 0
    Path("run").rename("plain")
    assert imgcls("fit", *tiny("--trainer.max_epochs=3", "--trainer.reload_dataloaders_every_n_epochs=1"))[0] == 0
    assert same(weights("run/checkpoints/last.ckpt"), weights("plain/checkpoints/last.ckpt"))


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="the package is there")
def test_a_logger_without_its_package_is_named(imgcls):
    code, _, err = imgcls("fit", *tiny(f"{LOGGER}MLFlowLogger"))
    assert code == 2 and "mlflow" in err and "lightning.pytorch.loggers.MLFlowLogger needs it" in err


def test_another_logger_has_the_figures(imgcls):
    assert imgcls("fit", *tiny(f"{LOGGER}CSVLogger", "--trainer.logger.save_dir=logs"))[0] == 0
    (table,) = Path("logs").rglob("metrics.csv")
    assert "val/acc" in table.read_text().splitlines()[0]


@pytest.mark.slow
def test_a_run_of_a_given_time_is_one_of_the_epochs_that_it_chose(imgcls, monkeypatch):
    """The number is that which fits into 95 % of the time; it is in the config, and repeats the run bit by bit."""
    measured, said = [], []
    monkeypatch.setattr(max_epochs.log, "info", said.append)
    measure = max_epochs._seconds_of_an_epoch
    monkeypatch.setattr(max_epochs, "_seconds_of_an_epoch", lambda *given: measured.append(measure(*given)) or 1000.0)
    words = tiny("--trainer.max_epochs=auto", "--trainer.max_time=01:00:00")
    code, _, err = imgcls("fit", *words)
    assert code == 0, err
    assert len(measured) == 1 and 0 < measured[0] < math.inf
    assert said == ["max_time 1:00:00: 3 epochs of 1e+03 s"]
    trainer = yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]
    assert (trainer["max_epochs"], trainer["max_time"]) == (3, "01:00:00")
    code, _, err = imgcls("fit", "--config=run/config.yaml", "--run_dir=again")
    assert code == 0 and len(measured) == 1, err
    assert same(weights("run/checkpoints/last.ckpt"), weights("again/checkpoints/last.ckpt"))


@pytest.mark.slow
def test_the_time_of_an_epoch_counts_all_its_batches(imgcls, monkeypatch):
    """By a clock that moves one second with each batch and stands still otherwise."""
    now = [0.0]

    def tick(self, *given):
        now[0] += 1

    monkeypatch.setattr(max_epochs.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr("imgcls.classifier.Classifier.on_train_batch_start", tick, raising=False)
    monkeypatch.setattr("imgcls.classifier.Classifier.on_validation_batch_start", tick, raising=False)
    seconds = []
    measure = max_epochs._seconds_of_an_epoch
    monkeypatch.setattr(max_epochs, "_seconds_of_an_epoch", lambda *given: seconds.append(measure(*given)) or 4000.0)
    words = ["--trainer.limit_train_batches=100", "--trainer.limit_val_batches=1.0", "--trainer.max_time=01:00:00"]
    code, _, err = imgcls("fit", *tiny("--trainer.max_epochs=auto", *words, "--trainer.val_check_interval=50"))
    assert code == 0, err
    assert seconds == [100 + 2 * 19]  # 600 validation images in batches of 32, twice an epoch
