"""`--data.batch_size=auto`: measured before training."""

import copy
import logging
import os
import statistics

import torch

from imgcls.classifier import Classifier
from imgcls.cli.measuring import now
from imgcls.data.base import ImageDataModule
from imgcls.errors import UserError

log = logging.getLogger(__name__)

CHOSEN = "IMGCLS_BATCH_SIZE"
SMALLEST, ON_CPU, ON_GPU = 16, 512, 4096
ENOUGH = 0.95


def choose_batch_size(model: Classifier, data: ImageDataModule, accelerator: str) -> int:
    """Measure once: processes that Lightning starts for DDP take over the choice of the first."""
    if CHOSEN not in os.environ:
        on_gpu = torch.cuda.is_available() and accelerator != "cpu"
        chosen = best_batch_size(model, data, torch.device("cuda" if on_gpu else "cpu"))
        os.environ[CHOSEN] = str(chosen)
        log.info(f"--data.batch_size=auto: {chosen}")
    return int(os.environ[CHOSEN])


def best_batch_size(model: Classifier, data: ImageDataModule, device: torch.device) -> int:
    """The smallest power of two that is trained at 95 % of the best speed, among those that fit into memory.

    Larger batches than that only take memory, and fewer, larger steps. Measured on blank images of the run's size, in
    32 bits.

    Args:
        model: The model; it is not changed.
        data: Gives size and number of classes.
        device: Where to train.

    Raises:
        UserError: Not even the smallest fits.
    """
    speed: dict[int, float] = {}
    size = SMALLEST
    while size <= (ON_CPU if device.type == "cpu" else ON_GPU):
        try:
            speed[size] = size / _seconds_of_a_step(copy.deepcopy(model).to(device).train(), data, size, device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        if len(speed) > 2 and speed[size] < 0.8 * max(speed.values()):
            break
        size *= 2
    if not speed:
        raise UserError(f"--data.batch_size=auto: not even {SMALLEST} images of {data.image_size} px fit into memory")
    return min(n for n, images_per_second in speed.items() if images_per_second >= ENOUGH * max(speed.values()))


def _seconds_of_a_step(model: Classifier, data: ImageDataModule, size: int, device: torch.device) -> float:
    image = torch.zeros(size, data.channels, data.train_size, data.train_size, device=device)
    label = data.kind.example(size, data.num_classes).to(device)
    optimizer = model.build_optimizer()
    seconds = []
    for _ in range(4):
        started = now(device)
        model.loss(model(image), label, None).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(now(device) - started)
    return statistics.median(seconds[1:])
