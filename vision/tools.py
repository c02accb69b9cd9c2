"""What answers a policy between two turns: a tool that reads what was written and shows what came of it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from vision.data.base import Example


@dataclass(frozen=True)
class Reply:
    """What one turn brought.

    `record` is what rewards and metrics read of it, such as a `rewards.render.Rendered`: the column `records` holds,
    for each conversation, those of all its turns in order. Where `over`, the policy is not asked again, and text and
    pictures are shown to people alone.
    """

    text: str = ""
    pictures: tuple[Image.Image, ...] = ()
    over: bool = False
    record: object = None


class Tool(abc.ABC):
    """Reads each turn of a policy, the last one too, and answers it."""

    @abc.abstractmethod
    def replies(self, turns: Sequence[Sequence[str]], examples: Sequence[Example]) -> list[Reply]:
        """The answer to the last of the `turns` of each of N conversations about `examples`, in order.

        What the policy wrote is hostile: it is run in a sandbox, and nothing of it may raise.
        """

    def cpu_s(self) -> float:
        """CPU seconds that living processes of its own have used so far."""
        return 0.0

    def close(self) -> None:  # noqa: B027 (most tools hold nothing)
        """End what it started."""
