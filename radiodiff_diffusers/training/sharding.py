"""FSDP: a model whose weights, gradients, optimiser state and averages are split over the processes.

Asked for by accelerate's configuration (`distributed_type: FSDP`, see examples/accelerate/fsdp.yaml), done by torch's
`fully_shard`. Every block gathers its weights when it is its turn and gives them up after. A parameter of the model is
then a DTensor: the part of it that lies here is `local`, its `full` value takes all processes together. Optimiser,
clipping and averages work on the local parts, which are plain tensors. To validate and to export, the model is `whole`
again: plain in every respect, so that the processes need not keep in step.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor, distribute_tensor

from .config import TrainConfig

_HOOKS = [name for name in vars(nn.Module()) if "_hooks" in name]
# What a model calls of a block apart from its forward: its weights must be there then, too.
_OTHER_FORWARDS = ("prepare",)


def sharding_plugin(
    accelerator: Accelerator, train: TrainConfig, optimizers: dict[str, Any]
) -> FullyShardedDataParallelPlugin | None:
    """Accelerate's settings where FSDP is asked for and there is something to split; an error where it cannot be."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true" or accelerator.num_processes == 1:
        return None
    # on the CPU accelerate reads the settings and drops them; torch shards there all the same
    plugin = getattr(accelerator.state, "fsdp_plugin", None) or FullyShardedDataParallelPlugin()
    if plugin.fsdp_version != 2:
        raise ValueError("FSDP of version 1 is asked for, the recipes know version 2: set fsdp_version: 2")
    if len(optimizers) > 1:
        raise ValueError(
            "FSDP is for recipes with one optimiser (ldm, lora, lightningdit); this one has those of "
            f"{' and '.join(optimizers)}: start it with distributed_type MULTI_GPU"
        )
    for name in ("compile", "half_gradients"):
        if getattr(train, name):
            raise ValueError(f"train.{name} does not go with FSDP: turn one off")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise ValueError("the recipes keep the parts on the device: set fsdp_offload_params: false")
    if plugin.activation_checkpointing:
        raise ValueError("set fsdp_activation_checkpointing: false, and train.gradient_checkpointing true instead")
    return plugin


class Sharded:
    """A model split in place over the processes, and its optimiser, which now holds the local parts."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        plugin: FullyShardedDataParallelPlugin,
    ):
        self.model = model
        # blocks hand on views; the models do nothing in place with them
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        plain = {module: _appearance(module) for module in model.modules()}
        names = {id(p): name for name, p in model.named_parameters()}
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        blocks = _find_blocks(model, plugin)
        for block in blocks:
            fully_shard(block, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward)
            for method in _OTHER_FORWARDS:
                if hasattr(block, method):
                    register_fsdp_forward_method(block, method)
        # precision is autocast's business, as without FSDP: the parts, their sums and the averages stay in float32
        fully_shard(model, mesh=mesh)
        self.units = [module for module in model.modules() if isinstance(module, FSDPModule)]
        self._appearances = {module: (before, _appearance(module)) for module, before in plain.items()}

        named = dict(model.named_parameters())
        self.parameters: list[Tensor] = []  # in the optimiser's order
        for group in optimizer.param_groups:
            of_group = [named[names[id(p)]] for p in group["params"]]
            group["params"] = [local(p) for p in of_group]
            self.parameters += of_group
        self.optimizer = optimizer
        if accelerator.scaler:  # each sees its own part overflow, and all must leave the step out
            accelerator.scaler = ShardedGradScaler(accelerator.device.type)

    def take_gradients(self) -> None:
        """After the backward pass: the optimiser's parameters get their parts of the (mean) gradients."""
        for parameter, part in zip(self.parameters, self._parts(), strict=True):
            part.grad = None if parameter.grad is None else parameter.grad.to_local()

    def _parts(self) -> list[Tensor]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def reshard(self) -> None:
        """Give up the gathered weights. Needed only where a forward pass was not followed by a backward pass."""
        for unit in self.units:
            unit.reshard()

    def collect_optimizer(self, keep: bool) -> dict[str, Any]:
        """The optimiser's state in full, in the process that keeps it."""
        state, parts = self.optimizer.state_dict(), self._parts()
        whole = {}
        for number, values in state["state"].items():
            here = {k: _is_shaped_like(v, parts[number]) for k, v in values.items()}  # all but the count of steps
            joined = {k: as_part_of(self.parameters[number], v) if here[k] else v for k, v in values.items()}
            whole[number] = collect(joined, keep)
        return {**state, "state": whole}

    def load_optimizer(self, state: dict[str, Any]) -> None:
        """Take a state in full."""
        parts = {}
        for number, values in state["state"].items():
            like = self.parameters[number]
            parts[number] = {
                k: local(part_like(like, v)) if _is_shaped_like(v, like) else v for k, v in values.items()
            }
        self.optimizer.load_state_dict({**state, "state": parts})

    @contextmanager
    def whole(self):
        """The model is plain and whole inside, in every process, and nothing in it waits for another process."""
        self.reshard()
        modules = list(self.model.modules())
        # in one dictionary, for a weight may be in two places
        full_of = {
            p: nn.Parameter(full(p), p.requires_grad) for m in modules for p in m._parameters.values() if _is_part(p)
        }
        parts = [(m, name, p) for m in modules for name, p in m._parameters.items() if _is_part(p)]
        for module, name, part in parts:
            module._parameters[name] = full_of[part]
        for module, (plain, _) in self._appearances.items():
            _look(module, plain)
        try:
            yield self.model
        finally:
            for module, (_, sharded) in self._appearances.items():
                _look(module, sharded)
            for module, name, part in parts:
                module._parameters[name] = part


def _find_blocks(model: nn.Module, plugin: FullyShardedDataParallelPlugin) -> list[nn.Module]:
    """What is gathered together, the innermost first: the classes that the configuration names, or the model's own."""
    named = plugin.transformer_cls_names_to_wrap
    own = [*(getattr(model, "_repeated_blocks", None) or []), *(getattr(model, "_no_split_modules", None) or [])]
    found = [m for m in model.modules() if type(m).__name__ in (named or own) and m is not model]
    if named and not found:
        raise ValueError(
            f"fsdp_transformer_layer_cls_to_wrap names {', '.join(named)}, but {type(model).__name__} has no such "
            f"blocks: leave it out, or choose of {', '.join(own)}"
        )
    return found[::-1]  # modules() gives what is outside first


def _appearance(module: nn.Module) -> tuple[type, dict[str, Any]]:
    """What `fully_shard` changes in a module besides its parameters: the class, hooks, methods."""
    changed = {name: module.__dict__[name].copy() for name in _HOOKS}
    return type(module), changed | {n: module.__dict__[n] for n in _OTHER_FORWARDS if n in module.__dict__}


def _look(module: nn.Module, appearance: tuple[type, dict[str, Any]]) -> None:
    module.__class__, changed = appearance
    for name in _OTHER_FORWARDS:
        module.__dict__.pop(name, None)
    module.__dict__.update(changed)


# Tensors that may be in parts
# --------------------------------------------------------------------------------------------------


def _is_part(tensor: Any) -> bool:
    return isinstance(tensor, DTensor)


def _is_shaped_like(value: Any, tensor: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == tensor.shape


def local(tensor: Tensor) -> Tensor:
    """What of it lies in this process, in the same memory."""
    return tensor.detach().to_local().requires_grad_(tensor.requires_grad) if _is_part(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """All of it. Where it is in parts, every process has to call this."""
    return tensor.detach().full_tensor() if _is_part(tensor) else tensor


def as_part_of(tensor: Tensor, value: Tensor) -> Tensor:
    """What goes with the local part of a tensor (its average, its optimiser's state), as a part of a whole."""
    if not _is_part(tensor):
        return value
    spread = {"device_mesh": tensor.device_mesh, "placements": tensor.placements, "run_check": False}
    return DTensor.from_local(value.detach(), **spread, shape=tensor.shape, stride=tensor.stride())


def part_like(tensor: Tensor, value: Tensor) -> Tensor:
    """Of a full value, which every process has, the part that corresponds to what lies here of `tensor`."""
    if not _is_part(tensor):
        return value
    return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)


def collect(tensors: dict[str, Any], keep: bool) -> dict[str, Any]:
    """Everything in full, in the process that keeps it; one after the other, so that the rest need little memory."""
    kept = {}
    for name, tensor in tensors.items():
        value = full(tensor).cpu() if _is_part(tensor) else tensor
        if keep:
            kept[name] = value
    return kept


def clip_gradients(parameters: list[Tensor], largest: float, accelerator: Accelerator, in_parts: bool) -> float:
    """As torch's `clip_grad_norm_`; the norm is that of all parts together."""
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if in_parts:
        norm = accelerator.reduce(norm.square(), reduction="sum").sqrt()
    nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return float(norm)
