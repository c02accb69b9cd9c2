"""Whether runs survive kills, and whether long ones stay as they are.

    python -m benchmarks.reliability kills [--domain vision|diffusion|vla] [--kills 30]
    python -m benchmarks.reliability soak [--domain ...] [--minutes 15]

kills: real recipes, small, are killed with SIGKILL at random moments of a fixed seed, several times a run until it
finishes: a third of the kills inside the writing of a checkpoint, a third of workers (render pool, data server, judge,
simulation). What is compared with the run that was left alone is every metric but times, and all final weights and
moments, bit by bit. soak: the same recipes at length; memory, file descriptors and step time of the first third
against the last.
"""

from __future__ import annotations

import argparse
import json

from benchmarks.common import RESULTS, write
from benchmarks.killed import kills
from benchmarks.soaked import soak

DOMAINS = ("vision", "diffusion", "vla")


def keep(section: str, domain: str, found: dict[str, object]) -> None:
    """Into benchmarks/results/reliability.json, beside what is there."""
    path = RESULTS / "reliability.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.pop("provenance", None)
    write("reliability", {**known, section: {**known.get(section, {}), domain: found}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "soak"])
    parser.add_argument("--domain", choices=DOMAINS, help="default: one after another")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--minutes", type=float, default=15.0)
    told = parser.parse_args()
    for domain in [told.domain] if told.domain else DOMAINS:
        if told.what == "kills":
            kills(domain, told.kills, lambda found, domain=domain: keep("kills", domain, found))
        else:
            keep("soak", domain, soak(domain, told.minutes))


if __name__ == "__main__":
    main()
