"""Unpacks Mesa's software Vulkan driver into the virtual environment: `python -m vla.sim.lavapipe`, or `make vulkan`.

apt does the work in folders of its own: no root, and nothing of the system changes. The packages come from wherever the
machine's own sources say; on Debian 12, whose Mesa is too old, from the backports beside them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vla.sim import rendering
from vla.sim.base import SimulationError

PACKAGES = ("mesa-vulkan-drivers",)
"""What make and CI need of the system beyond Python and make; for pictures only."""
TOO_OLD = ("bookworm",)
"""Debian releases whose own Mesa is older than 24.3."""


def install(prefix: Path, sources: Path = Path("/etc/apt"), release: Path = Path("/etc/os-release")) -> int:
    """Unpack the driver and what it needs beyond what is installed; the number of packages.

    Raises:
        SimulationError: it cannot be had, and why.
    """
    told = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', release.read_text(), re.MULTILINE)) if release.is_file() else {}
    codename = told.get("VERSION_CODENAME", "")
    suite = f"{codename}-backports" if codename in TOO_OLD else None
    with tempfile.TemporaryDirectory(prefix="mmrl-vulkan-") as name:
        folder = Path(name)
        _write_sources(folder / "parts", sources, codename, suite)
        for part in ("lists/partial", "cache/archives/partial", "packages"):
            (folder / part).mkdir(parents=True)
        _apt(folder, "update")
        target = ["--target-release", suite] if suite else []
        plan = _apt(folder, "install", "--simulate", "--no-install-recommends", *target, *PACKAGES)
        wanted = [f"{package}={version}" for package, version in _planned(plan)]
        if not wanted:
            raise SimulationError(f"apt finds {PACKAGES[0]} installed already: {rendering.MISSING}")
        _apt(folder, "download", *wanted)
        files, partial = sorted((folder / "packages").glob("*.deb")), prefix.with_name(f"{prefix.name}.partial")
        for file in files:
            subprocess.run(["dpkg-deb", "--extract", str(file), str(partial)], check=True)
        shutil.rmtree(prefix, ignore_errors=True)
        partial.rename(prefix)
    return len(files)


def _planned(plan: str) -> Iterator[tuple[str, str]]:
    """Packages and versions of a simulated installation; headers are of no use here."""
    for package, version in re.findall(r"^Inst (\S+) (?:\[[^]]*\] )?\((\S+) ", plan, re.MULTILINE):
        if not package.endswith("-dev"):
            yield package, version


def _write_sources(parts: Path, sources: Path, codename: str, suite: str | None) -> None:
    """The machine's own sources and, from the same mirror, its backports."""
    parts.mkdir(parents=True)
    for file in [sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))]:
        if file.suffix not in (".list", ".sources") or not file.is_file():
            continue
        text = file.read_text()
        (parts / file.name).write_text(text)
        more = backports(text, file.suffix, codename, suite) if suite else ""
        if more:
            (parts / f"backports-{file.name}").write_text(more)


def backports(text: str, suffix: str, codename: str, suite: str) -> str:
    """The entries of a sources file that name the release itself, naming `suite` instead."""
    if suffix == ".list":
        lines = [line for line in text.splitlines() if re.match(rf"deb\s.*\s{codename}\s", line)]
        return "".join(re.sub(rf"\s{codename}\s", f" {suite} ", line, count=1) + "\n" for line in lines)
    stanzas = [s for s in re.split(r"\n\s*\n", text) if re.search(rf"^Suites:.*\b{codename}(\s|$)", s, re.MULTILINE)]
    return "\n\n".join(re.sub(r"^Suites:.*$", f"Suites: {suite}", s, flags=re.MULTILINE) for s in stanzas)


def _apt(folder: Path, *arguments: str) -> str:
    """Run apt-get on folders of our own.

    Raises:
        SimulationError: there is no apt, or it says no.
    """
    options = {
        "Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": str(folder / "parts"),
        "Dir::State::lists": str(folder / "lists"), "Dir::Cache": str(folder / "cache"), "Debug::NoLocking": "1",
        "APT::Sandbox::User": "",
    }  # fmt: skip
    command = ["apt-get", "--quiet", *(f"-o{key}={value}" for key, value in options.items()), *arguments]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=folder / "packages", env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise SimulationError(f"there is no {error.filename} here: {rendering.MISSING}") from error
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise SimulationError(f"`apt-get {arguments[0]}` says {reason!r}: {rendering.MISSING}")
    return done.stdout


def main() -> int:
    """Make sure that there is a driver, and say which."""
    try:
        try:
            print(f"vulkan: {rendering.active()}")
        except SimulationError:
            count = install(rendering.PREFIX)
            print(f"vulkan: {rendering.active()} ({count} packages unpacked)")
    except (SimulationError, OSError, subprocess.CalledProcessError) as error:
        print(f"vulkan: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
