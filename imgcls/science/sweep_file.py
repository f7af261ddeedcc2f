"""A W&B sweep file, read for Optuna: method, metric, early stopping, the command, and the space of each parameter."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imgcls.errors import UserError, near
from imgcls.system.files import read_yaml

KEYS = "program method metric parameters command early_terminate name description project entity run_cap".split()
METHODS = ("grid", "random", "bayes")
RANGES = ("int_uniform", "uniform", "q_uniform", "log_uniform", "log_uniform_values", "q_log_uniform_values")


@dataclass(frozen=True)
class Space:
    """What a parameter may be: one of `values`, or a number from low to high.

    Attributes:
        values: The choices, of any kind that YAML has; None for a range.
        low: Smallest number.
        high: Largest number.
        step: Distance between two; None where every number is possible.
        log: Sampled evenly by logarithm.
        integer: Whole numbers.
    """

    values: list[Any] | None = None
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        path: The file.
        method: `grid`, `random` or `bayes`.
        metric: Such as val/acc.
        maximize: Whether more of it is better.
        spaces: By the option's name, without dashes.
        words: What follows `fit` in each trial, beside the parameters.
        hyperband: min_resource, max_resource and reduction_factor of Optuna's pruner; None runs all trials to the end.
    """

    path: Path
    method: str
    metric: str
    maximize: bool
    spaces: dict[str, Space]
    words: list[str]
    hyperband: dict[str, Any] | None

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.stem


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        UserError: It is not there or asks for what is not supported; the text names the key.
    """
    if not path.is_file():
        raise UserError(f"sweep: {path}: there is no such file")
    content = read_yaml(path, "a sweep has method, metric, parameters and command")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{path}: {key}: there is no such key{near(str(key), KEYS)}; it takes {', '.join(KEYS)}")
    method, metric = content.get("method"), content.get("metric") or {}
    if method not in METHODS:
        raise UserError(f"{path}: method: {method!r} is not one of {', '.join(METHODS)}")
    if not metric.get("name") or metric.get("goal", "minimize") not in ("maximize", "minimize"):
        raise UserError(f"{path}: metric: give a name, such as val/acc, and a goal, maximize or minimize")
    if metric["name"].startswith("test/"):
        raise UserError(f"{path}: metric: {metric['name']} would choose on the test images; use val/…")
    parameters = content.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise UserError(f"{path}: parameters: holds none")
    spaces = {str(name): read_space(f"{path}: parameters: {name}", given) for name, given in parameters.items()}
    if method == "grid" and (without := [name for name, space in spaces.items() if space.values is None]):
        raise UserError(f"{path}: parameters: {without[0]}: a grid needs values, not a range")
    return Sweep(
        path,
        method,
        metric["name"],
        metric.get("goal", "minimize") == "maximize",
        spaces,
        _words(path, content.get("command")),
        _hyperband(path, content.get("early_terminate")),
    )


def read_space(where: str, given: Any) -> Space:
    """One parameter as W&B writes it.

    Args:
        where: File and key, for messages.
        given: value; values; or min and max with a distribution.
    """
    if not isinstance(given, dict):
        raise UserError(f"{where}: {given!r} is not a mapping with value, values, or min and max")
    if "parameters" in given:
        raise UserError(f"{where}: parameters cannot be nested; write a dotted key, such as model.lr")
    if "probabilities" in given:
        raise UserError(f"{where}: probabilities are not supported; repeat a value to have it sampled more often")
    kind = given.get("distribution")
    if kind in (None, "constant") and "value" in given:
        return Space([given["value"]])
    if kind in (None, "categorical") and given.get("values"):
        return Space(list(given["values"]))
    if not {"min", "max"} <= given.keys():
        raise UserError(f"{where}: give value, values, or min and max (distribution: {kind})")
    low, high = given["min"], given["max"]
    whole = isinstance(low, int) and isinstance(high, int)
    kind = kind or ("int_uniform" if whole else "uniform")
    if kind not in RANGES:
        raise UserError(f"{where}: distribution {kind!r} is not supported; it can be {', '.join(RANGES)}")
    if not all(isinstance(v, int | float) for v in (low, high)) or low >= high:
        raise UserError(
            f"{where}: min {low!r} and max {high!r}: give two numbers, the smaller first (1.0e-4, not 1e-4)"
        )
    if kind == "log_uniform":
        low, high = math.exp(low), math.exp(high)  # W&B's bounds are exponents here
    log = "log" in kind
    if log and low <= 0:
        raise UserError(f"{where}: min {low!r} is not above 0, as {kind} needs")
    step = given.get("q", 1) if kind == "q_uniform" else None
    return Space(None, low, high, step, log, integer=kind in ("int_uniform", "q_log_uniform_values"))


def encode(value: Any) -> Any:
    """A choice as Optuna can store it: lists and mappings as text."""
    return f"json:{json.dumps(value, sort_keys=True)}" if isinstance(value, list | dict) else value


def decode(value: Any) -> Any:
    """The choice again."""
    return json.loads(value[5:]) if isinstance(value, str) and value.startswith("json:") else value


def as_word(name: str, value: Any) -> str:
    """A parameter on fit's command line."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"--{name}={text}"


def _words(path: Path, command: Any) -> list[str]:
    """What the command gives to `fit`, without W&B's placeholders."""
    if not isinstance(command, list) or "fit" not in command or "imgcls" not in command:
        raise UserError(
            f"{path}: command: write [${{env}}, ${{interpreter}}, -m, imgcls, fit, --config, FILE, ${{args}}]"
        )
    words = [str(word) for word in command[command.index("fit") + 1 :]]
    for word in words:
        if word.startswith("${") and word != "${args}":
            raise UserError(f"{path}: command: {word} is not supported; use ${{args}}")
    return [word for word in words if word != "${args}"]


def _hyperband(path: Path, given: Any) -> dict[str, Any] | None:
    if not given:
        return None
    if not isinstance(given, dict) or given.get("type") != "hyperband":
        kind = given.get("type") if isinstance(given, dict) else given
        raise UserError(f"{path}: early_terminate: type {kind!r} is not hyperband")
    factor, least, most = given.get("eta", 3), given.get("min_iter"), given.get("max_iter")
    if "min_iter" not in given:
        if most is None:
            raise UserError(f"{path}: early_terminate: give min_iter or max_iter, in epochs")
        least = max(1, round(most / factor ** given.get("s", 1)))
    return {"min_resource": least, "max_resource": most or "auto", "reduction_factor": factor}
