"""A job that SLURM puts back finds its run again."""

import os
from pathlib import Path

from imgcls.runs.folder import RunFolder
from imgcls.system.files import write_atomic


def job() -> str | None:
    """Number of this job, with that of its task in an array; None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def remember(run: RunFolder) -> None:
    """Note which run this job trains."""
    if name := job():
        write_atomic(_note(name), str(run.path.absolute()))


def unfinished_run() -> RunFolder | None:
    """The run that this job trained before it was put back, if that had begun."""
    name = job()
    if name is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0" or not _note(name).is_file():
        return None
    run = RunFolder(_note(name).read_text(encoding="utf-8"))
    return run if run.config.is_file() else None


def _note(name: str) -> Path:
    return Path("runs") / ".slurm" / name
