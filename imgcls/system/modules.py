"""Python modules and classes by name, also those that stand beside a config."""

import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Any


def make_importable(folders: Iterable[str]) -> None:
    """Let Python find modules in these folders, after all others."""
    sys.path += [folder for folder in folders if folder not in sys.path]


def class_named(path: str) -> Any:
    """The class of a dotted path, such as imgcls.models.cnn.CNN."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
