"""What renderers have in common: a batch of programs in, one picture or one named failure each out."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from rewards.render.cache import Cache
from rewards.render.inside.frames import Answer, Failure
from rewards.render.pool import Pool
from rewards.render.usage import usage_of

Picture = NDArray[np.uint8]  # (Y, X, 3), RGB


@dataclass(frozen=True, eq=False)
class Rendered:
    """What became of one program: a picture, or why there is none.

    `cpu_seconds` is what it took; 0 where `cached`, that is taken from the cache or from the same program in the batch.
    """

    picture: Picture | None = None  # (Y, X, 3) uint8, RGB, read-only
    failure: Failure | None = None
    message: str = ""  # one line
    cpu_seconds: float = 0.0
    cached: bool = False


@dataclass(frozen=True)
class Limits:
    """What one program may take.

    A chart that is still running after `wall_seconds`, or has used `cpu_seconds`, is killed. `memory_mb` is address
    space for charts and SVG and resident memory of the whole browser for pages; `files_mb` bounds the folder that a
    program may write to. Programs beyond `program_bytes` and pictures beyond `max_pixels` are too large.

    Raises:
        ValueError: one is not positive, or a picture could not be sent at all.
    """

    cpu_seconds: int = 4
    wall_seconds: float = 15.0
    memory_mb: int = 1024
    files_mb: int = 16
    max_pixels: int = 2_000_000
    program_bytes: int = 100_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"Limits.{name} is {value}: give a positive number")


class Renderer(abc.ABC):
    """Draws what programs describe."""

    @abc.abstractmethod
    def render(self, programs: Sequence[str]) -> list[Rendered]:
        """One result per program, in order; a program's failure is a result and never raises.

        Raises:
            SandboxError: there is no sandbox, so that nothing was run.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """End all processes; the next render starts them again."""

    def cpu_s(self) -> float:
        """CPU seconds that its living processes have used so far."""
        return 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class PooledRenderer(Renderer):
    """A renderer whose programs run in a pool of sandboxed workers, each result being remembered.

    `workers` is how many programs run at a time; `cache_mb` how much memory finished pictures may take, 0 for none.
    The processes start at the first render and end with the thread that made it, when the next one starts them again.
    Not for several threads at once.
    """

    workers: int = 2
    cache_mb: int = 64
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"{type(self).__name__}.workers is {self.workers}: give at least 1")
        if self.cache_mb < 0:
            raise ValueError(f"{type(self).__name__}.cache_mb is {self.cache_mb}: give 0 or more")
        self.make_pool()  # says at once what is missing here

    @abc.abstractmethod
    def make_pool(self) -> Pool:
        """The pool, whose processes are not started yet.

        Raises:
            SandboxError: something of the system is missing.
        """

    @cached_property
    def _pool(self) -> Pool:
        return self.make_pool()

    @cached_property
    def _cache(self) -> Cache[Rendered]:
        return Cache(self.cache_mb << 20)

    def render(self, programs: Sequence[str]) -> list[Rendered]:
        found = {program: self._cache.get(program) for program in dict.fromkeys(programs)}
        fresh = [program for program, known in found.items() if known is None]
        small = [program for program in fresh if len(program.encode(errors="replace")) <= self.limits.program_bytes]
        new = {program: self._too_long(program) for program in fresh}
        answers = self._pool.run([program.encode(errors="replace") for program in small])
        new.update({program: _rendered(answer) for program, answer in zip(small, answers, strict=True)})
        for program in small:
            if new[program].failure not in (Failure.TIMEOUT, Failure.CRASHED, Failure.OUT_OF_MEMORY):
                picture = new[program].picture  # those three may be the machine's fault: the next time is another try
                self._cache.put(program, replace(new[program], cached=True, cpu_seconds=0.0), _size(picture))
        return [self._once(program, found, new) for program in programs]

    @staticmethod
    def _once(program: str, found: dict[str, Rendered | None], new: dict[str, Rendered]) -> Rendered:
        """The result of `program`; the second of the same batch is as good as cached."""
        known = found[program]
        if known is not None:
            return known
        found[program] = replace(new[program], cached=True, cpu_seconds=0.0)
        return new[program]

    def _too_long(self, program: str) -> Rendered:
        return Rendered(
            failure=Failure.TOO_LARGE,
            message=f"the program has {len(program)} characters, more than {self.limits.program_bytes} bytes",
        )

    def close(self) -> None:
        self._pool.close()

    def cpu_s(self) -> float:
        return sum(usage_of(pid)[0] for pid in self._pool.pids)


def _size(picture: Picture | None) -> int:
    return 200 + (0 if picture is None else picture.nbytes)


def _rendered(answer: Answer) -> Rendered:
    if answer.failure is not None:
        return Rendered(failure=answer.failure, message=answer.message, cpu_seconds=answer.cpu_seconds)
    picture = np.frombuffer(answer.pixels, np.uint8).reshape(answer.height, answer.width, 3)
    return Rendered(picture=picture, cpu_seconds=answer.cpu_seconds)
