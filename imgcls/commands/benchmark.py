"""Where the time goes, against a bare loop: --config FILE… [--json FILE]."""

import copy
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning import Callback, LightningModule
from lightning.pytorch.loggers import Logger, WandbLogger
from rich.console import Console
from torch import Tensor

from imgcls.augment.other_libraries import stock_kornia, torchvision_per_sample
from imgcls.cli.lightning import LightningVerb
from imgcls.cli.measuring import now, peak_memory
from imgcls.cli.quiet import finish_wandb, silence
from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.system.files import write_json
from imgcls.training.loggers import names_wandb
from imgcls.training.nonfinite import NonFinite
from imgcls.training.progress import Bar
from imgcls.training.record import RunLogger

NOISE = 0.05
WARM_UP = 3
Stage = Callable[[], np.ndarray | None]
"""Handles all batches; returns its own seconds (2,), of wall clock and of CPU, where they are not the whole call's."""
RIVALS = {  # other ways to augment, and the ratio that compares ours with each
    "stock Kornia": (stock_kornia, "augmentation_over_stock_kornia"),
    "torchvision v2 per image": (torchvision_per_sample, "augmentation_over_torchvision_v2"),
}


class Benchmark(LightningVerb):
    """`python -m imgcls benchmark`."""

    def work(self, json: Path | None = None, rounds: int = 7, steps: int = 30, stages: list[str] | None = None) -> None:
        """Time each stage of training alone, a bare loop, the whole trainer, and other ways to augment, side by side.

        Args:
            json: File for all figures.
            rounds: How often each stage is timed, interleaved; medians are reported.
            steps: Batches of each stage and round.
            stages: Time these alone, by name, such as [whole trainer].
        """
        if rounds < 1 or steps < 2:
            raise UserError(f"--rounds {rounds} and --steps {steps}: give at least 1 and 2")
        self.datamodule.device = self.trainer.strategy.root_device
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        steps = min(steps, len(self.datamodule.train_dataloader()))
        with tempfile.TemporaryDirectory(prefix="imgcls-benchmark-") as folder:
            bench = _Bench(self, steps, folder)
            try:
                seconds = bench.seconds(rounds, stages)
            finally:
                finish_wandb(failed=False)  # before its folder goes
        result = _summary(seconds, steps * bench.batch_size, steps)
        result |= {"device": str(bench.device), "threads": torch.get_num_threads(), "rounds": rounds, "batches": steps}
        result |= {"batch_size": bench.batch_size, "peak_memory_mib": peak_memory(bench.device)}
        _print(result)
        if json is not None:
            write_json(json, result)


main = Benchmark.main


class _Bench:
    def __init__(self, verb: Benchmark, steps: int, folder: str) -> None:
        self.trainer, self.model, self.data = verb.trainer, verb.model, verb.datamodule
        self.steps, self.folder = steps, folder
        self.device = self.trainer.strategy.root_device
        self.bare = copy.deepcopy(self.model).to(self.device)
        self.optimizer = self.bare.build_optimizer()
        batches = list(self._fetch())
        self.batch_size = len(batches[0]["label"])
        self.images = torch.cat([b["image"] for b in batches])
        self.labels = torch.cat([b["label"] for b in batches])
        pinned = self.device.type == "cuda"
        self.on_host = [b["image"].cpu().pin_memory() if pinned else b["image"] for b in batches]
        self.ready = [self.data.prepare(*self._slice(k)) for k in range(min(steps, 4))]
        self.loggers: list[Logger] = [RunLogger(RunFolder(Path(folder) / "run"))]
        if names_wandb(verb.logger_config):
            self.loggers.append(WandbLogger(save_dir=folder, offline=True, mode="offline"))

    def seconds(self, rounds: int, only: list[str] | None) -> dict[str, np.ndarray]:
        """Seconds of wall clock and of CPU that each stage, or each of some, takes in each round, (rounds, 2)."""
        stages = self.stages()
        if unknown := set(only or ()) - stages.keys():
            raise UserError(f"--stages {', '.join(unknown)}: the stages are {', '.join(stages)}")
        stages = {name: stage for name, stage in stages.items() if only is None or name in only}
        found: dict[str, list[np.ndarray]] = {name: [] for name in stages}
        for _ in range(rounds + 1):
            for name, stage in stages.items():
                before = _clocks(self.device)
                own = stage()
                found[name].append(_clocks(self.device) - before if own is None else own)
        return {name: np.array(times[1:]) for name, times in found.items()}  # the first round warms up

    def stages(self) -> dict[str, Stage]:
        """Each stage by its name, in the order in which an image passes them."""
        stages: dict[str, Stage] = {
            "fetch (decode, resize, batch)": self._fetch_only,
            "transfer to the device": self._transfer,
        }
        if self.data.augment is not None:
            stages["augment and normalise"] = partial(self._augment, self.data.prepare)
            for name, (rival, _) in RIVALS.items():
                if (way := rival(self.data.augment, self.data.mean, self.data.std)) is not None:
                    stages[name] = partial(self._augment, way)
        stages["forward, backward, step"] = self._step_only
        stages["bare loop"] = self._bare_loop
        stages["bare loop again (A/A)"] = self._bare_loop
        stages["whole trainer"] = self._whole_trainer
        return stages

    def _fetch(self) -> Iterator[dict[str, Tensor]]:
        return islice(self.data.train_dataloader(), self.steps)

    def _fetch_only(self) -> None:
        for _ in self._fetch():
            pass

    def _transfer(self) -> None:
        for image in self.on_host:
            image.to(self.device, copy=True)

    def _slice(self, number: int) -> tuple[Tensor, Tensor]:
        here = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return self.images[here], self.labels[here]

    def _augment(self, way: Callable[[Tensor, Tensor], Any]) -> None:
        for number in range(self.steps):
            way(*self._slice(number))

    def _step(self, image: Tensor, label: Tensor) -> None:
        with self.trainer.precision_plugin.train_step_context():
            loss = self.bare.loss(self.bare(image), label, None)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _step_only(self) -> None:
        self.bare.train()
        for number in range(self.steps):
            self._step(*self.ready[number % len(self.ready)])

    def _bare_loop(self) -> None:
        """What one writes by hand: images in memory, the same augmentation, model and optimiser, nothing else."""
        self.bare.train()
        order = torch.randperm(len(self.images), device=self.device)
        for number in range(self.steps):
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            self._step(*self.data.prepare(self.images[index], self.labels[index]))

    def _whole_trainer(self) -> np.ndarray:
        """Lightning with our modules, a progress bar, the look at each loss, metrics.csv, perhaps W&B's record."""
        clock = _Clock(self.steps, warm_up=max(WARM_UP, 2 * self.data.train_dataloader().num_workers))
        with silence():
            trainer = lightning.Trainer(
                accelerator=self.device.type,
                devices=1,
                precision=self.trainer.precision,
                max_epochs=1,
                limit_train_batches=self.steps,
                limit_val_batches=0,
                callbacks=[clock, NonFinite(), Bar(Console(file=io.StringIO(), force_terminal=True))],
                logger=self.loggers,
                log_every_n_steps=self.trainer.log_every_n_steps,  # type: ignore[attr-defined]
                enable_checkpointing=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                default_root_dir=self.folder,
            )
            trainer.fit(copy.deepcopy(self.model), datamodule=self.data)
        return clock.elapsed


class _Clock(Callback):
    """Wall and CPU seconds (2,) of all batches but the first few, scaled to all.

    Those warm up; and workers have fetched two each before the first is trained on, which would count as nothing.
    """

    def __init__(self, steps: int, warm_up: int) -> None:
        self.steps, self.warm_up = steps, min(warm_up, steps // 2)
        self.elapsed = np.zeros(2)

    def on_train_batch_start(self, trainer: Any, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: D102
        if batch_idx == self.warm_up:
            self.started = _clocks(pl_module.device)

    def on_train_batch_end(  # noqa: D102
        self, trainer: lightning.Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.steps - 1:
            # the first counted batch was fetched before the clock started: one interval less than batches
            share = self.steps / max(1, self.steps - self.warm_up)
            self.elapsed = (_clocks(pl_module.device) - self.started) * share


def _clocks(device: torch.device) -> np.ndarray:
    return np.array([now(device), time.process_time()])


def _summary(seconds: dict[str, np.ndarray], images: int, steps: int) -> dict[str, Any]:
    stages: dict[str, dict[str, Any]] = {}
    for name, rounds in seconds.items():
        wall, cpu = np.median(rounds, axis=0).tolist()
        stages[name] = {
            "images_per_second": images / wall,
            "ms_per_batch": 1000 * wall / steps,
            "cpu_ms_per_batch": 1000 * cpu / steps,
            "seconds": rounds[:, 0].tolist(),
        }

    asked = {
        "a_over_a": ("bare loop", "bare loop again (A/A)", 0),
        "trainer_over_bare_loop": ("bare loop", "whole trainer", 0),
        "trainer_over_bare_loop_cpu": ("bare loop", "whole trainer", 1),
        **{key: (name, "augment and normalise", 0) for name, (_, key) in RIVALS.items()},
    }
    ratios = {
        key: float(np.median(seconds[one][:, clock] / seconds[other][:, clock]))
        for key, (one, other, clock) in asked.items()
        if one in seconds and other in seconds
    }
    return {"stages": stages, "ratios": ratios, "valid": abs(ratios.get("a_over_a", 1) - 1) <= NOISE}


ADVICE = {
    "fetch (decode, resize, batch)": "more --data.num_workers, smaller image files",
    "transfer to the device": "larger batches; images already travel as uint8",
    "augment and normalise": "fewer or cheaper operations",
    "forward, backward, step": "a smaller model, --model.compile=true, on a GPU --trainer.precision=bf16-mixed",
}


def _print(result: dict[str, Any]) -> None:
    where = f"{result['batch_size']} on {result['device']}, {result['threads']} threads"
    print(f"\n{result['batches']} batches of {where}, median of {result['rounds']} interleaved rounds\n")
    print(f"{'stage':<34}{'images/s':>12}{'ms/batch':>11}{'CPU ms':>9}")
    for name, figures in result["stages"].items():
        milliseconds = f"{figures['ms_per_batch']:>11.2f}{figures['cpu_ms_per_batch']:>9.2f}"
        print(f"{name:<34}{figures['images_per_second']:>12,.0f}{milliseconds}")
    print()
    for name, value in result["ratios"].items():
        print(f"{name:<46}{value:>8.2f}")
    alone = {name: result["stages"][name]["images_per_second"] for name in ADVICE if name in result["stages"]}
    if alone:
        slowest = min(alone, key=alone.__getitem__)
        print(f"\nslowest stage: {slowest}; what helps: {ADVICE[slowest]}")
    print(f"peak memory: {result['peak_memory_mib']:,.0f} MiB")
    if not result["valid"]:
        print(f"VOID: the same loop twice differs by more than {NOISE:.0%}; repeat on a quiet machine, more --steps")
