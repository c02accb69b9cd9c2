"""Hostile programs: each ends as a named failure, reaches nothing, and leaves the pool as it was.

All are bounded by themselves too (counts, sizes, seconds), should the sandbox not hold them, and by tests.rendering.bounded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.render import Charts, Failure, Limits, Pages, Svg
from rewards.render.base import PooledRenderer
from rewards.render.usage import tree_of
from tests.rendering import BAR, BOX, DISC, TIGHT, Listener, bounded, need_browser, need_bubblewrap, one

pytestmark = pytest.mark.timeout(240)
ANY = frozenset(Failure)
HOME = str(Path.home())
FORBIDDEN, TIMEOUT, TOO_LARGE, CRASHED = (
    {kind} for kind in (Failure.FORBIDDEN, Failure.TIMEOUT, Failure.TOO_LARGE, Failure.CRASHED)
)


@pytest.fixture(scope="module")
def listener() -> Iterator[Listener]:
    listening = Listener()
    yield listening
    listening.close()


@pytest.fixture(scope="module")
def charts() -> Iterator[Charts]:
    need_bubblewrap()
    with bounded(), Charts(workers=1, cache_mb=0, limits=TIGHT) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def svg() -> Iterator[Svg]:
    need_bubblewrap()
    with bounded(), Svg(workers=1, cache_mb=0, limits=TIGHT) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def pages() -> Iterator[Pages]:
    need_browser()
    limits = Limits(cpu_seconds=6, wall_seconds=15, memory_mb=900, files_mb=64, program_bytes=20_000_000)
    with bounded(), Pages(workers=1, cache_mb=0, limits=limits) as renderer:
        yield renderer


def alive(renderer: PooledRenderer, good: str) -> list[int]:
    """The pool's processes, all of them, once it has drawn something."""
    assert one(renderer, good.format(3)).picture is not None
    (pid,) = renderer._pool.pids
    return list(tree_of(pid))


BOMBS = {
    "reads /etc/passwd": ("open('/etc/passwd').read()", FORBIDDEN),
    "reads the home folder": (f"import os; os.listdir({HOME!r})", FORBIDDEN),
    "reads /proc": ("open('/proc/1/environ').read()", FORBIDDEN),
    "writes to the root": ("open('/x', 'w').write('x')", FORBIDDEN),
    "writes to its own code": ("open('/code/rewards/render/inside/charts.py', 'w')", FORBIDDEN),
    "writes to the packages": ("open('/packages/matplotlib/x', 'w')", FORBIDDEN),
    "writes to shared memory": ("open('/dev/shm/x', 'w')", FORBIDDEN),
    "opens a socket": ("import socket; socket.create_connection(('127.0.0.1', {port}))", FORBIDDEN),
    "sends a datagram": (
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))", FORBIDDEN,
    ),
    "fetches a page": ("import urllib.request as r; r.urlopen('http://127.0.0.1:{port}/')", FORBIDDEN),
    "forks": ("import os, time\nfor _ in range(8):\n    os.fork()\ntime.sleep(20)", FORBIDDEN),
    "forks whatever happens": (
        "import os\nfor _ in range(300):\n    try: os.fork()\n    except OSError: pass", {Failure.EMPTY},
    ),
    "starts threads": (
        "import threading, time\nfor _ in range(300): threading.Thread(target=time.sleep, args=(20,)).start()", FORBIDDEN,
    ),
    "fills memory": ("x = []\nfor _ in range(40): x.append(bytearray(b'x' * (50 << 20)))", {Failure.OUT_OF_MEMORY}),
    "maps shared memory": (
        "import mmap\nfor _ in range(40):\n    m = mmap.mmap(-1, 50 << 20); m.write(b'x' * (50 << 20)); globals()[id(m)] = m",
        ANY,
    ),
    "loops": ("import time\nend = time.time() + 90\nwhile time.time() < end: pass", TIMEOUT),
    "sleeps": ("import time; time.sleep(90)", TIMEOUT),
    "swallows signals": (
        "import signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, lambda *_: None)\n"
        "    except (OSError, ValueError): pass\nend = time.time() + 90\n"
        "while time.time() < end:\n    try:\n        while time.time() < end: pass\n    except BaseException: pass",
        TIMEOUT,
    ),
    "draws a giant figure": ("import matplotlib.pyplot as plt; plt.figure(figsize=(1e4, 1e4)); plt.plot([1])", TOO_LARGE),
    "saves a giant figure": (
        "import matplotlib.pyplot as plt; plt.plot([1]); plt.savefig('a.png', dpi=4000)", {None},
    ),
    "saves a giant figure to memory": (
        "import io, matplotlib.pyplot as plt; plt.plot([1]); plt.savefig(io.BytesIO(), dpi=4000)",
        {Failure.OUT_OF_MEMORY, Failure.ERROR, Failure.TIMEOUT},
    ),
    "prints without end": ("for _ in range(3000): print('x' * 1_000_000)", {Failure.EMPTY, Failure.TIMEOUT}),
    "writes a giant file": ("f = open('a', 'wb')\nfor _ in range(300): f.write(bytes(1 << 20))", TOO_LARGE),
    "writes many files": ("for n in range(100_000): open(str(n), 'w').close()", TOO_LARGE),
    "opens many files": ("x = [open('a', 'w') for _ in range(5000)]", {Failure.ERROR}),
    "reads through a link": ("import os; os.symlink('/etc/passwd', 'a'); open('a').read()", {Failure.ERROR}),
    "writes through a link": (
        "import os, matplotlib.pyplot as plt; os.symlink('/code/x.png', 'a.png'); plt.plot([1]); plt.savefig('a.png')",
        FORBIDDEN,
    ),
    "exits at once": ("import os; os._exit(0)", CRASHED),
    "aborts": ("import os; os.abort()", CRASHED),
    "kills its group": ("import os; os.kill(0, 9)", ANY),
    "kills all that it sees": ("import os; os.kill(-1, 9)", ANY),
    "kills its parent": ("import os; os.kill(os.getppid() or 1, 9)", ANY),
    "reads address 0": ("import ctypes; ctypes.string_at(0)", CRASHED),
    "runs a program": ("import subprocess; subprocess.run(['/python/bin/python3', '-V'])", FORBIDDEN),
    "becomes a program": ("import os; os.execv('/python/bin/python3', ['x'])", FORBIDDEN),
    "runs a shell": ("import os\nif os.system('true') == 0: raise ValueError('it ran')", {Failure.EMPTY}),
    "runs latex": (
        "import matplotlib.pyplot as plt; plt.rcParams['text.usetex'] = True; plt.title('x'); plt.savefig('a.png')",
        {Failure.ERROR, Failure.FORBIDDEN},
    ),
    "fetches a style": (
        "import matplotlib.pyplot as plt; plt.style.use('http://127.0.0.1:{port}/a.mplstyle')",
        {Failure.ERROR, Failure.FORBIDDEN},
    ),
    "has rcParams write elsewhere": (
        "import os, matplotlib as m; os.environ['MPLCONFIGDIR'] = '/code'; m.rcParams['savefig.directory'] = '/code'\n"
        "import matplotlib.pyplot as plt; plt.plot([1]); plt.savefig(m.rcParams['savefig.directory'] + '/x.png')",
        FORBIDDEN,
    ),
    "saves elsewhere": (f"import matplotlib.pyplot as plt; plt.plot([1]); plt.savefig({HOME + '/x.png'!r})", FORBIDDEN),
    "answers in our place": (
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'\\xff' * 100)\n    except OSError: pass\nos._exit(0)", CRASHED,
    ),
    "nests deeply": ("(" * 5000 + ")" * 5000, {Failure.SYNTAX_ERROR, Failure.CRASHED, Failure.OUT_OF_MEMORY}),
    "recurses": (
        "import sys; sys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())", ANY,
    ),
    "is long": ("#" * 200_000, TOO_LARGE),
    "holds a NUL": ("x = 1\0", {Failure.SYNTAX_ERROR}),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_a_hostile_chart_fails_and_the_worker_lives(name: str, charts: Charts, listener: Listener) -> None:
    program, expected = BOMBS[name]
    before = alive(charts, BAR)
    result = one(charts, program.replace("{port}", str(listener.port)))
    assert result.failure in expected, (result.failure, result.message)
    assert alive(charts, BAR) == before  # the same processes, none more, no zombie
    assert charts._pool.lost == 0
    assert not listener.heard()
    assert not Path(HOME, "x.png").exists()


SYSTEM_CALLS = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
worked = []
def attempt(name, result):
    if result != -1: worked.append(name)
attempt("socket", libc.socket(2, 1, 0))
attempt("unix socket", libc.socket(1, 1, 0))
attempt("ptrace", libc.ptrace(16, 1, 0, 0))
attempt("mount", libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
attempt("umount", libc.umount2(b"/tmp", 2))
attempt("unshare", libc.unshare(0x10000000))
attempt("chroot", libc.chroot(b"/tmp"))
attempt("memfd", libc.memfd_create(b"x", 0))
attempt("shared memory", libc.shmget(0, 4096, 0o1600))
attempt("setuid", libc.setuid(0))
attempt("keyring", libc.syscall(250 if platform.machine() == "x86_64" else 219, 0, -3, 1))
attempt("io_uring", libc.syscall(425, 8, ctypes.create_string_buffer(120)))
attempt("clone3", libc.syscall(435, ctypes.create_string_buffer(88), 88))
attempt("bpf", libc.syscall(321 if platform.machine() == "x86_64" else 280, 0, ctypes.create_string_buffer(128), 128))
caps = (ctypes.c_uint * 6)()
libc.capget((ctypes.c_uint * 2)(0x20080522, 0), caps)
attempt("capabilities", 1 if any(caps) else -1)
attempt("hard limit", libc.setrlimit(0, (ctypes.c_ulong * 2)(10**6, 10**6)))
attempt("x32 fork", libc.syscall(0x40000000 + 57) if platform.machine() == "x86_64" else -1)
raise ValueError(f"worked: {worked}")
"""


def test_system_calls_of_the_kernel_are_refused_to_machine_code(charts: Charts) -> None:
    result = one(charts, SYSTEM_CALLS)
    assert result.message == "ValueError: worked: []"


def test_a_program_sees_nothing_of_this_machine(charts: Charts, monkeypatch: pytest.MonkeyPatch) -> None:
    look = (
        "import os, sys, socket\nraise ValueError((sorted(os.listdir('/')), os.listdir('/tmp'), sorted(os.listdir('/dev')),"
        " dict(os.environ), os.getpid(), os.getuid(), socket.gethostname(), sys.argv))"
    )
    monkeypatch.setenv("MMRL_SECRET", "secret")
    charts.close()
    message = one(charts, look).message
    top = ["code", "dev", "lib", "lib64", "packages", "python", "tmp", "usr"]
    devices = ["null", "random", "urandom", "zero"]
    assert message == f"ValueError: {(top, [], devices, {}, 1, 65534, 'render', [''])}"


def test_nothing_leaks_from_a_program_to_the_next(charts: Charts) -> None:
    leave = (
        "import builtins, os, numpy, matplotlib, matplotlib.pyplot as plt\nopen('/tmp/left', 'w').write('x')\n"
        "builtins.left = numpy.left = 1; matplotlib.rcParams['lines.linewidth'] = 99; plt.figure(); plt.plot([1])\n"
        "os.environ['LEFT'] = '1'; numpy.random.seed(5); os.chdir('/dev'); plt.bar = None"
    )
    find = (
        "import os, numpy, matplotlib, matplotlib.pyplot as plt, builtins\n"
        "raise ValueError((os.listdir('/tmp'), hasattr(builtins, 'left'), hasattr(numpy, 'left'), plt.get_fignums(),"
        " matplotlib.rcParams['lines.linewidth'], dict(os.environ), numpy.random.randint(10**6), os.getcwd(), plt.bar is None))"
    )
    before = one(charts, find).message
    assert one(charts, leave).picture is not None
    assert one(charts, find).message == before
    assert "left" not in before


PAGES = {
    "loads a file": ("<img src='file:///etc/passwd'>text", FORBIDDEN),
    "frames a file": ("<iframe src='file:///code'></iframe>text", FORBIDDEN),
    "loads from the network": ("<img src='http://127.0.0.1:{port}/a.png'>text", FORBIDDEN),
    "loads a style": ("<style>@import url('http://127.0.0.1:{port}/a.css');</style>text", FORBIDDEN),
    "loads a font": (
        "<style>@font-face {{font-family: f; src: url(http://127.0.0.1:{port}/f)}} p {{font-family: f}}</style><p>text",
        FORBIDDEN,
    ),
    "refreshes to the network": ("<meta http-equiv=refresh content='0;url=http://127.0.0.1:{port}/'>text", FORBIDDEN),
    "refreshes to a file": ("<meta http-equiv=refresh content='0;url=file:///etc/passwd'>text", {*FORBIDDEN, None}),
    "prefetches": (
        "<link rel=preconnect href='http://127.0.0.1:{port}'><link rel=dns-prefetch href='http://127.0.0.1:{port}'>text",
        {*FORBIDDEN, None},
    ),
    "has a script": ("<script>document.body.textContent = 'x'; while (1);</script>", {Failure.EMPTY}),
    "embeds an object": ("<object data='http://127.0.0.1:{port}/a'></object><embed src='file:///etc/passwd'>text", FORBIDDEN),
    "has a huge document": ("<div>" * 400_000 + "text", ANY | {None}),
    "has a wide document": ("<p style='float:left'>word</p>" * 200_000, ANY | {None}),
    "has a style that hangs": (
        "<style>" + "".join(f"div:has(div:has(~ div + div > :nth-last-child({n}n of div))) {{{{color:red}}}}" for n in range(1, 300))
        + "</style>" + "<div><div><div>x</div></div></div>" * 20_000, ANY | {None},
    ),
    "blurs without end": (
        "".join(f"<div style='width:9000px;height:9000px;filter:blur({n}px)'>" for n in range(100, 400)) + "text", ANY | {None},
    ),
    "is tall": ("<div style='height:9999999999px;width:9999999999px;background:linear-gradient(red,blue)'></div>", ANY | {None}),
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_a_hostile_page_is_contained_and_the_pool_lives(name: str, pages: Pages, listener: Listener) -> None:
    program, expected = PAGES[name]
    alive(pages, BOX)
    result = one(pages, program.format(port=listener.port))
    assert result.failure in expected, (result.failure, result.message)
    alive(pages, BOX)
    assert not listener.heard()


SCRIPTS = {
    "loops": ("text<script>const end = Date.now() + 90000; while (Date.now() < end);</script>", TIMEOUT),
    "fetches": ("text<script>fetch('http://127.0.0.1:{port}/'); new WebSocket('ws://127.0.0.1:{port}/')</script>", ANY),
    "fills memory": (
        "text<script>const a = []; for (let i = 0; i < 300; i++) a.push(new Uint8Array(1e7).fill(1))</script>", ANY | {None},
    ),
    "opens windows and waits": ("text<script>for (let i = 0; i < 50; i++) open('about:blank'); alert(1)</script>", ANY | {None}),
}  # fmt: skip


@pytest.fixture(scope="module")
def scripted() -> Iterator[Pages]:
    need_browser()
    limits = Limits(cpu_seconds=6, wall_seconds=15, memory_mb=900, files_mb=64)
    with bounded(), Pages(workers=1, cache_mb=0, scripts=True, limits=limits) as renderer:
        yield renderer


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_where_they_are_allowed_are_contained_too(name: str, scripted: Pages, listener: Listener) -> None:
    program, expected = SCRIPTS[name]
    alive(scripted, BOX)
    result = one(scripted, program.replace("{port}", str(listener.port)))
    assert result.failure in expected, (result.failure, result.message)
    alive(scripted, BOX)
    assert not listener.heard()


SVG = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">'
LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
USES = "".join(f'<g id="g{n}">{f"""<use href="#g{n - 1}" x="0.1"/>""" * 10}</g>' for n in range(1, 10))
DRAWINGS = {
    "names a file as an entity": (
        f'<!DOCTYPE svg [<!ENTITY e SYSTEM "file:///etc/passwd">]>{SVG}<text y="5">&e;</text></svg>', FORBIDDEN,
    ),
    "names an address as its type": (
        f'<!DOCTYPE svg SYSTEM "http://127.0.0.1:{{port}}/a.dtd">{SVG}<circle r="5"/></svg>', {*FORBIDDEN, None},
    ),
    "laughs": (f'<!DOCTYPE svg [<!ENTITY l0 "ha">{LAUGHS}]>{SVG}<text y="5">&l9;</text></svg>', FORBIDDEN),
    "shows a picture of the network": (f'{SVG}<image href="http://127.0.0.1:{{port}}/a.png"/></svg>', FORBIDDEN),
    "shows a file": (f'{SVG}<image xlink:href="/code/rewards/__init__.py" width="9" height="9"/></svg>', FORBIDDEN),
    "hides a file in data": (
        f'{SVG}<image width="9" height="9" href="data:image/svg+xml,%3Csvg xmlns=\'http://www.w3.org/2000/svg\'%3E'
        "%3Cimage href='/etc/passwd'/%3E%3C/svg%3E\"/></svg>", {Failure.EMPTY},
    ),
    "imports a style": (f"{SVG}<style>@import url(http://127.0.0.1:{{port}}/a.css);</style></svg>", FORBIDDEN),
    "fills from outside": (f'{SVG}<rect width="9" height="9" fill="url(http://127.0.0.1:{{port}}/a#b)"/></svg>', FORBIDDEN),
    "has a style sheet": (f'<?xml-stylesheet href="http://127.0.0.1:{{port}}/a.css"?>{SVG}</svg>', FORBIDDEN),
    "uses itself": (f'{SVG}<g id="a"><use href="#a"/><circle r="3"/><use href="#b"/></g><g id="b"><use href="#a"/></g></svg>', ANY | {None}),
    "uses without end": (f'{SVG}<g id="g0"><rect width="5" height="5"/></g>{USES}</svg>', ANY | {None}),
    "is giant": (f'{SVG.replace("9 9", "1e30 1e-30")}<rect width="1e30" height="1"/></svg>', ANY | {None}),
    "blurs without end": (
        f'{SVG}<filter id="f" x="-1e6" y="-1e6" width="1e9" height="1e9"><feGaussianBlur stdDeviation="1e6"/>'
        '<feTurbulence baseFrequency="9" numOctaves="999999"/></filter><rect width="9" height="9" filter="url(#f)"/></svg>',
        ANY | {None},
    ),
    "nests deeply": (SVG + "<g>" * 12_000 + "</g>" * 12_000 + "</svg>", ANY),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_hostile_drawing_is_contained_and_the_worker_lives(name: str, svg: Svg, listener: Listener) -> None:
    program, expected = DRAWINGS[name]
    before = alive(svg, DISC)
    result = one(svg, program.replace("{port}", str(listener.port)))
    assert result.failure in expected, (result.failure, result.message)
    assert alive(svg, DISC) == before
    assert svg._pool.lost == 0
    assert not listener.heard()


def test_no_process_outlives_its_renderer() -> None:
    need_bubblewrap()
    with Charts(workers=2, cache_mb=0, limits=TIGHT) as renderer:
        renderer.render([BAR.format(1), BAR.format(2)])
        processes = [each for pid in renderer._pool.pids for each in tree_of(pid)]
        assert len(processes) == 6
    end = time.monotonic() + 10
    while (left := [pid for pid in processes if os.path.exists(f"/proc/{pid}")]) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []
