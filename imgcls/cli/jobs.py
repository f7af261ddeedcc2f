"""Fits in processes of their own, several at once: what is done is skipped, what was cut off goes on."""

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from imgcls.cli.configs import config_files, expand_configs
from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.runs.processes import last_line, start_run
from imgcls.system.files import read_json, write_atomic


@dataclass(frozen=True)
class Job:
    """One run of an arm; its folder is named by the seed, and by the split where arms are run on several."""

    arm: str
    config: Path
    seed: int
    run: RunFolder
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """Such as `flip, seed 0 split 1 fold 2`."""
        return f"{self.arm}, {self.run.path.name.replace('-', ' ')}"

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

    def is_done(self, metric: str) -> bool:
        """Whether the run has the metric.

        Raises:
            UserError: It was made from other settings.
        """
        mark = self.run.path.with_suffix(".settings")
        if self.run.path.exists() and mark.is_file() and mark.read_text(encoding="utf-8") != self.settings():
            raise UserError(
                f"{self.run.path}: was made from other settings of {self.config} or other options; remove it or name "
                "another folder with --out"
            )
        return read_json(self.run.metrics_json).get(metric) is not None

    def check(self) -> None:
        """Have fit read its options, and no more.

        Raises:
            UserError: It refuses one of them.
        """
        if start_run([*self.words, "--print_config"], self.log).wait():
            raise UserError(last_line(self.log).removeprefix("error: "))

    def words_now(self) -> list[str]:
        """The words that start the run, or have it go on from its last checkpoint."""
        if self.run.last.is_file():
            return ["fit", "--resume", str(self.run.path)]
        if self.run.path.exists():
            shutil.rmtree(self.run.path)  # stopped before its first checkpoint: there is nothing to go on from
        write_atomic(self.run.path.with_suffix(".settings"), self.settings())
        return self.words


def run_jobs(jobs: Sequence[Job], metric: str, at_once: int) -> list[tuple[Job, int]]:
    """Run jobs, several at once, and go on past failures.

    Returns:
        The jobs that failed, with their exit codes.
    """
    children: set[subprocess.Popen] = set()

    def run(job: Job) -> int:
        child = start_run(job.words_now(), job.log, at_once)
        children.add(child)
        code = child.wait()
        children.discard(child)
        value = read_json(job.run.metrics_json).get(metric)
        if code == 0 and value is None:
            code = 1
        print(f"{job.name}: {'failed' if code else f'{metric} {value:.4f}'}", flush=True)
        return code

    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            codes = [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            for child in list(children):
                child.terminate()
            raise
    return [(job, code) for job, code in zip(jobs, codes, strict=True) if code]
