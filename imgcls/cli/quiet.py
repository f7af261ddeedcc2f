"""What the terminal shows: our own messages, and not what libraries say at every start and nobody can act on."""

import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

NOISE = (
    ".*does not have many workers.*",  # the data module chooses their number
    ".*number of training batches.*smaller than the logging.*",
    ".*in eval mode at the start of training.*",  # what is frozen stays in eval mode
    ".*this fit will run with no optimizer.*",  # variants that solve for the head
    ".*Total length of `list` across ranks is zero.*",  # no validation part
    ".*your dataloader is not resumable.*",  # the data module keeps the position
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
    ".*loading a checkpoint outside the 'fit' stage.*",  # a test takes the average of weights alone, as it should
    ".*LeafSpec.*",
)


def set_up_messages() -> None:
    """Called before libraries are imported, some of which warn then."""
    log = logging.getLogger("imgcls")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
        log.propagate = False
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not re.search("litlogger|litmodels|💡", record.getMessage())
    )
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="(lightning|jsonargparse).*")


@contextmanager
def silence() -> Iterator[None]:
    """Nothing of what is printed, nor what Lightning logs of its devices."""
    lightning = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = lightning.level
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        lightning.setLevel(logging.WARNING)
        try:
            yield
        finally:
            lightning.setLevel(level)


def finish_wandb(failed: bool) -> None:
    """Close W&B's record now: a later run of the same process (a notebook, a test) would be added to this one."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        try:
            wandb.finish(exit_code=int(failed))
        except OSError:
            pass  # its service is gone, and the logger has said so
