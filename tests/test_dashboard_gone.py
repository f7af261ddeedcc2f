"""W&B that cannot be reached, does not answer, or dies costs a warning, and nothing else."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from .conftest import ROOT, TINY
from .test_cli import rows

WORDS = [w for w in TINY if not str(w).startswith("--trainer.logger")] + ["--test_after_fit=false"]


def inspect(run):
    (record,) = Path(run, "wandb").glob("*run-*")
    tool = Path(sys.executable).with_name("wandb")
    return subprocess.run([tool, "leet", "inspect", "--json", record], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("server", ["refuses", "hangs"])
@pytest.mark.parametrize("mode", [None, "online"])
def test_a_server_that_does_not_answer_costs_one_line(imgcls, monkeypatch, server, mode):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if server == "hangs":
            listening.listen()
            monkeypatch.setattr("imgcls.system.network.ANSWER_SECONDS", 0.5)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.delenv("WANDB_MODE") if mode is None else monkeypatch.setenv("WANDB_MODE", mode)
        wandb.teardown()
        code, _, err = imgcls("fit", *WORDS, "--run_dir", "run")
        wandb.teardown()
    assert code == 0, err
    assert err.count("cannot be reached") == 1 and "the record stays in run/wandb" in err
    assert len(rows("run/metrics.csv")) == 2 and "val/acc" in inspect("run").stdout


KILL = """
import os, signal, sys, time
from pathlib import Path
from imgcls.__main__ import main
from imgcls.training.record import RunRecord

original = RunRecord.on_train_epoch_start

def kill(self, trainer, pl_module):
    original(self, trainer, pl_module)
    if trainer.current_epoch == 1:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        (service,) = [int(pid) for pid in children if b"wandb-core" in Path("/proc", pid, "cmdline").read_bytes()]
        (record,) = Path("run/wandb").glob("*run-*/*.wandb")
        deadline = time.monotonic() + 60
        while b"val/acc" not in record.read_bytes() and time.monotonic() < deadline:
            time.sleep(0.1)  # the service writes every second
        os.kill(service, signal.SIGKILL)

RunRecord.on_train_epoch_start = kill
sys.exit(main(sys.argv[1:]))
"""


def test_a_service_that_dies_costs_one_warning_and_no_figure():
    words = [sys.executable, "-c", KILL, "fit", *map(str, WORDS), "--trainer.max_epochs=3", "--run_dir", "run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "W&B" in line]
    assert len(warnings) == 1 and "its record ends here" in warnings[0] and "Traceback" not in done.stderr
    assert [row["epoch"] for row in rows("run/metrics.csv")] == ["0", "0", "1", "1", "2", "2"]
    assert json.loads(Path("run/metrics.json").read_text())["fit/epochs"] == 3
    assert "val/acc" in inspect("run").stdout  # the first epoch
