"""A question: a folder with one config per arm and a question.toml, and what its runs say of its claims."""

import math
import re
import tomllib
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatch
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from imgcls.errors import UserError, near
from imgcls.runs.folder import RunFolder
from imgcls.runs.run import Run
from imgcls.science.comparison import compare_groups
from imgcls.science.groups import Group, group_runs, short
from imgcls.science.replicates import Replicates, over_of
from imgcls.science.statistics import Comparison, compare_pairs, holm

KINDS: dict[type, str] = {str: "text", int: "a whole number", list: "a list", dict: "a table"}
SIDE = r"([^\s:]+)(?::(\S+))?"


@dataclass(frozen=True)
class Arm:
    """A config, the value that it takes on each axis, and the options of these values."""

    config: Path
    values: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A folder with one config per arm and a question.toml beside them.

    Axes multiply the arms: `[axes.epochs]` with `10 = ["--trainer.max_epochs=10"]` and `40 = […]` makes NAME-10 and
    NAME-40 of NAME.yaml, and a second axis makes NAME-VALUE-VALUE. These options come last: no command line makes two
    arms equal. Arms are compared with the baseline of the same values; the figure shows these differences over the
    last axis, in a panel for each combination of the other axes' values.

    Attributes:
        folder: The folder.
        question: In words.
        seeds: Seeds of every arm, on each split.
        folds: Folds of cross-validation, of which each is the test part once; 0: none.
        repeats: How many times the images are split anew, into folds or else at random; 0: as the arms have it.
        baseline: Name of the arm (with axes, of its file) that the others are compared with.
        metric: What is compared.
        metrics: What is shown of each arm; where it is given, its first is compared. Default: the metric of the kind
            of labels, such as test/acc or test/map.
        options: Further options of every fit.
        axes: Of each axis its values, and of each value its options of the fit.
        without: Patterns of arms that the axes make and that are not run, such as `*-5400-160`.
        claims: Claim in words, and as `ARM > ARM`; `ARM:METRIC` for another metric than the first.
        severities: Variations whose accuracy the figure shows by severity.
        xlabel: Name of the number in arms called NAME-NUMBER, which the figure shows as lines over that number.
        xscale: `linear` or `log`.
        fit: `power law` fits error = a·n^-b + c to those lines.
        layers: Arm whose first run shows what its layers respond to; `explain` draws it.
        last: Of files by name, options that come last: what tells them apart, whatever the command line says.
        not_tried: What the answer does not speak of, in one sentence.
    """

    folder: Path
    question: str = ""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    folds: int = 0
    repeats: int = 0
    baseline: str = ""
    metric: str = "test/acc"
    metrics: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    axes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    claims: dict[str, str] = field(default_factory=dict)
    severities: list[str] = field(default_factory=list)
    xlabel: str = ""
    xscale: str = "linear"
    fit: str = ""
    layers: str = ""
    last: dict[str, list[str]] = field(default_factory=dict)
    not_tried: str = ""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.resolve().name

    @property
    def shown(self) -> list[str]:
        """Metrics of each arm, the first of which is compared."""
        return self.metrics or [self.metric]

    @property
    def replicates(self) -> Replicates:
        """Over what every arm is repeated."""
        return Replicates(self.seeds, self.folds, self.repeats)

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """The arms by name: the baseline, then the others, numbers in order; of each file all values of the axes."""
        paths = {path.stem: path for path in self.folder.glob("*.yaml")}
        numbered = self.baseline.rpartition("-")[2].isdigit()
        names = sorted(paths, key=lambda name: (name != self.baseline and not numbered, _natural(name)))
        found = {}
        for name, values in product(names, product(*self.axes.values())):
            words = (str(word) for axis, value in zip(self.axes.values(), values, strict=True) for word in axis[value])
            found["-".join([name, *values])] = Arm(paths[name], values, (*words, *self.last.get(name, ())))
        return {name: arm for name, arm in found.items() if not any(fnmatch(name, p) for p in self.without)}


@dataclass(frozen=True)
class Claim:
    """What was expected, and what the runs say.

    Attributes:
        text: The claim, in words.
        expected: The claim as `ARM > ARM`.
        comparison: Left side minus right side; None without runs of both.
        adjusted_p: By Holm's method over the question's claims; nan where no test is possible.
    """

    text: str
    expected: str
    comparison: Comparison | None
    adjusted_p: float

    @property
    def verdict(self) -> str:
        """`holds`, `does not hold: the reverse does`, or `cannot tell`."""
        if self.comparison is None or not self.adjusted_p < 0.05:
            return "cannot tell"
        return "holds" if self.comparison.difference.value > 0 else "does not hold: the reverse does"

    @property
    def answer(self) -> str:
        """The verdict with the difference and its interval."""
        if self.comparison is None:
            return "cannot tell: runs are missing"
        difference = self.comparison.difference
        return f"{self.verdict} ({difference:+.3f}{'; one seed' if math.isnan(difference.low) else ''})"


def read_question(folder: Path, **given: Any) -> Question:
    """Read a question's folder.

    Args:
        folder: The folder.
        given: Keys that stand in place of the file's, where they are not None.

    Raises:
        UserError: There is no question.toml or no arm, or a key is missing, unknown or of the wrong kind.
    """
    path = folder / "question.toml"
    if not path.is_file():
        raise UserError(f"experiment: {path}: there is no such file; it holds question, seeds, and baseline")
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not TOML ({error})") from error
    content |= {key: value for key, value in given.items() if value is not None}
    blank = Question(folder)
    known = {one.name: type(getattr(blank, one.name)) for one in fields(Question) if one.name != "folder"}
    for key, value in content.items():
        if key not in known:
            raise UserError(f"{path}: {key}: there is no such key{near(key, known)}; it takes {', '.join(known)}")
        if type(value) is not known[key]:
            raise UserError(f"{path}: {key}: {value!r} is not {KINDS[known[key]]}")
    seeds, folds, repeats = (content.get(key, getattr(blank, key)) for key in ("seeds", "folds", "repeats"))
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{path}: seeds: {seeds} are not numbers from 0, each once")
    if folds < 0 or folds == 1 or repeats < 0:
        raise UserError(f"{path}: folds: {folds}, repeats: {repeats}: give at least 2 folds and 1 repeat; 0: none")
    metrics = content.get("metrics") or ([content["metric"]] if "metric" in content else [])
    for axis, values in content.get("axes", {}).items():
        if not isinstance(values, dict) or {type(options) for options in values.values()} != {list}:
            wanted = 'a table of values with a list of options each: 40 = ["--trainer.max_epochs=40"]'
            raise UserError(f"{path}: axes: {axis}: {values!r} is not {wanted}")
    metric = (metrics or [blank.metric])[0]
    question = Question(folder, **{"question": folder.name, **content, "metric": metric, "metrics": metrics})
    if not question.arms:
        raise UserError(f"experiment: {folder}: holds no arm (a YAML file)")
    for pattern in question.without:
        if not any(fnmatch(name, pattern) for name in replace(question, without=[]).arms):
            raise UserError(f"{path}: without: {pattern!r} is none of the arms {', '.join(question.arms)}")
    files = list(dict.fromkeys(arm.config.stem for arm in question.arms.values()))
    for key, name, names in (("baseline", question.baseline, files), ("layers", question.layers, list(question.arms))):
        if name not in names and (name or key == "baseline"):
            raise UserError(f"{path}: {key} {name!r} is not one of the arms {', '.join(names)}")
    if question.xscale not in ("linear", "log"):
        raise UserError(f"{path}: xscale: {question.xscale!r} is not linear or log")
    if question.fit not in ("", "power law"):
        raise UserError(f"{path}: fit: {question.fit!r} is not 'power law'")
    for name, options in question.last.items():
        if name not in files or not isinstance(options, list):
            raise UserError(f"{path}: last: {name}: is not an arm ({', '.join(files)}) with a list of options")
    for claim in question.claims.values():
        for arm, _ in _sides(path, claim):
            if arm not in question.arms:
                raise UserError(f"{path}: claims: {claim!r}: {arm} is not one of the arms {', '.join(question.arms)}")
    return question


def arms_of(question: Question, runs: Path) -> list[Group]:
    """The runs of each arm that has any, under the arm's name: `runs/ARM/seed-N`, or those on several splits.

    Which of the two the question says; where there are none of these, the others, whose folds or repeats were given on
    a command line.
    """
    found = {arm: [path.parent for path in (runs / arm).glob("seed-*/config.yaml")] for arm in question.arms}
    kinds = {over_of(folder.name) for folders in found.values() for folder in folders}
    over = question.replicates.over
    over = over if over in kinds else max(kinds, key=len, default=())
    groups = []
    for arm, folders in found.items():
        chosen = sorted((f for f in folders if over_of(f.name) == over), key=lambda f: _natural(f.name))
        if chosen:
            groups.append(Group([Run(RunFolder(folder)) for folder in chosen], name=arm, over=over))
    first = [group.runs[0] for group in groups]
    telling = {id(alike.runs[0]): alike.settings for alike in group_runs(first, [short(key) for key in over])}
    for group in groups:
        group.settings = telling.get(id(group.runs[0]), {})
    return groups


def in_terms_of(question: Question, groups: Sequence[Group]) -> Question:
    """The question by the metric of the runs' kind of labels, where it names none."""
    if question.metrics or not groups:
        return question
    metric = f"test/{groups[0].runs[0].task.metric}"
    return replace(question, metric=metric, metrics=[metric])


def by_values(question: Question, groups: Sequence[Group]) -> dict[tuple[str, ...], list[Group]]:
    """The groups by their values on the axes, named by their files; not those of which no run has the metric."""
    arms, found = question.arms, dict[tuple[str, ...], list[Group]]()
    for group in groups:
        arm = arms[group.name]
        found.setdefault(arm.values, []).append(replace(group, name=arm.config.stem))
    return {values: alike for values, alike in found.items() if any(group.scores(question.metric) for group in alike)}


def judge(question: Question, groups: Sequence[Group]) -> list[Claim]:
    """What the runs say of each claim, with Holm's correction over all of them."""
    by_name = {group.name: group for group in groups}
    found = []
    for claim in question.claims.values():
        (left, left_metric), (right, right_metric) = _sides(question.folder, claim)
        ours, theirs = by_name.get(left), by_name.get(right)
        found.append(_compare(ours, left_metric or question.metric, theirs, right_metric or question.metric))
    adjusted = holm([c.p_value if c else math.nan for c in found])
    return [
        Claim(text, expected, comparison, p)
        for (text, expected), comparison, p in zip(question.claims.items(), found, adjusted, strict=True)
    ]


def _compare(left: Group | None, left_metric: str, right: Group | None, right_metric: str) -> Comparison | None:
    if left is None or right is None:
        return None
    ours, theirs = left.scores(left_metric), right.scores(right_metric)
    if not ours or not theirs:
        return None
    if left_metric == right_metric:
        return compare_groups(left, right, left_metric)
    if left is right and not left.over and len(ours) == len(theirs):
        return compare_pairs(ours, theirs)
    return compare_groups(_measured_by(left_metric, left), _measured_by(right_metric, right), "")


def _measured_by(metric: str, group: Group) -> Group:
    """The group with one metric alone, of no name: two metrics can then be compared as one is."""
    runs = [copy(run) for run in group.runs]
    for run in runs:
        run.metrics = {"": run.metrics.get(metric)}
    return replace(group, runs=runs)


def _sides(path: Path, claim: str) -> list[tuple[str, str | None]]:
    match = re.fullmatch(rf"{SIDE} > {SIDE}", claim)
    if match is None:
        raise UserError(f"{path}: claims: {claim!r} is not of the form 'ARM > ARM' or 'ARM:METRIC > ARM:METRIC'")
    return [(match[1], match[2]), (match[3], match[4])]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts depth-2 before depth-10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
