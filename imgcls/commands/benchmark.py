"""Where the time goes, against a bare loop: --config FILE… [--json FILE]."""

import copy
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning import Callback, LightningModule
from lightning.pytorch.loggers import Logger, WandbLogger
from rich.console import Console
from torch import Tensor

from imgcls.augment.other_libraries import stock_kornia, torchvision_per_sample
from imgcls.classifier import Classifier
from imgcls.cli.dry_run import peak_memory
from imgcls.cli.lightning import LightningVerb
from imgcls.cli.quiet import finish_wandb, silence
from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError
from imgcls.runs.folder import RunFolder
from imgcls.system.files import write_json
from imgcls.training.loggers import names_wandb
from imgcls.training.nonfinite import NonFinite
from imgcls.training.progress import Bar
from imgcls.training.record import RunLogger

NOISE = 0.05
WARM_UP = 3
Seconds = tuple[float, float]  # of wall clock and of CPU
Stage = Callable[[int], Seconds | None]
"""Handles that many batches; returns its own time where that is not the whole of the call."""
RIVALS = {  # other ways to augment, and the ratio that compares ours with each
    "stock Kornia": (stock_kornia, "augmentation_over_stock_kornia"),
    "torchvision v2 per image": (torchvision_per_sample, "augmentation_over_torchvision_v2"),
}


class Benchmark(LightningVerb):
    """`python -m imgcls benchmark`."""

    def work(self, json: Path | None = None, rounds: int = 7, steps: int = 30) -> None:
        """Time each stage of training alone, a bare loop, the whole trainer, and other ways to augment, side by side.

        Args:
            json: File for all figures.
            rounds: How often each stage is timed, interleaved; medians are reported.
            steps: Batches of each stage and round.
        """
        if rounds < 1 or steps < 2:
            raise UserError(f"--rounds {rounds} and --steps {steps}: give at least 1 and 2")
        benchmark(self.trainer, self.model, self.datamodule, rounds, steps, json, names_wandb(self.logger_config))


main = Benchmark.main


def benchmark(
    trainer: lightning.Trainer,
    model: Classifier,
    data: ImageDataModule,
    rounds: int,
    steps: int,
    out: Path | None,
    with_wandb: bool,
) -> dict[str, Any]:
    """Time the stages, interleaved, and print a table.

    Args:
        trainer: Gives device and precision.
        model: What is trained.
        data: What it is trained on.
        rounds: How often each stage is timed; medians are reported.
        steps: Batches of each stage and round.
        out: JSON file for all figures.
        with_wandb: Whether the whole trainer keeps W&B's offline record.

    Returns:
        What the JSON file holds.
    """
    data.prepare_data()
    data.setup("fit")
    steps = min(steps, len(data.train_dataloader()))
    device = trainer.strategy.root_device
    with tempfile.TemporaryDirectory(prefix="imgcls-benchmark-") as folder:
        bench = _Bench(trainer, model, data, device, steps, folder, with_wandb)
        try:
            seconds = _rounds(bench, rounds)
        finally:
            finish_wandb(failed=False)  # before its folder goes
    result = _summary(seconds, steps * bench.batch_size, steps)
    result |= {"device": str(device), "threads": torch.get_num_threads(), "rounds": rounds, "batches": steps}
    result |= {"batch_size": bench.batch_size, "peak_memory_mib": peak_memory(device)}
    _print(result)
    if out is not None:
        write_json(Path(out), result)
    return result


def _rounds(bench: "_Bench", rounds: int) -> dict[str, list[Seconds]]:
    """Time of each stage in each round."""
    stages = bench.stages()
    seconds: dict[str, list[Seconds]] = {name: [] for name in stages}
    for number in range(rounds + 1):
        for name, stage in stages.items():
            timed = _time(stage, bench.steps, bench.device)
            if number:  # the first round warms up
                seconds[name].append(timed)
    return seconds


class _Bench:
    def __init__(
        self,
        trainer: lightning.Trainer,
        model: Classifier,
        data: ImageDataModule,
        device: torch.device,
        steps: int,
        folder: str,
        with_wandb: bool,
    ) -> None:
        self.trainer, self.model, self.data, self.device, self.steps = trainer, model, data, device, steps
        self.bare = copy.deepcopy(model).to(device)
        self.optimizer = self.bare.build_optimizer()
        self.batches = list(self._fetch(steps))
        self.batch_size = len(self.batches[0]["label"])
        self.images = torch.cat([b["image"] for b in self.batches]).to(device)
        self.labels = torch.cat([b["label"] for b in self.batches]).to(device)
        self.ready = [data.prepare(*self._slice(k)) for k in range(min(steps, 4))]
        self.folder = folder
        run = RunFolder(Path(folder) / "run")
        self.loggers: list[Logger] = [RunLogger(run)]
        if with_wandb:
            self.loggers.append(WandbLogger(save_dir=folder, offline=True, mode="offline"))

    def stages(self) -> dict[str, Stage]:
        """Each stage by its name, in the order of an image's way."""
        stages: dict[str, Stage] = {
            "fetch (decode, resize, batch)": lambda steps: _drain(self._fetch(steps)),
            "transfer to the device": self._transfer,
        }
        if self.data.augment is not None:
            stages["augment and normalise"] = lambda steps: self._augment(self.data.prepare, steps)
            for name, (rival, _) in RIVALS.items():
                way = rival(self.data.augment, self.data.mean, self.data.std)
                if way is not None:
                    stages[name] = lambda steps, way=way: self._augment(way, steps)  # type: ignore[misc]
        stages["forward, backward, step"] = self._step_only
        stages["bare loop"] = self._bare_loop
        stages["bare loop again (A/A)"] = self._bare_loop
        stages["whole trainer"] = self._whole_trainer
        return stages

    def _fetch(self, steps: int) -> Iterator[dict[str, Tensor]]:
        for number, batch in enumerate(self.data.train_dataloader()):
            if number == steps:
                return
            yield batch

    def _transfer(self, steps: int) -> None:
        for batch in self.batches[:steps]:
            batch["image"].to(self.device, copy=True)

    def _slice(self, number: int) -> tuple[Tensor, Tensor]:
        here = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return self.images[here], self.labels[here]

    def _augment(self, way: Callable[[Tensor, Tensor], Any], steps: int) -> None:
        for number in range(steps):
            way(*self._slice(number))

    def _step(self, image: Tensor, label: Tensor) -> None:
        with self.trainer.precision_plugin.train_step_context():
            loss = self.bare.loss(self.bare(image), label, None)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _step_only(self, steps: int) -> None:
        self.bare.train()
        for number in range(steps):
            self._step(*self.ready[number % len(self.ready)])

    def _bare_loop(self, steps: int) -> None:
        """What one writes by hand: images in memory, the same augmentation, model and optimiser, nothing else."""
        self.bare.train()
        order = torch.randperm(len(self.images), device=self.device)
        for number in range(steps):
            index = order[number * self.batch_size : (number + 1) * self.batch_size]
            self._step(*self.data.prepare(self.images[index], self.labels[index]))

    def _whole_trainer(self, steps: int) -> Seconds:
        """Lightning with our modules, a progress bar, the look at each loss, metrics.csv, perhaps W&B's record."""
        clock = _Clock(steps)
        options: dict[str, Any] = {
            "accelerator": self.device.type,
            "devices": 1,
            "precision": self.trainer.precision,
            "max_epochs": 1,
            "limit_train_batches": steps,
            "limit_val_batches": 0,
            "callbacks": [clock, NonFinite(), Bar(Console(file=io.StringIO(), force_terminal=True))],
            "logger": self.loggers,
            "log_every_n_steps": self.trainer.log_every_n_steps,  # type: ignore[attr-defined]
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
            "default_root_dir": self.folder,
        }
        with silence():
            trainer = lightning.Trainer(**options)
            trainer.fit(copy.deepcopy(self.model), datamodule=self.data)
        return clock.elapsed


class _Clock(Callback):
    """Wall and CPU seconds of all batches but the first few, which warm up, scaled to all."""

    def __init__(self, steps: int) -> None:
        self.steps, self.warm_up = steps, min(WARM_UP, steps - 1)
        self.elapsed = (0.0, 0.0)

    def on_train_batch_start(  # noqa: D102
        self, trainer: lightning.Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.warm_up:
            self.started = _clocks(pl_module.device)

    def on_train_batch_end(  # noqa: D102
        self, trainer: lightning.Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.steps - 1:
            # the first counted batch was fetched before the clock started: one interval less than batches
            share = self.steps / max(1, self.steps - self.warm_up)
            now = _clocks(pl_module.device)
            self.elapsed = ((now[0] - self.started[0]) * share, (now[1] - self.started[1]) * share)


def _time(stage: Stage, steps: int, device: torch.device) -> Seconds:
    before = _clocks(device)
    own = stage(steps)
    after = _clocks(device)
    return own or (after[0] - before[0], after[1] - before[1])


def _clocks(device: torch.device) -> Seconds:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter(), time.process_time()


def _drain(batches: Iterator[Any]) -> None:
    for _ in batches:
        pass


def _summary(seconds: dict[str, list[Seconds]], images: int, steps: int) -> dict[str, Any]:
    stages: dict[str, dict[str, Any]] = {}
    for name, rounds in seconds.items():
        wall, cpu_time = (statistics.median(r[k] for r in rounds) for k in (0, 1))
        stages[name] = {
            "images_per_second": images / wall,
            "ms_per_batch": 1000 * wall / steps,
            "cpu_ms_per_batch": 1000 * cpu_time / steps,
            "seconds": [r[0] for r in rounds],
        }
    pairs = {n: [r[0] for r in rounds] for n, rounds in seconds.items()}
    again = statistics.median(a / b for a, b in zip(pairs["bare loop"], pairs["bare loop again (A/A)"], strict=True))
    whole = statistics.median(b / w for b, w in zip(pairs["bare loop"], pairs["whole trainer"], strict=True))
    cpu = [b[1] / w[1] for b, w in zip(seconds["bare loop"], seconds["whole trainer"], strict=True)]
    ratios: dict[str, float] = {
        "a_over_a": again,
        "trainer_over_bare_loop": whole,
        "trainer_over_bare_loop_cpu": statistics.median(cpu),
    }
    for name, (_, ratio) in RIVALS.items():
        if name in stages:
            own = [o / s for o, s in zip(pairs[name], pairs["augment and normalise"], strict=True)]
            ratios[ratio] = statistics.median(own)
    return {"stages": stages, "ratios": ratios, "valid": abs(again - 1) <= NOISE}


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
    slowest = min(alone, key=alone.__getitem__)
    print(f"\nslowest stage: {slowest}; what helps: {ADVICE[slowest]}")
    print(f"peak memory: {result['peak_memory_mib']:,.0f} MiB")
    if not result["valid"]:
        print(f"VOID: the same loop twice differs by more than {NOISE:.0%}; repeat on a quiet machine, more --steps")
