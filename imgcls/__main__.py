"""The entry point, `python -m imgcls VERB …`. Light verbs, and help, answer without importing torch."""

import errno
import os
import sys

from imgcls import __version__
from imgcls.cli.quiet import set_up_messages
from imgcls.commands import run_verb, verbs
from imgcls.errors import UserError

SPINS = "20000"  # of GNU's OpenMP, in place of 300,000; a small network on two cores is no slower
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # of files that no module of ours writes


def usage() -> str:
    """The verbs and what they do, as help."""
    lines = [f"imgcls {__version__}: image classification research on PyTorch Lightning", ""]
    lines += ["usage: python -m imgcls VERB …", ""]
    lines += [f"  {verb:<12}{text}" for verb, text in verbs().items()]
    lines += ["", "python -m imgcls VERB --help lists the options of a verb. Start with: make demo"]
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Run a verb. Returns its exit code: 2 for the user's mistake, which is one line on stderr."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    # OpenMP's threads spin while they wait, which takes the cores from the processes that decode
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    set_up_messages()
    try:
        return run_verb(words[0], words[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader of our output has gone (… | head); nothing more can be said to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        print(f"error: {error.filename or 'a file'}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
