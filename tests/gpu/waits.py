"""Where the host waits for the device: CUDA's own count of synchronising calls."""

import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer


@contextmanager
def waits(device: torch.device) -> Iterator[list[str]]:
    """The lines of Python, file:line, at which the host waits in here, one for each wait; none on a CPU."""
    found: list[str] = []
    if device.type != "cuda":
        yield found
        return
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show = warnings.showwarning

        def note(message: Any, category: Any, filename: str, lineno: int, *rest: Any) -> None:
            if "called a synchronizing CUDA operation" in str(message):
                found.append(f"{filename}:{lineno}")
            else:
                show(message, category, filename, lineno, *rest)

        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Waits(Callback):
    """Writes where the host waited in the steps from number `first` on: a JSON list.

    Args:
        out: The file.
        first: Steps before it warm up.
        steps: Number of steps that are looked at.
    """

    def __init__(self, out: str, first: int, steps: int) -> None:
        self.out, self.first, self.steps, self.stack = Path(out), first, steps, ExitStack()
        self.found: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.first:
            self.found = self.stack.enter_context(waits(pl_module.device))
        if batch_idx == self.first + self.steps:
            self.stack.close()
            self.out.write_text(json.dumps(self.found))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stack.close()
