"""Programs that stand inside a text which is not theirs: a figure that is set up already, the page around a body."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewards.render.base import Rendered, Renderer

_LINE = re.compile(r"^line (\d+)")


@dataclass(frozen=True)
class Within(Renderer):
    """What `renderer` draws of `before`, the program and `after`, with nothing between them; a line that a message
    names is that of the program. As the whole is one program, it can undo what stands before it: no means of safety."""

    renderer: Renderer
    before: str = ""
    after: str = ""

    def render(self, programs: Sequence[str]) -> list[Rendered]:
        found = self.renderer.render([f"{self.before}{program}{self.after}" for program in programs])
        return [replace(one, message=_LINE.sub(self._own_line, one.message)) for one in found]

    def _own_line(self, found: re.Match[str]) -> str:
        return f"line {max(1, int(found.group(1)) - self.before.count(chr(10)))}"

    def close(self) -> None:
        self.renderer.close()

    def cpu_s(self) -> float:
        return self.renderer.cpu_s()
