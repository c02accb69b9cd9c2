"""How far the shipped rewards can be trusted, what hacks them, and whether a judge's calls add up.

    python -m benchmarks.rewards [pictures] [push] [judge] [process] [train]

`pictures`: every shipped reward that needs no weights from elsewhere, on pictures with known preferences. `push`: best
of n and training against four of them, three seeds, with another CLIP as gold. `judge`: 1,000 questions to a server
that fails a fifth of the time. `process`: raw, clipped and differenced step scores, farmed or not. `train`: a
Bradley-Terry head."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import RESULTS, spread, write
from diffusion.candidates import Pipeline
from diffusion.policy import PolicyConfig
from diffusion.sampling import SamplingConfig
from mmrl.types import RewardFunction, Samples
from rewards.compose import Part, WeightedSum
from rewards.evaluation import Evaluate, Feature, GoldPairs
from rewards.evaluation.accuracy import accuracy as accuracy_of
from rewards.evaluation.overoptimisation import Curve, best_of_n, fitted, of_run
from rewards.evaluation.scoring import numbers, score
from rewards.pictures import (
    Aesthetic,
    ClipAccuracy,
    ClipScore,
    ColourEntropy,
    Compressibility,
    DarkShare,
    Diversity,
    Incompressibility,
    Judge,
)
from rewards.process import Clip, Delta, ProcessReward, StepShape
from rewards.training import Trained
from tests.fake_judge import FakeJudge, Reply, Request, serving

ROOT = Path("runs/benchmark_rewards")
CLIP_A, CLIP_B = "assets/rewards/clip_a", "assets/rewards/clip_b"
PROMPTS = "assets/diffusion/prompts/all.txt"
SEEDS = (0, 1, 2)


def coloured(weight: float) -> WeightedSum:
    """A CLIP with a bonus for strong colours: made to be hacked."""
    return WeightedSum({"clip": Part(ClipScore(CLIP_A)), "colour": Part(Feature("saturation"), weight)})


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime + time.process_time()


# ---- every shipped reward -----------------------------------------------------------------------------------


def pictures() -> dict[str, object]:
    rewards: dict[str, RewardFunction | str] = {
        "clip_a": ClipScore(CLIP_A), "clip_b": ClipScore(CLIP_B), "clip_accuracy": ClipAccuracy(CLIP_A, PROMPTS),
        "aesthetic": Aesthetic(CLIP_A), "jpeg": Compressibility(), "jpeg_larger": Incompressibility(),
        "dark_share": DarkShare(), "colour_entropy": ColourEntropy(), "diversity": Diversity(),
        "clip_and_colour": coloured(2.0),
    }  # fmt: skip
    began = cpu_s()
    Evaluate(rewards, GoldPairs(60)).run(ROOT / "pictures")
    found = json.loads((ROOT / "pictures" / "evaluation.json").read_text())
    return {
        **{key: found[key] for key in ("pairs", "figures", "agreement", "findings", "costs")},
        "cpu_s": round(cpu_s() - began, 1),
        "not_measured": "PickScore, HPSv2, ImageReward, LPIPS: no weights here; SSIM: needs a reference picture",
    }  # fmt: skip


# ---- pushing ------------------------------------------------------------------------------------------------


def push() -> dict[str, object]:
    began = cpu_s()
    policy = PolicyConfig(model="assets/diffusion/unet", scheduler="LCMScheduler", logprob_reduction="mean")
    pipeline = Pipeline(policy, PROMPTS, SamplingConfig(steps=4, guidance=1.0), per_prompt=64)
    samples = pipeline.draw()
    gold = numbers("gold", ClipScore(CLIP_B), samples)
    proxies: dict[str, RewardFunction] = {
        "clip_a": ClipScore(CLIP_A), "clip_and_colour": coloured(2.0), "jpeg": Compressibility(),
        "aesthetic": Aesthetic(CLIP_A),
    }  # fmt: skip
    best = {name: best_of_n(samples, numbers(name, proxy, samples), gold) for name, proxy in proxies.items()}
    runs = {
        "clip_and_colour": ("rewards/push_colour", ["rewards.colour.weight=2.0"]),
        "jpeg": ("diffusion/rlcm_compress", [
            "algorithm.regularisers=[]", "stop=[]", "save={every: null}", "data.eval_pictures=2", "evaluate.every=4",
            "evaluate.metrics.gold_alignment="
            f"{{class_path: rewards.pictures.ClipScore, init_args: {{model: {CLIP_B}}}}}",
        ]),
    }  # fmt: skip
    trained: dict[str, list[Curve]] = {}
    for name, (recipe, overrides) in runs.items():
        for seed in SEEDS:
            folder = ROOT / f"push_{name}_{seed}"
            if not (folder / "summary.json").is_file():
                command = [
                    sys.executable,
                    "-m",
                    "mmrl",
                    "train",
                    recipe,
                    *overrides,
                    f"seed={seed}",
                    "logging.progress=false",
                ]
                subprocess.run([*command, "--run", str(folder)], check=True, stdout=subprocess.DEVNULL)
            trained.setdefault(name, []).append(of_run(folder, "gold_alignment"))

    def change(which: str) -> dict[str, object]:
        ends = {name: [(c.points[0], c.points[-1]) for c in curves] for name, curves in trained.items()}
        return {name: spread([vars(z)[which].value - vars(a)[which].value for a, z in e]) for name, e in ends.items()}

    shapes = {name: [round(x, 4) for x in fitted(curve, logarithm=False)] for name, curve in best.items()}
    return {
        "candidates": len(samples),
        "best_of_n": {name: {**told(curve), "a_b": shapes[name]} for name, curve in best.items()},
        "trained": {name: [told(curve) for curve in curves] for name, curves in trained.items()},
        "gold_change": change("gold"),
        "proxy_change": change("proxy"),
        "cpu_s": round(cpu_s() - began, 1),
    }


def told(curve: Curve) -> dict[str, object]:
    return {
        "turns_at": None if curve.turn is None else curve.points[curve.turn].label,
        "peak_at": curve.points[curve.peak].label,
        "points": [
            {"label": p.label, "kl": round(p.kl, 4), "proxy": round(p.proxy.value, 4), "gold": round(p.gold.value, 4),
             "gold_low": round(p.gold.low, 4), "gold_high": round(p.gold.high, 4)}
            for p in curve.points
        ],
    }  # fmt: skip


# ---- a reward of one's own -----------------------------------------------------------------------------------

SEEN = ("an astronaut", "a brick wall", "a cat", "a cup of coffee")  # the recipe's
UNSEEN = ("grass", "gravel", "galaxies", "a rocket")


def train() -> dict[str, object]:
    """The recipe rewards/train with three seeds, on new pairs whose photographs it never saw, beside the CLIP that it
    reads."""
    began = cpu_s()
    pairs = GoldPairs(100, seed=0, subjects=UNSEEN).pairs()
    functions: dict[str, RewardFunction] = {"clip_a": ClipScore(CLIP_A)}
    for seed in SEEDS:
        folder = ROOT / f"head_{seed}"
        words = [f"seed={seed}", "--run", str(folder)]
        subprocess.run(
            [sys.executable, "-m", "mmrl", "rewards", "train", *words], check=True, stdout=subprocess.DEVNULL
        )
        functions[f"head_{seed}"] = Trained(str(folder))
    evaluation = Evaluate(dict(functions), GoldPairs(100, seed=0, subjects=UNSEEN))
    figures = evaluation.measured(functions, pairs).figures
    names = [key for key in figures["clip_a"] if key.split("/")[0] in ("accuracy", "bought", "fooled", "ece")]
    heads = [figures[f"head_{seed}"] for seed in SEEDS]
    known = [pair for pair in GoldPairs(100, seed=0, subjects=SEEN).pairs() if "photograph" in pair.categories]
    crops = {name: accuracy_of(score(name, reward, known))["accuracy"].value for name, reward in functions.items()}
    return {
        "pairs": len(pairs), "clip_a": {key: round(figures["clip_a"][key].value, 4) for key in names},
        "head": {key: spread([of[key].value for of in heads]) for key in names},
        "new_crops_of_photographs_trained_on": {
            "clip_a": round(crops["clip_a"], 4), "head": spread([crops[f"head_{seed}"] for seed in SEEDS]),
        },
        "cpu_s": round(cpu_s() - began, 1),
    }  # fmt: skip


# ---- a judge that is not there half of the time -------------------------------------------------------------

QUESTIONS = 1000


@dataclass
class Unwell(FakeJudge):
    """Fails a fifth of the calls, in five ways, and answers rubbish to some of the rest. Which, and how often, it
    writes down itself."""

    chance: random.Random = field(default_factory=lambda: random.Random(0))
    did: Counter = field(default_factory=Counter)
    readable: Counter = field(default_factory=Counter)

    def handle(self, request: Request) -> Reply:
        with self.lock:
            self.asked.append(request)
            draw, rubbish = self.chance.random(), self.chance.random() < 0.02
            acts = ("status", "status", "timeout", "garbled", "connection")
            act = acts[int(draw / 0.04)] if draw < 0.2 else "answered"
            self.did[act] += 1
            if act == "answered":
                self.did["rubbish"] += rubbish
                self.readable[request.pictures[-1]] += not rubbish
        if act == "timeout":
            time.sleep(1.2)
        if act == "connection":
            raise ConnectionResetError
        if act == "status":
            return (503, "busy") if draw < 0.04 else (429, "slow down")
        if act == "garbled":
            return 200, "<html>gateway</html>"
        text = "As it is said, it is lovely." if rubbish else self.answer(request)
        usage = {"prompt_tokens": 100, "completion_tokens": 7}
        return 200, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage})


def numbered(count: int) -> tuple[Samples, list[float]]:
    """Different pictures, and what a judge of brightness says of each."""
    from PIL import Image

    pictures, wanted = [], []
    for number in range(count):
        picture = Image.new("RGB", (8, 8), (number % 256, number // 256, 7))
        pictures.append(picture)
        wanted.append(number % 256 / 255)
    return Samples(pictures, {"prompt": ["a picture"] * count}), wanted


def judge() -> dict[str, object]:
    samples, wanted = numbered(QUESTIONS)
    os.environ["NO_PROXY"] = "127.0.0.1"
    with tempfile.TemporaryDirectory() as folder, serving(Unwell()) as server:
        os.environ["BENCHMARK_JUDGE_URL"] = server.url
        rubric = Path(folder) / "rubric.md"
        rubric.write_text("Bright pictures are good.")
        asking = Judge("BENCHMARK_JUDGE_URL", str(rubric), model="m", cache=f"{folder}/cache", timeout_s=0.6,
                       pause_s=0.02, concurrency=16, price=(1.0, 4.0))  # fmt: skip
        began = time.perf_counter()
        found = asking(samples)
        wall_s = time.perf_counter() - began
        kept, outcomes = found.applicable.tolist(), dict(asking.tally.outcomes)
        right = sum(abs(v - w) < 1e-6 for v, w, k in zip(found.values.tolist(), wanted, kept, strict=True) if k)
        twice = sum(count > 1 for count in server.readable.values())
        first = {"calls": asking.tally.calls, "server_saw": len(server.asked), "server_did": dict(server.did)}
        again = replace(asking)
        after = again(samples)  # only rubbish is asked again
        server.away = True
        replayed = replace(asking, replay=True)
        rest = Samples(
            [p for p, k in zip(samples.outputs, kept, strict=True) if k], {"prompt": ["a picture"] * sum(kept)}
        )
        same = torch.equal(replayed(rest).values, found.values[found.applicable])
    did = first["server_did"]
    alike = {
        name: outcomes.get(name, 0) == did[name] for name in ("answered", "status", "timeout", "garbled", "connection")
    }
    return {
        "questions": QUESTIONS, **first, "outcomes": outcomes,
        "outcomes_sum_to_calls": sum(outcomes.values()) == first["calls"],
        "outcomes_as_the_server_says": alike, "failed_share": round(1 - outcomes["answered"] / first["calls"], 4),
        "scored": sum(kept), "scored_right": right, "unparsable": asking.tally.unparsable,
        "answered_twice": twice, "lost": QUESTIONS - sum(kept) - asking.tally.unparsable,
        "tokens": asking.tally.spent(), "money": asking.tally.money(asking.price),
        "asked_again": {"calls": again.tally.calls, "answered": again.tally.outcomes["answered"],
                        "scored": int(after.applicable.sum())},
        "replayed_without_a_server": {"calls": replayed.tally.calls, "the_same": same}, "wall_s": round(wall_s, 1),
    }  # fmt: skip


# ---- step scores --------------------------------------------------------------------------------------------

MOST, LOOKS_GOOD, HARDER = 20, 0.9, 1 / 40


def process() -> dict[str, object]:
    """A policy that pads or solves, step by step. A step of padding is scored 0.9 and makes the answer, the last step,
    less often right; the step that solves is scored 0.99, or, by a worse scorer, 0.5."""
    arms: dict[str, tuple[StepShape, ...] | None] = {
        "outcome alone": None, "raw": (), "Clip(0.5)": (Clip(0.5),), "Clip(0.95)": (Clip(0.95),), "Delta": (Delta(),),
        "Clip(0.95), Delta": (Clip(0.95), Delta()),
    }  # fmt: skip
    found: dict[str, dict[str, object]] = {}
    for kind, solves in (("arms", 0.99), ("padding_looks_better_than_solving", 0.5)):
        found[kind] = {}
        for name, shapes in arms.items():
            ends = [farmed(shapes, solves, seed) for seed in SEEDS]
            found[kind][name] = {"padding_steps": spread([e[0] for e in ends]), "success": spread([e[1] for e in ends])}
    return {"alpha": 0.1, "most_padding": MOST, "updates": 400, "batch": 256, **found}


def farmed(shapes: tuple[StepShape, ...] | None, solves: float, seed: int) -> tuple[float, float]:
    """Steps of padding and success after REINFORCE with what is to come, less its mean at each step."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(MOST, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.05)
    reward = ProcessReward(alpha=0.0 if shapes is None else 0.1, shapes=shapes or ())
    for _ in range(400):
        pads, success, mask, scores = episodes(torch.sigmoid(logits.detach()), solves, 256, generator)
        to_come = reward(scores, mask, success)["reward"].flip(1).cumsum(1).flip(1)[:, :MOST]
        place = torch.arange(MOST)
        chose = (place <= pads[:, None]).float()  # the step that solves is a choice too
        padded = (place < pads[:, None]).float()
        logprob = padded * torch.nn.functional.logsigmoid(logits) + (1 - padded) * torch.nn.functional.logsigmoid(
            -logits
        )
        baseline = (to_come * chose).sum(0) / chose.sum(0).clamp(min=1)
        loss = -(chose * (to_come - baseline) * logprob).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pads, success, _, _ = episodes(torch.sigmoid(logits.detach()), solves, 4096, generator)
    return float(pads.float().mean()), float(success.mean())


def episodes(pad: torch.Tensor, solves: float, count: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Padding steps (B,), success (B,), the mask of steps (B, K) and their scores: paddings, the one that solves, the
    answer."""
    going = torch.rand(count, MOST, generator=generator) < pad
    pads = going.long().cumprod(1).sum(1)
    success = (torch.rand(count, generator=generator) < 1 - HARDER * pads).float()
    place = torch.arange(MOST + 2).expand(count, -1)
    mask = place < (pads + 2)[:, None]
    scores = torch.where(place < pads[:, None], LOOKS_GOOD, solves)
    return pads, success, mask, scores


def main() -> None:
    parts = {"pictures": pictures, "push": push, "judge": judge, "process": process, "train": train}
    path = RESULTS / "rewards.json"
    for name in sys.argv[1:] or list(parts):
        part = parts[name]()
        found = json.loads(path.read_text()) if path.exists() else {}  # as it is by now
        found[name] = part
        write("rewards", {key: value for key, value in found.items() if key != "provenance"})


if __name__ == "__main__":
    assert threading.active_count() == 1
    torch.set_num_threads(1)
    np.seterr(all="raise", under="ignore")
    main()
