import logging
import os
import re
import signal
import sys
import warnings

from imgcls.allocator import keep_freed_memory
from imgcls.errors import UserError, user_error


def main(arguments: list[str]) -> int:
    """Every verb that needs data and model, with every mistake of the user's as a UserError."""
    keep_freed_memory()
    _set_up_messages()
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from imgcls.cli import ImgclsCLI

    try:
        ImgclsCLI(arguments)
    except MisconfigurationException as error:
        raise user_error(error) or UserError(f"trainer: {' '.join(str(error).split())}") from error
    except SIGTERMException:
        return 128 + signal.SIGTERM  # stopped is not done: Lightning would exit with 0
    except Exception as error:
        cause = user_error(error)
        if cause is None:
            raise
        raise cause from error
    finally:
        _finish_wandb(failed=sys.exc_info()[0] is not None)
    return 0


def _finish_wandb(failed: bool) -> None:
    """Close the record now: a later run of the same process (a notebook, a test) would be added to this one."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        try:
            wandb.finish(exit_code=int(failed))
        except OSError:
            pass  # its service is gone, and the logger has said so


def _set_up_messages() -> None:
    """Show our own messages; drop what libraries say at every start and nobody can act on."""
    log = logging.getLogger("imgcls")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
        log.propagate = False
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: not re.search("litlogger|litmodels|💡", record.getMessage())
    )
    for message in (
        ".*does not have many workers.*",  # the data module chooses their number
        ".*number of training batches.*smaller than the logging.*",
        ".*in eval mode at the start of training.*",  # what is frozen stays in eval mode
        ".*this fit will run with no optimizer.*",  # variants that solve for the head
        ".*Total length of `list` across ranks is zero.*",  # no validation part
        ".*your dataloader is not resumable.*",  # the data module keeps the position
        ".*Checkpoint directory .* exists and is not empty.*",  # a resumed run
    ):
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="(lightning|jsonargparse).*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
