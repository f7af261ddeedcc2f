import re
import traceback
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake that the user can mend.

    The command line prints the text on one line of stderr, without a traceback, and exits with 2. The text
    names the file, key or option, the value found, and the way out.
    """


def user_error(error: BaseException | None) -> UserError | None:
    """The UserError from which a library's error came, however deep."""
    while error is not None:
        if isinstance(error, UserError):
            return error
        error = error.__cause__ or error.__context__
    return None


SPEAK_OF = {
    "lightning": "trainer",
    "mlflow": "--trainer.logger",
    "torch.nn.parallel": "trainer",
    "torch.optim.lr_scheduler": "--model.schedule",
    "torch.optim": "--model.optimizer",
}


def refusal(error: BaseException) -> UserError | None:
    """What Lightning, a logger or an optimiser says of its settings by a `raise` of its own; else None."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if str(traceback.extract_tb(error.__traceback__)[-1].line).startswith("raise "):
        for package, key in SPEAK_OF.items():
            if f"{frame.f_globals.get('__name__')}.".startswith(f"{package}."):
                return UserError(f"{key}: {one_line(error)}")
    return None


def one_line(error: BaseException) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def near(name: str, known: Iterable[str], count: int = 3) -> str:
    """`" (did you mean 'resnet18'?)"` for a mistyped `name`, or an empty string if nothing is close."""
    matches = get_close_matches(name, list(known), n=count, cutoff=0.6)
    return f" (did you mean {' or '.join(map(repr, matches))}?)" if matches else ""


def printable(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8, and control characters, become hexadecimal escapes."""
    return re.sub("[\x00-\x1f\x7f\ud800-\udfff]", lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", name)
