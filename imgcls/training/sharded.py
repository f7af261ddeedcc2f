from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from imgcls.errors import UserError
from imgcls.finetune.base import FineTune


class Sharded(ModelParallelStrategy):
    """Parameters, gradients and optimiser of a classifier sharded over all processes: FSDP2, torch's `fully_shard`.

    Zhao et al., PyTorch FSDP (VLDB 2023). Each block of the backbone, the backbone and the head gather their parameters
    while they compute. Checkpoints are whole files of plain tensors. The running statistics of BatchNorm are those of
    rank 0, as with DDP, or of all processes with `--trainer.sync_batchnorm`, which torch has for GPUs.

    Tested with two CPU processes (gloo); not run on GPUs.

    Args:
        timeout: After which a process that waits for another one gives up.
    """

    def __init__(self, timeout: timedelta = timedelta(minutes=30)) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    @property
    def lightning_restore_optimizer(self) -> bool:  # noqa: D102
        return True

    def setup_environment(self) -> None:
        """Check that the model can be sharded: over all processes, where Lightning would over nodes.

        Raises:
            UserError: It cannot, by its fine-tuning variant or `compile`; Lightning refuses 16-mixed precision.
        """
        model: Any = self.lightning_module
        kind = type(model.finetune)
        refused = {
            "--model.compile=true": model.compile_step,
            f"--model.finetune={kind.__name__}, which trains on features,": model.finetune.views is not None,
            f"--model.finetune={kind.__name__}, whose penalty takes whole weights,": kind.penalty != FineTune.penalty,
        }
        for option in (option for option, given in refused.items() if given):
            raise UserError(f"--trainer.strategy: {option} does not go with sharding; leave it out, or use ddp")
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:  # noqa: D102
        model: Any = self.lightning_module
        model.configure_model = lambda: None  # Lightning asks for this method, which is to shard; `shard` does
        super().setup(trainer)
        del model.configure_model

    def model_to_device(self) -> None:
        """Shard the model; what is not sharded is on each device."""
        self.shard(self.lightning_module)

    def shard(self, model: Any) -> None:
        """Shard a classifier, or an average of it, in place, block by block: it need not fit on one device."""
        if isinstance(model.backbone, FSDPModule):
            return
        if self._layer_sync is not None:
            self._layer_sync.apply(model)
        model.to(memory_format=torch.contiguous_format)  # images alone decide on cuDNN's channels-last kernels
        for module in (*blocks(model.backbone), model.backbone, model.head):
            # by default the outermost would keep whole parameters after validation, which the average is to replace
            fully_shard(module, mesh=self.device_mesh["data_parallel"], reshard_after_forward=True)
        for module in (model.backbone, model.head):
            module.register_load_state_dict_pre_hook(_shard_loaded)
        model.to(self.root_device)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Loss of a batch; then all processes have the statistics of rank 0, with which they validate."""
        output = super().training_step(*args, **kwargs)
        for module in self.lightning_module.modules() if self._layer_sync is None else ():  # type: ignore[union-attr]
            if isinstance(module, _BatchNorm) and module.training:
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, 0)
        return output

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole tensors on rank 0."""
        return whole(self.lightning_module.state_dict())  # type: ignore[union-attr]

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Whole tensors on rank 0."""
        return whole(optimizer.state_dict())

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Whole tensors, on each process."""
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """Take each process's part of whole tensors."""
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)  # type: ignore[union-attr]

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Take each process's part of whole tensors."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {i: {k: _part(v, parameters[i]) for k, v in of.items()} for i, of in saved["state"].items()}
            kernels = [{k: group[k] for k in ("foreach", "fused") if k in group} for group in optimizer.param_groups]
            groups = [before | now for before, now in zip(saved["param_groups"], kernels, strict=True)]
            optimizer.load_state_dict({"state": state, "param_groups": groups})  # ddp's kernels may not take shards


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Blocks of layers that follow each other in a network, such as those of a transformer, the inner ones first."""
    for child in module.children():
        yield from blocks(child)
        in_row = isinstance(module, nn.Sequential | nn.ModuleList)
        if in_row and any(True for _ in child.children()) and any(True for _ in child.parameters()):
            yield child


def whole(state: Any) -> Any:
    """A tree of tensors with the whole of each sharded one: on the CPU of rank 0, and empty on the other processes."""

    def gathered(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.cpu() if torch.distributed.get_rank() == 0 else full.new_empty(0)

    return tree_map(gathered, state)


def _part(value: Any, like: Tensor) -> Any:
    """This process's part of a whole tensor, if it has the shape of a sharded one."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _shard_loaded(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, parameter in module.named_parameters():
        if (key := prefix + name) in state:
            state[key] = _part(state[key], parameter)
