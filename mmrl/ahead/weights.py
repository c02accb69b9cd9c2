"""Versions of the policy, published by the trainer and read by whoever draws: in memory, or as files.

A version is the number of updates that it has seen. It is there as a whole or not at all: readers in this process get
the same tensors, which nobody changes; a file is written aside, renamed into place, and checked by its hash when read.
"""

from __future__ import annotations

import abc
import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

Weights = Mapping[str, Tensor]
"""The trained parameters by name; frozen ones are everywhere already."""


def trained(policy: nn.Module) -> dict[str, Tensor]:
    """A copy of the trained parameters."""
    return {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_into(policy: nn.Module, weights: Weights) -> None:
    """Copy weights into the trained parameters of a policy.

    Raises:
        ValueError: they are not those of this policy.
    """
    own = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    if own.keys() != weights.keys():
        raise ValueError(f"published weights are not of this policy: {sorted(own.keys() ^ weights.keys())[:3]} differ")
    for name, parameter in own.items():
        parameter.copy_(weights[name])


class WeightStore(abc.ABC):
    """Where versions are. One publishes, any number read."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._closed = False

    def publish(self, version: int, weights: Weights) -> None:
        """Make a version known, as a whole."""
        with self._condition:
            self._put(version, weights)
            self._condition.notify_all()

    def wait(self, version: int) -> int | None:
        """Wait for `version` or a later one; returns the newest there is, None once the store is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._closed or max(self.versions(), default=-1) >= version)
            return None if self._closed else max(self.versions())

    def drop(self, below: int) -> None:
        """Forget versions before `below`, but never the newest."""
        with self._condition:
            for version in self.versions():
                if version < below and version != max(self.versions()):
                    self._remove(version)

    def close(self) -> None:
        """Let go who waits."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    @abc.abstractmethod
    def versions(self) -> list[int]:
        """Those that can be had, in order."""

    @abc.abstractmethod
    def get(self, version: int) -> Weights:
        """One of them.

        Raises:
            KeyError: it is not there, or not as it was written.
        """

    @abc.abstractmethod
    def _put(self, version: int, weights: Weights) -> None: ...

    @abc.abstractmethod
    def _remove(self, version: int) -> None: ...


class InMemory(WeightStore):
    """For readers in this process."""

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[int, Weights] = {}

    def versions(self) -> list[int]:
        return sorted(self._found)

    def get(self, version: int) -> Weights:
        return self._found[version]

    def _put(self, version: int, weights: Weights) -> None:
        self._found[version] = weights

    def _remove(self, version: int) -> None:
        del self._found[version]


class Files(WeightStore):
    """For readers in other processes, and on other machines that see `folder`: version_000012.safetensors behind the
    hash of its bytes. A reader asks for versions; only the publisher can wait for them."""

    HASH = 32

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def versions(self) -> list[int]:
        return sorted(int(path.stem.split("_")[1]) for path in self.folder.glob("version_*.weights"))

    def get(self, version: int) -> Weights:
        try:
            found = self._path(version).read_bytes()
        except FileNotFoundError as error:
            raise KeyError(f"version {version} of the weights is not in {self.folder}") from error
        if hashlib.sha256(found[self.HASH :]).digest() != found[: self.HASH]:
            raise KeyError(f"version {version} of the weights in {self.folder} is not as it was written")
        return load(found[self.HASH :])

    def _path(self, version: int) -> Path:
        return self.folder / f"version_{version:06d}.weights"

    def _put(self, version: int, weights: Weights) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
        aside = self.folder / f".writing_{version:06d}"
        aside.write_bytes(hashlib.sha256(content).digest() + content)
        os.replace(aside, self._path(version))

    def _remove(self, version: int) -> None:
        self._path(version).unlink(missing_ok=True)
