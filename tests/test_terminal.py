"""What the terminal shows: facts, a line for each epoch, a headline, and a bar on a terminal; log.txt has it all."""

import io
import json
import os
import pty
import re
import sys
from collections import Counter
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from imgcls.evaluate.accuracy import interval
from imgcls.runs.folder import RunFolder
from imgcls.runs.predictions import Predictions
from imgcls.runs.record import add_summary
from imgcls.training import progress
from imgcls.training.progress import Bar, Screen
from imgcls.training.summary import print_summary

from .conftest import TINY
from .test_cli import rows

ROW = re.compile(r" +(\d)/2 +(\S+) +(\S+) +(\S+) +(\S+) +(\d+\.\d)(  best)?")


@pytest.mark.slow
def test_a_pipe_gets_facts_a_line_per_epoch_and_a_headline_and_the_log_gets_all(imgcls):
    code, out, err = imgcls("fit", *TINY, "--trainer.max_epochs=2", "--run_dir=run")
    assert code == 0 and err == "" and "\x1b" not in out and "\r" not in out
    lines, metrics = out.splitlines(), json.loads(Path("run/metrics.json").read_text())
    assert lines[0] == "data   SampleData: 5,400 train and 600 val images of 10 classes, 1 × 28 × 28"
    assert lines[1] == "model  CNN, Full: 770 of 770 parameters trained"
    assert lines[2] == "run    cpu, 32-true; 2 epochs × 3 steps; run"
    epochs = [found.groups() for line in lines if (found := ROW.fullmatch(line))]
    written = rows("run/metrics.csv")
    for number, (epoch, train_loss, val_loss, val_acc, lr, _, _) in enumerate(epochs):
        val, train = written[2 * number : 2 * number + 2]
        assert int(epoch) == number + 1 and float(lr) == pytest.approx(float(train["lr"]), rel=0.05)
        wanted = [float(train["loss"]), float(val["loss"]), float(val["acc"])]
        assert [float(x) for x in (train_loss, val_loss, val_acc)] == pytest.approx(wanted, abs=1e-4)
    best = [int(epoch) for epoch, *_, marked in epochs if marked][-1]
    assert len(epochs) == 2 and best == metrics["fit/best_epoch"] + 1
    with np.load("run/predictions/test.npz") as stored:
        label, prediction = stored["label"], stored["logits"].argmax(1)
    low, high = interval(int((label == prediction).sum()), 1000)
    headline = (
        f"test accuracy {metrics['test/acc']:.3f}, 95 % {low:.3f} to {high:.3f}, 1,000 images; best epoch {best} of 2"
    )
    assert headline in lines
    for name in ("loss", "acc"):
        three = " +".join(f"{metrics[f'{part}/{name}']:.4f}" for part in ("train", "val", "test"))
        assert any(re.match(rf" {name} +{three} ", line) for line in lines)
    confused = Counter(zip(label.tolist(), prediction.tolist(), strict=True))
    most = max(images for (own, other), images in confused.items() if own != other)
    first = lines[next(k for k, line in enumerate(lines) if "most often confused" in line) + 2]
    assert first.rstrip().endswith(f" {most} of 100")
    assert lines[-2:] == ["run: run", "report: run/report.html"]

    log = Path("run/log.txt").read_text()
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  Seed set to 0\n", log) and "Restoring states" in log
    said = [line.rstrip() for line in lines]
    assert [line[21:] for line in log.splitlines() if line[21:] in said] == said
    code, out, err = imgcls("fit", "--resume", "run", "--verbose=true", "--test_after_fit=false")
    assert code == 0 and "Seed set to 0" in err and "\nvalidation accuracy" in out
    grown = Path("run/log.txt").read_text()
    assert grown.startswith(log) and grown.count("Seed set to 0") == 2
    assert "verbose" not in (config := Path("run/config.yaml").read_text()).split("\ncheckpoint:")[0] and config


def test_a_run_that_cannot_begin_leaves_no_log(imgcls):
    assert imgcls("fit", *TINY, "--data.folds=3", "--data.fold=7", "--run_dir=run")[0] == 2
    assert not Path("run").exists()


def test_a_bar_of_the_users_own_takes_the_place_of_ours(imgcls):
    """Without validation images, which nothing is then said of."""
    words = [word for word in TINY if word != "--trainer.enable_progress_bar=false"]
    code, out, err = imgcls(
        *("fit", *words, "--run_dir=run", "--test_after_fit=false", "--data.val_fraction=0"),
        "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar",
    )
    assert code == 0 and "Epoch 0: 100%" in out + err
    loss = f"{json.loads(Path('run/metrics.json').read_text())['train/loss']:.4f}"
    assert re.search(rf"[\r\n] +1/1 +{loss} +0 +\d+\.\d\n", out) and "best" not in out
    assert "6,000 train images of" in out and not re.search(r"\bval", out)


def test_the_bar_says_how_long_the_whole_run_takes(monkeypatch):
    """Two epochs of ten steps of 1 s and a validation of 10 s, by a clock that is told."""
    clock, done = SimpleNamespace(now=100.0), SimpleNamespace(processed=0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    trainer = SimpleNamespace(
        max_epochs=2,
        max_steps=-1,
        num_training_batches=10,
        accumulate_grad_batches=1,
        current_epoch=0,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=done))),
    )
    drawn = io.StringIO()
    bar = Bar(Console(file=drawn, force_terminal=True, width=80))

    def step() -> str:
        clock.now, done.processed = clock.now + 1, done.processed + 1
        bar.on_train_batch_end(trainer)
        return bar.progress.tasks[0].fields["left"]

    bar.on_train_start(trainer, None)
    bar.on_train_epoch_start(trainer, None)
    assert [step() for _ in range(10)][4] == "0:00:15 left"  # nothing is known of validation yet
    clock.now, trainer.current_epoch = clock.now + 10, 1
    bar.on_train_epoch_start(trainer, None)
    assert [step() for _ in range(10)] == [f"0:00:{seconds:02} left" for seconds in range(18, -1, -2)]
    frames = drawn.getvalue()
    assert "epoch 1/2" in frames and "15/20" in frames
    before = len(frames)
    done.processed = 0
    bar.on_train_batch_end(trainer)  # in the same moment: not drawn
    assert len(drawn.getvalue()) == before
    bar.teardown(trainer, None, stage="fit")
    assert bar.progress is None and drawn.getvalue().endswith("\x1b[1A\x1b[2K")


def test_names_are_text_and_many_classes_stay_short():
    """A thousand classes with long names, in brackets: nothing wraps at 80 columns, nothing is taken for markup."""
    names = [f"[bold]{k:04d} and a very long name, as taxonomies have them\x1b[31m" for k in range(1000)]
    run = RunFolder("run")
    label = np.array([3] * 7 + [5] * 4 + [6, 6, 8])
    prediction = np.array([4] * 6 + [3] + [7] * 3 + [5] + [9, 9, 8])
    logits = np.eye(1000, dtype=np.float32)[prediction]
    Predictions(logits, label, np.arange(14)).write(run.predictions / "val.csv", [""] * 14, names)
    add_summary(run, {"val/acc": 3 / 14, "val/loss": None, "val/top5": 0.5})
    screen = Screen()
    screen.console = Console(file=(file := io.StringIO()), width=80, **progress.PLAIN)
    print_summary(screen, run, names, ["val"])
    lines = file.getvalue().splitlines()
    assert len(lines) < 25 and max(map(len, lines)) <= 80 and "\x1b" not in file.getvalue()
    low, high = interval(3, 14)
    assert lines[1] == f"validation accuracy 0.214, 95 % {low:.3f} to {high:.3f}, 14 images"
    shown = [re.sub(" +", " ", line).strip() for line in lines]
    cut = "and a very lon…"
    wanted = [(3, 4, "6 of 7"), (5, 7, "3 of 4"), (6, 9, "2 of 2")]
    pairs = [f"[bold]{own:04d} {cut} [bold]{other:04d} {cut} {count}" for own, other, count in wanted]
    assert [line for line in shown if cut in line] == pairs
    assert "loss not finite" in shown


def test_on_a_terminal_there_is_a_bar_and_no_line_is_too_long(imgcls, monkeypatch):
    ours, its = pty.openpty()
    said = []
    reader = Thread(target=lambda: said.extend(iter(lambda: _read(ours), b"")))
    reader.start()
    for name, value in (("TERM", "xterm"), ("COLUMNS", "80")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    words = [word for word in TINY if word != "--trainer.enable_progress_bar=false"]
    with open(its, "w", encoding="utf-8") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", terminal)
        code, _, err = imgcls("fit", *words, "--run_dir=run")
    reader.join()
    os.close(ours)
    text = b"".join(said).decode()
    assert code == 0 and err == ""
    assert re.search(r"epoch 1/1 .*[1-3]/3", text) and re.search(r"test .*/8", text) and "\x1b[2K" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert max(len(part) for line in plain.splitlines() for part in line.split("\r")) <= 80
    assert plain.endswith("run: run\r\nreport: run/report.html\r\n")
    assert "\x1b" not in Path("run/log.txt").read_text()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's end of a terminal
        return b""
