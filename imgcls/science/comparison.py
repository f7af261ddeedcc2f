"""What a comparison of groups of runs says, as plain data: for the terminal, for JSON, and for the page."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imgcls.errors import UserError, near
from imgcls.runs.predictions import Predictions
from imgcls.runs.run import Run, Tested
from imgcls.science.bootstrap import MetricOf, chance_of_images, compare_resampled
from imgcls.science.groups import Group, short
from imgcls.science.planning import outlook
from imgcls.science.resampling import ChanceOfImages, compare_splits, image_by_image, mean_over_splits
from imgcls.science.statistics import (
    Comparison,
    Estimate,
    compare_images,
    compare_scores,
    holm,
    mean_over_seeds,
    verdict,
)

LOWER_IS_BETTER = ("loss", "ece", "nll", "brier", "error", "seconds", "hamming", "mae")
DISAGREEMENTS = 24

Resampled = Callable[[Predictions], MetricOf]  # a metric, perhaps no mean over images, by how often each counts
Split = tuple[Sequence[Run], Sequence[Run]]  # the runs of two groups that were tested on the same images


def compare(groups: Sequence[Group], metric: str, baseline: str | None) -> dict[str, Any]:
    """Compare groups by a metric.

    Args:
        groups: At least one.
        metric: A key of metrics.json, such as test/acc.
        baseline: Name, or part of it, or number of the group that others are compared with; None: the first.

    Returns:
        metric, baseline, notes, and for each group its name, settings, seeds, scores, mean with interval, and, but for
        the baseline, difference with interval, p-value, Holm's adjusted p-value, method and verdict, and where that is
        `cannot tell`, what would tell.

    Raises:
        UserError: No run has the metric, or there is no such baseline.
    """
    scored = [group for group in groups if group.scores(metric)]
    if not scored:
        known = sorted({k for group in groups for run in group.runs for k in run.metrics})
        raise UserError(
            f"--metric {metric}: no run has it{near(metric, known)}; they have {', '.join(known) or 'none'}"
        )
    base = scored[_find(scored, baseline)]
    others = [group for group in scored if group is not base]
    found = [compare_groups(group, base, metric) for group in others]
    judged = iter(zip(found, holm([c.p_value for c in found]), strict=True))  # in the order of the groups
    rows, untold = [], []
    for number, group in enumerate(scored):
        row: dict[str, Any] = {"number": number, "name": group.name, "settings": group.settings or {}}
        row |= {"seeds": [run.seed for run in group.runs], "scores": group.scores(metric)}
        row |= {"runs": [str(run.folder.path) for run in group.runs], "mean": asdict(mean_of(group, metric))}
        if group is not base:
            comparison, adjusted = next(judged)
            row |= asdict(comparison) | {
                "adjusted_p": adjusted,
                "verdict": verdict(comparison, adjusted, higher_is_better(metric)),
            }
            if row["verdict"] == "cannot tell" and (found_out := outlook(comparison)):
                row["outlook"] = asdict(found_out)
                untold.append(f"{group.name}: cannot tell: {found_out.words}")
        rows.append(row)
    notes = _notes(groups, scored, metric) + untold
    tested = None if any(group.over for group in scored) else tested_on(metric, base)
    if tested and not all(_tested([(group.runs, base.runs)], tested) for group in others):
        notes.append("some groups have no test predictions in common with the baseline (another test set or split, or "
                     "not tested): they are compared by their scores alone")  # fmt: skip
    return {"metric": metric, "baseline": base.name, "groups": rows, "notes": notes}


def compare_groups(group: Group, base: Group, metric: str) -> Comparison:
    """By the test that fits: over splits, over seeds and shared test images, or over seeds."""
    if group.over or base.over:
        pairs = _pairs(group, base, metric)
        scores = [[_mean(side, metric) for side in sides] for sides in zip(*pairs, strict=True)] or [[], []]
        return compare_splits(scores[0], scores[1], _ratio(group, metric), _images(pairs, metric, group))
    name, resampled = tested_on(metric, group), _resampled(metric, group)
    shared = _tested([(group.runs, base.runs)], name) if name else None
    paired = group.shares_seeds(base, metric)
    if not shared:
        return compare_scores(group.scores(metric), base.scores(metric), paired)
    ((ours, theirs),) = shared
    if resampled:
        images = len(ours[0].right)
        return compare_resampled(_metrics(ours, resampled), _metrics(theirs, resampled), images, paired)
    right = [np.stack([test.right for test in tests]) for tests in (ours, theirs)]
    return compare_images(right[0], right[1], paired)


def mean_of(group: Group, metric: str) -> Estimate:
    """The mean over seeds or splits, with its interval."""
    if not group.over:
        return mean_over_seeds(group.scores(metric))
    splits = group.by_split(metric).values()
    images = _images([(runs, []) for runs in splits], metric, group)
    return mean_over_splits([_mean(runs, metric) for runs in splits], _ratio(group, metric), images)


def _mean(runs: Sequence[Run], metric: str) -> float:
    return float(np.mean([run.metrics[metric] for run in runs]))


def _pairs(group: Group, base: Group, metric: str) -> list[Split]:
    """Runs of both groups with the metric, on each split that both have; all of them where there is one."""
    ours, theirs = group.by_split(metric), base.by_split(metric)
    return [(ours[key], theirs[key]) for key in ours if key in theirs]


def _tested(splits: Sequence[Split], name: str) -> list[tuple[list[Tested], list[Tested]]] | None:
    """Of each split what the runs of both sides were tested on.

    None unless all runs of a split were tested on the same images, and all took them from the same data.
    """
    found = []
    for split in splits:
        ours, theirs = ([test for run in side if (test := run.tested(name))] for side in split)
        every = {test.identity for test in (*ours, *theirs)}
        if (len(ours), len(theirs)) != (len(split[0]), len(split[1])) or len(every) > 1:
            return None
        found.append((ours, theirs))
    return found if len({ours[0].identity[0] for ours, _ in found}) == 1 else None


def _shares(tests: Sequence[Tested]) -> np.ndarray:
    """Of the runs that predict each image right, (M,); 0 of no runs."""
    return np.mean([test.right for test in tests], 0) if tests else np.zeros(())


def _metrics(tests: Sequence[Tested], resampled: Resampled) -> list[MetricOf]:
    return [resampled(test.predictions) for test in tests]


def _resampled(metric: str, group: Group) -> Resampled | None:
    """What the kind of labels makes of predictions, for a metric that it resamples."""
    task, score = group.runs[0].task, metric.rpartition("/")[2]
    if score not in task.resampled:
        return None
    return lambda found: task.resample(score, found.logits, found.label, found.cut)


def _images(splits: Sequence[Split], metric: str, group: Group) -> ChanceOfImages | None:
    """What the choice of the test images does to how much better the first runs of each split are."""
    name, resampled = tested_on(metric, group), _resampled(metric, group)
    found = _tested(splits, name) if name else None
    if found is None:
        return None
    indices = [ours[0].predictions.index for ours, _ in found]
    if resampled:
        metrics = [(_metrics(ours, resampled), _metrics(theirs, resampled)) for ours, theirs in found]
        return chance_of_images(indices, metrics)
    shares = [_shares(ours) - _shares(theirs) for ours, theirs in found]
    return image_by_image(list(zip(indices, shares, strict=True)))


def _ratio(group: Group, metric: str) -> float:
    """Images that the metric is measured on to training images of a split."""
    name, ratios = metric.partition("/")[0], []
    for run in group.runs:
        sizes = run.environment.get("data", {}).get("images", {})
        test = None if name == "val" else run.tested(name) or run.tested()  # variations are of test images
        measured_on = len(test.right) if test else sizes.get(name, sizes.get("test", sizes.get("val", 0)))
        if sizes.get("train"):
            ratios.append(measured_on / sizes["train"])
    if not ratios:
        raise UserError(f"{group.runs[0].folder.environment}: does not say how many images each part has")
    return float(np.mean(ratios))


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is better; by its name."""
    return metric.rpartition("/")[2] not in LOWER_IS_BETTER


def tested_on(metric: str, group: Group) -> str | None:
    """The set of images whose single predictions make up a metric: test, or one from elsewhere; None for others."""
    name, _, score = metric.rpartition("/")
    of_predictions = score == "acc" or score in group.runs[0].task.resampled
    return name if of_predictions and name not in ("train", "val", "robust") else None


@dataclass(frozen=True, eq=False)
class Judged:
    """How two groups judge each image that both were tested on; over several splits, each image once.

    Attributes:
        label: Label of each image.
        group: Share of the group's runs that predict it right, (M,).
        baseline: Likewise.
        row: For each image the table of predictions that names it, and its row there.
    """

    label: np.ndarray
    group: np.ndarray
    baseline: np.ndarray
    row: list[tuple[Path, int]]


def judged(group: Group, base: Group, name: str = "test") -> Judged | None:
    """What both groups predicted for a set of images; None unless they share it."""
    found = _tested(_pairs(group, base, f"{name}/acc"), name)
    if not found:
        return None
    tests = [ours[0] for ours, _ in found]
    index = np.concatenate([test.predictions.index for test in tests])
    _, first, place = np.unique(index, return_index=True, return_inverse=True)
    labels = np.concatenate([test.predictions.label for test in tests])
    times = np.bincount(place)
    rows = [(test.table, k) for test in tests for k in range(len(test.right))]
    shares = [np.bincount(place, np.concatenate([*map(_shares, side)])) / times for side in zip(*found, strict=True)]
    return Judged(labels[first], shares[0], shares[1], [rows[k] for k in first])


def per_class(group: Group, base: Group, name: str = "test") -> list[tuple[str, float, float, float]]:
    """Class, accuracy on images that have it in the baseline and in the group, and the difference; by size of it."""
    found = judged(group, base, name)
    if found is None:
        return []
    names = base.runs[0].environment.get("data", {}).get("class_names", [])
    rows = []
    image, classes = base.runs[0].task.pairs(found.label)
    for number in np.unique(classes).tolist():
        of_class = image[classes == number]
        ours, theirs = float(found.group[of_class].mean()), float(found.baseline[of_class].mean())
        rows.append((names[number] if number < len(names) else str(number), theirs, ours, ours - theirs))
    return sorted(rows, key=lambda row: -abs(row[3]))


def disagreements(group: Group, base: Group, name: str = "test") -> list[dict[str, Any]]:
    """Test images that two groups judge most differently: table and row, share of right predictions in each."""
    found = judged(group, base, name)
    if found is None:
        return []
    order = np.argsort(-np.abs(found.group - found.baseline), kind="stable")[:DISAGREEMENTS]
    return [
        {
            "row": found.row[i],
            "group": float(found.group[i]),
            "baseline": float(found.baseline[i]),
        }
        for i in order
        if found.group[i] != found.baseline[i]
    ]


def _find(groups: Sequence[Group], wanted: str | None) -> int:
    if wanted is None:
        return 0
    if wanted.isdecimal() and int(wanted) < len(groups):
        return int(wanted)
    exact = [k for k, group in enumerate(groups) if group.name == wanted]
    parts = [k for k, group in enumerate(groups) if wanted in group.name]
    folders = [k for k, group in enumerate(groups) if any(wanted in run.folder.path.parts for run in group.runs)]
    for matches in (exact, parts, folders):
        if len(matches) == 1:
            return matches[0]
    listing = "; ".join(f"{k}: {group.name}" for k, group in enumerate(groups))
    raise UserError(f"--baseline {wanted!r}: names no group, or several; give a number or a name of {listing}")


def _notes(groups: Sequence[Group], scored: Sequence[Group], metric: str) -> list[str]:
    notes = []
    for group in groups:
        without = [str(run.folder.path) for run in group.runs if run.metrics.get(metric) is None]
        if without:
            why = "(unfinished, failed, or not tested)"
            notes.append(f"left out, as they have no {metric} {why}: {', '.join(without)}")
        alike = [(str(run.seed), *(run.settings.get(key) for key in group.over)) for run in group.runs]
        if len(set(alike)) < len(group.runs):
            notes.append(f"{group.name}: the same seed comes more than once; equal runs are not independent evidence")
    over = sorted({short(key) for group in scored for key in group.over})
    if over:
        keys = ", ".join(over)
        notes.append(
            f"runs are pooled over {keys}: each split is one value, the mean of its seeds; intervals and p-values know "
            "that training sets overlap"
        )
    split = [set(group.by_split(metric)) for group in scored if group.over]
    if any(one != split[0] for one in split):
        notes.append("groups were not run on the same splits: differences are of those that both have")
    single = [group.name for group in scored if len(group.scores(metric)) == 1]
    if single and len(scored) > 1:
        notes.append(
            "one seed only: " + "; ".join(single) + ". A test then says whether two trained models differ on images "
            "of this kind, not whether one way of training is better than the other."
        )
    if metric.startswith("val/"):
        notes.append("validation chose each run's checkpoint: its figures are too good, and more so for longer runs")
    return notes
