"""A learning rate to start from: --config FILE… [--out FILE.png]."""

import copy
import math
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader

from imgcls.classifier import Classifier
from imgcls.cli.lightning import LightningVerb
from imgcls.data.base import ImageDataModule
from imgcls.data.options import seed_step
from imgcls.errors import UserError
from imgcls.evaluate.figures import save

SMOOTHING = 0.95


class FindLR(LightningVerb):
    """`python -m imgcls find_lr`."""

    needs_weights = True

    def work(self, out: Path = Path("find_lr.png"), steps: int = 100) -> None:
        """Suggest a learning rate: raise it from step to step and see where the loss falls fastest.

        Args:
            out: PNG file of the curve.
            steps: Number of steps.
        """
        if steps < 10:
            raise UserError(f"--steps {steps}: give at least 10")
        best = find_lr(self.model, self.datamodule, self.trainer.strategy.root_device, out, steps)
        print(f"the loss falls fastest at --model.lr={best:.1e}; curve: {out}")


main = FindLR.main


def find_lr(
    model: Classifier,
    data: ImageDataModule,
    device: torch.device,
    out: Path,
    steps: int = 100,
    smallest: float = 1e-6,
    largest: float = 10.0,
) -> float:
    """Raise the learning rate from step to step, and see where the loss falls fastest (Smith, WACV 2017, section 3.3).

    A copy of the model is trained with its own optimiser, loss and augmentation. All parameter groups rise together,
    in the proportions that fine-tuning gives them. The search ends where the loss, averaged over steps, has doubled.

    Args:
        model: The model; it is not changed.
        data: The data module.
        device: Where to train.
        out: PNG file of the curve.
        steps: Number of steps.
        smallest: First learning rate.
        largest: Last learning rate, if the loss bears it.

    Returns:
        The learning rate at which the smoothed loss falls fastest.
    """
    data.device = device
    data.prepare_data()
    data.setup("fit")
    model = copy.deepcopy(model).to(device).train()
    if model.finetune.solves:
        raise UserError("find_lr: nothing is trained by steps here; choose another --model.finetune")
    optimizer = model.build_optimizer()
    share = [group["lr"] / model.lr for group in optimizer.param_groups]
    rates, losses, average = [], [], 0.0
    for step, batch in enumerate(islice(_batches(data.train_dataloader()), steps)):
        rate = smallest * (largest / smallest) ** (step / (steps - 1))
        for group, factor in zip(optimizer.param_groups, share, strict=True):
            group["lr"] = rate * factor
        seed_step(data.step_seed(0, step), device)
        image, label = data.prepare(batch["image"].to(device), batch["label"].to(device))
        loss = model.loss(model(image), label, None)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        average = SMOOTHING * average + (1 - SMOOTHING) * loss.item()
        rates.append(rate)
        losses.append(average / (1 - SMOOTHING ** (step + 1)))
        if not math.isfinite(loss.item()) or losses[-1] > 2 * min(losses):
            break
    best = steepest(rates, losses)
    save(_figure(rates, losses, best), Path(out))
    return best


def steepest(rates: list[float], losses: list[float]) -> float:
    """The rate at which the loss falls fastest per factor of the rate, before its minimum.

    Raises:
        UserError: The loss never falls.
    """
    finite = [k for k, loss in enumerate(losses) if math.isfinite(loss)]
    end = min(finite, key=losses.__getitem__, default=0)
    if end < 2:
        raise UserError("find_lr: the loss does not fall at any learning rate; look at the labels and the model")
    slope = {k: (losses[k + 1] - losses[k - 1]) / math.log(rates[k + 1] / rates[k - 1]) for k in range(1, end)}
    return rates[min(slope, key=slope.__getitem__)]


def _batches(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    """Training batches of one epoch after another, without end."""
    for epoch in count():
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        yield from loader


def _figure(rates: list[float], losses: list[float], best: float) -> Figure:
    figure = Figure(figsize=(5.4, 3.2), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.plot(rates, losses, color="#1f6feb")
    axes.axvline(best, color="#8a8f98", linestyle="--", label=f"falls fastest: {best:.1e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="smoothed loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure
