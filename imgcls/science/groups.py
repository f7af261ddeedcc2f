"""Runs that differ in the seed alone are a group; a group is named by the settings in which the groups differ."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from imgcls.errors import UserError, near
from imgcls.runs.run import Run, Settings

SEEDS = ("seed_everything", "data.init_args.seed")
FOLD, SPLIT, MEASURED = (f"data.init_args.{name}" for name in ("fold", "split_seed", "value_range"))
SPLITS = FOLD, SPLIT
# prefixes of settings that say where and how fast a run was computed and what it wrote, not what was computed
INCIDENTAL = tuple(
    "trainer.logger trainer.default_root_dir trainer.enable_ checkpoint. last_checkpoint. nonfinite. experiment "
    "model.init_args.channels_last model.init_args.compile data.init_args.num_workers data.init_args.cache "
    "test_after_fit robustness calibrate".split()
)


@dataclass
class Group:
    """Runs that differ in the seed alone, or also in how the images were split.

    Attributes:
        runs: The runs, by seed.
        name: The settings that tell the group from the others.
        settings: Those settings.
        over: Settings that tell the splits from one another.
    """

    runs: list[Run]
    name: str = ""
    settings: Settings | None = None
    over: tuple[str, ...] = ()

    def scores(self, metric: str) -> list[float]:
        """The metric of each run that has it."""
        return [r.metrics[metric] for r in self.runs if r.metrics.get(metric) is not None]

    def shares_seeds(self, other: "Group", metric: str) -> bool:
        """Whether the runs of both that have the metric have the same seeds in the same order, each once."""
        ours, theirs = ([run.seed for run in of.runs if run.metrics.get(metric) is not None] for of in (self, other))
        return ours == theirs and len(set(map(str, ours))) == len(ours)

    def by_split(self, metric: str) -> dict[tuple[Any, ...], list[Run]]:
        """The runs on each split that have the metric."""
        found: dict[tuple[Any, ...], list[Run]] = {}
        for run in self.runs:
            if run.metrics.get(metric) is not None:
                found.setdefault(tuple(run.settings.get(key) for key in self.over), []).append(run)
        return found


def group_runs(runs: Iterable[Run], over: Sequence[str] = ()) -> list[Group]:
    """Groups in the order of their names; a run that was repeated with the same seed stays a run of its own.

    Args:
        runs: The runs.
        over: Settings, as one gives them on the command line, that tell splits of the images from one another, and do
            not divide groups. Fold and seed of the split are found by themselves where runs are alike but for them.

    Raises:
        UserError: No run has such a setting.
    """
    runs = list(runs)
    known = {short(key): key for run in runs for key in run.settings}
    for key in over:
        if key not in known:
            raise UserError(
                f"--over {key}: no run has this setting{near(key, known)}; such as data.fold,data.split_seed"
            )
    apart = {known[key] for key in over} | _splits(runs)
    by_identity: dict[str, Group] = {}
    for run in runs:
        by_identity.setdefault(_identity(run, apart), Group([], over=tuple(sorted(apart)))).runs.append(run)
    groups = list(by_identity.values())
    chosen: list[Settings] = [json.loads(identity) for identity in by_identity]
    keys = sorted({k for settings in chosen for k in settings})
    differing = [k for k in keys if len({json.dumps(s.get(k), default=str) for s in chosen}) > 1]
    telling = _telling(differing, chosen)
    for group, settings in zip(groups, chosen, strict=True):
        group.settings = {short(k): _value(settings.get(k)) for k in differing}
        group.name = ", ".join(f"{short(k)}={_value(settings.get(k))}" for k in telling) or "all runs"
        group.runs.sort(key=lambda run: str(run.seed))
    return sorted(groups, key=lambda group: group.name)


def _splits(runs: Sequence[Run]) -> set[str]:
    """The fold and the seed of the split, where runs differ in it that are alike otherwise."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(_identity(run, set(SPLITS)), []).append(run)
    return {key for key in SPLITS if any(len({run.settings.get(key) for run in of}) > 1 for of in alike.values())}


def _identity(run: Run, over: set[str]) -> str:
    """Everything that makes up what was run, but for the seed and what tells splits from one another."""
    apart = {*SEEDS, *over, *([MEASURED] if over else [])}  # each split measures its own range
    # what is not set is as what an earlier version did not have
    said = {k: v for k, v in run.settings.items() if v is not None}
    kept = {k: v for k, v in said.items() if k not in apart and not k.startswith(INCIDENTAL)}
    return json.dumps(kept, sort_keys=True, default=str)


def _telling(differing: list[str], chosen: list[Settings]) -> list[str]:
    """As few of the differing settings as tell all groups apart: for what follows from another, one name is enough."""
    telling: list[str] = []

    def kinds(keys: list[str]) -> int:
        return len({json.dumps([settings.get(k) for k in keys], default=str) for settings in chosen})

    while kinds(telling) < len(chosen):
        # the setting that tells most groups apart; among equals a class before its options, model before data
        telling.append(
            max(differing, key=lambda k: (kinds([*telling, k]), k.endswith("class_path"), k.startswith("model")))
        )
    return telling


def short(key: str) -> str:
    """A key as one gives it on the command line."""
    return key.replace(".init_args", "").removesuffix(".class_path")


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return _value(value["class_path"]) if "class_path" in value else json.dumps(value)
    text = str(value)
    return text.rpartition(".")[2] if text.count(".") > 1 and " " not in text else text
