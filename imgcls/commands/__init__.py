"""The verbs: each is a module here, found by its file. Its first line says what it does, its `main` does it."""

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from imgcls.errors import UserError, near


def verbs() -> dict[str, str]:
    """What each verb does, by its name; read from the files, as importing what they need would take seconds."""
    found = {}
    for module in iter_modules(__path__):
        text = Path(module.module_finder.path, f"{module.name}.py").read_text(encoding="utf-8")  # type: ignore[union-attr]
        found[module.name] = text.split('"""')[1].partition("\n")[0].rstrip(".")
    return found


def run_verb(verb: str, words: list[str]) -> int:
    """Do a verb's work. Returns its exit code.

    Args:
        verb: Its name.
        words: What follows it on the command line.

    Raises:
        UserError: There is no such verb, or the user made another mistake.
    """
    known = verbs()
    if verb not in known:
        raise UserError(f"{verb!r} is not a verb{near(verb, known)}; they are: {', '.join(known)}")
    return import_module(f"{__name__}.{verb}").main(words)
