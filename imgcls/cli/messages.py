"""jsonargparse's messages in plain words: which key, in which file, and what was meant."""

import inspect
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import imgcls
from imgcls.cli.configs import read_config
from imgcls.errors import near
from imgcls.system.modules import class_named


def explain(message: str, words: Sequence[str], files: Sequence[Path], options: Iterable[str]) -> str:
    """One line for a message of the parser.

    Args:
        message: What jsonargparse said.
        words: The command line.
        files: The configs.
        options: The dotted keys that the parser knows.
    """
    text = " ".join(message.split())
    top_level = sorted({option.partition(".")[0] for option in options})
    if found := re.search(r"unrecognized arguments: (.*)", text):
        word = found[1].split()[0]
        if not word.startswith("-"):
            return f"{word}: belongs to no option (a pattern such as '*.jpg' needs quotes, or the shell replaces it)"
        key = word.lstrip("-").partition("=")[0].rstrip("+")
        known = top_level if "." not in key else [*options, *(f"{t}." + key.split(".", 1)[1] for t in top_level)]
        return f"{word.partition('=')[0]}: there is no such option{near(key, {*known} - {key})}"
    found = re.search(r"Option '([^']+)' is not accepted", text)
    owner = found and (
        _last(r"class_path='([\w.]+)'", text[found.end() : found.end() + 120])
        or _last(r"class_path[= ]'([\w.]+)'", text[: found.start()])
    )
    if found and owner:
        known = sorted(_parameters(owner))
        listing = near(found[1], known) or f"; it takes {', '.join(known)}"
        if found[1] in known:
            listing = ": the run gives it, such as the optimiser's parameters and a schedule's number of steps"
        return f"{_where(found[1], words, files)}: {owner.rpartition('.')[2]} has no option {found[1]!r}{listing}"
    found = found or re.search(r"Group '(?P<group>[^']+)' does not accept option '(?P<option>[^']+)'", text)
    if found := found or re.search(r"Key '([^']+)' is not expected", text):
        key = ".".join(found.groups())
        head = key.partition(".")[0]
        hint = near(head, top_level) if head not in top_level else near(key, options)
        return f"{_where(key, words, files)}: there is no such key{hint}"
    if found := re.search(r"(?:module '([\w.]+)' has no attribute '(\w+)'|No module named '([\w.]+)')", text):
        named = _last(r"(?:class_path '|Got value: )([\w.]+)", text) or ""
        if path := _defined_in_imgcls(named.rpartition(".")[2]):
            source = "".join(f"{file}: " for file in files if named in file.read_text(encoding="utf-8"))
            return f"{source}{named}: there is no such class; name it {path}"
        if found[3]:
            return f"{_where(found[3], words, files)}: there is no module {found[3]!r}; name a class by its dotted path"
        return f"{found[1]}.{found[2]}: there is no such class{near(found[2], dir(import_module(found[1])))}"
    if found := re.search(r"following arguments are required: ([\w, ]*\w)", text):
        class_after = re.match(r". Got value: Namespace\(class_path='([\w.]+)'", text[found.end() :])
        class_before = re.search(r"class_path '([\w.]+)': the $", text[: found.start()])
        if named_class := class_after or class_before:
            return f"{named_class[1]} needs {found[1]}; an option of the class, like --trainer.logger.save_dir=DIR"
    if found := re.search(r"(?:are required|Key .* is required)", text):
        keys = re.sub(r"\b\w+\.(data|model)\b", r"\1", text.partition(":")[2].strip() or text)
        return f"no {' and no '.join(keys.split(', '))} given: add configs, such as --config configs/data/sample.yaml"
    return _innermost(text)


def _innermost(text: str) -> str:
    """The most precise part of a nested message: the last key that it names, and why."""
    keys = re.findall(r'Parser key "([^"]+)"', text)
    if not keys:
        return text
    value = _last(r"val='([^']*)'", text) or _last(r"Got value: (\S+)", text) or _last(r"Given value: (\S+)", text)
    choices = re.findall(r"typing\.Literal\[([^\]]*)\]", text)
    wanted = choices[0] if len(set(choices)) == 1 else ", ".join(dict.fromkeys(", ".join(choices).split(", ")))
    kinds = [k for k in dict.fromkeys(re.findall(r"Expected a <class '([\w.]+)'>", text)) if k != "NoneType"]
    wanted = " or ".join([*kinds, wanted] if wanted else kinds) or text.rpartition("- ")[2]
    key = keys[-1] if "." in keys[-1] or len(keys) == 1 else f"{keys[0]}.{keys[-1]}"
    return f"--{key}: {value} is not allowed; expected {wanted}"


def _last(pattern: str, text: str) -> str | None:
    found = re.findall(pattern, text)
    return found[-1] if found else None


def _parameters(class_path: str) -> set[str]:
    """Names of the arguments of a class and its bases."""
    owners = [owner for owner in class_named(class_path).__mro__ if "__init__" in vars(owner)]
    names = {name for owner in owners for name in inspect.signature(owner.__init__).parameters}
    return names - {"self", "args", "kwargs"}


def _defined_in_imgcls(name: str) -> str | None:
    """The dotted path of a class of ours: those of version 0.1 have moved, and so may others."""
    folder = Path(imgcls.__path__[0])
    for path in sorted(folder.rglob("*.py")):
        if re.search(rf"^class {name}\b", path.read_text(encoding="utf-8"), re.MULTILINE):
            return ".".join([*path.relative_to(folder.parent).with_suffix("").parts, name])
    return None


def _where(key: str, words: Sequence[str], files: Sequence[Path]) -> str:
    """The option or the file in which a key was given."""
    last = key.rpartition(".")[2]
    for word in words:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag.rpartition(".")[2].lstrip("-") == last:
            return flag
    for path in files:
        if _holds(read_config(path), key.split(".")):
            return f"{path}: {key}"
    return key


def _holds(value: Any, names: list[str]) -> bool:
    """Whether a value stands under names, one below the other, at any depth."""
    if isinstance(value, list):
        return any(_holds(item, names) for item in value)
    if not isinstance(value, dict):
        return False
    below: Any = value
    for name in names:
        below = below.get(name) if isinstance(below, dict) else None
    return below is not None or any(_holds(item, names) for item in value.values())
