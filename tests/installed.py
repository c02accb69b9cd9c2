"""A wheel of the checkout in an environment of its own, and its command in a folder."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")} | {
    "OMP_NUM_THREADS": "1"
}


def installed(shared: Path) -> Path:
    """The command `mmrl` of a wheel in an environment that sees the libraries but not the checkout; made once in the
    folder `shared`, whichever process of a test run comes first."""
    folder = shared / "installed"
    command = folder / "env" / "bin" / "mmrl"
    with (shared / "installed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            _install(folder)
            (folder / "ready").touch()
    return command


def _install(folder: Path) -> None:
    uv = Path(sys.executable).parent / "uv"
    build = [uv, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", folder, ROOT]
    subprocess.run([str(word) for word in build], check=True, capture_output=True, env=ENVIRONMENT)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
    (wheel,) = folder.glob("*.whl")
    python = folder / "env" / "bin" / "python"
    install = [uv, "pip", "install", "--offline", "--no-deps", "--python", python, wheel]
    subprocess.run([str(word) for word in install], check=True, capture_output=True, env=ENVIRONMENT)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")


def call(mmrl: Path, folder: Path, *words: str, status: int = 0, timeout: float = 280, **variables: str) -> str:
    """Run a command of it in `folder`; returns what it printed, errors too if they are expected."""
    done = subprocess.run(
        [str(mmrl), *words], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT | variables, timeout=timeout
    )
    assert done.returncode == status, f"{words}: {done.stdout[-1000:]} {done.stderr[-2000:]}"
    return done.stdout if status == 0 else done.stdout + done.stderr
