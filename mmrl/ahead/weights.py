"""Versions of the policy, published by the trainer and read by whoever draws: in memory, as files, or over the
network by torch.distributed's store.

A version is the number of updates that it has seen. It is there as a whole or not at all: readers in this process get
the same tensors, which nobody changes; a file is written aside, renamed into place, and checked by its hash when read;
in the store a version is named only once all of it is there, and checked in the same way.
"""

from __future__ import annotations

import abc
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed import DistStoreError, TCPStore  # type: ignore[attr-defined]  # public, and not listed

from mmrl.sharding import full

Weights = Mapping[str, Tensor]
"""The trained parameters by name; frozen ones are everywhere already."""


def trained(policy: nn.Module) -> dict[str, Tensor]:
    """A copy of the trained parameters, whole where ranks have parts of them; then all ranks must ask."""
    return {name: full(p.detach()).clone() for name, p in policy.named_parameters() if p.requires_grad}


@torch.no_grad()
def put_into(policy: nn.Module, weights: Weights) -> None:
    """Copy weights into the trained parameters of a policy.

    Raises:
        ValueError: they are not those of this policy.
    """
    own = dict(policy.named_parameters())  # by name: a reference may let a frozen adapter need gradients for a while
    if missing := sorted(weights.keys() - own.keys()):
        raise ValueError(f"published weights are not of this policy, which has no {', '.join(missing[:3])}")
    for name, tensor in weights.items():
        own[name].copy_(tensor)


class VersionError(RuntimeError):
    """A version of the weights is not there, or not as it was written."""


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

    def clear(self) -> None:
        """Forget all of them."""
        for version in self.versions():
            self._remove(version)

    def reader(self) -> Callable[[], WeightStore]:
        """What opens it in another process.

        Raises:
            ValueError: nothing does.
        """
        raise ValueError(f"{type(self).__name__} cannot be read from another process")

    @abc.abstractmethod
    def versions(self) -> list[int]:
        """Those that can be had, in order."""

    @abc.abstractmethod
    def get(self, version: int) -> Weights:
        """One of them.

        Raises:
            VersionError: it is not there, or not as it was written.
        """

    @abc.abstractmethod
    def _put(self, version: int, weights: Weights) -> None: ...

    @abc.abstractmethod
    def _remove(self, version: int) -> None: ...


HASH = 32
"""Bytes of a SHA-256 sum, which stands before the weights."""
PATIENCE = timedelta(seconds=60)
"""How long a reader waits for the publisher to answer."""
PIECE = 2**20
"""Bytes of one value of the store, which takes no large ones."""


def _packed(weights: Weights) -> bytes:
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    return hashlib.sha256(content).digest() + content


def _unpacked(found: bytes, version: int, place: str) -> Weights:
    if hashlib.sha256(found[HASH:]).digest() != found[:HASH]:
        raise VersionError(f"version {version} of the weights in {place} is not as it was written")
    return load(found[HASH:])


class InMemory(WeightStore):
    """For readers in this process."""

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[int, Weights] = {}

    def versions(self) -> list[int]:
        return sorted(self._found)

    def get(self, version: int) -> Weights:
        if version not in self._found:
            raise VersionError(f"version {version} of the weights is gone: there are {self.versions()}")
        return self._found[version]

    def _put(self, version: int, weights: Weights) -> None:
        self._found[version] = weights

    def _remove(self, version: int) -> None:
        del self._found[version]


class Files(WeightStore):
    """For readers in other processes, and on other machines that see `folder`: version_000012.safetensors behind the
    hash of its bytes. A reader asks for versions; only the publisher can wait for them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def reader(self) -> Callable[[], WeightStore]:
        return partial(Files, self.folder)

    def versions(self) -> list[int]:
        return sorted(int(path.stem.split("_")[1]) for path in self.folder.glob("version_*.weights"))

    def get(self, version: int) -> Weights:
        try:
            found = self._path(version).read_bytes()
        except FileNotFoundError as error:
            raise VersionError(f"version {version} of the weights is not in {self.folder}") from error
        return _unpacked(found, version, str(self.folder))

    def _path(self, version: int) -> Path:
        return self.folder / f"version_{version:06d}.weights"

    def _put(self, version: int, weights: Weights) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".writing_{version:06d}"
        aside.write_bytes(_packed(weights))
        os.replace(aside, self._path(version))

    def _remove(self, version: int) -> None:
        self._path(version).unlink(missing_ok=True)

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class Network(WeightStore):
    """For readers in other processes, and on other machines, that reach the publisher: it keeps the versions in a store
    of torch.distributed, which belongs to no group of processes, so that readers may come and go. A reader asks for
    versions; only the publisher can wait for them. Who can reach the port can read and write: keep it to one's own."""

    def __init__(self, host: str = "127.0.0.1", port: int | None = None) -> None:
        """Publish at a free port of `host`; with `port` read from there."""
        super().__init__()
        self._store = TCPStore(host, port or 0, is_master=port is None, wait_for_workers=False, timeout=PATIENCE)
        self.host = host
        if port is None:
            self._store.set("versions", "{}")

    def reader(self) -> Callable[[], WeightStore]:
        return partial(Network, self.host, self._store.port)

    def versions(self) -> list[int]:
        return sorted(self._pieces())

    def get(self, version: int) -> Weights:
        pieces = self._pieces()
        if version not in pieces:
            raise VersionError(f"version {version} of the weights is gone: there are {sorted(pieces)}")
        try:
            found = b"".join(self._store.get(f"{version}/{number}") for number in range(pieces[version]))
        except DistStoreError as error:  # it was removed meanwhile
            raise VersionError(f"version {version} of the weights was removed while it was read") from error
        return _unpacked(found, version, f"the store at {self.host}")

    def _pieces(self) -> dict[int, int]:
        """Of each version, in how many pieces it is there."""
        return {int(version): count for version, count in json.loads(self._store.get("versions")).items()}

    def _put(self, version: int, weights: Weights) -> None:
        content = _packed(weights)
        starts = range(0, len(content), PIECE)
        for number, start in enumerate(starts):
            self._store.set(f"{version}/{number}", content[start : start + PIECE])  # type: ignore[arg-type]  # takes both
        self._store.set("versions", json.dumps({**self._pieces(), version: len(starts)}))

    def _remove(self, version: int) -> None:
        pieces = self._pieces()
        count = pieces.pop(version, 0)
        self._store.set("versions", json.dumps(pieces))
        for number in range(count):
            self._store.delete_key(f"{version}/{number}")
