"""Candidates for the best of n: so many pictures of each prompt, the same each time, scored by an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from diffusion.candidates import Pipeline
from diffusion.policy import PolicyConfig
from diffusion.sampling import SamplingConfig
from mmrl.cli import main

POLICY = PolicyConfig(model="assets/diffusion/unet", scheduler="LCMScheduler", logprob_reduction="mean")


def candidates(seed: int = 0, per_prompt: int = 3) -> Pipeline:
    return Pipeline(POLICY, "assets/diffusion/prompts/held_out.txt", SamplingConfig(2, 1.0), per_prompt, 2, seed)


def test_they_are_drawn_by_prompt_and_by_seed() -> None:
    one, again, other = candidates().draw(), candidates().draw(), candidates(1).draw()
    prompts = list(one.columns["prompt"])
    assert len(one) == 6 and prompts[0] == prompts[2] != prompts[3]
    pixels = [[np.asarray(picture) for picture in drawn.outputs] for drawn in (one, again, other)]
    assert all(np.array_equal(a, b) for a, b in zip(pixels[0], pixels[1], strict=True))
    assert not np.array_equal(pixels[0][0], pixels[2][0]) and not np.array_equal(pixels[0][0], pixels[0][1])
    with pytest.raises(ValueError, match="per_prompt is 1: the best of one is no choice"):
        candidates(per_prompt=1)
    with pytest.raises(FileNotFoundError, match="candidates.prompts 'no.txt' is not there"):
        Pipeline(POLICY, "no.txt")


def test_an_evaluation_trains_what_it_pushes_with_and_reads_it(tmp_path: Path) -> None:
    small = ["train.steps=2", "evaluate.every=1", "rollout={prompts: 2, group: 2}", "logging.progress=false"]
    words = [
        "candidates.init_args.per_prompt=2", "candidates.init_args.limit=4", "candidates.init_args.sampling.steps=1",
        "pairs.init_args.per_category=8", "bars=[]", f"push.clip_and_colour.overrides={json.dumps(small)}",
        "probes={bias: false, robustness: false}",
    ]  # fmt: skip
    assert main(["rewards", "evaluate", "rewards/pictures", *words, "--run", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())["overoptimisation"]
    assert [point["label"] for point in found["trained"]["clip_and_colour"]["points"]] == ["0", "1", "2"]
    assert [point["label"] for point in found["best_of_n"]["jpeg"]["points"]] == ["1", "2"]
    again = tmp_path / "runs" / "clip_and_colour" / "summary.json"
    written = again.stat().st_mtime_ns
    assert main(["rewards", "evaluate", "rewards/pictures", *words, "--run", str(tmp_path)]) == 0
    assert again.stat().st_mtime_ns == written  # a run that is finished is not made again
