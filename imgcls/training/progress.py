"""What a training shows of itself: three lines at its start, one for each epoch, and a bar below on a terminal."""

import io
import logging
import math
import sys
import time
from datetime import timedelta
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress
from rich.table import Column, Table
from rich.text import Text
from tqdm import tqdm

from imgcls.data.base import ImageDataModule
from imgcls.errors import printable
from imgcls.runs.folder import RunFolder
from imgcls.training.loggers import parts_of, wandb_loggers
from imgcls.training.trainer import best_checkpoint

log = logging.getLogger(__name__)
SECONDS = 0.25  # between two pictures of the bar: one costs as much as a small model's step
BAR = 24  # characters; with the longest text they do not fill a line of 80, where a ^C that is echoed would break it
UNBROKEN = 1000  # characters of a line
PLAIN = {"markup": False, "highlight": False, "emoji": False}  # names of classes are text


class Screen:
    """Standard output of rank 0, above a bar where there is one; what it shows goes to the run's log too.

    Attributes:
        foreign_bar: Whether a bar that is not ours may be there; most are tqdm's.
    """

    foreign_bar = False

    def __init__(self) -> None:
        # what reads a pipe or a log breaks lines itself
        self.console = Console(width=None if sys.stdout.isatty() else UNBROKEN, **PLAIN)  # type: ignore[arg-type]
        self.plain = Console(width=UNBROKEN, file=io.StringIO(), color_system=None, **PLAIN)  # type: ignore[arg-type]

    @property
    def moves(self) -> bool:
        """Whether a bar can be drawn: it is a terminal that knows how to go back."""
        return self.console.is_interactive and sys.stdout.isatty()

    @rank_zero_only
    def print(self, shown: RenderableType, style: str | None = None, whole: bool = False) -> None:
        """Print text or a table; `whole` is for lines that one copies, which are never broken."""
        shown = Text(shown, style or "") if isinstance(shown, str) else shown
        with self.plain.capture() as text:
            self.plain.print(shown)
        if self.foreign_bar:
            tqdm.write(text.get(), end="")
        else:
            self.console.print(shown, soft_wrap=whole)
        for line in text.get().splitlines():
            log.debug(line.rstrip())


class Bar(ProgressBar):
    """One bar for the whole training, or for an evaluation, and the time that it still takes.

    It is drawn between two steps. A thread that draws could hold a lock while a worker is forked, which would wait for
    it for ever.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console, self.enabled = console, True
        self.progress: Progress | None = None
        self.drawn = self.since = 0.0
        self.done_before, self.pace = 0, 0.0

    def disable(self) -> None:  # noqa: D102
        self.enabled = False

    def enable(self) -> None:  # noqa: D102
        self.enabled = True

    def _start(self, shown: str, total: float, done: int = 0) -> None:
        if self.enabled:
            columns = ("{task.description}", BarColumn(BAR), MofNCompleteColumn(), "{task.fields[left]}")
            self.progress = Progress(
                *columns, console=self.console, auto_refresh=False, transient=True, redirect_stderr=sys.stderr.isatty()
            )
            self.progress.add_task(shown, total=total if math.isfinite(total) else None, completed=done, left="")
            self.since, self.done_before, self.pace = time.monotonic(), done, 0.0
            self.progress.start()

    def _draw(self, shown: str, done: int) -> None:
        now = time.monotonic()
        if self.progress is None or now - self.drawn < SECONDS:
            return
        self.drawn, (task,) = now, self.progress.tasks
        pace = self.pace or (now - self.since) / max(1, done - self.done_before)
        known = self.pace or done > self.done_before
        left = f"{timedelta(seconds=round(pace * (task.total - done)))} left" if task.total and known else ""
        self.progress.update(task.id, description=shown, completed=done, left=left, refresh=True)

    def _stop(self, *_: Any, **__: Any) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self._start(f"epoch {_epoch(trainer)}", total_batches(trainer), _batches_done(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the pace of the epoch before, with its validation and checkpoints; the first one reads the images."""
        now, done = time.monotonic(), _batches_done(trainer)
        if done > self.done_before:
            self.pace = (now - self.since) / (done - self.done_before)
            self.since, self.done_before = now, done

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: D102
        self._draw(f"epoch {_epoch(trainer)}", _batches_done(trainer))

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:  # noqa: D102
        if (verb := _verb(trainer)) != "fit":
            self._start(verb, sum(trainer._active_loop.max_batches))  # type: ignore[union-attr,arg-type]

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:  # noqa: D102
        if (verb := _verb(trainer)) == "fit":
            self._draw(f"epoch {_epoch(trainer)}, validation", _batches_done(trainer))
        else:
            self._draw(verb, trainer._active_loop.batch_progress.current.processed)  # type: ignore[union-attr]

    on_test_start = on_predict_start = on_validation_start  # type: ignore[assignment]
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end  # type: ignore[assignment]
    on_train_end = teardown = on_exception = _stop  # type: ignore[assignment]


class EpochTable(Callback):
    """Says what is trained, on what and where; then a line for each epoch, which marks the best so far.

    Args:
        screen: Where.
        run: The run's folder.
    """

    def __init__(self, screen: Screen, run: RunFolder) -> None:
        self.screen, self.run = screen, run
        self.since, self.validated, self.ended = 0.0, False, False
        self.columns: list[str] = []

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe data and model. config.yaml is there, and the test images are not open."""
        if not trainer.is_global_zero:
            return
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        name, *parts = parts_of(self.run.read_config())
        counts = " and ".join(f"{len(index):,} {part}" for part, (_, index) in data.parts.items() if len(index))
        size = f"{data.channels} × {data.image_size} × {data.image_size}"
        trained, every = count_parameters(pl_module)
        where = printable(str(data.root)) if data.root else name
        self._say("data", f"{where}: {counts} images of {data.num_classes:,} classes, {size}")
        self._say("model", f"{', '.join(parts)}: {trained:,} of {every:,} parameters trained")

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Say where and how long, and begin the table; a run that resumes within an epoch starts here."""
        self.since = time.monotonic()
        device = trainer.strategy.root_device
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        devices = f"{trainer.world_size} × {kind}" if trainer.world_size > 1 else kind
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        epochs = trainer.max_epochs or -1
        length = f"{epochs} {'epoch' if epochs == 1 else 'epochs'} × {steps:,} steps"
        length = length if epochs > 0 else f"{steps:,} steps an epoch"
        length += f", from epoch {_epoch(trainer)} on" if _batches_done(trainer) else ""
        offline = ", W&B offline" if any(logger._offline for logger in wandb_loggers(trainer)) else ""
        self._say("run", f"{devices}, {trainer.precision}; {length}{offline}; {self.run.path}")
        self.screen.print("")
        validates = trainer.limit_val_batches and len(trainer.datamodule.parts["val"][1])  # type: ignore[attr-defined]
        part, checkpoint = ["val/loss", f"val/{pl_module.task.metric}"] if validates else [], best_checkpoint(trainer)
        monitored = [str(checkpoint.monitor)] if part and checkpoint is not None else []
        self.columns = [*dict.fromkeys(["train/loss", *part, *monitored])]
        self.screen.print(_row("epoch", self.columns, self.columns, "lr", "seconds"), "dim")

    def _say(self, name: str, text: str) -> None:
        line = Table.grid(Column(width=5), Column(overflow="fold"), padding=(0, 2))
        line.add_row(name, text)
        self.screen.print(line)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self.validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: D102
        self.ended = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Show an epoch after which a signal stopped the run."""
        if isinstance(exception, SIGTERMException):
            self._show(trainer)
        elif isinstance(exception, KeyboardInterrupt) and _verb(trainer) == "fit" and self.run.last.is_file():
            self.screen.print(f"stopped; go on from the last whole epoch with --resume {self.run.path}")

    def _show(self, trainer: Trainer, *_: Any) -> None:
        """Show the epoch before: once the next one begins, all of its figures are there, and its checkpoint."""
        if self.ended and trainer.is_global_zero:
            values = {name: float(value) for name, value in trainer.callback_metrics.items()}
            shown = {k: v for k, v in values.items() if self.validated or not k.startswith("val/")}
            cells = [f"{shown[name]:.4f}" if name in shown else "" for name in self.columns]
            checkpoint = best_checkpoint(trainer)
            value = shown.get(str(checkpoint.monitor)) if checkpoint is not None else None
            best = checkpoint is not None and value is not None and value == checkpoint.best_model_score
            epoch = _epoch(trainer, trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
            lr = f"{values['train/lr']:.2g}" if "train/lr" in values else ""
            row = _row(epoch, self.columns, cells, lr, f"{time.monotonic() - self.since:.1f}")
            self.screen.print(f"{row}  best" if best else row, "bold" if best else None)
        self.since, self.validated, self.ended = time.monotonic(), False, False

    on_train_epoch_start = on_train_end = _show  # type: ignore[assignment]


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """How many values of a model are trained, and how many it has."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, trained in sizes if trained), sum(size for size, _ in sizes)


def total_batches(trainer: Trainer) -> float:
    """Training batches of the whole run, on each process; infinite where nothing says when it ends."""
    epochs, steps = trainer.max_epochs or -1, trainer.max_steps
    whole = epochs * trainer.num_training_batches if epochs > 0 else math.inf
    return min(whole, steps * trainer.accumulate_grad_batches if steps > 0 else math.inf)


def _verb(trainer: Trainer) -> str:
    return trainer.state.fn.value  # type: ignore[union-attr]


def _batches_done(trainer: Trainer) -> int:
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed  # type: ignore[attr-defined,no-any-return]


def _epoch(trainer: Trainer, number: int | None = None) -> str:
    """The number of an epoch, of the present one without `number`, and of how many, where that is known."""
    of = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
    return f"{trainer.current_epoch + 1 if number is None else number}{of}"


def _row(epoch: str, columns: list[str], cells: list[str], lr: str, seconds: str) -> str:
    values = "".join(f"{cell:>{max(len(name), 6) + 2}}" for name, cell in zip(columns, cells, strict=True))
    return f"{epoch:>7}{values}{lr:>9}{seconds:>9}"
