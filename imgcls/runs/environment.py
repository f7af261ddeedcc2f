"""Where a run's figures came from: versions, commit, hardware, data; and nothing that is secret."""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from imgcls.tasks import SINGLE_LABEL, Task, find

PACKAGES = "imgcls torch torchvision lightning torchmetrics kornia timm jsonargparse wandb numpy pillow".split()


def environment(seed: int | None, data: dict[str, Any], hardware: dict[str, Any]) -> dict[str, Any]:
    """What is needed to say where figures came from. No environment variables: they hold keys.

    Args:
        seed: The run's seed.
        data: Fingerprints, class names and sizes.
        hardware: What the caller knows of accelerators.
    """
    return {
        "command": [without_keys(word) for word in sys.argv],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "git": _git(),
        "hardware": {"processor": _processor(), "cores": os.cpu_count(), **hardware},
        "seed": seed,
        "data": data,
    }


def task_of(record: Mapping[str, Any]) -> Task:
    """The kind of labels of a run, by its record; an earlier version knew one."""
    return find(record.get("data", {}).get("task", SINGLE_LABEL))


def without_keys(text: str) -> str:
    """Text in which REMOVED stands for the value of each environment variable and option that is named as a key is."""
    for name, value in os.environ.items():
        if name.upper().endswith(("KEY", "TOKEN", "SECRET", "PASSWORD")) and len(value) >= 8:
            text = text.replace(value, "REMOVED")
    return re.sub(r"((?:api_?key|password|secret)\w*[=:] ?)(?!null\b)[^\s,}]+", r"\1REMOVED", text, flags=re.IGNORECASE)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None  # an extra that is not installed


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _git() -> dict[str, Any] | None:
    here = Path(__file__).parent

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from an archive, or no git on this machine
