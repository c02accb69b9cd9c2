"""The program in what a policy wrote."""

from __future__ import annotations

FENCE = "```"


def program_of(text: str) -> str:
    """What stands in the first <answer> after any thought, or in the first ``` fence of it; the whole text without
    either. A tag or fence that is never closed holds the rest."""
    said = text.rpartition("</think>")[2]
    if "<answer>" in said:
        said = said.partition("<answer>")[2].partition("</answer>")[0]
    if FENCE in said:
        inside = said.partition(FENCE)[2].partition(FENCE)[0]
        first, end, rest = inside.partition("\n")
        said = rest if end and (not first.strip() or first.strip().isalnum()) else inside  # ```python
    return said.strip()
