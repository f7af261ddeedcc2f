"""Kinds of labels by name; those of this package need no line here."""

from functools import cache
from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules

from imgcls.errors import UserError, near
from imgcls.tasks.base import Pairs, Task, agree, known

SINGLE_LABEL = "single_label"

__all__ = ["SINGLE_LABEL", "Pairs", "Task", "agree", "find", "known"]


@cache
def find(name: str) -> Task:
    """A kind of labels.

    Args:
        name: That of a module of this package, whose class has the same, `single_label` and `SingleLabel`; or the
            dotted path of a class of one's own.

    Raises:
        UserError: There is no such module, or no kind of labels of that name in it.
    """
    here, _, kind = name.rpartition(".")
    module = here or f"{__name__}.{name}"
    kind = kind if here else name.title().replace("_", "")
    try:
        members = vars(import_module(module))
    except ModuleNotFoundError as error:
        way = near(name, (of.name for of in iter_modules(__path__)))
        if here:
            way = "; it may stand beside the config, in the folder that python is started in, or on PYTHONPATH"
        raise UserError(f"--data.task {name}: there is no module {error.name}{way}") from error
    if kind not in members:
        raise UserError(f"--data.task {name}: {module} has no {kind}{near(kind, members)}")
    found = members[kind]
    if not (isinstance(found, type) and issubclass(found, Task)) or isabstract(found):
        raise UserError(
            f"--data.task {name}: is no kind of labels: no subclass of imgcls.tasks.Task, or an abstract one"
        )
    return found()
