"""Devices, precision, processes and random numbers, decided once. The only module that may say "cuda"."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.nn.functional import pad

from mmrl.types import Policy, Rollout, Transitions


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how to compute. `device` auto takes CUDA if there is any; `precision` auto is
    bf16 autocast where the device has it, with trainable weights in float32 always; `threads` is the
    number of CPU threads of one process (null: torch's default)."""

    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    threads: int | None = 1


@dataclass(frozen=True)
class Elsewhere(Transitions):
    """The transitions of a gathered rollout: they stay on the ranks that collected them."""

    length: int

    def rows(self, index: Tensor) -> Self:
        raise TypeError("a gathered rollout holds decisions only; take rows of the rank's own rollout")

    def to(self, device: torch.device) -> Self:
        return self

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class Ledger:
    """The decisions of all ranks, and which of its rows are this rank's."""

    rollout: Rollout  # every rank's, T padded to the longest, transitions elsewhere
    rows_per_rank: tuple[int, ...]
    rank: int

    def rows_of(self, rank: int) -> range:
        """Rows of the ledger that `rank` collected."""
        start = sum(self.rows_per_rank[:rank])
        return range(start, start + self.rows_per_rank[rank])


class Runtime:
    """One process of a run."""

    def __init__(self, config: RuntimeConfig, seed: int) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        on_cpu = config.device == "cpu" or not torch.cuda.is_available()
        bf16 = not on_cpu and torch.cuda.is_bf16_supported()
        if config.precision == "bf16":
            bf16 = True
        if config.precision == "float32":
            bf16 = False
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="bf16" if bf16 else "no")
        self.device: torch.device = self.accelerator.device
        self.reduced_precision = bf16
        self.seed = seed
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self._generators: dict[str, torch.Generator] = {}
        torch.manual_seed(self._seed_of("torch"))

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def _seed_of(self, name: str, shared: bool = False) -> int:
        text = f"{self.seed}/{name}/{0 if shared else self.rank}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def generator(self, name: str, shared: bool = False) -> torch.Generator:
        """The named source of randomness of this run. `shared`: the same numbers on every rank (on the
        CPU), as plans need; otherwise a rank's own, on its device."""
        if name not in self._generators:
            self._generators[name] = self.fresh_generator(name, shared)
        return self._generators[name]

    def fresh_generator(self, name: str, shared: bool = False) -> torch.Generator:
        """A generator that starts from the seed again, so that every evaluation draws the same."""
        generator = torch.Generator(device="cpu" if shared else self.device)
        generator.manual_seed(self._seed_of(name, shared))
        return generator

    def generator_states(self) -> dict[str, Tensor]:
        """States of all generators of all ranks, the global one included, by "rank/name"."""
        own = {f"{self.rank}/{name}": g.get_state() for name, g in self._generators.items()}
        own[f"{self.rank}/torch"] = torch.get_rng_state()
        if self.world == 1:
            return own
        return {key: state for part in gather_object([own]) for key, state in part.items()}

    def load_generator_states(self, states: Mapping[str, Tensor]) -> None:
        """Continue from `generator_states`. A rank that did not exist then starts from its seed."""
        for key, state in states.items():
            rank, name = key.split("/", 1)
            if int(rank) != self.rank:
                continue
            if name == "torch":
                torch.set_rng_state(state)
            else:
                on = "cpu" if name.startswith("shared") else self.device
                generator = self._generators.setdefault(name, torch.Generator(device=on))
                generator.set_state(state)

    def prepare(self, policy: Policy, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The policy wrapped for data parallelism, and its optimiser."""
        wrapped, prepared = self.accelerator.prepare(policy, optimizer)
        return wrapped, prepared

    def synchronised(self, policy: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """The context of one micro-batch, forward and backward: gradients are exchanged only in the last."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(policy)

    def backward(self, policy: nn.Module, loss: Tensor, last: bool = True) -> None:
        """Add the gradient of a loss that is a sum over ranks (DDP averages, hence the factor). In the last backward
        before a step every trained parameter takes part with at least a zero, or DDP would leave its bucket
        unreduced."""
        if last:
            anchors = [p.flatten()[:1].sum() for p in policy.parameters() if p.requires_grad]
            loss = loss + 0.0 * torch.stack([anchor.to(loss) for anchor in anchors]).sum()
        self.accelerator.backward(loss * self.world)

    def clip_gradients(self, policy: nn.Module, max_norm: float) -> float:
        """Norm of the gradient before it is scaled down to at most `max_norm`."""
        return float(self.accelerator.clip_grad_norm_(policy.parameters(), max_norm))

    def gather(self, rollout: Rollout) -> Ledger:
        """The decisions of all ranks; rows stay in rank order."""
        light = rollout.with_(transitions=Elsewhere(len(rollout)))
        if self.world == 1:
            return Ledger(light, (len(rollout),), 0)
        parts: list[Rollout] = gather_object([_moved(light, torch.device("cpu"))])
        joined = _moved(_join(parts), self.device)
        return Ledger(joined, tuple(len(part) for part in parts), self.rank)

    def sum_over_ranks(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Sum of each number over ranks; a name may be missing on some."""
        if self.world == 1:
            return dict(numbers)
        totals: dict[str, float] = {}
        for part in gather_object([dict(numbers)]):
            for name, number in part.items():
                totals[name] = totals.get(name, 0.0) + number
        return totals

    def max_over_ranks(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Largest of each number over ranks; a name may be missing on some."""
        if self.world == 1:
            return dict(numbers)
        largest: dict[str, float] = {}
        for part in gather_object([dict(numbers)]):
            for name, number in part.items():
                before = largest.get(name, -math.inf)
                largest[name] = math.nan if math.isnan(number) or math.isnan(before) else max(number, before)
        return largest

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on some rank: what ends a loop must end it on all."""
        return flag if self.world == 1 else any(gather_object([flag]))

    def from_main(self, text: str) -> str:
        """What the first rank passes, on every rank."""
        if self.world == 1:
            return text
        agreed: list[str] = broadcast_object_list([text])
        return agreed[0]

    def memory_mb(self) -> tuple[float, float]:
        """Peak of this process so far, and how much there is: of the GPU if it uses one, else of the machine."""
        if self.device.type == "cuda":
            total = torch.cuda.get_device_properties(self.device).total_memory
            return torch.cuda.max_memory_allocated(self.device) / 2**20, total / 2**20
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return peak, total / 2**20

    def wait(self) -> None:
        """Wait for all ranks."""
        self.accelerator.wait_for_everyone()


@contextlib.contextmanager
def evaluating(policy: nn.Module) -> Iterator[None]:
    """Eval mode; every submodule's own mode comes back after."""
    modes = [(module, module.training) for module in policy.modules()]
    policy.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def acting(policy: nn.Module) -> Iterator[None]:
    """Eval mode and no gradient, while a policy acts or is scored."""
    with evaluating(policy), torch.no_grad():
        yield


def _fields(rollout: Rollout) -> dict[str, Tensor]:
    return {name: value for name, value in vars(rollout).items() if isinstance(value, Tensor)}


def _moved(rollout: Rollout, device: torch.device) -> Rollout:
    tensors = {name: tensor.to(device) for name, tensor in _fields(rollout).items()}
    maps = {
        name: {key: tensor.to(device) for key, tensor in vars(rollout)[name].items()}
        for name in ("stats", "reward_parts", "applicable")
    }
    return rollout.with_(**tensors, **maps)


def _join(parts: list[Rollout]) -> Rollout:
    """Rows of all parts under each other, with T padded to the longest."""
    longest = max(part.logprobs.shape[1] for part in parts)

    def stack(tensors: list[Tensor]) -> Tensor:
        return torch.cat([pad(t, (0, longest - t.shape[1])) if t.ndim == 2 else t for t in tensors])

    joined = {name: stack([_fields(part)[name] for part in parts]) for name in _fields(parts[0])}
    maps = {
        name: {key: stack([vars(part)[name][key] for part in parts]) for key in vars(parts[0])[name]}
        for name in ("stats", "reward_parts", "applicable")
    }
    return parts[0].with_(transitions=Elsewhere(sum(len(p) for p in parts)), **joined, **maps)
