"""A short run of the stress command: python tests/stress_resume.py --kills 200 is the long one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT

STRESS = Path(__file__).with_name("stress_resume.py")


@pytest.mark.slow
@pytest.mark.parametrize("variants", [["workers", "workers_ema"], ["ddp_workers"]])
def test_killed_at_random_moments_runs_end_as_the_whole_one(variants):
    command = [sys.executable, STRESS, "--kills", "6", "--seed", "3", "--only", *variants]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0 and "runs that differ: 0" in done.stdout, done.stdout + done.stderr[-2000:]
