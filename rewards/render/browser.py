"""Installs Debian's browser for pages: `python -m rewards.render.browser`, or `make browser`."""

from __future__ import annotations

import os
import subprocess

from rewards.render.pages import find_browser
from rewards.render.sandbox import SandboxError

PACKAGES = ("chromium-headless-shell", "fonts-dejavu-core", "fonts-liberation")
"""What make and CI need of the system for pages."""


def install() -> None:
    """Install PACKAGES with apt.

    Raises:
        SandboxError: apt says no, or this is not root.
    """
    wanted = f"apt-get install {' '.join(PACKAGES)}"
    if os.geteuid() != 0:
        raise SandboxError(f"pages need Debian's Chromium, which only root can install: run `sudo {wanted}`")
    for command in (["apt-get", "update"], ["apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise SandboxError(f"pages need Debian's Chromium, and there is no {error.filename} here") from error
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
            raise SandboxError(f"pages need Debian's Chromium, and `{' '.join(command[:2])}` says {said!r}")


def main() -> int:
    """Install the browser unless it is there; the exit code."""
    try:
        find_browser()
    except SandboxError:
        try:
            install()
        except SandboxError as error:
            print(f"{error}; the tests of pages are skipped")
            return 1
    print(f"pages are drawn by {find_browser()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
