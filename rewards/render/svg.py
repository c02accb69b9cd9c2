"""SVG drawings, with resvg."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rewards.render.base import PooledRenderer
from rewards.render.charts import fork_pool
from rewards.render.pool import Pool
from rewards.render.sandbox import SandboxError, files_of, python_sandbox


@dataclass(frozen=True, kw_only=True)
class Svg(PooledRenderer):
    """The drawing as large as fits into `height` x `width` pixels, in their middle on white; text is in DejaVu, which
    matplotlib brings. A document that refers to anything outside itself is forbidden; pictures in data: links are not.

    Raises:
        SandboxError: bubblewrap or a package is missing.
        ValueError: the size is not positive, or beyond `limits.max_pixels`.
    """

    height: int = 256
    width: int = 256

    def __post_init__(self) -> None:
        check_size("Svg", self.height, self.width, self.limits.max_pixels)
        super().__post_init__()

    def make_pool(self) -> Pool:
        fonts = next((path for path in files_of("matplotlib") if path.name == "matplotlib"), None)
        if fonts is None:
            raise SandboxError("matplotlib brings the fonts of SVG and has no folder here: install it again")
        found: list[tuple[Path, str]] = [(fonts / "mpl-data" / "fonts" / "ttf", "/fonts")]
        sandbox = python_sandbox(("resvg_py", "pillow"), found, self.limits.files_mb)
        return fork_pool("svg", sandbox, self.limits, self.workers, {"height": self.height, "width": self.width})


def check_size(name: str, height: int, width: int, max_pixels: int) -> None:
    """Check the size of pictures.

    Raises:
        ValueError: it is not positive, or beyond the limit.
    """
    if min(height, width) < 1 or height * width > max_pixels:
        raise ValueError(
            f"{name}.height x width is {height} x {width}: give at least 1 each and at most {max_pixels} pixels "
            "(limits.max_pixels)"
        )
