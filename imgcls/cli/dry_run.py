"""What a training would do and take, and what would go wrong, without one."""

import math
from datetime import timedelta
from itertools import islice, pairwise
from typing import Any

import torch
from lightning import Trainer

from imgcls.classifier import Classifier
from imgcls.cli.measuring import now, peak_memory
from imgcls.data.base import ImageDataModule
from imgcls.data.options import seed_step, short
from imgcls.training.progress import count_parameters

STEPS = 4  # of which the first warms up


def dry_run(trainer: Trainer, model: Classifier, data: ImageDataModule) -> list[tuple[str, str]]:
    """Open the data, check every image, build model, optimiser and schedule, take a few steps; nothing is written.

    Args:
        trainer: Gives device, precision, epochs and limits.
        model: It is changed.
        data: The data module.

    Returns:
        Lines of what would be done: a word, and what there is to say.

    Raises:
        UserError: Something is wrong with data, model or settings.
    """
    split = data.split_options
    data.check_test |= data.has_official("test") or split.tests_fold or split.test_fraction > 0
    device = data.device = trainer.strategy.root_device
    data.prepare_data()
    data.setup("fit")
    data.trainer, trainer.datamodule, model.trainer = trainer, data, trainer  # type: ignore[attr-defined]
    model.to(device).setup("fit")
    model.configure_optimizers()
    epochs = 1
    if model.finetune.views is None:
        steps, batches = model.total_steps() * trainer.accumulate_grad_batches, len(data.train_dataloader())
        epochs = math.ceil(steps / batches)
        loss, step = _steps(trainer, model, data, device)
        train, tried = steps * step, f"loss {loss:.3g}, {1000 * step:.0f} ms"
        plan = f"{epochs} epochs, {steps:,} batches of {data.batch_size} images"
    else:
        once = _pass(trainer, model, data, device, "train")
        train = once * (1 + model.finetune.views)
        plan = "the backbone once over all images, then a head on their features"
        tried = f"{1000 * once / len(data.parts['train'][1]):.1f} ms an image, no gradient"
    val = epochs * _pass(trainer, model, data, device, "val")
    return [
        ("data", _images(data)),
        ("image", f"{data.image_size} px, in training {data.train_size}; channels {data.channels}"),
        ("model", _parameters(model)),
        ("training", f"{plan}, on {device}, precision {trainer.precision}"),
        ("one step", tried),
        ("time", f"about {timedelta(seconds=round(train + val))}, of which {timedelta(seconds=round(val))} validation"),
        ("memory", f"{peak_memory(device):,.0f} MiB at the most, on {device}"),
    ]


def _steps(trainer: Trainer, model: Classifier, data: ImageDataModule, device: torch.device) -> tuple[float, float]:
    """Loss of the first step, and seconds of a step, its batch included."""
    model.train()
    optimizer = model.build_optimizer()
    losses, times = [], [now(device)]
    for number, batch in enumerate(islice(data.train_dataloader(), STEPS)):
        seed_step(data.step_seed(0, number), device)
        image, label = data.prepare(batch["image"].to(device), batch["label"].to(device))
        with trainer.precision_plugin.train_step_context():
            loss = model.loss(model(image.to(model.dtype)), label, model.class_weight)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        times.append(now(device))
    return losses[0], min(after - before for before, after in pairwise(times))


@torch.no_grad()
def _pass(trainer: Trainer, model: Classifier, data: ImageDataModule, device: torch.device, part: Any) -> float:
    """Seconds that the model takes for all images of a part, measured on the first batches."""
    source, index = data.parts[part]
    if not len(index):
        return 0.0
    model.eval()
    sizes, times = [], [now(device)]
    for batch in islice(data.ordered_batches(part), STEPS):
        with trainer.precision_plugin.val_step_context():
            model.logits(data.normalize(batch["image"].to(device)).to(model.dtype))
        sizes.append(len(batch["index"]))
        times.append(now(device))
    spans = (after - before for before, after in pairwise(times))
    return min(span / size for span, size in zip(spans, sizes, strict=True)) * len(index)


def _images(data: ImageDataModule) -> str:
    counts = {part: len(index) for part, (_, index) in data.parts.items()} | {"test": data.test_images}
    parts = ", ".join(f"{part} {count:,}" for part, count in counts.items())
    left_out = f"; {len(data.skipped)} left out, which cannot be used" if data.skipped else ""
    return f"{parts} images; classes {short(data.class_names)}{left_out}"


def _parameters(model: Classifier) -> str:
    trained, total = count_parameters(model)
    later = sum(p.numel() for p in model.frozen_parameters)
    how = f"{type(model.finetune).__name__} trains {trained:,}" + (f", {later:,} of them later" if later else "")
    return f"{type(model.backbone).__name__}, {total:,} parameters; {how}"
