"""Draws charts: runs Python that uses matplotlib and takes the picture of its last figure."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from rewards.render.inside.fork_server import Bounds
from rewards.render.inside.frames import Answer, Failure, Refused

DENIED = {errno.EPERM, errno.EACCES, errno.EROFS, errno.ENETUNREACH, errno.ENETDOWN, errno.ECONNREFUSED}
FULL = {errno.EFBIG, errno.ENOSPC, errno.EDQUOT}
OUTSIDE = ("SocketError", "URLError", "gaierror")
SCRATCH = "/tmp/"  # noqa: S108
SAVE: Callable[..., None] = Figure.savefig
WARM = """
fig, axes = plt.subplots(1, 2, figsize=(3, 2))
axes[0].bar(["a", "b"], [1, 2], label="$x^2$"); axes[0].legend(); axes[0].set_title("Title"); axes[0].grid(True)
axes[1].plot([1, 2, 3], [1.5, -2, 1e3], "o--"); axes[1].scatter([1, 2], [3, 4]); axes[1].set_ylabel("y axis, 0-9 %")
axes[1].pie([1, 2, 3], autopct="%d"); fig.suptitle("S"); axes[0].annotate("n", (0, 1)); fig.tight_layout()
fig.canvas.draw(); fig.savefig(io.BytesIO(), format="png"); plt.close("all")
import collections, datetime, itertools, math, matplotlib.dates, matplotlib.gridspec, matplotlib.patches, numpy.random
"""
SEED = "import random, numpy; random.seed(0); numpy.random.seed(0)"
"""What a program draws at random is the same each time, so that a cache may keep it."""

exec(WARM, {"plt": plt, "io": io})  # noqa: S102 fonts, parsers and caches are then there for every child


def draw(program: bytes, bounds: Bounds) -> Answer:
    """Run `program` (UTF-8) as __main__ and take its current figure, at the size and resolution it has.

    Raises:
        Refused: it does not compile, asked for what it may not, drew nothing, or its figure is too large.
    """
    try:
        code = compile(program.decode(), "<chart>", "exec", dont_inherit=True)
    except SyntaxError as error:
        raise Refused(Failure.SYNTAX_ERROR, f"line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise Refused(Failure.SYNTAX_ERROR, str(error)[:200]) from error
    exec(SEED)  # noqa: S102
    plt.close = lambda *_: None  # many programs close what they saved; the last figure is what counts
    Figure.savefig = _saved  # type: ignore[method-assign, assignment]
    FigureCanvasBase.draw_idle = lambda *_, **__: None  # type: ignore[method-assign]  # pyplot.savefig would draw again
    try:
        exec(code, {"__name__": "__main__", "__builtins__": __builtins__})  # noqa: S102 this process is the sandbox
    except SystemExit:
        pass  # the usual end of a script
    except Exception as error:
        _classify(error)
    return _figure(bounds)


def _saved(figure: Figure, fname: object, **options: object) -> None:
    """Instead of Figure.savefig, half of what a chart costs: a file that can be made is made and left empty."""
    if isinstance(fname, str | os.PathLike):
        open(fname, "wb").close()
    else:
        SAVE(figure, fname, **options)


def _figure(bounds: Bounds) -> Answer:
    if not plt.get_fignums():
        raise Refused(Failure.EMPTY, "it made no figure")
    figure = plt.gcf()
    width, height = (round(float(side)) for side in figure.get_size_inches() * figure.dpi)
    if not 0 < width * height <= bounds.max_pixels:
        raise Refused(Failure.TOO_LARGE, f"its figure has {width} x {height} pixels of at most {bounds.max_pixels}")
    canvas = figure.canvas
    if not figure.get_children()[1:]:
        raise Refused(Failure.EMPTY, "its figure holds nothing")
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())  # type: ignore[attr-defined]
    if drawn.shape[0] * drawn.shape[1] > bounds.max_pixels:
        raise Refused(Failure.TOO_LARGE, f"its picture has {drawn.shape[1]} x {drawn.shape[0]} pixels")
    alpha = drawn[..., 3:].astype(np.uint16)
    pixels = ((drawn[..., :3] * alpha + 255 * (255 - alpha)) // 255).astype(np.uint8)  # on white
    return Answer(height=pixels.shape[0], width=pixels.shape[1], pixels=pixels.tobytes())


def _classify(error: Exception) -> None:
    """Raise as forbidden what the sandbox refused, anything else as it is."""
    if isinstance(error, OSError):
        named = error.filename if isinstance(error.filename, str) else ""
        elsewhere = named.startswith("/") and not named.startswith(SCRATCH)
        if error.errno in FULL:
            raise Refused(Failure.TOO_LARGE, f"it wrote too much: {error.strerror}") from error
        if error.errno in DENIED or elsewhere or type(error).__name__ in OUTSIDE:
            raise Refused(Failure.FORBIDDEN, f"{type(error).__name__}: {str(error)[:300]}") from error
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        raise Refused(Failure.FORBIDDEN, "it may not start a thread") from error
    raise error
