"""An exponential moving average of the trained weights, which is what is evaluated, saved and exported (Polyak
averaging)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmrl.sharding import full, part_of


class Average:
    """average <- decay average + (1 - decay) weights, after every optimiser step; early on with the smaller decay
    (1 + n) / (10 + n), so that the start does not weigh on."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay, self.updates = list(parameters), decay, 0
        self.values = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights as they are now into the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def _exchange(self) -> None:
        for value, parameter in zip(self.values, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(value)
            value.copy_(kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the policy has the average as its weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the weights that training goes on from, for a checkpoint whose policy is the average. All ranks
        must ask."""
        found = {f"weight_{number}": full(p.detach()).clone() for number, p in enumerate(self.parameters)}
        return {**found, "updates": torch.tensor(self.updates)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on: the average is what the policy has now, its weights are those of `state`."""
        self.updates = int(state["updates"])
        for number, (value, parameter) in enumerate(zip(self.values, self.parameters, strict=True)):
            value.copy_(parameter.detach())
            parameter.copy_(part_of(state[f"weight_{number}"], parameter))
