"""What passes between a worker in the sandbox and the process that asks it: length-prefixed frames over one socket.

A request is a program. An answer is a JSON header and raw pixels; nothing is pickled, and the reader believes no
length.
"""

from __future__ import annotations

import enum
import json
import os
import struct
from dataclasses import dataclass

LENGTH = struct.Struct("<I")
LENGTHS = struct.Struct("<II")
HEADER_BYTES = 4096
"""No header is longer; messages are cut to a quarter of it."""


class Failure(enum.StrEnum):
    """Why there is no picture."""

    SYNTAX_ERROR = "syntax error"
    ERROR = "error"
    """It ran and raised."""
    FORBIDDEN = "forbidden"
    """It asked for something outside its sandbox."""
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out of memory"
    TOO_LARGE = "too large"
    """The program or its picture."""
    EMPTY = "empty picture"
    """Nothing was drawn, or all pixels are alike."""
    CRASHED = "crashed"
    """Its process ended before it answered."""


class BadFrame(ValueError):
    """Bytes that are no answer."""


class Refused(Exception):
    """A program that gets no picture, and why."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


@dataclass(frozen=True)
class Answer:
    """What became of one program: `pixels` (height * width * 3 bytes, RGB), or a failure and one line about it."""

    failure: Failure | None = None
    message: str = ""
    height: int = 0
    width: int = 0
    pixels: bytes = b""
    cpu_seconds: float = 0.0

    def packed(self) -> bytes:
        """The frame that holds it."""
        said = " ".join(self.message.split())[: HEADER_BYTES // 4].encode("ascii", "replace").decode()
        header = json.dumps([self.failure, said, self.height, self.width, self.cpu_seconds]).encode()
        return LENGTHS.pack(len(header), len(self.pixels)) + header + self.pixels


def frame_length(data: bytes | bytearray, max_pixels: int) -> int | None:
    """Bytes of the frame that `data` begins with; None while its first bytes are missing.

    Raises:
        BadFrame: it says that it is longer than an answer can be.
    """
    if len(data) < LENGTHS.size:
        return None
    header, pixels = LENGTHS.unpack_from(data)
    if header > HEADER_BYTES or pixels > 3 * max_pixels:
        raise BadFrame(f"a header of {header} and pixels of {pixels} bytes")
    return int(LENGTHS.size + header + pixels)


def unpacked(data: bytes | bytearray, max_pixels: int) -> Answer:
    """The answer that `data` is, from first to last byte.

    Raises:
        BadFrame: it is none.
    """
    if frame_length(data, max_pixels) != len(data):
        raise BadFrame(f"{len(data)} bytes are not one answer")
    start = LENGTHS.size + LENGTHS.unpack_from(data)[0]
    try:
        failure, message, height, width, seconds = json.loads(bytes(data[LENGTHS.size : start]))
        answer = Answer(
            None if failure is None else Failure(failure),
            str(message), int(height), int(width), bytes(data[start:]), float(seconds),
        )  # fmt: skip
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise BadFrame(f"its header is none ({type(error).__name__})") from error
    wanted = 0 if answer.failure else 3 * answer.height * answer.width
    if min(answer.height, answer.width) < 0 or len(answer.pixels) != wanted or not (answer.failure or wanted):
        raise BadFrame(f"{len(answer.pixels)} bytes are not {answer.height} x {answer.width} pixels")
    return answer


def read_exactly(fd: int, count: int) -> bytes:
    """`count` bytes from `fd`.

    Raises:
        EOFError: the other end was closed.
    """
    data = bytearray()
    while len(data) < count:
        piece = os.read(fd, count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)


def read_program(fd: int) -> bytes:
    """The next program.

    Raises:
        EOFError: there is none, as the other end was closed.
    """
    return read_exactly(fd, LENGTH.unpack(read_exactly(fd, LENGTH.size))[0])


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data`, however often it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
