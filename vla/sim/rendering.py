"""Which Vulkan driver draws a worker's pictures. States need none.

On a CPU that is Mesa's software driver, lavapipe, of version 24.3 or newer. `make vulkan` unpacks it into the virtual
environment (`vla.sim.lavapipe`), which needs no root and changes nothing outside.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from vla.sim.base import SimulationError

PREFIX = Path(sys.prefix) / "vulkan"
"""Where `make vulkan` unpacks the driver."""
OLDEST = (24, 3)
"""Mesa's first version that has what SAPIEN asks for."""
NAMED = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
MISSING = (
    "pictures need a Vulkan driver, and there is none that SAPIEN can use: run `make vulkan`, or install Mesa's of "
    "24.3 or newer (mesa-vulkan-drivers), or observe the state, which needs none"
)


def settings() -> dict[str, str]:
    """Environment variables of a process that draws.

    Raises:
        SimulationError: there is no driver.
    """
    found, _ = _driver()
    return found


def active() -> str:
    """Which driver that is, in words."""
    return _driver()[1]


def _driver() -> tuple[dict[str, str], str]:
    for name in NAMED:
        if os.environ.get(name):
            return {}, f"the Vulkan driver of {name}"
    own = unpacked()
    if own is not None:
        libraries = [str(path) for path in (PREFIX / "usr/lib").glob("*-linux-gnu")]
        paths = [*libraries, os.environ.get("LD_LIBRARY_PATH", "")]
        return {
            "VK_ICD_FILENAMES": str(own),
            "LD_LIBRARY_PATH": ":".join(path for path in paths if path),
            "LP_NUM_THREADS": "1",
        }, "Mesa's software driver in the virtual environment"
    version = _installed_mesa()
    if version is not None and version >= OLDEST:
        return {"LP_NUM_THREADS": "1"}, f"the system's Mesa {version[0]}.{version[1]}"
    raise SimulationError(MISSING)


def unpacked() -> Path | None:
    """The driver's description, if `make vulkan` was run."""
    return next(iter((PREFIX / "usr/share/vulkan/icd.d").glob("lvp_icd*.json")), None)


def _installed_mesa() -> tuple[int, int] | None:
    """Version of the system's driver, where dpkg knows one."""
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", "mesa-vulkan-drivers"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return None
    version = re.match(r"installed (?:\d+:)?(\d+)\.(\d+)", told)
    return None if version is None else (int(version[1]), int(version[2]))
