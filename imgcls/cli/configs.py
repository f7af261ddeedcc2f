"""Small YAML files that build on each other: what a `base:` names is merged before the file that names it."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from imgcls.errors import UserError
from imgcls.runs.earlier import upgraded
from imgcls.system.files import read_yaml

CONFIG = ("--config", "-c")
PARTS = ("data", "model", "trainer", "checkpoint", "last_checkpoint")


def each_option(words: Sequence[str]) -> Iterator[tuple[str, str, list[str]]]:
    """Each option of a command line, its value (empty without one), and the one or two words that say both."""
    rest = list(words)
    while rest:
        said = [rest.pop(0)]
        flag, equals, value = said[0].partition("=")
        if flag.startswith("-") and not equals and rest and not rest[0].startswith(("--", "-c")):
            said.append(value := rest.pop(0))
        yield flag, value, said


def expand_configs(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with every `--config FILE` preceded by one `--config` for each of its bases.

    Raises:
        UserError: A file is missing, is no YAML mapping, or its bases go in a circle; the text names the files.
    """
    expanded: list[str] = []
    for flag, value, said in each_option(arguments):
        if flag not in CONFIG:
            expanded += said
            continue
        if not value:
            raise UserError("--config: give a YAML file after it")
        files = [value] if value.startswith("{") else map(_as_word, with_bases(Path(value)))
        expanded += [word for file in files for word in ("--config", file)]
    return expanded


def _as_word(path: Path) -> str:
    """The path of a config; what it says instead, if an earlier version wrote it otherwise."""
    config = read_config(path)
    new = upgraded(config)
    return str(path) if new == config else as_text(new)


def as_config(config: dict[str, Any]) -> list[str]:
    """A config as words of a command line."""
    return ["--config", as_text(config)]


def as_text(config: dict[str, Any]) -> str:
    """A config in braces, which the command line takes in place of a file."""
    return yaml.safe_dump(config, default_flow_style=True, width=sys.maxsize)


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The files of `--config` in the order given; not what stands there in place of a file, in braces."""
    return [Path(value) for flag, value, _ in each_option(arguments) if flag in CONFIG and not value.startswith("{")]


def with_bases(path: Path, via: tuple[Path, ...] = ()) -> list[Path]:
    """The bases of a file, theirs first, and then the file itself. Paths in `base` are relative to their file."""
    if path.resolve() in via:
        circle = " → ".join(file.name for file in (*via, path))
        raise UserError(f"{via[-1]}: base {path} leads back to {path.name}: {circle}")
    config = read_config(path, f"{via[-1]}: base " if via else "--config ")
    bases = config.get("base") or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(b, str) for b in bases):
        raise UserError(f"{path}: base: is not a list of files")
    return [f for b in bases for f in with_bases(path.parent / b, (*via, path.resolve()))] + [path]


def read_config(path: Path, asked_by: str = "") -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: There is no such file, or it does not hold a partial run.
    """
    if not path.is_file():
        raise UserError(f"{asked_by}{path}: there is no such file")
    config = read_yaml(path, "a config has keys like data, model, trainer")
    if "config" in config:
        # jsonargparse would replace whole sections instead of merging them
        raise UserError(f"{path}: key 'config' cannot be used inside a file; list the files under 'base'")
    for part in PARTS:
        if isinstance(config.get(part), str):
            # with an override of the same part beside it, jsonargparse would drop the whole part in silence
            raise UserError(f"{path}: key '{part}' holds the text {config[part]!r}; list such a file under 'base'")
    return config
