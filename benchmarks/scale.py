"""What changes where a run is spread over processes. Each sub-command measures one section of results/scale.json.

python -m benchmarks.scale equal          # two gloo processes against one, DDP and FSDP2; 3 minutes
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import write_section
from tests.launching import on_two_processes
from tests.scale_cases import CASES, ENGINES, differences, one_process

ROOT = Path(__file__).resolve().parent.parent


def equal() -> dict[str, object]:
    """Largest differences of two ranks from one process, relative to the largest number of each kind, by policy and
    engine (`tests/scale_cases.py` says which policies and how they are updated)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one_process(folder)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = on_two_processes("tests/scale_cases.py", str(folder), sharded=True)
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
        return {
            f"{domain}, {kind}": {engine: differences(folder, engine, (domain, kind)) for engine in ENGINES}
            for domain, kind in CASES
        }


SECTIONS: dict[str, Callable[[], dict[str, object]]] = {"equal": equal}


def main() -> None:
    """Measure a section and put it beside the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    section = parser.parse_args().section
    write_section("scale", section, SECTIONS[section]())


if __name__ == "__main__":
    main()
