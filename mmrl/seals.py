"""Files that are known again: by their sizes and CRC-32 sums, written last into a folder and compared when it is read.

A weight whose bits were flipped, or a file that was cut, loads as well as any other in most formats; here it is told.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

NAME = "seal.json"
PIECE = 1 << 22
SizeAndSum = tuple[int, int]


class SealError(ValueError):
    """A file of a folder is not as it was written; says which, and how."""


def seal(folder: Path) -> None:
    """Bring every file below `folder` to the disk and note its size and sum in seal.json."""
    found = {name: [_size_and_sum(folder / name, flush=True)] for name in _names(folder)}
    _write(folder, found)


def admit(folder: Path, name: str, text: str) -> None:
    """Let the file `name` hold `text` as well as what it was sealed with, before it is replaced: a kill in between
    leaves a folder that is as it was written."""
    data, found = text.encode(), _read(folder)
    _write(folder, {**found, name: [*found[name][:1], (len(data), zlib.crc32(data))]})


def check_seal(folder: Path) -> None:
    """Raises:
    SealError: a file is missing, was added, or is not as it was when the folder was sealed.
    """
    wanted, names = _read(folder), _names(folder)
    if missing := sorted({*wanted} - {*names}):
        raise SealError(f"{missing[0]} is missing")
    if added := sorted({*names} - {*wanted}):
        raise SealError(f"{added[0]} was added later")
    for name in names:
        size, allowed = (folder / name).stat().st_size, wanted[name]
        if size not in [known for known, _ in allowed]:
            raise SealError(f"{name} has {size} bytes, and was written with {allowed[0][0]}")
        if _size_and_sum(folder / name) not in allowed:
            raise SealError(f"{name} was changed or damaged after it was written")


def _read(folder: Path) -> dict[str, list[SizeAndSum]]:
    try:
        found = json.loads((folder / NAME).read_text())
        return {str(name): [(int(size), int(total)) for size, total in sums] for name, sums in found.items()}
    except FileNotFoundError as error:
        raise SealError(f"{NAME} is missing") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SealError(f"{NAME} is damaged") from error


def _write(folder: Path, sums: Mapping[str, Sequence[SizeAndSum]]) -> None:
    aside = folder / f".{NAME}"
    with aside.open("w") as file:
        json.dump(sums, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, folder / NAME)


def _names(folder: Path) -> list[str]:
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in files if name != NAME and not name.startswith("."))


def _size_and_sum(path: Path, flush: bool = False) -> SizeAndSum:
    size, total = 0, 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            size, total = size + len(piece), zlib.crc32(piece, total)
        if flush:
            os.fsync(file.fileno())
    return size, total
