"""Parameter groups and learning-rate schedules by step."""

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.optim.lr_scheduler import OneCycleLR as TorchOneCycleLR

from imgcls.errors import UserError

OptimizerFactory = Callable[[Iterable], Optimizer]
ScheduleFactory = Callable[[Optimizer, int], LRScheduler]
"""(optimizer, total_steps) to a scheduler that is stepped once per optimiser step.

torch's ReduceLROnPlateau, which takes the optimiser alone, is stepped after each validation, by val/loss.
"""
FUSED = ("cpu", "cuda")  # devices on which torch's optimisers update all parameters in one kernel
LENGTHS = ("total_steps", "T_max", "T_0", "total_iters")  # by which schedulers of torch's mean the number of steps


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]],
    scale: dict[str, float],
    lr: float,
    weight_decay: float,
    no_decay: set[str] = frozenset(),  # type: ignore[assignment]
) -> list[dict[str, Any]]:
    """One group for each pair of learning rate and weight decay; frozen parameters are in none.

    Norm scales and biases (all parameters of at most one dimension) take no weight decay.

    Args:
        parameters: (name, parameter) of the whole model.
        scale: Factor of the learning rate by name; 1 where a name is missing.
        lr: Learning rate at factor 1.
        weight_decay: Of all parameters that decay.
        no_decay: Names of further parameters without weight decay.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name in no_decay else weight_decay
            key = (lr * scale.get(name, 1.0), decay)
            group = groups.setdefault(key, {"params": [], "lr": key[0], "weight_decay": decay})
            group["params"].append(parameter)
    return list(groups.values())


def fast(optimizer: Optimizer) -> Optimizer:
    """Let an optimiser of torch's that can update all parameters in one kernel do so, unless it was told otherwise.

    Its SGD takes a first momentum from memory that was never written, if that step is left out, and stops with an error
    where a parameter joins later: here each begins at 0, which comes to the same unless the first is dampened.
    Shards of FSDP get one kernel for each operation.
    """
    for group in optimizer.param_groups:
        floats = all(p.is_floating_point() and p.device.type in FUSED for p in group["params"])
        sharded = any(isinstance(p, DTensor) for p in group["params"])
        free = not (group.get("foreach") or group.get("differentiable") or group.get("dampening"))
        if sharded and group.get("foreach", False) is None and not group.get("fused"):
            group["foreach"] = True  # torch has no fused SGD for what FSDP shards, and would update one by one
        elif group.get("fused", False) is None and free and floats and not sharded:
            group["fused"] = True
            if group.get("momentum"):
                optimizer.state.update({p: {"momentum_buffer": torch.zeros_like(p)} for p in group["params"]})
    return optimizer


def scheduler_config(factory: ScheduleFactory, optimizer: Optimizer, total_steps: int) -> dict[str, Any]:
    """The scheduler of a run, and when Lightning is to step it.

    Raises:
        UserError: It is one of torch's that would take the number of steps for something else, such as its factor.
    """
    parts = [factory.func, *factory.args] if isinstance(factory, partial) else [factory]
    kind: Any = next((part for part in parts if isinstance(part, type)), None)
    if kind is ReduceLROnPlateau:
        # never: Lightning would step after last.ckpt is written, and a resumed run go without; the model steps it
        when = {"monitor": "val/loss", "interval": "epoch", "frequency": sys.maxsize}
        return {"scheduler": factory(optimizer), **when}  # type: ignore[call-arg]
    if kind is not None and kind.__module__ == LambdaLR.__module__:
        second = list(inspect.signature(kind).parameters)[1]
        if second not in LENGTHS:
            raise UserError(
                f"--model.schedule: {kind.__name__} would take the number of steps for its {second}; use "
                "imgcls.optim.Steps, OneCycle, WarmupCosine or Constant, or torch's ReduceLROnPlateau"
            )
    return {"scheduler": factory(optimizer, total_steps), "interval": "step"}


class WarmupCosine(LambdaLR):
    """Linear warm-up, then a half cosine (Loshchilov and Hutter, SGDR, ICLR 2017, eq. 5, one cycle).

    Args:
        optimizer: Each group's own learning rate is its peak.
        total_steps: Optimiser steps of the whole run.
        warmup: Share of the steps with a rising learning rate.
        final: Learning rate after the last step, as a share of the peak.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: float = 0.05, final: float = 0.0) -> None:
        warmup_steps = round(total_steps * warmup)

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / (warmup_steps + 1)
            done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
            return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

        super().__init__(optimizer, factor)


class OneCycle(TorchOneCycleLR):
    """PyTorch's OneCycleLR (Smith and Topin, Super-convergence, 2018) with the run's own number of steps.

    Args:
        optimizer: Each group's own learning rate is its peak.
        total_steps: Optimiser steps of the whole run.
        pct_start: Share of the steps with a rising learning rate.
        div_factor: Peak over initial learning rate.
        final_div_factor: Initial over final learning rate.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        peak = [group["lr"] for group in optimizer.param_groups]
        super().__init__(
            optimizer, peak, total_steps, pct_start=pct_start, div_factor=div_factor, final_div_factor=final_div_factor
        )


class Constant(LambdaLR):
    """The learning rate stays as it is."""

    def __init__(self, optimizer: Optimizer, total_steps: int) -> None:
        super().__init__(optimizer, lambda step: 1.0)


class Steps(LambdaLR):
    """The learning rate falls by a factor at given shares of the run (He et al., CVPR 2016, section 4.2).

    Args:
        optimizer: Each group's own learning rate is its first.
        total_steps: Optimiser steps of the whole run.
        milestones: Shares of the steps at which it falls.
        gamma: Factor of each fall.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1
    ) -> None:
        steps = [round(total_steps * share) for share in milestones]
        super().__init__(optimizer, lambda step: gamma ** sum(step >= milestone for milestone in steps))
