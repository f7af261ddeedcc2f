"""Runs in processes of their own, which end with the process that started them."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from imgcls.system.resources import cores

PR_SET_PDEATHSIG = 1


def start_run(words: Sequence[str], log: Path, at_once: int = 1) -> subprocess.Popen:
    """Start `python -m imgcls` with some words, what it prints going to a file.

    Args:
        words: Verb and options.
        log: The file.
        at_once: How many such runs share the cores.
    """
    environment = {"OMP_NUM_THREADS": str(max(1, cores() // at_once)), **os.environ}
    environment.pop("IMGCLS_RUN_DIR", None)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "imgcls", *words],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def last_line(log: Path) -> str:
    """The last thing that a run printed: its error, if it failed."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def _end_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent is gone, killed or not: a second start must not meet the first's runs."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
