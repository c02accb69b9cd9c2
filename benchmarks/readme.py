"""Puts the measured figures into README.md and docs/, from benchmarks/results/*.json and nowhere else.

python -m benchmarks.readme
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.tables import (
    ahead,
    diffusion,
    house,
    pairwise,
    parts,
    principles,
    reliability,
    render,
    rewards,
    scale,
    vision,
    vla,
)

README = Path(__file__).parent.parent / "README.md"


def main() -> None:
    """Rewrite each block between its markers, in the README and in docs/."""
    blocks = (
        ("digits", "digits", vision.digits),
        ("transfer", "transfer", vision.transfer),
        ("trl", "vision_vs_trl", vision.trl),
        ("compress", "diffusion_compress", diffusion.compress),
        ("align", "diffusion_align", diffusion.align),
        ("steps", "diffusion_steps", diffusion.steps),
        ("others", "diffusion_others", diffusion.others),
        ("pushcube", "vla", vla.pushcube),
        ("words", "vla_words", vla.words),
        ("pictures", "vla_pictures", vla.pictures),
        ("pickcube", "vla_pickcube", vla.pickcube),
        ("pickcube_noise", "vla_pickcube", vla.pickcube_noise),
        ("pickcube_diagnosis", "vla_pickcube", vla.pickcube_diagnosis),
        ("ddpo_trl", "diffusion_vs_trl", diffusion.ddpo_trl),
        ("samplers", "diffusion_vs_trl", diffusion.samplers),
        ("thesis", "thesis", house.thesis),
        ("structure", "structure", house.structure),
        ("rrvf", "rrvf", vision.rrvf),
        ("render", "render", render.throughput),
        ("render_soak", "render_soak", render.soak),
        ("simulation_ring", "simulation_ring", vla.simulation_ring),
        ("syn_grpo", "syn_grpo", vision.syn_grpo),
        ("parts", "parts", parts.parts),
        ("mixture", "mixture", vision.mixture),
        ("reward_accuracy", "rewards", rewards.accuracy),
        ("reward_push", "rewards", rewards.push),
        ("reward_judge", "rewards", rewards.judge),
        ("reward_process", "rewards", rewards.process),
        ("judge_rl", "judge_rl", rewards.judge_rl),
        ("reward_head", "rewards", rewards.head),
        ("principles", "principles", principles.heads),
        ("principles_rl", "principles", principles.rl),
        ("pairwise_constants", "pairwise_rl", pairwise.constants),
        ("pairwise_lean", "pairwise_rl", pairwise.lean),
        ("pairwise_rl", "pairwise_rl", pairwise.rl),
        ("ahead_equal", "scale", ahead.equal),
        ("overlap", "scale", ahead.overlap),
        ("stale_bandit", "scale", ahead.bandit),
        ("stale_digits", "scale", ahead.digits),
        ("kills", "reliability", reliability.kills),
        ("soak", "reliability", reliability.soak),
        ("scale_equal", "scale", scale.equal),
        ("sizing", "sizing", scale.sizing),
    )
    for page in (README, *sorted((README.parent / "docs").glob("*.md"))):
        text = page.read_text()
        for name, file, table in blocks:
            path = RESULTS / f"{file}.json"
            if path.exists() and f"<!-- figures: {name} -->" in text:
                block = f"<!-- figures: {name} -->\n{table(json.loads(path.read_text()))}\n<!-- /figures -->"
                text = re.sub(
                    rf"<!-- figures: {name} -->.*?<!-- /figures -->", lambda _, b=block: b, text, flags=re.DOTALL
                )
        page.write_text(with_files(text) if page == README else text)


def with_files(text: str) -> str:
    """Each shown file between its markers."""

    def shown(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- file: {name} -->\n```yaml\n{(README.parent / name).read_text()}```\n<!-- /file -->"

    return re.sub(r"<!-- file: (\S+) -->.*?<!-- /file -->", shown, text, flags=re.DOTALL)


if __name__ == "__main__":
    main()
