"""Training on the device: resumed bit by bit, as exact as a CPU, in every precision."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from imgcls.losses import CrossEntropy

from ..conftest import ROOT
from .conftest import TOY, fit, words

pytestmark = pytest.mark.gpu
MIXED = ["--config", ROOT / "configs/augment/mix.yaml", "--config", ROOT / "configs/trainer/ema.yaml"]
KILLED = """
import os, signal, sys
from imgcls.__main__ import main
from imgcls.commands.fit import Fit
from imgcls.classifier import Classifier
step = Classifier.training_step
def killed(self, batch, batch_idx):
    if self.global_step == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
Classifier.training_step = killed
main(sys.argv[1:])
"""


def metrics(run) -> dict[str, float]:
    return json.loads((Path(run) / "metrics.json").read_text())


def weights(run, name="last") -> dict[str, torch.Tensor]:
    return torch.load(Path(run) / f"checkpoints/{name}.ckpt", weights_only=True, map_location="cpu")["state_dict"]


@pytest.mark.slow
def test_a_killed_run_ends_with_the_weights_of_one_left_in_peace():
    exact = [*MIXED, "--trainer.deterministic=true", "--trainer.max_epochs=2", "--trainer.limit_train_batches=6"]
    exact += ["--last_checkpoint.every_n_train_steps=3", "--last_checkpoint.save_on_train_epoch_end=false"]
    exact += ["--model.dropout=0.1", "--test_after_fit=false"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    killed = [sys.executable, "-c", KILLED, "fit", *words("--run_dir", "killed", *exact)]
    done = subprocess.run(killed, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    # the last file is of step 6 or before: the seventh and eighth step are taken again
    assert torch.load("killed/checkpoints/last.ckpt", weights_only=True, map_location="cpu")["global_step"] <= 6
    from imgcls.__main__ import main

    assert main(["fit", "--resume", "killed"]) == 0
    assert fit("whole", *exact) == 0
    torch.use_deterministic_algorithms(False)
    resumed, whole = weights("killed"), weights("whole")
    assert resumed.keys() == whole.keys() and all(torch.equal(resumed[key], whole[key]) for key in whole)


def test_figures_are_those_of_a_cpu(imgcls, run, exact):
    """The same checkpoint, the same test images, in 32 bit."""
    code, _, err = imgcls("test", "--run", run, f"--trainer.accelerator={'cpu' if TOY else 'gpu'}")
    assert code == 0, err
    there = metrics(run)
    assert imgcls("test", "--run", run, "--trainer.accelerator=cpu")[0] == 0
    here = metrics(run)
    assert there["test/acc"] == here["test/acc"]
    assert there["test/loss"] == pytest.approx(here["test/loss"], abs=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.precision=bf16-mixed"],
        pytest.param(
            ["--trainer.precision=16-mixed"],
            marks=pytest.mark.skipif(TOY, reason="loss scaling needs a CUDA device"),
        ),
        pytest.param(["--model.compile=true", "--model.backbone.depth=2"], marks=pytest.mark.slow),
        pytest.param(MIXED, marks=pytest.mark.slow),
        [*MIXED, "--trainer.precision=bf16-mixed", "--model.channels_last=true", "--trainer.gradient_clip_val=1"],
    ],
    ids=["bf16", "fp16", "compile", "ema, mixing", "all, clipped"],
)
def test_every_kind_of_training_learns(options):
    assert fit("run", *([] if TOY else ["--trainer.max_epochs=3"]), *options) == 0
    found = metrics("run")
    assert math.isfinite(found["test/loss"]) and (TOY or found["test/acc"] > 0.4)
    assert all(value.isfinite().all() for value in weights("run").values())


def test_the_batch_size_is_chosen_on_the_device():
    assert fit("run", "--data.batch_size=auto", "--test_after_fit=false") == 0
    chosen = yaml.safe_load(Path("run/config.yaml").read_text())["data"]["init_args"]["batch_size"]
    assert chosen >= 16 and math.log2(chosen).is_integer()


@pytest.mark.parametrize("precision", ["32-true", *([] if TOY else ["bf16-mixed", "16-mixed"])])
def test_a_step_that_is_not_finite_is_left_out(monkeypatch, precision):
    loss, calls = CrossEntropy.__call__, []

    def spoilt(self, logits, label, weight):
        calls.append(logits.requires_grad)
        found = loss(self, logits, label, weight)
        return found * math.nan if sum(calls) == 2 and logits.requires_grad else found

    monkeypatch.setattr(CrossEntropy, "__call__", spoilt)
    precise = f"--trainer.precision={precision}"
    assert fit("run", precise, "--nonfinite.policy=skip", "--test_after_fit=false") == 0
    assert Path("run/nonfinite.csv").read_text().splitlines()[1].startswith("1,")
    assert all(value.isfinite().all() for value in weights("run").values())
