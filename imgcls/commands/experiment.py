"""All arms of a question, all seeds: experiments/QUESTION [--jobs N]."""

import argparse
import hashlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from imgcls.cli.configs import config_files, expand_configs
from imgcls.commands.compare import print_comparison
from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.runs.processes import last_line, start_run
from imgcls.science.comparison import compare
from imgcls.science.conclusion import conclusion
from imgcls.science.question import Question, arms_of, by_values, judge, read_question
from imgcls.system.files import read_json, write_atomic


@dataclass(frozen=True)
class Job:
    """One arm with one seed."""

    arm: str
    config: Path
    seed: int
    run: RunFolder
    options: tuple[str, ...]

    @property
    def log(self) -> Path:
        """What the run printed."""
        return self.run.path.with_suffix(".log")

    @property
    def words(self) -> list[str]:
        """The fit as one would type it."""
        options = ["--seed_everything", str(self.seed), "--run_dir", str(self.run.path), *self.options]
        return ["fit", "--config", str(self.config), *options]

    def settings(self) -> str:
        """Hash of everything that the run is made from."""
        files = config_files(expand_configs(["--config", str(self.config), *self.options]))
        text = "\n".join([*(f.read_text(encoding="utf-8") for f in files), *self.options])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def main(words: list[str]) -> int:
    """Run every arm of a question with every seed, and compare: what is done is skipped, what was cut off goes on."""
    parser = argparse.ArgumentParser(prog="python -m imgcls experiment", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="experiments/QUESTION: question.toml and one YAML per arm")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores")
    parser.add_argument("--out", type=Path, help="folder of the runs; default: runs/QUESTION")
    parser.add_argument("--print", choices=["wandb", "slurm"], help="write a sweep or a job array, and run nothing")
    options, rest = parser.parse_known_args(words)
    question = read_question(options.folder)
    out = options.out or Path("runs") / question.folder.resolve().name
    jobs = [
        Job(name, arm.config, seed, RunFolder(out / name / f"seed-{seed}"), (*question.options, *rest, *arm.options))
        for seed in question.seeds
        for name, arm in question.arms.items()
    ]
    if options.print == "wandb" and any(arm.options for arm in question.arms.values()):
        raise UserError("--print wandb: its grid has no options of single arms (axes, last); use --print slurm")
    if options.print:
        print(_sweep(question, rest) if options.print == "wandb" else _job_array(question, jobs))
        return 0
    print(f"{question.question}\n{len(question.arms)} arms, seeds {', '.join(map(str, question.seeds))}")
    failed = run_jobs(jobs, question.metric, max(1, options.jobs))
    from imgcls.pages.answer import write_answer
    from imgcls.pages.compare_page import write_page

    groups = arms_of(question, out)
    for values, alike in by_values(question, groups).items():
        result = compare(alike, question.metric, question.baseline)
        page = out / f"{'-'.join(['compare', *values])}.html"
        print("", *(f"{axis} {value}" for axis, value in zip(question.axes, values, strict=True)), sep="\n")
        print_comparison(result)
        write_page(page, result, alike)
        print(f"\npage: {page}")
    for claim in judge(question, groups):
        print(f"\n{claim.text}: {claim.answer}")
    if any(group.scores(question.metric) for group in groups):
        write_atomic(out / "answer.md", write_answer(question, groups, out / "answer.png", "answer.png", rest))
        print(f"\n{conclusion(question, groups, rest)}\n\nanswer: {out / 'answer.md'}")
    for job, code in failed:
        which = f"{job.arm}, seed {job.seed} (exit code {code})"
        print(f"failed: {which}: {last_line(job.log)}; see {job.log}", file=sys.stderr)
    return 1 if failed else 0


def run_jobs(jobs: Sequence[Job], metric: str, at_once: int) -> list[tuple[Job, int]]:
    """Run what is not done, several at once, and go on past failures.

    Returns:
        The jobs that failed, with their exit codes.
    """
    todo = [job for job in jobs if not _is_done(job, metric)]
    print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are done", flush=True)
    children: set[subprocess.Popen] = set()

    def run(job: Job) -> int:
        child = start_run(_words(job), job.log, at_once)
        children.add(child)
        code = child.wait()
        children.discard(child)
        value = read_json(job.run.metrics_json).get(metric)
        if code == 0 and value is None:
            code = 1
        print(f"{job.arm}, seed {job.seed}: {'failed' if code else f'{metric} {value:.4f}'}", flush=True)
        return code

    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(run, job) for job in todo]
        try:
            codes = [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            for child in list(children):
                child.terminate()
            raise
    return [(job, code) for job, code in zip(todo, codes, strict=True) if code]


def _is_done(job: Job, metric: str) -> bool:
    mark = job.run.path.with_suffix(".settings")
    if job.run.path.exists() and mark.is_file() and mark.read_text(encoding="utf-8") != job.settings():
        raise UserError(
            f"{job.run.path}: was made from other settings of {job.config} or other options; remove it or name another "
            "folder with --out"
        )
    return read_json(job.run.metrics_json).get(metric) is not None


def _words(job: Job) -> list[str]:
    """Start, or go on from the last checkpoint."""
    if job.run.last.is_file():
        return ["fit", "--resume", str(job.run.path)]
    if job.run.path.exists():
        shutil.rmtree(job.run.path)  # stopped before its first checkpoint: there is nothing to go on from
    write_atomic(job.run.path.with_suffix(".settings"), job.settings())
    return job.words


def _sweep(question: Question, rest: Sequence[str]) -> str:
    sweep = {
        "program": "imgcls",
        "method": "grid",
        "metric": {"name": question.metric, "goal": "maximize"},
        "parameters": {
            "config": {"values": [str(arm.config) for arm in question.arms.values()]},
            "seed_everything": {"values": question.seeds},
        },
        "command": ["${env}", "${interpreter}", "-m", "imgcls", "fit", "${args}", *question.options, *rest],
    }
    return yaml.safe_dump(sweep, sort_keys=False).rstrip()


def _job_array(question: Question, jobs: Sequence[Job]) -> str:
    commands = "\n".join(f"  {shlex.quote(shlex.join(['python', '-m', 'imgcls', *job.words]))}" for job in jobs)
    return f"""#!/bin/bash
#SBATCH --job-name={question.folder.resolve().name}
#SBATCH --array=0-{len(jobs) - 1}
#SBATCH --output=%x-%a.log
commands=(
{commands}
)
eval "${{commands[$SLURM_ARRAY_TASK_ID]}}\""""
