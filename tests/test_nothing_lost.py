"""Checkpoints are whole or not there; signals save; a job that is put back goes on."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from imgcls.classifier import Classifier
from imgcls.errors import UserError
from imgcls.training.checkpoint import AtomicCheckpointIO

from .conftest import QUIET, ROOT, TINY
from .test_cli import fit, rows, same, weights

WORDS = [*TINY, "--trainer.max_epochs=3", "--trainer.limit_train_batches=4", "--test_after_fit=false"]
SLURM = {"NTASKS": "1", "JOB_ID": "4711", "JOB_NAME": "train", "NODELIST": "localhost", "PROCID": "0", "LOCALID": "0"}
SLURM |= {"NODEID": "0", "NTASKS_PER_NODE": "1"}


def send(monkeypatch, number, step, hook="training_step"):
    """Let this process get a signal at a step."""
    original = getattr(Classifier, hook)

    def wrapped(self, *arguments):
        if self.global_step == step and not self.trainer.sanity_checking:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    monkeypatch.setattr(Classifier, hook, wrapped)


@pytest.mark.parametrize(
    "hook, step, saved, options",
    [
        ("training_step", 5, 6, []),  # within an epoch
        ("training_step", 7, 8, []),  # the last step of an epoch
        ("validation_step", 8, 8, []),
        ("on_validation_epoch_end", 8, 8, []),
        ("on_train_epoch_end", 8, 8, []),
        ("validation_step", 6, 6, ["--trainer.val_check_interval=2"]),  # within an epoch
        ("training_step", 5, 6, ["--config", ROOT / "configs/trainer/ema.yaml"]),  # while the decay is warmed up
    ],
)
def test_sigterm_saves_and_the_run_goes_on_bit_by_bit(imgcls, monkeypatch, hook, step, saved, options):
    words = [*WORDS, "--config", ROOT / "configs/augment/mix.yaml", "--model.dropout=0.1", *options]
    code, _, err = imgcls("fit", *words, "--run_dir", "whole")
    assert code == 0, err
    with monkeypatch.context() as patch:
        send(patch, signal.SIGTERM, step, hook)
        assert imgcls("fit", *words, "--run_dir", "part")[0] == 143
    last = Path("part/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == saved
    code, _, err = imgcls("fit", "--resume", "part", *QUIET)
    assert code == 0, err
    assert same(weights("whole/checkpoints/last.ckpt"), weights(last))
    tables = [rows("whole/metrics.csv"), rows("part/metrics.csv")]
    assert tables[0] == tables[1]
    assert same(weights("whole/checkpoints/best.ckpt"), weights("part/checkpoints/best.ckpt"))


def test_slurms_signal_saves_and_puts_the_job_back(imgcls, monkeypatch, tmp_path):
    whole = fit(imgcls, *WORDS, run="whole")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.log\n')
    (tmp_path / "bin/scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in SLURM.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with monkeypatch.context() as patch:
        send(patch, signal.SIGUSR1, 5)
        assert imgcls("fit", *WORDS)[0] == 143
    assert (tmp_path / "scontrol.log").read_text() == "requeue 4711\n"
    (last,) = Path("runs").rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 6
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    code, _, err = imgcls("fit", *WORDS)  # the same command again
    assert code == 0, err
    assert list(Path("runs").rglob("last.ckpt")) == [last]
    assert same(weights(whole / "checkpoints/last.ckpt"), weights(last))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_two_processes_gets_the_signal_and_both_save(imgcls, rank):
    """The signal comes in the middle of a step."""
    Path("signalled.py").write_text(
        "import os, signal\nfrom imgcls.losses import CrossEntropy\n\n\nclass Signalled(CrossEntropy):\n"
        "    calls = 0\n\n    def __call__(self, logits, label, weight):\n"
        "        loss = super().__call__(logits, label, weight)\n"
        "        self.calls += loss.requires_grad\n"
        f"        if self.calls == 6 and os.environ.get('LOCAL_RANK', '0') == '{rank}' and 'SIGNAL' in os.environ:\n"
        "            self.calls += 1\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "        return loss\n"
    )
    Path("arm.yaml").write_text("# signalled\nmodel: {loss: signalled.Signalled}\n")
    devices = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(*words, code=0, **more):
        command = [sys.executable, "-m", "imgcls", "fit", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment | more)
        assert done.returncode == code, done.stderr[-3000:]

    run(*WORDS, *devices, "--config", "arm.yaml", "--run_dir=whole")
    run(*WORDS, *devices, "--config", "arm.yaml", "--run_dir=part", code=143, SIGNAL="1")
    assert torch.load("part/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    run("--resume", "part")
    assert same(weights("whole/checkpoints/last.ckpt"), weights("part/checkpoints/last.ckpt"))
    assert rows("whole/metrics.csv") == rows("part/metrics.csv")


# ---- writing ----


def limit_files(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def little_room():
    """No file may grow beyond 64 KiB: the system refuses the write, as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit_files(1 << 16)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_without_room_the_file_before_stands(tmp_path, little_room):
    path = tmp_path / "run" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"small": torch.ones(3)}, path)
    with pytest.raises(
        UserError, match=r"last.ckpt: the checkpoint cannot be written \(File too large\), .*before stands"
    ):
        AtomicCheckpointIO().save_checkpoint({"large": torch.ones(1 << 20)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["small"], torch.ones(3))
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_every_failure_on_the_way_names_the_file(tmp_path, monkeypatch, call, number):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open" if call == "open" else f"os.{call}", fail)
        with pytest.raises(UserError, match=f"last.ckpt: the checkpoint cannot be written .{os.strerror(number)}"):
            AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_kill_within_a_write_leaves_the_file_before(tmp_path, monkeypatch):
    """At any byte: a child process is killed after so many."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": torch.ones(5000)}, path)
    before = path.read_bytes()
    for after in (0, 1, 1000, 20_000):
        child = os.fork()
        if child == 0:
            original = open

            def counting(*arguments, original=original, after=after):
                file = original(*arguments)
                os.pwrite(file.fileno(), b"x" * after, 0)
                os.kill(os.getpid(), signal.SIGKILL)

            monkeypatch.setattr("builtins.open", counting)
            AtomicCheckpointIO().save_checkpoint({"step": torch.zeros(5000)}, path)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert path.read_bytes() == before
    AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_run_without_room_for_its_checkpoint_says_so(imgcls, monkeypatch):
    original = os.replace

    def replace(source, target):
        if str(target).endswith(".ckpt"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, target)

    monkeypatch.setattr("os.replace", replace)
    code, _, err = imgcls("fit", *WORDS, "--run_dir", "run")
    assert code == 2 and "run/checkpoints/best.ckpt: the checkpoint cannot be written (No space left on device)" in err


def test_a_folder_that_cannot_be_written_to_is_one_line(imgcls, monkeypatch):
    original = Path.mkdir

    def mkdir(self, *arguments, **options):
        if "run" in self.parts:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
        original(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    code, _, err = imgcls("fit", *WORDS, "--run_dir", "run")
    assert code == 2 and err.strip().splitlines()[-1].startswith("error: run")
    assert "cannot be written (Read-only file system)" in err and "Traceback" not in err


@pytest.mark.parametrize("room", [1 << 12, 1 << 15, 1 << 17, 3 << 17])
def test_a_full_disk_is_one_line_wherever_it_fills(imgcls, tmp_path, room):
    """A file system of so many bytes: config, checkpoint, predictions or report do not fit."""
    (tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root mounts a file system")
    try:
        code, _, err = imgcls("fit", *WORDS, "--run_dir", tmp_path / "disk/run")
        last = err.strip().splitlines()[-1]
        assert code == 2 and "cannot be written" in last and "No space left on device" in last, err
        for path in (tmp_path / "disk").rglob("*.ckpt"):
            torch.load(path, weights_only=True)
    finally:
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)


def test_a_truncated_last_checkpoint_points_to_the_best(imgcls):
    run = fit(imgcls, *WORDS)
    last = run / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:5000])
    code, _, err = imgcls("fit", "--resume", run, *QUIET)
    line = err.strip().splitlines()[-1]
    assert code == 2 and "last.ckpt: is truncated" in line and f"--ckpt_path {run}/checkpoints/best.ckpt" in line
    code, _, err = imgcls("fit", "--resume", run, "--ckpt_path", run / "checkpoints/best.ckpt", *QUIET)
    assert code == 0, err
    assert torch.load(last, weights_only=True)["global_step"] == 12


def test_a_finished_run_can_be_resumed_without_harm(imgcls):
    run = fit(imgcls, *WORDS)
    before, table = weights(run / "checkpoints/last.ckpt"), rows(run / "metrics.csv")
    code, _, err = imgcls("fit", "--resume", run, *QUIET)
    assert code == 0, err
    assert same(before, weights(run / "checkpoints/last.ckpt")) and rows(run / "metrics.csv") == table


def test_a_run_stopped_before_its_first_checkpoint_begins_again(imgcls, monkeypatch):
    whole = fit(imgcls, *WORDS, run="whole")

    def cut(self, batch, batch_idx):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="power cut"):
        patch.setattr(Classifier, "training_step", cut)
        imgcls("fit", *WORDS, "--run_dir", "part")
    assert not Path("part/checkpoints/last.ckpt").exists()
    code, _, err = imgcls("fit", "--resume", "part", *QUIET)
    assert code == 0, err
    assert same(weights(whole / "checkpoints/last.ckpt"), weights("part/checkpoints/last.ckpt"))
    assert rows(whole / "metrics.csv") == rows("part/metrics.csv")


def test_a_stop_within_an_accumulation_waits_for_the_optimisers_step(imgcls, monkeypatch):
    words = [*WORDS, "--trainer.accumulate_grad_batches=3", "--trainer.limit_train_batches=8", "--data.num_workers=2"]
    whole = fit(imgcls, *words, run="whole")
    with monkeypatch.context() as patch:
        send(patch, signal.SIGTERM, 4)  # in the fourth batch of the second epoch, the first of an accumulation
        assert imgcls("fit", *words, "--run_dir", "part")[0] == 143
    code, _, err = imgcls("fit", "--resume", "part", *QUIET)
    assert code == 0, err
    assert same(weights(whole / "checkpoints/last.ckpt"), weights("part/checkpoints/last.ckpt"))
    assert rows(whole / "metrics.csv") == rows("part/metrics.csv")
