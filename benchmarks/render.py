"""How fast charts, pages and SVG are drawn, and whether the pools last: `python -m benchmarks.render [soak]`.

CPU-seconds are those of this process and all workers. Programs are written here and all differ; one in ten of the
soak is hostile. The figures go to benchmarks/results/render.json, those of the soak to render_soak.json.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import write
from rewards.render import Charts, Limits, Pages, Svg
from rewards.render.base import PooledRenderer
from rewards.render.usage import tree_of, usage_of

COLOURS = ["red", "green", "blue", "orange", "purple", "teal"]
CHART_KINDS = [
    "plt.bar(list('abc'), {ys})", "plt.plot({ys}, marker='o')", "plt.scatter({ys}, {ys})", "plt.pie({ys})",
    "plt.barh(list('abc'), {ys})", "plt.hist({ys}, bins=5)",
]  # fmt: skip
HOSTILE = {
    "charts": [
        "open('/etc/passwd').read()", "import os; os.fork()", "import os; os._exit(1)", "import os; os.kill(0, 9)",
        "x = bytearray(10 ** 10)", "import socket; socket.socket()", "import ctypes; ctypes.string_at(0)",
        "import os\nfor n in range(1000): open(str(n), 'w')", "import subprocess; subprocess.run(['sh'])",
        "while True: pass",
    ],
    "svg": [
        '<!DOCTYPE svg [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>', "<svg",
        '<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1/a.png"/></svg>',
        '<svg xmlns="http://www.w3.org/2000/svg"><g id="a"><use href="#a"/></g></svg>',
    ],
    "pages": [
        "<img src='file:///etc/passwd'>", "<meta http-equiv=refresh content='0;url=http://127.0.0.1:9/'>",
        "<div>" * 3000,
        "".join(f"<div style='width:9000px;height:9000px;filter:blur({n}px)'>" for n in range(100, 400)) + "hangs",
    ],
}  # fmt: skip


def chart(n: int, chance: random.Random) -> str:
    """A small chart with title, labels and legend."""
    ys = [round(chance.uniform(1, 9), 2) for _ in range(3)]
    draw = CHART_KINDS[n % len(CHART_KINDS)].format(ys=ys)
    return (
        f"import matplotlib.pyplot as plt\nplt.figure(figsize=(3.2, 2.4))\n{draw}\nplt.title('chart {n}')\n"
        f"plt.xlabel('x')\nplt.ylabel('y')\nplt.tight_layout()\nplt.savefig('chart.png')\n"
    )


def page(n: int, chance: random.Random) -> str:
    """A heading, a table and boxes."""
    rows = "".join(f"<tr><td>{i}</td><td>{chance.randint(0, 99)}</td></tr>" for i in range(4))
    return (
        f"<style>h1 {{color: {chance.choice(COLOURS)}}} .b {{display: flex; gap: 4px}} td {{border: 1px solid}}</style>"
        f"<h1>Page {n}</h1><table>{rows}</table><div class=b><div style='width:{chance.randint(20, 90)}px;height:30px;"
        f"background:{chance.choice(COLOURS)}'></div><p>some words</p></div>"
    )


def drawing(n: int, chance: random.Random) -> str:
    """Circles, a path and a word."""
    discs = "".join(
        f'<circle cx="{chance.randint(0, 99)}" cy="{chance.randint(0, 99)}" r="{chance.randint(3, 20)}" '
        f'fill="{chance.choice(COLOURS)}"/>' for _ in range(5)
    )  # fmt: skip
    path = f'<path d="M0 {n % 90} C 30 90 60 0 99 50" stroke="black" fill="none"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{discs}{path}<text y="90">{n}</text></svg>'


WRITERS: dict[str, Callable[[int, random.Random], str]] = {"charts": chart, "pages": page, "svg": drawing}


def cpu_of(renderer: PooledRenderer) -> float:
    return time.process_time() + sum(usage_of(pid)[0] for pid in renderer._pool.pids)


def measured(name: str, renderer: PooledRenderer, count: int) -> dict[str, object]:
    """Fresh programs in batches of 16, then the same again from the cache."""
    chance = random.Random(0)
    programs = [WRITERS[name](n, chance) for n in range(count)]
    with renderer:
        renderer.render([WRITERS[name](-1 - n, chance) for n in range(2 * renderer.workers)])
        cpu, wall = cpu_of(renderer), time.monotonic()
        results = [each for start in range(0, count, 16) for each in renderer.render(programs[start : start + 16])]
        cpu, wall = cpu_of(renderer) - cpu, time.monotonic() - wall
        assert all(each.picture is not None for each in results), {each.message for each in results}
        again_cpu, again_wall = cpu_of(renderer), time.monotonic()
        assert all(each.cached for each in renderer.render(programs))
        again_cpu, again_wall = max(cpu_of(renderer) - again_cpu, 1e-6), time.monotonic() - again_wall
    each_ms = [1e3 * each.cpu_seconds for each in results]
    figures = {
        "renders": count, "workers": renderer.workers, "cpu_ms_each": round(1e3 * cpu / count, 1),
        "cpu_ms_of_one": {"median": round(statistics.median(each_ms), 1), "largest": round(max(each_ms), 1)},
        "per_cpu_second": round(count / cpu, 1), "per_second": round(count / wall, 1),
        "cached_per_cpu_second": round(count / again_cpu), "cached_per_second": round(count / again_wall),
    }  # fmt: skip
    print(name, figures, flush=True)
    return figures


def speed(count: int) -> None:
    """Write the figures of all three, and how busy the machine was."""
    renderers = {"charts": Charts(), "svg": Svg(), "pages": Pages()}
    figures: dict[str, object] = {name: measured(name, renderers[name], count) for name in renderers}
    write("render", {**figures, "load_average": os.getloadavg()[0], "cores": os.cpu_count()})


def zombies() -> int:
    """Children of this process and below that have ended and that nobody waits for."""
    states = []
    for pid in tree_of(os.getpid()):
        try:
            states.append(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0])
        except OSError:
            continue
    return states.count("Z")


def snapshot(renderers: dict[str, PooledRenderer], done: int) -> dict[str, object]:
    pools = {name: renderer._pool for name, renderer in renderers.items()}
    return {
        "renders": done,
        "own_mb": round(usage_of_one(os.getpid())),
        "worker_mb": {name: round(sum(usage_of(pid)[1] for pid in pool.pids)) for name, pool in pools.items()},
        "processes": {name: len([each for pid in pool.pids for each in tree_of(pid)]) for name, pool in pools.items()},
        "replaced": {name: pool.lost for name, pool in pools.items()},
        "zombies": zombies(),
        "open_files": len(os.listdir("/proc/self/fd")),
        "temporary_files": len(os.listdir(tempfile.gettempdir())),
    }


def usage_of_one(pid: int) -> float:
    """Resident MB of a process alone."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def soak(count: int) -> None:
    """Render `count` programs, 7 charts to 2 drawings to 1 page, a tenth of each hostile, and look at what piles up."""
    limits = Limits(cpu_seconds=1, wall_seconds=10, memory_mb=1024)
    page_limits = Limits(cpu_seconds=5, wall_seconds=10, memory_mb=1024, files_mb=128)
    renderers: dict[str, PooledRenderer] = {
        "charts": Charts(limits=limits, cache_mb=8), "svg": Svg(limits=limits, cache_mb=8),
        "pages": Pages(limits=page_limits, cache_mb=8, workers=1),
    }  # fmt: skip
    chance, outcomes, snapshots = random.Random(0), Counter[str](), []
    begin, done, lost_good = time.monotonic(), 0, 0
    while done < count:
        for name, size in (("charts", 28), ("svg", 8), ("pages", 4)):
            hostile = [chance.random() < 0.1 for _ in range(size)]
            texts = [
                f"{chance.choice(HOSTILE[name])}" if bad else WRITERS[name](done + i, chance)
                for i, bad in enumerate(hostile)
            ]
            for bad, result in zip(hostile, renderers[name].render(texts), strict=True):
                outcomes[f"{'hostile' if bad else 'good'} {name}: {result.failure or 'picture'}"] += 1
                lost_good += not bad and result.picture is None
            done += size
        if done % 200 < 40:
            snapshots.append(snapshot(renderers, done))
            print(snapshots[-1], flush=True)
    for renderer in renderers.values():
        renderer.close()
    left = os.listdir(tempfile.gettempdir())
    figures: dict[str, object] = {
        "renders": done, "seconds": round(time.monotonic() - begin), "good_without_picture": lost_good,
        "outcomes": dict(sorted(outcomes.items())), "snapshots": snapshots, "zombies_after": zombies(),
        "files_left": len(left), "processes_after": len(list(tree_of(os.getpid()))) - 1,
        "load_average": os.getloadavg()[0],
    }  # fmt: skip
    write("render_soak", figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["speed", "soak"], default="speed")
    parser.add_argument("--renders", type=int, help="how many: 160 of each kind, or 10,000 in the soak")
    told = parser.parse_args()
    if told.what == "soak":
        with tempfile.TemporaryDirectory(prefix="mmrl-soak-") as folder:
            tempfile.tempdir = folder  # what is left there is ours alone
            soak(told.renders or 10_000)
    else:
        speed(told.renders or 160)


if __name__ == "__main__":
    main()
