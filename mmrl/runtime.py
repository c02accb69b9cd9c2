"""Devices, precision, processes and random numbers, decided once. The only module that may say "cuda"."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import resource
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn

from mmrl.ledger import Elsewhere, Ledger, joined, moved
from mmrl.types import Policy, Rollout


@dataclass(frozen=True)
class RuntimeConfig:
    """Where and how to compute. `device` auto takes CUDA if there is any; `precision` auto is
    bf16 autocast where the device has it, with trainable weights in float32 always; `threads` is the
    number of CPU threads of one process (null: torch's default)."""

    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    threads: int | None = 1

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"runtime.threads is {self.threads}: give 1 or more, or null for torch's default")


def helper_device(choice: Literal["auto", "cpu"]) -> torch.device:
    """Where a process that helps a run, such as one that makes data, computes: the accelerator of its rank, if any."""
    if choice == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


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
        self.rows_that_fit = 2**31
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self._generators: dict[str, torch.Generator] = {}
        torch.manual_seed(self._seed_of("torch"))

    @classmethod
    def of_share(cls, config: RuntimeConfig, seed: int, rank: int, world: int) -> Runtime:
        """Of a process that draws what rank `rank` of `world` would, and belongs to no group of ranks itself."""
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)  # of who started it
        found = cls(config, seed)
        found.rank, found.world = rank, world
        torch.manual_seed(found._seed_of("torch"))
        return found

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

    def generator_states(self, other: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """States of all generators of all ranks, the global one included, by "rank/name"; `other` stand in the place
        of this rank's, or beside them."""
        own = {f"{self.rank}/{name}": g.get_state() for name, g in self._generators.items()}
        own[f"{self.rank}/torch"] = torch.get_rng_state()
        own |= other or {}
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
        parts: list[Rollout] = gather_object([moved(light, torch.device("cpu"))])
        everyone = moved(joined(parts), self.device)
        return Ledger(everyone, tuple(len(part) for part in parts), self.rank)

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

    def halve_rows(self, rows: int, error: torch.OutOfMemoryError) -> None:
        """`rows` at a time did not fit: remember that half as many might.

        Raises:
            RuntimeError: a single row does not fit, or other ranks would have to follow.
        """
        if rows == 1 or self.world > 1:
            what = "a single trajectory does not fit" if rows == 1 else f"{rows} do not fit and there are other ranks"
            raise RuntimeError(
                f"out of memory with train.update.micro_rows={rows}: {what}; lower it, set micro_steps or "
                "gradient_checkpointing, or take smaller samples, then --resume"
            ) from error
        self.rows_that_fit = rows // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

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
