"""What every measurement writes beside its figures."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from mmrl.run import provenance

RESULTS = Path(__file__).parent / "results"


def spread(values: Sequence[float]) -> dict[str, object]:
    """Mean, standard deviation over seeds (n - 1) and the values themselves."""
    deviation = round(statistics.stdev(values), 4) if len(values) > 1 else None
    return {
        "mean": round(statistics.fmean(values), 4),
        "std": deviation,
        "values": [round(v, 4) for v in values],
    }


def pm(figure: dict) -> str:
    """mean +- spread over seeds."""
    if len(figure["values"]) == 1:
        return f"{figure['mean']:.3f}"
    return f"{figure['mean']:.3f} ± {figure['std']:.3f}"


def median(figure: dict) -> float:
    """Of the values of `spread`."""
    return statistics.median(figure["values"])


def write(name: str, figures: dict[str, object]) -> Path:
    """Write figures with versions and machine; the command line is the one that was run."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**figures, "provenance": provenance()}, indent=1) + "\n")
    print(path)
    return path


def write_section(name: str, section: str, figures: object) -> Path:
    """Write one section of a file whose others stay as they are."""
    file = RESULTS / f"{name}.json"
    there = json.loads(file.read_text()) if file.exists() else {}
    there.pop("provenance", None)
    return write(name, {**there, section: figures})
