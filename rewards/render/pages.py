"""Web pages, in Debian's Chromium."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from rewards.render.base import Limits, PooledRenderer
from rewards.render.pool import Pool
from rewards.render.sandbox import SandboxError, python_command, python_sandbox, require
from rewards.render.svg import check_size
from rewards.render.usage import Watch, require_children

BROWSERS = ("chromium-headless-shell", "chromium")
"""In /usr/lib/chromium; the shell is Debian's package of that name, and draws a page in half the time."""
FOLDERS = ("/usr/lib/chromium", "/usr/share/fonts", "/usr/share/fontconfig", "/etc/fonts", "/var/cache/fontconfig")
SHARED_MB = 256
"""Memory that the browser's processes share through /dev/shm."""


def page_limits() -> Limits:
    """Limits of a page; memory is of the whole browser, and files are those of its temporary profile."""
    return Limits(memory_mb=1536, files_mb=SHARED_MB)


@dataclass(frozen=True, kw_only=True)
class Pages(PooledRenderer):
    """The top left `height` x `width` pixels of an HTML page, once it is loaded. Scripts do not run unless `scripts`; a
    page that asks for anything but data: links is forbidden.

    Raises:
        SandboxError: bubblewrap, Chromium or a package is missing.
        ValueError: the size is not positive, or beyond `limits.max_pixels`.
    """

    height: int = 256
    width: int = 256
    scripts: bool = False
    limits: Limits = field(default_factory=page_limits)

    def __post_init__(self) -> None:
        check_size("Pages", self.height, self.width, self.limits.max_pixels)
        super().__post_init__()

    def make_pool(self) -> Pool:
        require()
        require_children()
        folders: list[tuple[Path, str]] = [(Path(name), name) for name in FOLDERS if Path(name).is_dir()]
        inside = python_sandbox(("playwright", "pillow"), folders, self.limits.files_mb)
        sandbox = replace(inside, capabilities=(), browser=True)
        settings = {
            "browser": find_browser(), "height": self.height, "width": self.width, "scripts": self.scripts,
            "memory_mb": self.limits.memory_mb, "files_mb": self.limits.files_mb,
        }  # fmt: skip
        command = sandbox.command(python_command("pages", [settings]))
        limits = self.limits
        return Pool(
            command, self.workers, limits.wall_seconds, limits.max_pixels, Watch(limits.cpu_seconds, limits.memory_mb)
        )


def find_browser() -> str:
    """The browser's own file, which Debian's wrapper would start with extensions and network services.

    Raises:
        SandboxError: there is none.
    """
    for name in BROWSERS:
        if found := shutil.which(name, path="/usr/lib/chromium"):
            return found
    raise SandboxError("pages are drawn by Chromium, which is not in /usr/lib/chromium: run `make browser`")
