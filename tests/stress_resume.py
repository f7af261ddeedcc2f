"""Kill training at random moments, go on with --resume, and compare the end with that of a run left in peace.

    python tests/stress_resume.py --kills 200 --seed 0 [--only workers]

Weights, averaged weights, optimiser, schedule and what callbacks know must be equal bit by bit in best.ckpt and
last.ckpt, and so must metrics.csv, the predictions and the figures of metrics.json, but for times. Each process is a
fork of this one, which has everything imported; within it, hooks tell through a pipe where it is, so that signals hit
what they are meant to hit. Exit code 1 and the kept folders tell of a difference.
"""

import argparse
import csv
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

os.environ |= {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true", "PYTHONUNBUFFERED": "1"}
import torch  # noqa: E402

from imgcls.__main__ import main  # noqa: E402
from imgcls.classifier import Classifier  # noqa: E402
from imgcls.commands.fit import Fit  # noqa: E402, F401  (imported once, for all forks)
from imgcls.training.checkpoint import AtomicCheckpointIO, Signals  # noqa: E402

ROOT = Path(__file__).parents[1]
COMMON = ["--config", f"{ROOT}/experiments/demo.yaml", "--config", f"{ROOT}/configs/augment/mix.yaml"]
COMMON += [f"--trainer.{k}=false" for k in ("logger", "enable_progress_bar", "enable_model_summary")]
COMMON += ["--trainer.max_epochs=4", "--trainer.accelerator=cpu", "--data.train_fraction=0.04", "--data.batch_size=16"]
COMMON += ["--data.val_fraction=0.02", "--model.backbone.depth=2", "--model.backbone.width=8", "--model.dropout=0.1"]
EMA = ["--config", f"{ROOT}/configs/trainer/ema.yaml", "--trainer.accumulate_grad_batches=3"]
EVERY = ["--last_checkpoint.every_n_train_steps=2", "--last_checkpoint.save_on_train_epoch_end=false"]
VARIANTS = {  # name: (processes, options)
    "plain": (1, []),
    "ema": (1, [*EMA, "--config", f"{ROOT}/configs/trainer/one_cycle.yaml"]),
    "workers": (1, ["--data.num_workers=2", *EVERY]),
    "workers_ema": (1, ["--data.num_workers=2", *EMA, "--trainer.val_check_interval=6", "--data.sampling=balanced"]),
    "ddp": (2, ["--trainer.strategy=ddp", "--trainer.devices=2", "--data.batch_size=8"]),
    "ddp_workers": (2, ["--trainer.strategy=ddp", "--trainer.devices=2", "--data.num_workers=2", *EMA, *EVERY]),
}
# letter: (moment, method at whose start a process is there)
MOMENTS = {
    "s": ("start-up", None, ""),
    "f": ("start of training", Signals, "on_train_start"),
    "t": ("training", Classifier, "training_step"),
    "v": ("validation", Classifier, "validation_step"),
    "e": ("the epoch's edge", Classifier, "on_train_epoch_end"),
    "w": ("a checkpoint's write", AtomicCheckpointIO, "save_checkpoint"),
    "x": ("test after fit", Classifier, "test_step"),
}
WRITTEN = "W"  # a checkpoint's write has ended
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE = 120.0  # seconds after which a process counts as hung


class Plan(NamedTuple):
    """Send a signal so many seconds after a moment has come for the n-th time, to one process or all."""

    number: int
    letter: str
    count: int
    delay: float
    rank: int | None


class Ended(NamedTuple):
    """How a start of a run ended: exit codes, and the moment of the kill if there was one."""

    codes: list[int]
    moment: str | None


def report_moments(pipe: int) -> None:
    """Let this process write a letter at each moment."""
    os.write(pipe, b"s")
    for letter, (_, owner, name) in MOMENTS.items():
        if owner is not None:
            setattr(owner, name, _reporting(getattr(owner, name), pipe, letter))


def _reporting(method: Any, pipe: int, letter: str) -> Any:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        os.write(pipe, letter.encode())
        result = method(*arguments, **options)
        if letter == "w":
            os.write(pipe, WRITTEN.encode())
        return result

    return wrapped


def start(words: list[str], log: Path, rank: int, processes: int, port: int) -> tuple[int, int]:
    """Fork a process that runs the command line. Returns its id and the pipe to read from."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    code = 70
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for target in (1, 2):
            os.dup2(output, target)
        sys.stdout = sys.stderr = os.fdopen(output, "w", buffering=1)  # not what pytest has put there
        warnings.simplefilter("default")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if processes > 1:  # what torchrun would say
            os.environ |= {"TORCHELASTIC_RUN_ID": "stress", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}
            os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        sys.argv = ["imgcls", *words]
        report_moments(write)
        code = main(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)


def run(words: list[str], log: Path, processes: int, plan: Plan | None) -> Ended:
    """Run the command line in its processes and kill it as planned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [start(words, log, rank, processes, port) for rank in range(processes)]
    children, pipe = [child for child, _ in started], started[0][1]
    seen, moment = "", None
    deadline = time.monotonic() + PATIENCE
    while letters := _read(pipe, deadline):
        seen += letters
        if plan is not None and moment is None and seen.count(plan.letter) >= plan.count:
            time.sleep(plan.delay)
            while select.select([pipe], [], [], 0)[0] and (letters := os.read(pipe, 4096).decode()):
                seen += letters
            moment = MOMENTS[seen[-1]][0] if seen[-1] != WRITTEN else "between two"
            for rank, child in enumerate(children):
                if plan.rank in (None, rank):
                    os.kill(child, plan.number)  # a process that has ended is still to be waited for
    codes: list[int] = []
    patience = 20.0 if moment and plan and plan.number != signal.SIGTERM else PATIENCE  # the others of a dead one hang
    for child in children:
        codes.append(_wait(child, time.monotonic() + patience))
    for _, read in started:
        os.close(read)
    return Ended(codes, moment)


def _read(pipe: int, deadline: float) -> str:
    ready = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]
    return os.read(pipe, 4096).decode() if ready else ""


def _wait(child: int, deadline: float) -> int:
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 124
        time.sleep(0.01)


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Where two values of checkpoints or JSON files differ, times left out."""
    if where.endswith(("seconds", "images_per_second")):
        return []
    if isinstance(one, dict) and isinstance(two, dict):
        return [d for k in one | two for d in differences(one.get(k), two.get(k), f"{where}.{k}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [d for k, (a, b) in enumerate(zip(one, two, strict=True)) for d in differences(a, b, f"{where}.{k}")]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if torch.equal(one, two) else [where]
    return [] if one == two else [f"{where}: {one!r:.60} and {two!r:.60}"]


def compare(whole: Path, killed: Path) -> list[str]:
    """All differences between the folders of two runs."""
    found = []
    for name in ("best", "last"):
        states = []
        for folder in (whole, killed):
            state = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
            del state["loops"]  # counts of starts: they tell of the interruption, as they should
            state["callbacks"] = {k: _without_paths(v) for k, v in state["callbacks"].items()}
            states.append(state)
        found += differences(*states, name)
    for name in ("metrics.csv", "predictions/val.csv", "predictions/test.csv"):
        tables = [list(csv.DictReader((folder / name).read_text().splitlines())) for folder in (whole, killed)]
        found += differences(*tables, name)
    found += differences(*(json.loads((folder / "metrics.json").read_text()) for folder in (whole, killed)), "json")
    return found + [f"left over: {p}" for p in killed.rglob(".*.part")]


def _without_paths(state: Any) -> Any:
    """Of a callback; Lightning saves the score of the latest epoch too, and does not load it."""
    unlike = ("dirpath", "best_k_models", "current_score")
    return {k: v for k, v in state.items() if not k.endswith("path") and k not in unlike}


def draw(rng: random.Random, processes: int) -> Plan:
    """A signal at a random moment; those that a run meets more often are not drawn more often."""
    letter = rng.choice("ssfttttvveewwwwx")
    largest = {"t": 40, "v": 24, "e": 4, "w": 8, "x": 4}.get(letter, 1)
    delay = rng.uniform(0, 1.0) if letter == "s" else rng.choice([0.0, rng.uniform(0, 0.004), rng.uniform(0, 0.05)])
    # before processes have met, only their launcher can stop the others of one that ends
    rank = rng.choice([None, *range(processes)]) if processes > 1 and letter != "s" else None
    return Plan(rng.choice(SIGNALS), letter, rng.randint(1, largest), delay, rank)


def stress(name: str, kills: int, rng: random.Random, folder: Path, counts: Counter) -> list[str]:
    """Kill one run so many times, let it end, and compare it with the one left in peace (made at the first call)."""
    processes, options = VARIANTS[name]
    words, whole, killed = [*COMMON, *options], folder / f"{name}-whole", folder / f"{name}-{rng.randrange(10**9)}"
    log = killed.with_suffix(".log")
    if not whole.exists():
        ended = run(["fit", *words, "--run_dir", str(whole)], whole.with_suffix(".log"), processes, None)
        assert not any(ended.codes), f"{whole.with_suffix('.log')}: {ended}"
    for attempt in range(kills * 3 + 1):
        resume = ["--resume", str(killed)] if (killed / "config.yaml").exists() else [*words, "--run_dir", str(killed)]
        plan = draw(rng, processes) if attempt < kills else None
        ended = run(["fit", *resume], log, processes, plan)
        with log.open("a") as file:
            file.write(f"\n==== {plan} {ended}\n")
        if ended.moment and plan:
            counts[signal.Signals(plan.number).name, ended.moment] += 1
            if 124 in ended.codes and plan.number == signal.SIGTERM:
                return [f"a process went on after {plan}"]
        elif any(ended.codes):
            return [f"exit codes {ended.codes} without a signal"]
        if not any(ended.codes):
            break
    found = compare(whole, killed)
    if not found:
        shutil.rmtree(killed)
        log.unlink()
    return found


def stress_all(kills: int, seed: int, names: list[str], folder: Path) -> tuple[Counter, dict[str, list[str]]]:
    """Go through the variants until there were so many kills; what was counted, and what differs by run."""
    rng, counts, wrong = random.Random(seed), Counter[tuple[str, str]](), dict[str, list[str]]()
    number = 0
    while counts.total() < kills:
        name = names[number % len(names)]
        before = counts.total()
        if found := stress(name, rng.randint(2, 8), rng, folder, counts):
            wrong[f"{name}, run {number}"] = found
        number += 1
        say = "; ".join(found[:6])[:600] + f" ({len(found)} differences)" if found else "equal"
        print(f"{counts.total():>4} kills  {name:<12}{counts.total() - before} kills: {say}", flush=True)
    return counts, wrong


def command_line() -> int:
    """Parse, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="stress_resume-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    counts, wrong = stress_all(options.kills, options.seed, options.only, folder)
    kinds = [number.name for number in SIGNALS]
    print(f"\n{'kills in':<24}" + "".join(f"{kind:>9}" for kind in kinds))
    for moment in dict.fromkeys(moment for _, moment in counts):
        print(f"{moment:<24}" + "".join(f"{counts[kind, moment]:>9}" for kind in kinds))
    print(f"{'together':<24}" + "".join(f"{sum(n for (k, _), n in counts.items() if k == kind):>9}" for kind in kinds))
    print(f"runs that differ: {len(wrong)}" + (f"; see {folder}" if wrong else ""))
    if not wrong:
        shutil.rmtree(folder)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(command_line())
