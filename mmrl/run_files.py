"""What the files of a run folder say, for reports and model cards."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PARITY = "parity/logprob_diff_max"


@dataclass(frozen=True)
class Run:
    """What the files of one run folder say; `summary` is made of the metrics so far when it is not finished."""

    path: Path
    label: str
    colour: int
    finished: bool
    summary: dict[str, Any]
    lines: list[dict[str, float]]
    provenance: dict[str, Any]
    config: str

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and finite values of one metric."""
        kept = [(line["step"], line[name]) for line in self.lines if math.isfinite(line.get(name, math.nan))]
        return [step for step, _ in kept], [value for _, value in kept]


def read_run(path: Path, colour: int = 0, label: str | None = None) -> Run:
    """Read a run folder, finished or not. `label` and `colour` are what it is called and drawn with beside others.

    Raises:
        FileNotFoundError: it holds neither summary.json nor metrics.jsonl.
    """
    names = ("summary.json", "metrics.jsonl", "config.yaml", "provenance.json")
    texts = ((path / name).read_text(errors="replace") if (path / name).is_file() else "" for name in names)
    summary, metrics, config, provenance = texts
    if not summary and not (path / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"{path} has neither summary.json nor metrics.jsonl: give the folder of a run")
    lines = [line for text in metrics.splitlines() if "step" in (line := _parsed(text))]
    settings = mapping(yaml.safe_load(config))
    known = {"recipe": settings.get("recipe", path.parent.name), "seed": settings.get("seed", "?"), **_so_far(lines)}
    known |= _parsed(summary)
    return Run(
        path, label or str(known["recipe"]), colour, bool(summary), known, lines, _parsed(provenance), config
    )  # fmt: skip


def mapping(found: object) -> dict[str, Any]:
    """`found` if it is a mapping, else nothing: files of a run may be cut or of another version."""
    return found if isinstance(found, dict) else {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        return mapping(json.loads(text))
    except json.JSONDecodeError:  # the last line of a killed or living run may be cut
        return {}


def _so_far(lines: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The part of a summary that metrics can tell; the evaluator's first metric is taken for the primary one."""
    found = []
    for line in lines:
        names = [key for key in line if f"{key}/low" in line]
        read = {n[5:]: {"value": line[n], "low": line[f"{n}/low"], "high": line[f"{n}/high"]} for n in names}
        found += [(line["step"], read)] if read else []
    return {
        "steps": max((int(line["step"]) for line in lines), default=0),
        "eval_before": found[0][1] if found else {},
        "eval_after": found[-1][1] if len(found) > 1 else {},
        "evaluated_at": found[-1][0] if found else 0,
        "primary_metric": next(iter(found[0][1])) if found else "",
        "parity": {"logprob_diff_max": max((line.get(PARITY, 0.0) for line in lines), default=0.0)},
    }
