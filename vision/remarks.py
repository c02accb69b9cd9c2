"""What the report says of a vision run, beside what it says of any: its controls, and whether it looks at pictures."""

from __future__ import annotations

from collections.abc import Mapping

from mmrl.findings import arms, estimates, overlap
from mmrl.types import Estimate


def remarks(summary: Mapping[str, object]) -> list[str]:
    """Sentences about the controls of `vision.controls` and `accuracy_image_shuffled` of `vision.evaluation`."""
    primary, after = str(summary.get("primary_metric")), estimates(summary.get("eval_after"))
    reached: dict[str, Estimate] = {name: arm["reached"] for name, arm in arms(summary).items()}
    rl, blind = after.get(primary), after.get(f"{primary}_image_shuffled")
    ceiling, continued = reached.get("sft_all_labels"), reached.get("sft_continued")
    said: list[str] = []
    if rl is None:
        return said
    if ceiling is not None:
        verdict = "is below" if rl.value < ceiling.value else "reaches"
        what = "which is a ceiling and not a rival: supervised on all labels, which RL never sees"
        said.append(f"RL ({rl.value:.3f}) {verdict} sft_all_labels ({ceiling.value:.3f}), {what}.")
    if continued is not None:
        verdict = "is above" if rl.value > continued.value else "is not above"
        so = overlap(rl, continued) if rl.value > continued.value else "that buys as much"
        what = f"sft_continued ({continued.value:.3f}), more supervised training at the same CPU"
        said.append(f"RL ({rl.value:.3f}) {verdict} {what}: {so}.")
    if ceiling is None and continued is None:
        said.append("No supervised control was run: whether RL beats supervised training at its cost is not known.")
    if blind is not None:  # within a fifth of each other, most right answers do not need the picture
        close = blind.high >= rl.low or blind.value >= 0.8 * rl.value
        verdict = "the policy hardly looks at the picture" if close else "the answers depend on the picture"
        said.append(f"With another example's picture {primary} is {blind.value:.3f}, not {rl.value:.3f}: {verdict}.")
    return said
