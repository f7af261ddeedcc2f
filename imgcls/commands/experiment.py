"""All arms of a question, all seeds: experiments/QUESTION [--jobs N] [--until WIDTH]."""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from imgcls.cli.columns import print_columns
from imgcls.cli.configs import each_option
from imgcls.cli.jobs import Job, run_jobs
from imgcls.commands.compare import print_comparison
from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.runs.processes import last_line
from imgcls.science.comparison import compare
from imgcls.science.conclusion import conclusion
from imgcls.science.groups import short
from imgcls.science.question import Question, arms_of, by_values, in_terms_of, judge, read_question
from imgcls.science.until import MOST, Budget, Interval, intervals, read_budget
from imgcls.system.files import write_atomic

# what each run is given, and the option that says it for all of them
GIVEN = {"seed_everything": "--seeds", "run_dir": "--out"}
OF_SPLITS = {"data.split_seed": "--repeats", **dict.fromkeys(("data.fold", "data.folds", "data.fold_part"), "--folds")}
EPILOG = """All other options are those of fit (python -m imgcls fit --help), and go to every run:

  python -m imgcls experiment experiments/own/X --data.root=DIR --trainer.max_epochs=20 --jobs 2"""


def main(words: list[str]) -> int:
    """Run every arm of a question with every seed, and compare: what is done is skipped, what was cut off goes on."""
    options, rest = _parser().parse_known_args(words)
    given = {key: getattr(options, key) for key in ("seeds", "folds", "repeats")}
    question = read_question(options.folder, **given)
    _refuse_given(question, rest)
    work = _Work(question, options.out or Path("runs") / question.name, rest, max(1, options.jobs))
    if options.print:
        if options.until is not None:
            raise UserError("--until: asks the runs themselves how many there will be; it does not go with --print")
        print(_sweep(question, rest) if options.print == "wandb" else _job_array(question, work.jobs()))
        return 0
    if options.until is None and options.budget:
        raise UserError("--budget: is that of --until WIDTH, which is missing")
    if options.until is not None:
        _check_until(question, options.until)
    print(f"{question.question}\n{len(question.arms)} arms, {question.replicates}")
    stopped = ""
    if options.until is None:
        work.run_question()
    else:
        stopped = work.run_until(options.until, options.budget)
    from imgcls.pages.answer import write_answer
    from imgcls.pages.compare_page import write_page

    groups = arms_of(question, work.out)
    question = in_terms_of(question, groups)
    for values, alike in by_values(question, groups).items():
        result = compare(alike, question.metric, question.baseline)
        page = work.out / f"{'-'.join(['compare', *values])}.html"
        print("", *(f"{axis} {value}" for axis, value in zip(question.axes, values, strict=True)), sep="\n")
        print_comparison(result)
        write_page(page, result, alike)
        print(f"\npage: {page}")
    for claim in judge(question, groups):
        print(f"\n{claim.text}: {claim.answer}")
    if any(group.scores(question.metric) for group in groups):
        page, closing = work.out / "answer.md", conclusion(question, groups, rest)
        write_atomic(page, write_answer(question, groups, page.with_suffix(".png"), "answer.png", rest, closing))
        print(f"\n{closing}\n\nanswer: {page}")
    if stopped:
        _print_widths(intervals(question, groups), options.until, stopped)
    for job, code in work.failed:
        print(f"failed: {job.name} (exit code {code}): {last_line(job.log)}; see {job.log}", file=sys.stderr)
    return 1 if work.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m imgcls experiment",
        usage="%(prog)s QUESTION [--KEY VALUE …] [options of fit]",
        description=main.__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="QUESTION", help="folder with a question.toml and one YAML per arm")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time; they share the cores")
    add("--out", type=Path, metavar="DIR", help="folder of the runs; default: runs/QUESTION")
    add("--seeds", type=_numbers, metavar="N,N,…", help="in place of the question's, such as 0,1,2")
    add("--folds", type=int, metavar="K", help="cross-validation: each of K folds is the test part once")
    add("--repeats", type=int, metavar="R", help="split the images anew R times, into folds or else at random")
    until = "then add one seed (with folds or repeats: one repeat) to every arm at a time, until the 95 %% interval of "
    until += "each difference from the baseline is at most so wide (high - low), such as 0.02"
    add("--until", type=float, metavar="WIDTH", help=until)
    budget = f"time, or number of runs, beyond which --until adds none; default: {MOST} times the runs of the question"
    add("--budget", type=read_budget, metavar="2h|30m|90s|40", help=budget)
    add("--print", choices=["wandb", "slurm"], help="write a sweep or a job array, and run nothing")
    return parser


class _Work:
    """The runs of a question that one call of the command makes."""

    def __init__(self, question: Question, out: Path, rest: Sequence[str], at_once: int) -> None:
        self.question, self.out, self.rest, self.at_once = question, out, rest, at_once
        self.began, self.made, self.pace = time.monotonic(), 0, 0.0  # seconds; runs; seconds a run
        self.failed: list[tuple[Job, int]] = []

    def jobs(self, rounds: Iterable[int] | None = None) -> list[Job]:
        """The runs of some rounds; of those that the question asks for."""
        arms, replicates = self.question.arms, self.question.replicates
        first = (*self.question.options, *self.rest)
        return [
            Job(name, arm.config, one.seed, RunFolder(self.out / name / one.name), (*first, *arm.options, *one.options))
            for number in (range(replicates.rounds) if rounds is None else rounds)
            for one in replicates.round(number)
            for name, arm in arms.items()
        ]

    def run_question(self, more: int = 0, budget: Budget | None = None) -> None:
        """Make the runs that the question asks for, and those of so many further rounds, where they are not done."""
        jobs = self.jobs(range(self.question.replicates.rounds + more))
        left = self._left(jobs)
        print(f"{len(jobs) - len(left)} of {len(jobs)} runs are done", flush=True)
        if budget and len(left) > budget.runs:
            raise UserError(f"--budget {budget.runs:g}: {len(left)} runs are to be made before --until adds any")
        if left:
            left[0].check()
            self._run(left)

    def run_until(self, width: float, budget: Budget | None) -> str:
        """Make the question's runs, and then more of them until the intervals are narrow, or a limit is reached.

        Returns:
            Why it stopped.
        """
        question, own, more = self.question, self.question.replicates.rounds, 0
        while any(job.run.path.exists() for job in self.jobs([own + more])):
            more += 1  # begun by an earlier call
        self.run_question(more, budget)
        while not self.failed:
            jobs = self._left(self.jobs([own + more]))
            if not jobs:
                more += 1
                continue
            groups = arms_of(question, self.out)
            found = intervals(in_terms_of(question, groups), groups)
            wide = sorted((one for one in found if one.is_wide(width)), key=lambda one: one.width)
            if not wide:
                return "all are narrow enough"
            if out_of_reach := [one for one in wide if one.floor > width]:
                return max(out_of_reach, key=lambda one: one.floor).limit(width)
            if not budget and own + more >= MOST * own:
                return f"there are {MOST} times the runs of the question, the most without --budget"
            took = time.monotonic() - self.began
            if budget and (refusal := budget.refusal(took, self.made, len(jobs), self.pace * len(jobs))):
                return refusal
            print(
                f"{len(wide)} of {len(found)} intervals are wider than {width:g}, the widest that of {wide[-1].arm} "
                f"({_width(wide[-1])}): {len(jobs)} more runs",
                flush=True,
            )
            self._run(jobs)
            more += 1
        return "runs failed"

    def _left(self, jobs: Sequence[Job]) -> list[Job]:
        return [job for job in jobs if not job.is_done(self.question.metric)]

    def _run(self, jobs: Sequence[Job]) -> None:
        began = time.monotonic()
        self.failed += run_jobs(jobs, self.question.metric, self.at_once)
        self.made += len(jobs)
        self.pace = (time.monotonic() - began) / len(jobs)


def _print_widths(found: Sequence[Interval], width: float, stopped: str) -> None:
    print(f"\n95 % intervals, to be at most {width:g} wide:\n")
    rows = [(one.arm, f"{one.comparison.difference:+.4f}", _width(one)) for one in found]
    print_columns([("arm", "difference", "width"), *rows])
    print(f"\nstopped: {stopped}")


def _width(interval: Interval) -> str:
    return "none yet" if math.isinf(interval.width) else f"{interval.width:.4f}"


def _numbers(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise UserError(f"--seeds {text}: give numbers with commas between them, such as 0,1,2")
    return list(map(int, numbers))


def _check_until(question: Question, width: float) -> None:
    if not width > 0:
        raise UserError(f"--until {width:g}: give a width above 0, such as 0.02")
    arms = question.arms.values()
    baselines = {arm.values for arm in arms if arm.config.stem == question.baseline}
    if not any(arm.values in baselines and arm.config.stem != question.baseline for arm in arms):
        raise UserError(f"--until: {question.folder} has no arm to compare with the baseline {question.baseline}")


def _refuse_given(question: Question, rest: Sequence[str]) -> None:
    """What each run is given must not be said for all."""
    given = GIVEN | (OF_SPLITS if question.replicates.over else {})
    words = [*question.options, *rest, *(word for arm in question.arms.values() for word in arm.options)]
    for flag, _, _ in each_option(words):
        if instead := given.get(short(flag.removeprefix("--"))):
            raise UserError(f"{flag}: each run of the experiment is given its own; say it for all of them by {instead}")


def _sweep(question: Question, rest: Sequence[str]) -> str:
    if any(arm.options for arm in question.arms.values()):
        raise UserError("--print wandb: its grid has no options of single arms (axes, last); use --print slurm")
    replicates = question.replicates
    folds = [f"--data.folds={replicates.folds}", "--data.fold_part=test"] if replicates.folds else []
    splits = {"data.fold": range(replicates.folds), "data.split_seed": range(replicates.rounds)}
    sweep = {
        "program": "imgcls",
        "method": "grid",
        "metric": {"name": question.metric, "goal": "maximize"},
        "parameters": {
            "config": {"values": [str(arm.config) for arm in question.arms.values()]},
            "seed_everything": {"values": question.seeds},
            **{short(key): {"values": list(splits[short(key)])} for key in replicates.over},
        },
        "command": ["${env}", "${interpreter}", "-m", "imgcls", "fit", "${args}", *question.options, *rest, *folds],
    }
    return yaml.safe_dump(sweep, sort_keys=False).rstrip()


def _job_array(question: Question, jobs: Sequence[Job]) -> str:
    commands = "\n".join(f"  {shlex.quote(shlex.join(['python', '-m', 'imgcls', *job.words]))}" for job in jobs)
    return f"""#!/bin/bash
#SBATCH --job-name={question.name}
#SBATCH --array=0-{len(jobs) - 1}
#SBATCH --output=%x-%a.log
commands=(
{commands}
)
eval "${{commands[$SLURM_ARRAY_TASK_ID]}}\""""
