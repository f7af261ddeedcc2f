"""The temperature of a trained run, which belongs to one checkpoint: other weights need another."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.system.files import read_json, write_json

log = logging.getLogger(__name__)


def write_calibration(run: RunFolder, checkpoint: Path, found: Mapping[str, Any]) -> None:
    """Write calibration.json: what was found, with `temperature`, for the weights in a checkpoint's file."""
    write_json(run.calibration, {**found, "checkpoint": checkpoint.name, "hash": checkpoint_hash(checkpoint)})


def temperature(run: RunFolder, checkpoint: Path | None = None) -> float:
    """What logits of a run are divided by before they become probabilities; 1 if it was not calibrated.

    One fitted to other weights, such as those before the run was trained on, is not used, and a warning says so.

    Args:
        run: The run's folder.
        checkpoint: Whose logits they are. Default: the run's best.

    Raises:
        UserError: calibration.json is damaged.
    """
    checkpoint = checkpoint or run.best
    try:
        found = read_json(run.calibration)
        if not found:
            return 1.0
        value, fitted_to = float(found["temperature"]), found["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run.calibration}: is damaged ({error!r}); remove it, or calibrate again") from error
    if not 0 < value < float("inf"):
        raise UserError(f"{run.calibration}: temperature {value} is not a positive number; calibrate again")
    if fitted_to != checkpoint_hash(checkpoint):
        log.warning(
            f"{run.calibration}: not used, it was fitted to other weights than those of {checkpoint}; "
            f"calibrate again with test --run {run.path} --calibrate=true"
        )
        return 1.0
    return value


def checkpoint_hash(checkpoint: Path) -> str:
    """Of a checkpoint's file, 32 hexadecimal digits."""
    # not size and time, which a copy of the folder changes: reading is quick beside loading
    with open(checkpoint, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
