"""Search for the best options: experiments/sweeps/X.yaml --count N [--jobs N]."""

import argparse
import logging
import subprocess
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import yaml

from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.runs.processes import last_line, start_run
from imgcls.runs.record import points, read_metrics
from imgcls.science.sweep_file import Space, Sweep, as_word, decode, encode, read_sweep
from imgcls.system.files import write_atomic

try:
    import optuna
except ImportError:
    optuna = None  # type: ignore[assignment]

POLL = 0.5  # seconds between two looks at a run's metrics.csv
HEARTBEAT = 5  # seconds; a trial whose process has been silent for three of them is taken up again
PATIENCE = 60  # seconds that a stopped run has for its last checkpoint
FAILURES = 3  # in a row; more of the same would fail too


class TrialFailed(Exception):
    """A trial's fit ended with an error."""


def main(words: list[str]) -> int:
    """Search for the best options of a fit, from a W&B sweep file, without an account: Optuna chooses.

    Killed, or started again with a larger count, it goes on; several may work on one sweep at once.
    """
    parser = argparse.ArgumentParser(prog="python -m imgcls sweep", description=main.__doc__, allow_abbrev=False)
    parser.add_argument("file", type=Path, help="a W&B sweep file: method, metric, parameters, command")
    parser.add_argument("--count", type=int, required=True, help="trials of the whole sweep, finished or stopped early")
    parser.add_argument("--jobs", type=int, default=1, help="trials at a time; they share the cores")
    parser.add_argument("--out", type=Path, help="folder of database, runs and best.yaml; default: runs/sweeps/NAME")
    options, rest = parser.parse_known_args(words)
    if optuna is None:
        raise UserError("sweep: needs Optuna: pip install 'imgcls[sweep]'")
    sweep = read_sweep(options.file)
    work = _Work(sweep, options.out or Path("runs/sweeps") / sweep.name, options.count, max(1, options.jobs), rest)
    with ThreadPoolExecutor(work.jobs) as pool:
        for worker in [pool.submit(work.run) for _ in range(work.jobs)]:
            worker.result()
    return work.report()


class _Work:
    """One process's share of a sweep."""

    def __init__(self, sweep: Sweep, out: Path, count: int, jobs: int, rest: list[str]) -> None:
        self.sweep, self.out, self.count, self.jobs, self.rest = sweep, out, count, jobs, rest
        self.failures: list[str] = []
        self.stop, self.turn = threading.Event(), threading.Lock()
        self.starting = 0  # trials of this process that the study does not know yet
        optuna.logging.set_verbosity(logging.ERROR)  # we say ourselves what failed
        out.mkdir(parents=True, exist_ok=True)
        # heartbeat, multivariate and constant_liar may still change in Optuna, which warns of it at each use
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        # trials of a process that was killed are found by their silence and queued again with the same parameters
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{out.resolve()}/study.db",
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=HEARTBEAT,
            grace_period=3 * HEARTBEAT,
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
        self.study = optuna.create_study(
            study_name=sweep.name,
            storage=storage,
            sampler=_sampler(sweep),
            pruner=optuna.pruners.HyperbandPruner(**sweep.hyperband) if sweep.hyperband else optuna.pruners.NopPruner(),
            direction="maximize" if sweep.maximize else "minimize",
            load_if_exists=True,
        )
        text = sweep.path.read_text(encoding="utf-8")
        if self.study.user_attrs.setdefault("file", text) != text:
            raise UserError(f"{out}: was started from another version of {sweep.path}; name another folder with --out")
        self.study.set_user_attr("file", text)

    def run(self) -> None:
        """Take one trial after the other until the sweep has as many as it should."""
        while not self.stop.is_set():
            optuna.storages.fail_stale_trials(self.study)
            state = optuna.trial.TrialState
            with self.turn:
                states = [trial.state for trial in self.study.get_trials(deepcopy=False)]
                done, running = states.count(state.COMPLETE) + states.count(state.PRUNED), states.count(state.RUNNING)
                is_tried = self._grid_is_tried() and state.WAITING not in states
                if done >= self.count or (is_tried and not running):
                    return
                starts = done + running + self.starting < self.count and not is_tried
                self.starting += starts
            if not starts:  # another process may finish them, or die
                time.sleep(POLL)
                continue
            self.study.optimize(self._trial, n_trials=1, catch=(TrialFailed,))

    def _grid_is_tried(self) -> bool:
        sampler = self.study.sampler
        return isinstance(sampler, optuna.samplers.GridSampler) and sampler.is_exhausted(self.study)

    def _trial(self, trial: "optuna.Trial") -> float:
        with self.turn:
            self.starting -= 1  # it is among the running ones now
        chosen = {name: _suggest(trial, name, space) for name, space in self.sweep.spaces.items()}
        # a queued trial brings the run of the one that died, which goes on from its last checkpoint
        run = RunFolder(trial.user_attrs.get("run", self.out / f"{trial.number:04d}"))
        number = int(run.path.name)
        trial.set_user_attr("run", str(run.path))
        if run.last.is_file():
            words = ["fit", "--resume", str(run.path)]
        else:
            options = [as_word(name, value) for name, value in chosen.items()]
            words = ["fit", *self.sweep.words, *options, *self.rest, "--run_dir", str(run.path)]
        log = run.path.with_suffix(".log")
        child = start_run(words, log, self.jobs)
        reported = 0
        try:
            while True:
                ended = child.poll() is not None
                values = [value for _, value in points(read_metrics(run), self.sweep.metric)]
                for epoch in range(reported, len(values)):
                    trial.report(values[epoch], epoch + 1)
                if len(values) > reported and not ended and trial.should_prune():
                    print(f"trial {number}: stopped after {len(values)} epochs, {self.sweep.metric} {values[-1]:.4f}")
                    raise optuna.TrialPruned
                reported = max(reported, len(values))
                if ended:
                    break
                time.sleep(POLL)
        finally:
            if child.poll() is None:
                child.terminate()
                try:
                    child.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    child.kill()
        if child.returncode or not values:
            return self._fail(number, last_line(log) if child.returncode else f"it logged no {self.sweep.metric}", log)
        self.failures.clear()
        best = max(values) if self.sweep.maximize else min(values)
        print(f"trial {number}: {self.sweep.metric} {best:.4f}  {' '.join(as_word(n, v) for n, v in chosen.items())}")
        return best

    def _fail(self, number: int, reason: str, log: Path) -> NoReturn:
        self.failures.append(reason)
        print(f"trial {number}: failed: {reason}; see {log}", flush=True)
        if len(self.failures) >= FAILURES:
            self.stop.set()
        raise TrialFailed(reason)

    def report(self) -> int:
        """Print the trials and what mattered, and write best.yaml.

        Returns:
            The exit code.
        """
        state = optuna.trial.TrialState
        done, stopped = (self.study.get_trials(deepcopy=False, states=[s]) for s in (state.COMPLETE, state.PRUNED))
        if not done:
            raise UserError(f"sweep: no trial has finished{': ' + self.failures[-1] if self.failures else ''}")
        print(f"\n{len(done)} trials finished, {len(stopped)} stopped early; by {self.sweep.metric}:")
        for trial in sorted(done, key=lambda t: t.value, reverse=self.sweep.maximize)[:10]:  # type: ignore[arg-type, return-value]
            words = " ".join(as_word(name, decode(value)) for name, value in trial.params.items())
            print(f"  {trial.value:.4f}  {trial.user_attrs['run']}  {words}")
        self._print_importance(done)
        path = self.out / "best.yaml"
        write_atomic(path, _config(self.sweep, self.study.best_trial, self.rest, path, len(done)))
        print(f"\nbest: python -m imgcls fit --config {path}")
        if self.stop.is_set():
            raise UserError(f"sweep: stopped after {FAILURES} failures in a row: {self.failures[-1]}")
        return 0

    def _print_importance(self, done: list[Any]) -> None:
        varied = [name for name, space in self.sweep.spaces.items() if space.values is None or len(space.values) > 1]
        if len(done) < 4 or len(varied) < 2:
            return
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        share = optuna.importance.get_param_importances(self.study, evaluator=evaluator, params=varied)
        print("\nimportance (PED-ANOVA, Watanabe et al., IJCAI 2023):")
        for name, value in share.items():
            print(f"  {value:.2f}  {name}")


def _sampler(sweep: Sweep) -> Any:
    if sweep.method == "grid":
        choices = {name: [encode(v) for v in space.values or []] for name, space in sweep.spaces.items()}
        return optuna.samplers.GridSampler(choices)
    if sweep.method == "random":
        return optuna.samplers.RandomSampler()
    # several workers: what another one is trying counts as bad, so that none tries the same
    return optuna.samplers.TPESampler(multivariate=True, constant_liar=True)


def _suggest(trial: "optuna.Trial", name: str, space: Space) -> Any:
    if space.values is not None:
        return decode(trial.suggest_categorical(name, [encode(v) for v in space.values]))
    if space.integer:
        return trial.suggest_int(name, int(space.low), int(space.high), log=space.log)
    return trial.suggest_float(name, space.low, space.high, step=space.step, log=space.log)


def _config(sweep: Sweep, best: Any, rest: list[str], path: Path, trials: int) -> str:
    """The best trial as a config: its files as bases, its options nested."""
    words = [*sweep.words, *(as_word(name, decode(value)) for name, value in best.params.items()), *rest]
    bases: list[str] = []
    options: dict[str, Any] = {}
    while words:
        key, equals, value = words.pop(0).removeprefix("--").partition("=")
        value = value if equals else words.pop(0) if words else ""
        if key == "config":
            bases.append(value if value.lstrip().startswith("{") else str(Path(value).resolve()))
        else:
            _nest(options, key.split("."), yaml.safe_load(value))
    head = f"# Best of {trials} trials of {sweep.path}: {sweep.metric} {best.value:.4f}\n"
    return head + yaml.safe_dump({"base": bases, **options}, sort_keys=False)


def _nest(options: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = options.get(key)
        if not isinstance(inner, dict):  # a class was named, and now an option of it
            inner = options[key] = {} if inner is None else {"class_path": inner}
        options = inner
    options[keys[-1]] = value
