"""The answer to a question, from its runs alone: a figure, and a section of Markdown."""

import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imgcls.science.comparison import compare, mean_of
from imgcls.science.conclusion import Lines, conclusion, lines_of
from imgcls.science.groups import Group
from imgcls.science.power_law import PowerLaw, law_of, scores_of
from imgcls.science.question import Claim, Question, by_values, judge
from imgcls.science.statistics import Estimate, mean_over_seeds, p_value_text
from imgcls.system.files import read_json

REACH = 4  # times the images there are, up to which a power law is drawn


def write_answer(
    question: Question, groups: Sequence[Group], figure: Path, link: str, rest: Sequence[str] = (), closing: str = ""
) -> str:
    """Draw the figure and return the section, which ends with the closing paragraph.

    Args:
        question: The question.
        groups: The runs of its arms, of which at least one has the metric.
        figure: The .png file to write.
        link: How the Markdown names that file.
        rest: Options that each fit was given on the command line.
        closing: The closing paragraph, where it is known already.
    """
    lines, _ = lines_of(question, groups)
    law = law_of(next(iter(lines.values())), question.metric) if question.fit and lines else None
    figure.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw_differences(question, groups) if question.axes else draw(question, groups, law)
    drawn.savefig(figure, metadata={"Software": None})
    claims = judge(question, groups)
    seeds = sorted({str(run.seed) for group in groups for run in group.runs})
    minutes = sum(run.metrics.get("fit/seconds") or 0 for group in groups for run in group.runs) / 60
    command = shlex.join(["python", "-m", "imgcls", "experiment", str(question.folder), *rest])
    parts = [
        f"## {question.question}",
        f"`{command}`: {len(groups)} arms, seeds {', '.join(seeds)}, {minutes:.0f} minutes of training in all.",
        f"![{question.name}]({link})",
        _claims(claims) if claims else "",
        _law_in_words(law) if law else "",
        _layers(question, groups, figure, link) if question.layers else "",
        _table(question, groups),
        closing or conclusion(question, groups, rest),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def draw(question: Question, groups: Sequence[Group], law: PowerLaw | None = None) -> Figure:
    """The figure: accuracy by severity, lines over a number, or one point for each arm; with 95 % intervals."""
    panels = question.severities or question.shown
    figure, grid = _panels(len(panels), sharey=bool(question.severities))
    lines, others = lines_of(question, groups)
    for axes, panel in zip(grid, panels, strict=True):
        if question.severities:
            _by_severity(axes, groups, panel)
        elif lines:
            (_dots if law else _lines)(axes, lines, panel)
            _levels(axes, others, panel)
            axes.set(xlabel=question.xlabel, xscale=question.xscale, ylabel=panel)
        else:
            _points(axes, groups, panel)
    points = sorted({x for line in lines.values() for x, _ in line})
    if law is not None:
        reach = np.geomspace(points[0], REACH * points[-1], 61)
        values, lows, highs = zip(*((e.value, e.low, e.high) for e in map(law.accuracy, reach)), strict=True)
        grid[0].plot(reach, values, color="black", linewidth=0.9, label="power law, 95 % interval")
        grid[0].fill_between(reach, lows, highs, color="black", alpha=0.12, linewidth=0)
        points += [2 * points[-1], REACH * points[-1]]
    if lines and question.xscale == "log":
        for axes in grid:
            axes.set_xticks(points, [f"{x:,.0f}" for x in points], fontsize=8)
            axes.minorticks_off()
    if question.severities or lines:
        grid[0].legend(frameon=False, fontsize=8)
    return figure


def draw_differences(question: Question, groups: Sequence[Group]) -> Figure:
    """Differences from the baseline of the same values, over the last axis; panels for the values of the others."""
    panels: dict[tuple[str, ...], dict[str, list[tuple[int, Estimate]]]] = {}
    *others, (last, known) = question.axes.items()
    for values, alike in by_values(question, groups).items():
        lines = panels.setdefault(values[:-1], {})
        for row in compare(alike, question.metric, question.baseline)["groups"]:
            if "difference" in row:
                place = [*known].index(values[-1])
                lines.setdefault(row["name"], []).append((place, Estimate(**row["difference"])))
    figure, grid = _panels(len(panels), sharey=True)
    linestyle = ":" if all(value.isdigit() for value in known) else "none"
    for axes, (values, lines) in zip(grid, panels.items(), strict=True):
        axes.axhline(0, linewidth=1, color="#8a8f98")
        for k, (name, line) in enumerate(lines.items()):
            beside = 0.08 * (k - (len(lines) - 1) / 2)  # so that intervals do not hide each other
            _error_bars(axes, [x + beside for x, _ in line], [e for _, e in line], label=name, linestyle=linestyle)
        title = ", ".join(f"{value} {axis}" for (axis, _), value in zip(others, values, strict=True))
        axes.set(title=title, xlabel=last, xticks=range(len(known)), xticklabels=known, xlim=(-0.5, len(known) - 0.5))
    grid[0].set_ylabel(f"{question.metric} minus {question.baseline}'s")
    grid[0].legend(frameon=False, fontsize=8)
    return figure


def _panels(count: int, sharey: bool) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(max(5.6, 2.9 * count), 3.4), layout="constrained", dpi=110)
    grid = figure.subplots(1, count, sharey=sharey, squeeze=False)[0]
    for axes in grid:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def _lines(axes: Axes, lines: Lines, metric: str) -> None:
    for name, line in lines.items():
        known = [(x, mean_of(group, metric)) for x, group in line if group.scores(metric)]
        _error_bars(axes, [x for x, _ in known], [e for _, e in known], label=name, linestyle="-")


def _dots(axes: Axes, lines: Lines, metric: str) -> None:
    """What the law is fitted to."""
    for name, line in lines.items():
        known = [(x, score) for x, group in line for score in scores_of(group, metric)[0]]
        axes.plot(*zip(*known, strict=True), "o", markersize=3.5, label=f"{name}: each seed and split")


def _levels(axes: Axes, others: Sequence[Group], metric: str) -> None:
    for group in others:
        if group.scores(metric):
            mean, side = mean_of(group, metric).value, axes.get_yaxis_transform()
            axes.axhline(mean, linestyle="--", linewidth=1, color="#8a8f98")
            axes.text(0.98, mean, group.name, transform=side, ha="right", va="bottom", fontsize=8, parse_math=False)


def _points(axes: Axes, groups: Sequence[Group], metric: str) -> None:
    known = [(group.name, mean_of(group, metric)) for group in groups if group.scores(metric)]
    _error_bars(axes, list(range(len(known))), [e for _, e in known], linestyle="none")
    axes.set_xticks(
        range(len(known)),
        [name for name, _ in known],
        rotation=20,
        ha="right",
        rotation_mode="anchor",
        parse_math=False,
    )
    axes.set_xlim(-0.5, len(known) - 0.5)
    axes.set_ylabel(metric)


def _error_bars(axes: Axes, x: list[float] | list[int], estimates: list[Estimate], **style: str) -> None:
    values = [e.value for e in estimates]
    error = np.nan_to_num([(e.value - e.low, e.high - e.value) for e in estimates]).reshape(-1, 2).T
    axes.errorbar(x, values, yerr=error, marker="o", markersize=4, capsize=3, linewidth=1.2, **style)  # type: ignore[arg-type]


def _by_severity(axes: Axes, groups: Sequence[Group], variation: str) -> None:
    for group in groups:
        rows = []
        for run in group.runs:
            cells, task = read_json(run.folder.robustness).get("variations", {}).get(variation), run.task
            if cells and (clean := run.metrics.get(f"test/{task.metric}")) is not None:
                rows.append([clean, *(cell[task.metric] for cell in cells)])
        if rows:
            estimates = [mean_over_seeds(scores) for scores in zip(*rows, strict=True)]
            _error_bars(axes, list(range(len(estimates))), estimates, label=group.name, linestyle="-")
    axes.set(title=variation, xlabel="severity", ylim=(0, 1))
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel(f"test {groups[0].runs[0].task.metric_name}")


def _law_in_words(law: PowerLaw) -> str:
    return (
        f"The error falls as n^−{law.rate:.2f} towards {law.floor:.3f}, which no number of images removes (95 % "
        f"intervals). The band, up to {REACH} times the images, is what the runs leave open; nothing was trained there."
    )


def _claims(claims: Sequence[Claim]) -> str:
    rows = ["| expected | what the runs say | difference, 95 % interval | p (Holm) |", "|---|---|---|---|"]
    for claim in claims:
        words = [claim.text, f"**{claim.verdict}**", "–", "–"]
        if claim.comparison is not None:
            words[2:] = [f"{claim.comparison.difference:+.3f}", p_value_text(claim.adjusted_p, 3)]
        rows.append(f"| {' | '.join(words)} |")
    return "\n".join(rows)


def _layers(question: Question, groups: Sequence[Group], figure: Path, link: str) -> str:
    run = next(group for group in groups if group.name == question.layers).runs[0].folder
    picture = run.figures / "layers.png"
    if not picture.is_file():
        return f"What the layers of {question.layers} respond to shows `python -m imgcls explain --run {run.path}`."
    shutil.copy(picture, figure.with_stem(f"{figure.stem}_layers"))
    return (
        f"What the layers of {question.layers} respond to, the first at the top: for each of eight channels the four "
        f"validation images, cut to what the unit sees, to which it responds most (`python -m imgcls explain`).\n\n"
        f"![layers]({link.replace('.png', '_layers.png')})"
    )


def _table(question: Question, groups: Sequence[Group]) -> str:
    head = [*question.axes, "arm", "runs", *question.shown, f"against {question.baseline}"]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for values, alike in by_values(question, groups).items():
        result = {row["name"]: row for row in compare(alike, question.metric, question.baseline)["groups"]}
        for group in alike:
            means = [f"{mean_of(group, m):.3f}" if group.scores(m) else "–" for m in question.shown]
            verdict = result.get(group.name, {}).get("verdict", "baseline")
            rows.append(f"| {' | '.join([*values, group.name, str(len(group.runs)), *means, verdict])} |")
    return "\n".join(rows)
