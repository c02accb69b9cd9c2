"""Results by program, the longest unused forgotten first."""

from __future__ import annotations

import hashlib
from collections import OrderedDict


class Cache[Result]:
    """At most `capacity` bytes of results; programs are kept as their SHA-256."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: OrderedDict[bytes, tuple[Result, int]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, program: str) -> Result | None:
        """The result of `program`, if it is remembered."""
        key = _key(program)
        if key not in self._held:
            return None
        self._held.move_to_end(key)
        return self._held[key][0]

    def put(self, program: str, result: Result, size: int) -> None:
        """Remember the result of `program`, which takes `size` bytes."""
        key = _key(program)
        if size > self.capacity or key in self._held:
            return
        self._held[key] = result, size
        self._size += size
        while self._size > self.capacity:
            self._size -= self._held.popitem(last=False)[1][1]


def _key(program: str) -> bytes:
    return hashlib.sha256(program.encode(errors="surrogatepass")).digest()
