"""The answer to a question, from its runs alone: a figure, and a section of Markdown."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imgcls.errors import UserError
from imgcls.science.comparison import compare
from imgcls.science.groups import Group
from imgcls.science.power_law import PowerLaw, fit_power_law
from imgcls.science.question import Claim, Question, by_values, judge
from imgcls.science.statistics import Estimate, mean_over_seeds, p_value_text
from imgcls.system.files import read_json

Lines = dict[str, list[tuple[float, Group]]]


def write_answer(question: Question, groups: Sequence[Group], figure: Path, link: str) -> str:
    """Draw the figure and return the section.

    Args:
        question: The question.
        groups: The runs of its arms, of which at least one has the metric.
        figure: The .png file to write.
        link: How the Markdown names that file.
    """
    lines, _ = by_number(groups)
    law = _law(question, lines)
    figure.parent.mkdir(parents=True, exist_ok=True)
    drawn = draw_differences(question, groups) if question.axes else draw(question, groups, law)
    drawn.savefig(figure, metadata={"Software": None})
    claims = judge(question, groups)
    seeds = sorted({str(run.seed) for group in groups for run in group.runs})
    minutes = sum(run.metrics.get("fit/seconds") or 0 for group in groups for run in group.runs) / 60
    parts = [
        f"## {question.question}",
        f"`python -m imgcls experiment experiments/{question.name}`: {len(groups)} arms, seeds {', '.join(seeds)}, "
        f"{minutes:.0f} minutes of training in all.",
        f"![{question.name}]({link})",
        _claims(claims) if claims else "",
        _law_in_words(law, max(x for line in lines.values() for x, _ in line)) if law else "",
        _layers(question, groups, figure, link) if question.layers else "",
        _table(question, groups),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def by_number(groups: Sequence[Group]) -> tuple[Lines, list[Group]]:
    """Arms called NAME-NUMBER as lines NAME over NUMBER, and the others; a lone number makes no line."""
    lines: Lines = {}
    for group in groups:
        if match := re.fullmatch(r"(.+)-(\d+)", group.name):
            lines.setdefault(match[1], []).append((float(match[2]), group))
    lines = {name: sorted(line, key=lambda point: point[0]) for name, line in lines.items() if len(line) > 1}
    drawn = {id(group) for line in lines.values() for _, group in line}
    return lines, [group for group in groups if id(group) not in drawn]


def draw(question: Question, groups: Sequence[Group], law: PowerLaw | None = None) -> Figure:
    """The figure: accuracy by severity, lines over a number, or one point for each arm; with 95 % intervals."""
    panels = question.severities or question.metrics
    figure, grid = _panels(len(panels), sharey=bool(question.severities))
    lines, others = by_number(groups)
    for axes, panel in zip(grid, panels, strict=True):
        if question.severities:
            _by_severity(axes, groups, panel)
        elif lines:
            _lines(axes, lines, others, panel)
            axes.set(xlabel=question.xlabel, xscale=question.xscale, ylabel=panel)
        else:
            _points(axes, groups, panel)
    if law is not None:
        points = [x for line in lines.values() for x, _ in line]
        reach = [min(points) * (2 * max(points) / min(points)) ** (k / 60) for k in range(61)]
        grid[0].plot(reach, [float(law.accuracy(x)) for x in reach], color="black", linewidth=0.9, label="power law")  # type: ignore[arg-type]
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


def _lines(axes: Axes, lines: Lines, others: Sequence[Group], metric: str) -> None:
    for name, line in lines.items():
        known = [(x, mean_over_seeds(scores)) for x, group in line if (scores := group.scores(metric))]
        _error_bars(axes, [x for x, _ in known], [e for _, e in known], label=name, linestyle="-")
    for group in others:
        if scores := group.scores(metric):
            mean, side = mean_over_seeds(scores).value, axes.get_yaxis_transform()
            axes.axhline(mean, linestyle="--", linewidth=1, color="#8a8f98")
            axes.text(0.98, mean, group.name, transform=side, ha="right", va="bottom", fontsize=8, parse_math=False)


def _points(axes: Axes, groups: Sequence[Group], metric: str) -> None:
    known = [(group.name, mean_over_seeds(scores)) for group in groups if (scores := group.scores(metric))]
    _error_bars(axes, list(range(len(known))), [e for _, e in known], linestyle="none")
    axes.set_xticks(range(len(known)), [name for name, _ in known], rotation=20, parse_math=False)
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
            cells = read_json(run.folder.robustness).get("variations", {}).get(variation)
            if cells and "test/acc" in run.metrics:
                rows.append([run.metrics["test/acc"], *(cell["acc"] for cell in cells)])
        if rows:
            estimates = [mean_over_seeds(scores) for scores in zip(*rows, strict=True)]
            _error_bars(axes, list(range(len(estimates))), estimates, label=group.name, linestyle="-")
    axes.set(title=variation, xlabel="severity", ylim=(0, 1))
    if axes.get_subplotspec().is_first_col():  # type: ignore[union-attr]
        axes.set_ylabel("test accuracy")


def _law(question: Question, lines: Lines) -> PowerLaw | None:
    if question.fit != "power law" or not lines:
        return None
    line = next(iter(lines.values()))
    return fit_power_law([x for x, _ in line], [group.scores(question.metric) for _, group in line])


def _law_in_words(law: PowerLaw, largest: float) -> str:
    (low, high), doubled = law.exponent_interval, Estimate(law.doubled, *law.doubled_interval)
    return (
        f"Error ≈ {law.scale:.3g} · n^−{law.exponent:.3f} + {law.floor:.3f}, exponent {low:.3f} to {high:.3f} (95 %). "
        f"Continued to {2 * largest:,.0f} images it gives an accuracy of {doubled:.3f}; nothing was trained there."
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
        raise UserError(f"{picture}: is not there yet; first python -m imgcls explain --run {run.path}")
    shutil.copy(picture, figure.with_stem(f"{figure.stem}_layers"))
    return (
        f"What the layers of {question.layers} respond to, the first at the top: for each of eight channels the four "
        f"validation images, cut to what the unit sees, to which it responds most (`python -m imgcls explain`).\n\n"
        f"![layers]({link.replace('.png', '_layers.png')})"
    )


def _table(question: Question, groups: Sequence[Group]) -> str:
    head = [*question.axes, "arm", "runs", *question.metrics, f"against {question.baseline}"]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for values, alike in by_values(question, groups).items():
        result = {row["name"]: row for row in compare(alike, question.metric, question.baseline)["groups"]}
        for group in alike:
            means = [f"{mean_over_seeds(s):.3f}" if (s := group.scores(m)) else "–" for m in question.metrics]
            verdict = result.get(group.name, {}).get("verdict", "baseline")
            rows.append(f"| {' | '.join([*values, group.name, str(len(group.runs)), *means, verdict])} |")
    return "\n".join(rows)
