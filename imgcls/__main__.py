"""The front door: `python -m imgcls VERB …`. Light verbs, and help, answer without importing torch."""

import errno
import os
import sys
from importlib import import_module

from imgcls import __version__
from imgcls.errors import UserError, near

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # of files that no module of ours writes
TRAINER = "imgcls.commands.train"
# verb: (module with main(arguments) -> exit code, what it does)
VERBS = {
    "fit": (TRAINER, "train a model: --config FILE… [--model.lr=…], or go on: --resume RUN_DIR"),
    "validate": (TRAINER, "metrics on the validation part: --run RUN_DIR"),
    "test": (TRAINER, "metrics and predictions on the test part: --run RUN_DIR"),
    "predict": (
        TRAINER,
        "class names, probabilities: --run RUN_DIR [--data.root=FILE|FOLDER|'*.jpg'] [--out FILE] [--sort_into DIR]",
    ),
    "explain": (TRAINER, "what layers respond to, where classes are seen: --run RUN_DIR [--images FILES] [--out DIR]"),
    "preview": (TRAINER, "a picture of the augmentation: --config FILE… [--out FILE.png]"),
    "audit": (
        TRAINER,
        "broken images, duplicates, leaks, wrong labels; a clean table: --config FILE… [--run RUN_DIR]",
    ),
    "pack": (TRAINER, "images into shards, to stream from a disk or a store: --config FILE… --out FOLDER"),
    "find_lr": (TRAINER, "a learning rate to start from: --config FILE… [--out FILE.png]"),
    "benchmark": (TRAINER, "where the time goes, against a bare loop: --config FILE… [--json FILE]"),
    "experiment": ("imgcls.commands.experiment", "all arms of a question, all seeds: experiments/QUESTION [--jobs N]"),
    "sweep": ("imgcls.commands.sweep", "search for the best options: experiments/sweeps/X.yaml --count N [--jobs N]"),
    "answers": ("imgcls.commands.answers", "what the runs of questions say, as Markdown: experiments/QUESTION…"),
    "compare": ("imgcls.commands.compare", "is B better than A? RUN_OR_FOLDER… [--baseline NAME] [--out FILE.html]"),
    "export": (
        "imgcls.commands.export",
        "a checked file: --run RUN_DIR [--format onnx|torch_export|safetensors] [--out FILE]",
    ),
    "backbones": ("imgcls.commands.backbones", "pre-trained networks by name: [PATTERN]"),
}


def usage() -> str:
    """The table of verbs as help."""
    lines = [f"imgcls {__version__}: image classification research on PyTorch Lightning", ""]
    lines += ["usage: python -m imgcls VERB …", ""]
    lines += [f"  {verb:<11}{text}" for verb, (_, text) in VERBS.items()]
    lines += ["", "python -m imgcls VERB --help lists the options of a verb. Start with: make demo"]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Run a verb. Returns 0, or 2 for the user's mistake, which is one line on stderr."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(__version__)
        return 0
    try:
        if arguments[0] not in VERBS:
            raise UserError(f"{arguments[0]!r} is not a verb{near(arguments[0], VERBS)}; they are: {', '.join(VERBS)}")
        return import_module(VERBS[arguments[0]][0]).main(arguments)
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
