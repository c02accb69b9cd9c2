"""First pictures of demonstrations beside those of the simulator at the same initial states, on a page to look at."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

PAGE = Path("check.html")
STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;margin:1.5rem auto;max-width:60rem;padding:0 1rem}"
    ".pair{display:grid;grid-template-columns:repeat(2,minmax(0,20rem));gap:1rem;margin-bottom:1rem}figure{margin:0}"
    "img{width:100%;image-rendering:pixelated;display:block}figcaption{font-size:.85rem;overflow-wrap:anywhere}"
)
HEAD = (
    "<!doctype html><html lang=en><meta charset=utf-8>"
    "<meta name=viewport content='width=device-width, initial-scale=1'>"
    f"<title>mmrl check</title><style>{STYLE}</style>"
)


@dataclass(frozen=True)
class Compared:
    """Pictures of one initial state, by camera, (3, Y, X) uint8."""

    name: str
    recorded: Mapping[str, Tensor]
    simulated: Mapping[str, Tensor]

    def pairs(self) -> list[tuple[str, str]]:
        """Cameras of the data set with those of the simulator: of the same name, else in their order."""
        left = [name for name in self.simulated if name not in self.recorded]
        return [
            (name, name if name in self.simulated else left.pop(0))
            for name in self.recorded
            if name in self.simulated or left
        ]


def camera_line(compared: Sequence[Compared], target: Path = PAGE) -> str:
    """Write the page, and say what is on it."""
    if not compared or not compared[0].pairs():
        recorded = ", ".join(compared[0].recorded) if compared else ""
        return f"the data set has {'the cameras ' + recorded if recorded else 'no pictures'}: nothing to compare"
    write_page(compared, target)
    said = []
    for recorded, simulated in compared[0].pairs():
        one, other = compared[0].recorded[recorded], compared[0].simulated[simulated]
        name = recorded if recorded == simulated else f"{recorded} | {simulated}"
        sizes = [f"{picture.shape[2]} x {picture.shape[1]}" for picture in (one, other)]
        apart = [
            float((a.recorded[recorded].float() - a.simulated[simulated].float()).abs().mean()) / 255
            for a in compared
            if a.recorded[recorded].shape == a.simulated[simulated].shape
        ]
        far = f"mean difference {sum(apart) / len(apart):.1%}" if apart else f"{sizes[0]} in the data, {sizes[1]} here"
        said.append(f"{name}: {far}")
    return f"frame of the data set | frame of the simulator, side by side: {target} ({' · '.join(said)})"


def write_page(compared: Sequence[Compared], target: Path) -> None:
    """One self-contained page."""
    parts = [HEAD]
    parts.append("<h1>Data set | simulator</h1><p>The first frame of a demonstration, and what the simulator's camera ")
    parts.append("sees at the same initial state: same place, direction and opening angle? same colours and light?</p>")
    for one in compared:
        parts.append(f"<h2>{html.escape(one.name)}</h2>")
        for recorded, simulated in one.pairs():
            shots = (
                (f"data set: {recorded}", one.recorded[recorded]),
                (f"simulator: {simulated}", one.simulated[simulated]),
            )
            figures = [
                f"<figure><img alt='' src='{_uri(picture)}'><figcaption>{html.escape(label)}, {picture.shape[2]} x "
                f"{picture.shape[1]} pixels</figcaption></figure>"
                for label, picture in shots
            ]
            parts.append(f"<div class=pair>{''.join(figures)}</div>")
    target.write_text("".join(parts))


def _uri(picture: Tensor) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture.movedim(0, -1).cpu().numpy()).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
