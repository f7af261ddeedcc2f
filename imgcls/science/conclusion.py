"""The closing paragraph of an answer, in plain words: what to take, how sure that is, and what would tell."""

import math
import re
import shlex
from collections.abc import Sequence

import numpy as np

from imgcls.science.comparison import compare, higher_is_better
from imgcls.science.groups import Group
from imgcls.science.planning import Outlook
from imgcls.science.power_law import law_of, scores_of, training_images
from imgcls.science.question import Question, by_values
from imgcls.science.statistics import LEVEL, normal_quantile

Lines = dict[str, list[tuple[float, Group]]]
GOALS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
CHEAPER = 2  # times: less of a difference in training time says nothing
FAR = 16  # times the images there are: beyond it a law says nothing


def conclusion(question: Question, groups: Sequence[Group], rest: Sequence[str] = ()) -> str:
    """The paragraph; with axes, one for each combination of their values.

    An arm is told apart from the one that does best where p < 0.05 / (arms - 1), so that those that are not hold the
    truly best one in 95 of 100 questions (Hsu, Annals of Statistics 1984, by Bonferroni's bound): which does best was
    not known before. Among them the cheapest in training time is the one to take, if it takes less than half as long.

    Args:
        question: The question.
        groups: The runs of its arms.
        rest: Options that each fit was given on the command line.
    """
    paragraphs = []
    for values, alike in by_values(question, groups).items():
        place = ", ".join(f"{axis} {value}" for axis, value in zip(question.axes, values, strict=True))
        said, take = _more_images(question, alike) if question.fit else _best(question, alike)
        arm = question.arms["-".join([take.name, *values])]
        words = ["python", "-m", "imgcls", "fit", "--config", str(arm.config), *question.options]
        command = shlex.join([*words, *_of_any_split(rest), *arm.options])
        paragraphs.append(f"{place}{': ' if place else ''}{said} To train it: `{command}`.")
    finished = {group.name for group in groups if group.scores(question.metric)}
    if missing := [name for name in question.arms if name not in finished]:
        paragraphs.append(f"Without a finished run, and left out: {', '.join(missing)}.")
    if question.not_tried:
        paragraphs.append(f"Not tried: {question.not_tried}")
    return ("\n\n" if question.axes else " ").join(paragraphs)


def lines_of(question: Question, groups: Sequence[Group]) -> tuple[Lines, list[Group]]:
    """Arms called NAME-NUMBER as lines NAME over NUMBER, and the others; a lone number makes no line.

    Where a power law is asked for, the number of training images stands in place of NUMBER, which may be a share.
    """
    lines: Lines = {}
    for group in groups:
        if match := re.fullmatch(r"(.+)-(\d+)", group.name):
            known = question.fit and group.scores(question.metric)
            place = training_images(group) if known else float(match[2])
            if known or not question.fit:
                lines.setdefault(match[1], []).append((place, group))
    lines = {name: sorted(line, key=lambda point: point[0]) for name, line in lines.items() if len(line) > 1}
    drawn = {id(group) for line in lines.values() for _, group in line}
    return lines, [group for group in groups if id(group) not in drawn]


def _more_images(question: Question, groups: Sequence[Group]) -> tuple[str, Group]:
    """What twice and four times the images would bring, and the arm with the most."""
    lines, _ = lines_of(question, groups)
    line = next(iter(lines.values()), [])
    law = law_of(line, question.metric)
    group = max((g for g in groups if g.scores(question.metric)), key=training_images)
    most = training_images(group)
    scores, tested = scores_of(group, question.metric)
    now = float(np.mean(scores))
    said = [f"With {most:,.0f} training images {question.metric} is {now:.3f}."]
    if law is None:
        return f"{said[0]} Nothing can be said of more: that takes four sizes with finished runs.", group
    twice, four = (f"{law.accuracy(times * most):.3f}" for times in (2, 4))
    said.append(f"**Twice as many ({2 * most:,.0f}) would bring about {twice}, four times {four}** (95 % intervals).")
    if tested:
        by_chance = normal_quantile() * math.sqrt(now * (1 - now) / tested)
        said.append(f"Other test images than these {tested:,} would move all of that alike, by up to {by_chance:.3f}.")
    goal = next((goal for goal in GOALS if goal > law.accuracy(2 * most).value), 1.0)
    needed = law.images(goal)
    if needed.value <= FAR * most:
        value, low, high = (float(f"{min(x, 1e9):.2g}") for x in (needed.value, max(most, needed.low), needed.high))
        reach = f"{low:,.0f} to {high:,.0f}" if high <= FAR * most else f"at least {low:,.0f}"
        said.append(f"{goal:g} would take about {value:,.0f} ({reach}).")
    elif goal < 1:
        said.append(f"{goal:g} is not in sight with {FAR} times the images.")
    return " ".join(said), group


def _best(question: Question, alike: Sequence[Group]) -> tuple[str, Group]:
    """What the runs say of the best arm, and the arm to take."""
    metric, sign = question.metric, 1 if higher_is_better(question.metric) else -1
    scored = [group for group in alike if group.scores(metric)]
    best = max(scored, key=lambda group: sign * float(np.mean(group.scores(metric))))
    level = _level(metric, float(np.mean(best.scores(metric))))
    if len(scored) == 1:
        return f"{best.name} alone has finished runs, with {level}: there is nothing to compare it with.", best
    rows = {row["name"]: row for row in compare(scored, metric, best.name)["groups"] if row["name"] != best.name}
    others = sorted((g for g in scored if g is not best), key=lambda g: -sign * float(np.mean(g.scores(metric))))
    untold = [group for group in others if not rows[group.name]["p_value"] * len(others) < 1 - LEVEL]
    one_run = "" if any(row["of_seeds"] for row in rows.values()) else (
        " With one run of each, this speaks of these trained models, not of the ways of training: ask with more seeds."
    )  # fmt: skip
    if not untold:
        seen, span = _difference(metric, rows[others[0].name]["difference"], -1)
        than = f"{seen} than with {others[0].name}, the next best{span and f' ({span})'}"
        return f"**{best.name} is best**: {level}, {than}.{one_run}", best
    tested = [group for group in untold if not math.isnan(rows[group.name]["p_value"])]
    few = "" if tested else " from one run of each"
    nearest, take = untold[0], min(tested, key=_seconds, default=best)
    if not CHEAPER * _seconds(take) < _seconds(best):
        take = best
    difference = rows[nearest.name]["difference"]
    seen = "; ".join(filter(None, _difference(metric, difference)))
    if difference["low"] * difference["high"] > 0:
        seen += f"; of {len(others)} differences one may look so by chance"
    further = f", and so may {', '.join(group.name for group in untold[1:])}" if untold[1:] else ""
    said = [f"**Which is best cannot be told{few}.** {best.name} does best, with {level}."]
    said.append(f"{nearest.name} may be as good ({seen}){further}.")
    if worse := [group.name for group in others if group not in untold]:
        said.append(f"Worse than {best.name}, beyond chance: {', '.join(worse)}.")
    rival = nearest if take is best else take
    if found := rows[rival.name].get("outlook"):
        said.append(f"To tell {best.name} from {rival.name}: {Outlook(**found).words}.")
    why = f": none of them is much cheaper ({_duration(_seconds(take))} a run)" if tested else ""
    if take is not best:
        cost = [f"{_duration(_seconds(take))} a run, {best.name} {_duration(_seconds(best))}"]
        cost += _difference(metric, rows[take.name]["difference"]) if take is not nearest else ()
        why = f", the cheapest of them ({'; '.join(filter(None, cost))})"
    said.append(f"Until then take **{take.name}**{why}.")
    return " ".join(said) + one_run, take


def _is_share(metric: str) -> bool:
    """Whether a metric counts images of a hundred."""
    return metric.rpartition("/")[2] == "acc"


def _level(metric: str, value: float) -> str:
    return f"{100 * value:.1f} of 100 test images right" if _is_share(metric) else f"a {metric} of {value:.4g}"


def _difference(metric: str, of: dict[str, float], sign: int = 1) -> tuple[str, str]:
    """`3.2 more` and `with 95 % confidence between 1.1 and 5.3 more`, of a difference; with sign -1, its reverse."""
    most, more, less = (100.0, "more", "fewer") if _is_share(metric) else (math.inf, "higher", "lower")
    scale = most if _is_share(metric) else 1.0
    value, one, other = (sign * scale * of[key] for key in ("value", "low", "high"))
    seen = f"{_figure(metric, value)} {more if value >= 0 else less}"
    if math.isnan(one):
        return seen, ""
    low, high = sorted(max(-most, min(most, end)) for end in (one, other))
    ends = f"{_figure(metric, low)} {less} and {_figure(metric, high)} {more}"
    if low >= 0 or high <= 0:
        least, largest = sorted((low, high), key=abs)
        ends = f"{_figure(metric, least)} and {_figure(metric, largest)} {more if value >= 0 else less}"
    return seen, f"with 95 % confidence between {ends}"


def _figure(metric: str, value: float) -> str:
    return f"{abs(value):.1f}" if _is_share(metric) else f"{abs(value):.3g}"


def _seconds(group: Group) -> float:
    known = group.scores("fit/seconds")
    return float(np.mean(known)) if known else math.inf


def _duration(seconds: float) -> str:
    if math.isinf(seconds):
        return "of unknown length"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def given(question: Question, groups: Sequence[Group]) -> list[str]:
    """Options of the command line that runs were made with, by a run's own record; none where no record says them."""
    for group in groups:
        for run in group.runs:
            command, own = run.environment.get("command", []), question.arms[group.name].options
            if "--run_dir" in command:  # else it was resumed
                words = _of_any_split(command[command.index("--run_dir") + 2 :])
                return words[len(question.options) : len(words) - len(own)]
    return []


def _of_any_split(words: Sequence[str]) -> list[str]:
    """Options of a fit, but for those that choose a split or a fold."""
    kept, left = [], iter(words)
    for word in left:
        if not word.startswith(("--data.fold", "--data.split_seed")):
            kept.append(word)
        elif "=" not in word:
            next(left, None)
    return kept
