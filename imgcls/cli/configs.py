"""Small YAML files that build on each other: what a `base:` names is merged before the file that names it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from imgcls.errors import UserError
from imgcls.runs.earlier import upgraded
from imgcls.system.files import read_yaml

PARTS = ("data", "model", "trainer", "checkpoint", "last_checkpoint")


def expand_configs(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with every `--config FILE` preceded by one `--config` for each of its bases.

    Raises:
        UserError: A file is missing, is no YAML mapping, or its bases go in a circle; the text names the files.
    """
    expanded: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag not in ("--config", "-c"):
            expanded.append(word)
            continue
        if not equals:
            if not rest:
                raise UserError("--config: give a YAML file after it")
            value = rest.pop(0)
        files = [value] if value.startswith("{") else map(_as_word, with_bases(Path(value)))
        expanded += [word for file in files for word in ("--config", file)]
    return expanded


def _as_word(path: Path) -> str:
    """The path of a config; what it says instead, if an earlier version wrote it otherwise."""
    config = read_config(path)
    new = upgraded(config)
    return str(path) if new == config else as_text(new)


def as_text(config: dict[str, Any]) -> str:
    """A config in braces, which the command line takes in place of a file."""
    return yaml.safe_dump(config, default_flow_style=True, width=sys.maxsize)


def config_files(arguments: Sequence[str]) -> list[Path]:
    """The files of `--config` in the order given; not what stands there in place of a file, in braces."""
    pairs = zip(arguments, [*arguments[1:], ""], strict=False)  # without arguments there is no pair
    given = [w.partition("=")[2] or after for w, after in pairs if w.partition("=")[0] in ("--config", "-c")]
    return [Path(value) for value in given if not value.startswith("{")]


def with_bases(path: Path, via: tuple[Path, ...] = ()) -> list[Path]:
    """The bases of a file, theirs first, and then the file itself. Paths in `base` are relative to their file."""
    if path.resolve() in via:
        raise UserError(
            f"{via[-1]}: base {path} leads back to {path.name}: {' → '.join(p.name for p in via)} → {path.name}"
        )
    config = read_config(path, f"{via[-1]}: base " if via else "--config ")
    bases = config.get("base") or []
    if isinstance(bases, str):
        bases = [bases]
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
