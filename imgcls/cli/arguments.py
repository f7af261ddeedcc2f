"""What the words of a command line say before a parser sees them."""

import re
from collections.abc import Sequence
from pathlib import Path

from imgcls.cli.configs import config_files, each_option, read_config
from imgcls.errors import UserError
from imgcls.system.files import read_json


def with_values_of_yaml(words: Sequence[str]) -> list[str]:
    """Words with `=true`, `=false` and `=null` where W&B's agent writes values as Python does."""
    yaml = {"None": "null", "True": "true", "False": "false"}
    return [re.sub(r"(?<==)(None|True|False)$", lambda found: yaml[found[0]], word) for word in words]


def take(words: Sequence[str], option: str) -> tuple[str | None, list[str]]:
    """The value of an option, None without it, and the words but for both.

    Raises:
        UserError: The option is without a value.
    """
    taken, others = None, []
    for flag, value, said in each_option(words):
        if flag != option or taken:
            others += said
        elif not value:
            raise UserError(f"{option}: give the folder of a run after it")
        else:
            taken = value
    return taken, others


def gives(words: Sequence[str], *options: str) -> bool:
    """Whether one of the options is among the words."""
    return any(word.partition("=")[0] in options for word in words)


def configures(words: Sequence[str], part: str) -> bool:
    """Whether an option or a config says something of a part of a run, such as data or model."""
    return any(w.startswith(f"--{part}") for w in words) or any(part in read_config(f) for f in config_files(words))


def refuse_overruled(words: Sequence[str]) -> None:
    """A learning rate or weight decay of the optimiser itself would be without effect: each group has its own.

    Raises:
        UserError: One was given; the text names the option or the file.
    """
    pattern = r"--model\.(?:init_args\.)?optimizer\.(?:init_args\.)?(lr|weight_decay)"
    found = {word: re.fullmatch(pattern, word.partition("=")[0]) for word in words}
    given = [(word, f"--model.{match[1]}") for word, match in found.items() if match]
    for path in config_files(words):
        model = read_config(path).get("model") or {}
        optimizer = model.get("init_args", model).get("optimizer")
        options = optimizer.get("init_args", optimizer) if isinstance(optimizer, dict) else {}
        overruled = [name for name in ("lr", "weight_decay") if name in options]
        given += [(f"{path}: model.optimizer.{name}", f"model.{name}") for name in overruled]
    for where, instead in given:
        raise UserError(f"{where}: give {instead} instead; it sets every parameter group, scaled by depth")


def config_folders(files: Sequence[Path]) -> list[str]:
    """Where a class named in a config may stand: beside the config, or beside those from which a run was made."""
    folders: dict[str, None] = {}
    for file in files:
        recorded = read_json(file.with_name("environment.json")).get("config_folders", [])
        folders |= dict.fromkeys([str(file.resolve().parent), *recorded])
    return list(folders)
