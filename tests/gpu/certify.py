"""Certification on one GPU: the tests marked `gpu`, then figures, into OUT/gpu.json and OUT/gpu.md.

    make gpu                    # or: python -m tests.gpu.certify [--device cpu] [--out out] [--fashion_mnist FOLDER]

A section that fails, or takes too long, does not stop the others; the exit status is then 1 and the table names it. A
missed aim is printed as missed and is no failure. `--device cpu` runs the same code at toy size, to try the script
itself: its figures mean nothing.
"""

import argparse
import gc
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from imgcls.system.files import write_json

from ..conftest import ROOT
from . import sections as parts
from .report import Figure, environment, markdown
from .sections import SIZES, Certificate, OverTime

TOTAL = 480  # seconds of all sections together
# what a section may take in seconds; more is taken from what is left for the others
SECTIONS: dict[Callable[[Certificate], Iterator[Figure]], int] = {
    parts.tests: 200,
    parts.demo: 25,
    parts.fashion: 50,
    parts.resnet: 45,
    parts.photos: 80,
    parts.augmentation: 50,
    parts.waiting: 30,
}


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise OverTime(f"stopped after {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def run(section: Callable[[Certificate], Iterator[Figure]], c: Certificate, seconds: float) -> dict[str, Any]:
    """Its figures, also those before a failure, its time, and what failed."""
    figures: list[Figure] = []
    error, started = None, time.perf_counter()
    print(f"\n== {section.__name__}: {section.__doc__}", flush=True)
    try:
        gc.collect()
        if not c.toy:
            torch.cuda.empty_cache()
        with limit(seconds):
            for figure in section(c):
                figures.append(figure)
                print(figure.line(), flush=True)
    except (Exception, OverTime) as failure:  # the others are still to come
        traceback.print_exc()
        error = f"{type(failure).__name__}: {failure}"
    taken = time.perf_counter() - started
    return {"seconds": taken, "budget": SECTIONS[section], "error": error, "figures": [f.record() for f in figures]}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.certify", allow_abbrev=False)
    parser.add_argument("--device", choices=SIZES, default="cuda", help="cpu: the same code at toy size")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of gpu.json and gpu.md; default: out")
    parser.add_argument("--fashion_mnist", type=Path, help="folder with FashionMNIST/raw, else random images")
    parser.add_argument("--only", nargs="+", choices=[s.__name__ for s in SECTIONS], help="these sections alone")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device here; --device cpu (make gpu DEVICE=cpu) is a toy run")
    os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    folders = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        map(os.path.abspath, folders)
    )  # tests and runs have folders of their own
    started, about, sections = time.perf_counter(), environment(torch.device(given.device)), {}
    with tempfile.TemporaryDirectory(prefix="imgcls-certify-", ignore_cleanup_errors=True) as work:
        c = Certificate(torch.device(given.device), Path(work), given.fashion_mnist and given.fashion_mnist.resolve())
        for section, budget in SECTIONS.items():
            if given.only and section.__name__ not in given.only:
                continue
            left = TOTAL - (time.perf_counter() - started)
            sections[section.__name__] = run(section, c, max(1, min(2 * budget, left)))
            seconds = time.perf_counter() - started
            result = {**about, "toy": c.toy, "seconds": seconds, "sections": sections}
            result |= {"presets": c.presets, "notes": c.notes, "raw": c.raw}
            write_json(given.out / "gpu.json", result)  # after each: the next may take the process with it
            (given.out / "gpu.md").write_text(markdown(result), encoding="utf-8")
    print(f"\n{markdown(result)}\n{given.out / 'gpu.json'}, {given.out / 'gpu.md'}")
    return 1 if any(section["error"] for section in sections.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
