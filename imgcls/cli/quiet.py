"""What the terminal shows: our own messages, and not what libraries say at every start and nobody can act on.

A run's log.txt has all of it; messages of level DEBUG are for it alone.
"""

import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from imgcls.errors import UserError, one_line

log = logging.getLogger(__name__)
NOISE = (
    ".*does not have many workers.*",  # the data module chooses their number
    ".*number of training batches.*smaller than the logging.*",
    ".*in eval mode at the start of training.*",  # what is frozen stays in eval mode
    ".*this fit will run with no optimizer.*",  # variants that solve for the head
    ".*Total length of `list` across ranks is zero.*",  # no validation part
    ".*recommended to use `self.log.*sync_dist=True.*",  # figures are of all processes before they are logged
    ".*your dataloader is not resumable.*",  # the data module keeps the position
    ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
    ".*loading a checkpoint outside the 'fit' stage.*",  # a test takes the average of weights alone, as it should
    ".*LeafSpec.*",
)


class Terminal(logging.Handler):
    """Our own messages and all warnings, of rank 0, on stderr: a progress bar may stand in for it for a while."""

    verbose = False  # and what libraries say of what they do

    def emit(self, record: logging.LogRecord) -> None:  # noqa: D102
        lightning = sys.modules.get("lightning_utilities.core.rank_zero")
        other_rank = lightning is not None and getattr(lightning.rank_zero_only, "rank", 0) != 0
        ours = self.verbose or record.name.startswith("imgcls")
        if record.levelno >= (logging.INFO if ours else logging.WARNING) and not other_rank:
            print(self.format(record), file=sys.stderr, flush=True)


def set_up_messages() -> None:
    """Called before libraries are imported, some of which warn then."""
    root = logging.getLogger()
    if not any(isinstance(handler, Terminal) for handler in root.handlers):
        root.addHandler(Terminal())
    logging.getLogger("imgcls").setLevel(logging.DEBUG)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that it cannot write must not end a run
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_no_advertisement)
    warnings.showwarning = _log_warning  # type: ignore[assignment]
    for message in NOISE:
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="(lightning|jsonargparse).*")


def show_libraries(verbose: bool) -> None:
    """Show what Lightning says of what it does, or only what it warns of."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()  # its own print at once, which tears a progress bar
        logger.propagate = True
    Terminal.verbose = verbose


@contextmanager
def kept_messages() -> Iterator[MemoryHandler]:
    """All messages of the block, whatever the terminal shows of them, for the file that is made their target.

    Until there is one they wait: a run's folder is not there before its data and model are.
    """
    kept = MemoryHandler(0)
    root = logging.getLogger()
    root.addHandler(kept)
    try:
        yield kept
    except Exception as error:
        log.debug(f"error: {one_line(error)}", exc_info=not isinstance(error, UserError))
        raise
    finally:
        root.removeHandler(kept)
        if kept.target is not None:
            kept.target.close()
        kept.close()


def _log_warning(message: Any, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    log.warning(f"warning: {one_line(message)} ({category.__name__}, {Path(filename).name}:{lineno})")


def _no_advertisement(record: logging.LogRecord) -> bool:
    return not re.search("litlogger|litmodels|💡", record.getMessage())


@contextmanager
def silence() -> Iterator[None]:
    """Nothing of what is printed or logged."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere), redirect_stdout(nowhere):
        yield


def finish_wandb(failed: bool) -> None:
    """Close W&B's record now: a later run of the same process (a notebook, a test) would be added to this one."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        with suppress(OSError):  # its service is gone, and the logger has said so
            wandb.finish(exit_code=int(failed))
