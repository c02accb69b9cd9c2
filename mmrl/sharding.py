"""A policy that FSDP2 (torch's `fully_shard`, by `accelerate launch --use_fsdp`) keeps in parts, one on each rank:
whole again to act, to be saved and to be read back.

The policy is one unit of sharding. Between steps a rank keeps its part of weights, gradients and optimiser moments; for
a forward and its backward, and while the policy acts, all ranks gather the weights once. Units inside the policy would
save more, and each call of one is a meeting of all ranks: yet ranks answer in other numbers of turns and tokens, keep
other pictures' features, and would wait for each other for ever.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor

from mmrl.types import Evaluation


def launched(accelerator: Accelerator, reduced_precision: bool) -> bool:
    """Whether FSDP2 was asked for and there are ranks to share with; if so, it is set up as policies need it: weights
    that are trained stay in float32, gathered ones are bf16 where compute is, and gradients meet in float32.

    Raises:
        ValueError: it was asked for in a way that cannot be had.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false") != "true" or accelerator.num_processes == 1:
        return False
    if accelerator.distributed_type == DistributedType.MULTI_CPU:  # where accelerate leaves the flag unread
        accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    plugin = accelerator.state.fsdp_plugin
    refuse(plugin)
    gathered = torch.bfloat16 if reduced_precision else None
    plugin.mixed_precision_policy = MixedPrecisionPolicy(gathered, torch.float32, cast_forward_inputs=False)
    _announce()
    return True


def refuse(plugin: FullyShardedDataParallelPlugin) -> None:
    """Raises:
    ValueError: accelerate was asked for a way of sharding that cannot be had.
    """
    if plugin.fsdp_version != 2:
        raise ValueError(f"--fsdp_version is {plugin.fsdp_version}: give --fsdp_version 2 to accelerate launch")
    if plugin.auto_wrap_policy is not None:
        raise ValueError(
            "--fsdp_auto_wrap_policy is set: ranks call the layers of a policy in unequal numbers and would wait for "
            "each other for ever, so that a policy is sharded as one unit; give NO_WRAP, or leave it out"
        )
    if plugin.activation_checkpointing:
        raise ValueError(
            "--fsdp_activation_checkpointing is true, and needs layers that are wrapped: leave it out, and set "
            "policy.gradient_checkpointing where the domain has it, or lower train.update.micro_rows"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError("--fsdp_offload_params is true, which nobody has tried here: set it to false")


@functools.cache
def _announce() -> None:
    """FSDP2 finds the tensors of an output, whose backward it waits for, by torch's own list of containers."""
    torch.export.register_dataclass(Evaluation)


def agree(policy: nn.Module) -> None:
    """Give every rank the weights and buffers of the first, as DDP does."""
    for tensor in (*policy.parameters(), *policy.buffers()):
        torch.distributed.broadcast(tensor.detach(), 0)


def _in_parts(policy: nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in policy.parameters())


def gather(policy: nn.Module) -> None:
    """Give every rank all weights of a sharded `policy` for the backward that follows. A forward leaves them there,
    unless the policy called itself in it, as for a KL in closed form."""
    if isinstance(policy, FSDPModule):
        policy.unshard()


@contextmanager
def whole(policy: nn.Module) -> Iterator[None]:
    """Inside, every rank has all weights of a sharded `policy`, so that any part of it can be called, and as often as a
    rank likes. All ranks must come by here. Nothing happens to another policy, or within another `whole`."""
    if not isinstance(policy, FSDPModule) or not _in_parts(policy):
        yield
        return
    policy.unshard()
    try:
        yield
    finally:
        policy.reshard()


@contextmanager
def to_save(policy: nn.Module, keep: bool) -> Iterator[None]:
    """Inside, a sharded `policy` has all its weights, in float32 in the memory of the CPU, on ranks that `keep` them;
    elsewhere it must not be read. All ranks must come by here."""
    found = {}
    for parameter in _parts(policy):
        tensor = parameter.full_tensor()
        if keep:
            found[parameter] = _alone(tensor, parameter)
    with _exchanged(policy, found):
        yield


@contextmanager
def to_load(policy: nn.Module) -> Iterator[None]:
    """Inside, the same on every rank, to be written to; then each rank keeps its part of what was written. All ranks
    must come by here, and write the same."""
    found = {parameter: _alone(parameter.full_tensor(), parameter) for parameter in _parts(policy)}
    with _exchanged(policy, found):
        yield
    with torch.no_grad():
        for parameter, written in found.items():
            parameter.copy_(part_of(written.detach(), parameter))


def _alone(tensor: Tensor, like: Tensor) -> nn.Parameter:
    """Of the CPU, in a storage of its own: what was gathered may be a part of a larger one, which nobody saves."""
    return nn.Parameter(tensor.detach().to("cpu", copy=True), like.requires_grad)


def _parts(policy: nn.Module) -> list[DTensor]:
    if isinstance(policy, FSDPModule):
        policy.reshard()
    return [parameter for parameter in policy.parameters() if isinstance(parameter, DTensor)]


@contextmanager
def _exchanged(policy: nn.Module, found: Mapping[DTensor, nn.Parameter]) -> Iterator[None]:
    """Inside, modules have other parameters, and those that share one go on to share it. FSDP2's own hooks on loading
    are laid aside, since they look for the parts."""
    if not found:
        yield
        return
    own = [(module._parameters, name, p) for module in policy.modules() for name, p in module._parameters.items()]
    hooks = [
        (module._load_state_dict_post_hooks, dict(module._load_state_dict_post_hooks)) for module in policy.modules()
    ]
    for parameters, name, parameter in own:
        if isinstance(parameter, DTensor) and parameter in found:
            parameters[name] = found[parameter]
    for laid, _ in hooks:
        laid.clear()
    try:
        yield
    finally:
        for parameters, name, parameter in own:
            parameters[name] = parameter
        for laid, before in hooks:
            laid.update(before)


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's part of `tensor`, which all ranks have, cut as `like` is; all of it if that is not cut."""
    if not isinstance(like, DTensor):
        return tensor
    there = tensor.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def full(tensor: Tensor) -> Tensor:
    """A tensor that ranks have parts of, as one; another as it is. All ranks must ask."""
    return tensor.full_tensor().to("cpu", copy=True) if isinstance(tensor, DTensor) else tensor


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    """Its `state_dict`, as one process would have it. All ranks must ask."""
    state = optimizer.state_dict()
    moments = {n: {name: full(value) for name, value in entry.items()} for n, entry in state["state"].items()}
    return {**state, "state": moments}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, object]) -> None:
    """Go on from `optimizer_state`, whatever number of ranks wrote it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = state["state"]
    assert isinstance(moments, Mapping)
    cut = {
        number: {
            name: part_of(value, parameters[number]) if value.shape == parameters[number].shape else value
            for name, value in entry.items()
        }
        for number, entry in moments.items()
    }
    optimizer.load_state_dict({**state, "state": cut})
