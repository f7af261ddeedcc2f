"""Kinds of labels by the names of their modules, which need no line here."""

from functools import cache
from importlib import import_module
from inspect import isabstract

from imgcls.errors import UserError
from imgcls.tasks.base import Pairs, Task

SINGLE_LABEL = "single_label"

__all__ = ["SINGLE_LABEL", "Pairs", "Task", "find"]


@cache
def find(name: str) -> Task:
    """A kind of labels.

    Args:
        name: Of a module of this package, or of one's own with dots, that defines one subclass of `Task`.

    Raises:
        UserError: There is no such module, or no such class in it.
    """
    module = name if "." in name else f"{__name__}.{name}"
    try:
        members = vars(import_module(module)).values()
    except ModuleNotFoundError as error:
        raise UserError(f"--data.task {name}: there is no module {error.name}") from error
    own = [of for of in members if isinstance(of, type) and issubclass(of, Task) and of.__module__ == module]
    if len(own) != 1 or isabstract(own[0]):
        raise UserError(f"--data.task {name}: {module} defines no kind of labels, or several")
    return own[0]()
