"""A loss that is not finite: the run stops and says where, or leaves the step out; no such weights are kept."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imgcls.classifier import Classifier

from .conftest import ROOT, TINY

WORDS = [*TINY, "--trainer.max_epochs=2", "--trainer.limit_train_batches=6", "--test_after_fit=false"]


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def poison(monkeypatch):
    """Spoil activations, and with them BatchNorm's statistics and the loss, at chosen steps."""
    original = Classifier.training_step
    met: dict[int, list[int]] = {}

    def at(*steps):
        def step(self, batch, batch_idx):
            if self.global_step in steps:
                met[self.global_step] = batch["index"].tolist()
                batch = {**batch, "image": batch["image"] * float("nan")}
            return original(self, batch, batch_idx)

        monkeypatch.setattr(Classifier, "training_step", step)
        return met

    return at


@pytest.mark.parametrize("every", ["1", "50"])
def test_the_run_stops_and_keeps_the_last_good_checkpoint(imgcls, poison, monkeypatch, every):
    from imgcls.training import nonfinite

    monkeypatch.setattr(nonfinite, "EVERY", int(every))
    # on one CPU process each step is looked at; what a GPU does, looking later, is forced here
    if every == "50":
        monkeypatch.setattr(nonfinite.NonFinite, "on_train_batch_end", lambda *_: None)
    met = poison(8)
    code, _, err = imgcls("fit", *WORDS, "--run_dir", "run")
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: step 8: the loss is nan (learning rate 0.00"), err
    assert f"images {', '.join(map(str, met[8][:64]))}" in last and "last.ckpt is the last good checkpoint" in last
    assert Path("run/log.txt").read_text().splitlines()[-1].endswith(last)
    assert [int(row["index"]) for row in rows("run/nonfinite.csv")] == met[8]
    state = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert state["global_step"] == 6 and all(v.isfinite().all() for v in state["state_dict"].values())


def test_a_step_is_left_out_as_if_it_had_not_been(imgcls, poison, monkeypatch):
    met = poison(2, 7)
    seen = []
    original = Classifier.on_train_batch_start if "on_train_batch_start" in vars(Classifier) else None
    assert original is None
    monkeypatch.setattr(
        Classifier,
        "on_train_batch_start",
        lambda self, *_: seen.append({k: v.clone() for k, v in self.state_dict().items()}),
    )
    code, _, err = imgcls("fit", *WORDS, "--run_dir", "run", "--nonfinite.policy=skip")
    assert code == 0, err
    for step, state in enumerate(seen[:-1]):
        same = all(torch.equal(state[k], seen[step + 1][k]) for k in state)
        assert same == (step in met), step
    table = rows("run/nonfinite.csv")
    assert sorted({int(row["step"]) for row in table}) == [2, 7]
    last = [row for row in rows("run/metrics.csv") if row["split"] == "train"][-1]
    assert float(last["skipped_steps"]) == 2 and 0 < float(last["loss"]) < 10


def test_a_limit_ends_the_skipping(imgcls, poison):
    poison(*range(1, 12))
    code, _, err = imgcls("fit", *WORDS, "--run_dir", "run", "--nonfinite.policy=skip", "--nonfinite.limit=3")
    assert code == 2 and "step 4: the loss is nan" in err and "--nonfinite.limit=3" in err


def test_weights_that_are_not_finite_are_not_saved(imgcls, monkeypatch):
    original = Classifier.on_before_optimizer_step

    def spoil(self, optimizer):
        original(self, optimizer)
        if self.global_step == 11:  # the last: no loss follows
            self.head.weight.grad.fill_(float("inf"))

    monkeypatch.setattr(Classifier, "on_before_optimizer_step", spoil)
    code, _, err = imgcls("fit", *WORDS, "--run_dir", "run")
    assert code == 2 and "weights are not finite, head.weight first, and were not saved" in err
    for name in ("best", "last"):
        state = torch.load(f"run/checkpoints/{name}.ckpt", weights_only=True)
        assert state["global_step"] == 6 and all(v.isfinite().all() for v in state["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_two_processes_act_together(policy):
    """Only one of them meets the loss."""
    Path("spoilt.py").write_text(
        "from imgcls.losses import CrossEntropy\n\n\nclass Spoilt(CrossEntropy):\n"
        "    calls = 0\n\n    def __call__(self, logits, label, weight):\n"
        "        import os\n        loss = super().__call__(logits, label, weight)\n"
        "        self.calls += loss.requires_grad\n"
        "        return loss * float('nan') if self.calls == 4 and os.environ.get('LOCAL_RANK') == '1' else loss\n"
    )
    Path("arm.yaml").write_text("# spoilt\nmodel: {loss: spoilt.Spoilt}\n")
    words = [*map(str, WORDS), "--config", "arm.yaml", "--run_dir=run", f"--nonfinite.policy={policy}"]
    words += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "imgcls", "fit", *words], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == (2 if policy == "raise" else 0), done.stderr[-3000:]
    assert {row["step"] for row in rows("run/nonfinite.csv")} == {"3"}
    if policy == "raise":
        assert "error: step 3: the loss is nan" in done.stderr and not Path("run/checkpoints/last.ckpt").exists()
