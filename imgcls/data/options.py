"""What a data module checks and fills in of its options, and how it seeds a step and normalises a batch."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from imgcls.errors import UserError
from imgcls.tasks import SINGLE_LABEL, find

FROM_DATA = ("num_classes", "channels", "image_size", "task")  # attributes of a data module that a model follows


def check(good: bool, option: str, value: object, wanted: str) -> None:
    """Raise a UserError unless an option's value is good."""
    if not good:
        raise UserError(f"--data.{option}: {value} is not {wanted}")


def check_ranges(options: Mapping[str, Any]) -> None:
    """Raise a UserError unless the options that all data modules share, by name, are in their ranges.

    Those of the split are checked where they are kept, in `SplitOptions`.
    """
    label_noise, batch_size, repeats = options["label_noise"], options["batch_size"], options["repeats"]
    check(0 <= label_noise < 1, "label_noise", label_noise, "a share from 0 to below 1")
    for size in ("image_size", "train_size"):
        check(options[size] is None or options[size] > 0, size, options[size], "a positive number of pixels")
    check(batch_size == "auto" or batch_size > 0, "batch_size", batch_size, "a positive number")
    check(repeats > 0, "repeats", repeats, "a positive number")
    kept = options["decoder"] == "cpu" or options["cache"] in ("memory", "device", "none")
    check(kept, "cache", options["cache"], "memory, device or none: a folder keeps what --data.decoder=cpu decoded")
    values = options["value_range"]
    nested = isinstance(values, list) and values and isinstance(values[0], list)
    ranges = [] if values in (None, "none") else values if nested else [values]
    ascending = all(len(of) == 2 and -math.inf < of[0] < of[1] < math.inf for of in ranges)
    check(ascending, "value_range", values, "[low, high] with low below high, or a list of those of each channel")


def named_task(task: str | None, ordered: bool, native: str) -> str:
    """The kind of labels that options ask for, else the data's own.

    Raises:
        UserError: There is none of that name, or its classes have no order and one is asked for.
    """
    named = task or ("ordered" if ordered and native == SINGLE_LABEL else native)
    find(named)
    if ordered and named != "ordered":
        raise UserError(f"--data.ordered: is for --data.task=ordered, not for {named}; leave one of them out")
    return named


def refuse_other_order(ordered: bool | list[str], class_names: Sequence[str]) -> None:
    """Raise a UserError if a list that `--data.ordered` gives is not the order in which the data number classes."""
    if isinstance(ordered, list) and ordered != list(class_names):
        raise UserError(
            f"--data.ordered: these data number their classes themselves, {' < '.join(class_names)}; leave the list "
            "out if that is their order; if not, give the images as folders or a table, or pack them with theirs"
        )


def per_channel(option: str, values: Sequence[float], channels: int) -> list[float]:
    """One value for each channel; a single one holds for all."""
    if len(values) not in (1, channels):
        raise UserError(f"--data.{option}: {len(values)} values for {channels} channels; give 1 or {channels}")
    return list(values) * (channels // len(values))


def refuse_other_data(state: dict[str, Any], class_names: list[str], fingerprint: dict[str, str] | None) -> None:
    """Compare what a checkpoint knows of its data with the data at hand.

    Args:
        state: Of the data module in the checkpoint.
        class_names: At hand.
        fingerprint: At hand; None: any split will do.

    Raises:
        UserError: The classes or the split are others.
    """
    if state["class_names"] != class_names:
        raise UserError(
            f"data: the checkpoint knows the classes {short(state['class_names'])}, "
            f"this data set has {short(class_names)}"
        )
    if fingerprint is not None and state["fingerprint"] != fingerprint:
        changed = [k for k, v in state["fingerprint"].items() if v != fingerprint.get(k)]
        raise UserError(
            f"data: {' and '.join(changed)} differ from those that the checkpoint was trained on, so test images "
            "may have been trained on; use the run's own data and --data.split_seed, --data.val_fraction, "
            "--data.test_fraction, folds and groups, or --data.verify_split=false if other data is what you want"
        )


def refuse_another_sampler(trainer: Any) -> None:
    """Raise a UserError if a Lightning Trainer, on several processes, would put its own sampler in place of ours."""
    if trainer is not None and trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
        raise UserError(
            "trainer: on several processes it must be Trainer(use_distributed_sampler=False): Lightning's sampler "
            "takes single images where ours takes batches, and tests some of them twice"
        )


def short(names: list[str]) -> str:
    """The first names and their number."""
    cut = (name if len(name) <= 30 else f"{name[:29]}…" for name in names[:4])
    return f"{', '.join(cut)}{', …' if len(names) > 4 else ''} ({len(names)})"


def seed_step(seed: int, device: torch.device) -> None:
    """Seed the CPU's generator and that of the batch's GPU.

    `torch.manual_seed` seeds every kind of device, and takes a millisecond to note who called it.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 or float32 in [0, 1], (B, C, H, W), to float32 of mean 0, deviation 1 per channel, in the same layout."""
    scale_C, shift_C = _constants(tuple(mean), tuple(std), 1 / 255 if image.dtype == torch.uint8 else 1.0, image.device)
    if image.device.type != "cpu":
        return torch.addcmul(shift_C.view(-1, 1, 1), image.float(), scale_C.view(-1, 1, 1))
    if image.stride(1) == 1 and image.shape[1] > 1:
        # a CPU goes over rows of pixels, channels and all, three times as fast as over single ones
        width = image.shape[-1]
        rows = _shifted(image.permute(0, 2, 3, 1).flatten(2), scale_C.repeat(width), shift_C.repeat(width))
        return rows.unflatten(2, (width, -1)).permute(0, 3, 1, 2)
    return _shifted(image, scale_C.view(-1, 1, 1), shift_C.view(-1, 1, 1))


@cache
def _constants(mean: tuple[float, ...], std: tuple[float, ...], unit: float, device: torch.device) -> Tensor:
    """Factor and summand of each channel (2, C) float32, kept on the device: moving them would make the host wait."""
    mean_C, std_C = torch.tensor(mean), torch.tensor(std)
    return torch.stack([unit / std_C, -mean_C / std_C]).to(device)


def _shifted(image: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    # a CPU converts and multiplies twice as fast as it multiplies numbers of two kinds
    scaled = image.float().mul_(scale) if image.dtype == torch.uint8 else image * scale
    return scaled.add_(shift)
