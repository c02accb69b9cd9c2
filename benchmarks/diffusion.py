"""RLCM beside DDPO, alignment by RLCM and by the pathwise gradient, Flow-GRPO: small pipelines, 3 seeds, CPU seconds.

All from the shipped weights, with 48 pictures a step, full fine-tuning, one thread a run and two runs at a time.
Learning rates are chosen with seed 100, which is none of those reported, by the mean of the held-out reward over equal
CPU seconds. Every run is a run folder under runs/benchmark_diffusion; finished ones are not run again.

    python -m benchmarks.diffusion [compress] [align] [flow] [others] [steps] [sheet]
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import RESULTS, spread, write

ROOT = Path("runs/benchmark_diffusion")
SEEDS, CHOOSING = (0, 1, 2), 100
RATES = {"rlcm": (2.5e-5, 5e-5, 1e-4), "ddpo": (5e-5, 1e-4, 2e-4), "flow": (2e-5, 5e-5, 1e-4)}
KL = "algorithm.regularisers=[{class_path: mmrl.regularisers.ExactKL, init_args: {coef: 0.02}}]"


@dataclass(frozen=True)
class Arm:
    """A recipe with its overrides; `budget` in CPU seconds of training, about `seconds` of them a step."""

    name: str
    recipe: str
    budget: float
    every: int
    overrides: tuple[str, ...] = ()
    family: str = "rlcm"


RLCM = Arm("rlcm", "rlcm_compress", 60, 4, ("stop=[]", "save.best=null", "algorithm.regularisers=[]"))
RLCM_KL = Arm("rlcm_kl", "rlcm_compress", 100, 4, ("stop=[]", "save.best=null", KL))
WITHOUT_KL = "watch=[diversity, dark_share]"  # it costs what four evaluations do
DDPO = Arm("ddpo", "ddpo_compress", 400, 8, ("stop=[]", "save.best=null", WITHOUT_KL), "ddpo")
GUIDED = Arm(
    "ddpo_guided", "ddpo_compress", 400, 5, ("stop=[]", "save.best=null", WITHOUT_KL, "sampling.guidance=2.0"), "ddpo"
)


def run(
    arm: Arm, seed: int, rate: float, reward: Sequence[str] = (), name: str = "", budget: float | None = None
) -> Path:
    """Train one run, or go on with it; returns its folder."""
    folder = ROOT / f"{name or arm.name}_{rate:g}_{seed}"
    if (folder / "summary.json").exists():
        return folder
    words = [f"seed={seed}", f"train.lr={rate}", f"train.cpu_budget_s={budget or arm.budget}", "train.steps=100000"]
    words += [f"evaluate.every={arm.every}", "logging.progress=false", "save.every=null", "runtime.device=cpu"]
    command = [sys.executable, "-m", "mmrl", "train", f"diffusion/{arm.recipe}", *words, *arm.overrides, *reward]
    resume = ["--resume"] if (folder / "config.yaml").exists() else []
    subprocess.run([*command, "--run", str(folder), *resume], check=True, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    return folder


def together(jobs: Sequence[tuple]) -> list[Path]:
    """Several runs, two at a time, each a process with one thread."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda job: run(*job), jobs))


@dataclass(frozen=True)
class Curve:
    """Held-out figures of a run against its CPU seconds of training."""

    cpu: list[float]
    reward: list[float]
    gold: list[float]
    kl: list[float]  # empty where it was not watched

    @property
    def gain(self) -> np.ndarray:
        """Reward since the start."""
        return np.array(self.reward) - self.reward[0]


def curve(folder: Path) -> Curve:
    """What metrics.jsonl says."""
    cpu, points = {0: 0.0}, []
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        if "time/cpu" in line:
            cpu[line["step"]] = line["time/cpu"]
        if "eval/reward" in line:
            points.append((line["step"], line["eval/reward"], line["eval/gold_accuracy"], line.get("eval/kl")))
    steps, reward, gold, kl = (list(column) for column in zip(*{p[0]: p for p in points}.values(), strict=True))
    return Curve([round(cpu[step], 2) for step in steps], reward, gold, [] if None in kl else kl)


def commits(folders: Sequence[Path]) -> list[str]:
    """Of the code that made these runs."""
    found = {str(json.loads((folder / "provenance.json").read_text())["commit"]) for folder in folders}
    return sorted(found)


def score(found: Curve, budget: float) -> float:
    """Mean held-out reward over the first `budget` CPU seconds."""
    grid = np.linspace(0, budget, 200)
    return float(np.interp(grid, found.cpu, found.reward).mean())


def chosen_rate(arm: Arm, budget: float, reward: Sequence[str] = (), name: str = "") -> tuple[float, dict[str, float]]:
    """The best of the rates of this family, and what each reached."""
    rates = RATES[arm.family]
    folders = together([(arm, CHOOSING, rate, reward, name, budget) for rate in rates])
    found = {f"{rate:g}": round(score(curve(folder), budget), 4) for rate, folder in zip(rates, folders, strict=True)}
    return max(rates, key=lambda rate: found[f"{rate:g}"]), found


def mean_curve(curves: Sequence[Curve], step: float = 1.0) -> dict[str, np.ndarray]:
    """Gain and gold accuracy of several runs on one grid of CPU seconds, as mean and deviation."""
    grid = np.arange(0, min(c.cpu[-1] for c in curves) + step, step)
    gains = np.array([np.interp(grid, c.cpu, c.gain) for c in curves])
    golds = np.array([np.interp(grid, c.cpu, c.gold) for c in curves])
    return {
        "cpu": grid, "gain": gains.mean(0), "gain_std": gains.std(0, ddof=1),
        "gold": golds.mean(0), "gold_std": golds.std(0, ddof=1),
    }  # fmt: skip


def first_time(found: dict[str, np.ndarray], gain: float, gold: float = -1.0) -> float | None:
    """CPU seconds after which the mean gain is at least `gain` while the mean gold accuracy is at least `gold`."""
    there = (found["gain"] >= gain) & (found["gold"] >= gold)
    return float(found["cpu"][there.argmax()]) if bool(there.any()) else None


def listed(curves: Sequence[Curve]) -> dict[str, object]:
    """What the figures keep of some runs."""
    mean = mean_curve(curves)
    thin = slice(None, None, max(1, len(mean["cpu"]) // 40))
    return {
        "gain_at_end": spread([float(c.gain[-1]) for c in curves]),
        "best_gain": spread([float(c.gain.max()) for c in curves]),
        "gold_at_start": spread([c.gold[0] for c in curves]),
        "gold_at_end": spread([c.gold[-1] for c in curves]),
        "cpu_s": spread([c.cpu[-1] for c in curves]),
        **({"kl_at_end": spread([c.kl[-1] for c in curves])} if all(c.kl for c in curves) else {}),
        "curve": {name: [round(float(v), 4) for v in values[thin]] for name, values in mean.items()},
    }


def ratios(found: dict[str, list[Curve]]) -> dict[str, object]:
    """How much sooner RLCM has what DDPO has at its best, and the same at equal gold accuracy."""
    means = {name: mean_curve(curves) for name, curves in found.items()}
    told: dict[str, object] = {}
    for name in ("ddpo", "ddpo_guided"):
        mean = means[name]
        best = int(mean["gain"].argmax())
        gain, deviation, gold = (float(mean[key][best]) for key in ("gain", "gain_std", "gold"))
        at = float(mean["cpu"][best])
        told[name] = {
            "best_mean_gain": round(gain, 4), "deviation": round(deviation, 4), "at_cpu_s": at,
            "gold_accuracy": round(gold, 4),
            "exceeds_3_deviations": gain > 3 * deviation,
        }  # fmt: skip
        for other in ("rlcm", "rlcm_kl"):
            for label, bound in (("", -1.0), ("_at_equal_gold", gold)):
                when = first_time(means[other], gain, bound)
                told[name] |= {
                    f"{other}_cpu_s{label}": when,
                    f"{other}_times_sooner{label}": None if when is None else round(at / max(when, 1.0), 1),
                }
    return told


def compress() -> None:
    """RLCM against DDPO on compressibility."""
    rates, looked = {}, {}
    for arm, budget in ((RLCM, 60.0), (DDPO, 200.0), (GUIDED, 120.0)):
        rates[arm.name], looked[arm.name] = chosen_rate(arm, budget, name=f"choose_{arm.name}")
    rates["rlcm_kl"] = rates["rlcm"]
    arms = (RLCM, RLCM_KL, DDPO, GUIDED)
    folders = together([(arm, seed, rates[arm.name]) for seed in SEEDS for arm in arms])
    found = {arm.name: [curve(f) for f in folders[i :: len(arms)]] for i, arm in enumerate(arms)}
    parity = max(json.loads((f / "summary.json").read_text())["parity"]["logprob_diff_max"] for f in folders)
    write("diffusion_compress", {
        "what": "RLCM against DDPO on JPEG size, held-out prompts; gain in kB", "seeds": SEEDS, "rates": rates,
        "rates_looked_at": {"seed": CHOOSING, "mean_reward": looked}, "logprob_diff_max": parity,
        "commits": commits(folders),
        "ratios": ratios(found), "arms": {name: listed(curves) for name, curves in found.items()},
    })  # fmt: skip


CLIP_A = "init_args: {model: assets/rewards/clip_a}"
OTHERS = {
    "incompress": ("rewards={big: {use: rewards.pictures.Incompressibility}}",),
    "aesthetic": (f"rewards={{it: {{use: {{class_path: rewards.pictures.Aesthetic, {CLIP_A}}}}}}}",),
    "align": (f"rewards={{it: {{use: {{class_path: rewards.pictures.ClipScore, {CLIP_A}}}}}}}",),
}  # fmt: skip


def others() -> None:
    """One seed each of three other rewards, at the learning rates of compressibility."""
    rates = json.loads((RESULTS / "diffusion_compress.json").read_text())["rates"]
    arms = [(arm, name, words) for name, words in OTHERS.items() for arm in (RLCM, DDPO)]
    jobs = [(arm, 0, rates[arm.name], words, f"{arm.name}_{name}") for arm, name, words in arms]
    found = {}
    for first in range(0, len(jobs), 2):  # what is finished is written, should the next be stopped
        pair = jobs[first : first + 2]
        for (arm, _, rate, _, name), folder in zip(pair, together(pair), strict=True):
            c = curve(folder)
            points = {key: [round(v, 4) for v in getattr(c, key)] for key in ("cpu", "reward", "gold", "kl")}
            found[name] = {"arm": arm.name, "rate": rate, "gain_at_end": round(float(c.gain[-1]), 4), **points}
        what = "RLCM and DDPO on other rewards, one seed each, as it fell"
        write("diffusion_others", {"what": what, "seed": 0, "runs": found})


GIVEN = 5e-5, 5e-5
"""Learning rates of RLCM and pathwise on alignment: the first that were tried, not chosen among several."""
ALIGN = Arm("rlcm_align", "rlcm_align", 50, 4, ("stop=[]", "save.best=null"))
PATHWISE = Arm("pathwise_align", "pathwise_align", 50, 6, ("stop=[]", "save.best=null"))
FLOW = Arm("flow_grpo", "flow_grpo", 300, 15, ("stop=[]", "save.best=null"), "flow")


def align() -> None:
    """Alignment on held-out captions: RLCM beside the pathwise gradient."""
    rates = {ALIGN.name: GIVEN[0], PATHWISE.name: GIVEN[1]}
    folders = together([(arm, seed, rates[arm.name]) for seed in SEEDS for arm in (ALIGN, PATHWISE)])
    found = {ALIGN.name: [curve(f) for f in folders[::2]], PATHWISE.name: [curve(f) for f in folders[1::2]]}
    write("diffusion_align", {
        "what": "cosine of the rewarding CLIP on held-out captions; gold accuracy by another one", "seeds": SEEDS,
        "rates": rates, "commits": commits(folders),
        "arms": {name: {"start": spread([c.reward[0] for c in cs]), **listed(cs)} for name, cs in found.items()},
    })  # fmt: skip


def flow() -> None:
    """Flow-GRPO on the flow pipeline."""
    rate, looked = chosen_rate(FLOW, 240.0, name="choose_flow_grpo")
    folders = together([(FLOW, seed, rate) for seed in SEEDS])
    curves = [curve(folder) for folder in folders]
    write("diffusion_flow", {
        "what": "Flow-GRPO with KL on alignment, held-out captions", "seeds": SEEDS, "rate": rate,
        "rates_looked_at": {"seed": CHOOSING, "mean_reward": looked}, "commits": commits(folders),
        "start": spread([c.reward[0] for c in curves]), **listed(curves),
    })  # fmt: skip


def steps() -> None:
    """Reward and gold accuracy at 1, 2, 4 and 8 inference steps after training at 4."""
    found: dict[str, object] = {}
    kinds = {"rlcm_kl": (RLCM_KL, "diffusion_compress"), "rlcm_align": (ALIGN, "diffusion_align"),
             "pathwise_align": (PATHWISE, "diffusion_align")}  # fmt: skip
    for name, (arm, file) in kinds.items():
        rate = json.loads((RESULTS / f"{file}.json").read_text())["rates"][name]
        for when in ("start", "trained"):
            for count in (1, 2, 4, 8):
                values = [evaluated(arm, seed, rate, count, when == "start") for seed in SEEDS]
                found[f"{name}/{when}/{count}"] = {
                    key: spread([v[key]["value"] for v in values]) for key in ("reward", "gold_accuracy")
                }
    write("diffusion_steps", {"what": "after training at 4 steps, drawn at others", "seeds": SEEDS, "figures": found})


def evaluated(arm: Arm, seed: int, rate: float, count: int, start: bool) -> dict:
    """Held-out figures of a run, or of its start with the same noise, at another number of steps."""
    from mmrl.commands import evaluate

    folder = ROOT / f"{arm.name}_{rate:g}_{seed}"
    words = [f"sampling.steps={count}", "watch=[]", f"seed={seed}"]
    if start:
        return evaluate(f"diffusion/{arm.recipe}", words)
    return evaluate(str(folder), words, "latest")


def sheet() -> None:
    """docs/images/diffusion.png: held-out prompts, the same noise before and after, seed 0 of each."""
    from PIL import Image, ImageDraw

    names = ("compress", "align", "flow")
    rates = {name: json.loads((RESULTS / f"diffusion_{name}.json").read_text()) for name in names}
    rlcm, kl, ddpo = (rates["compress"]["rates"][name] for name in ("rlcm", "rlcm_kl", "ddpo"))
    aligned, pathwise = (rates["align"]["rates"][name] for name in ("rlcm_align", "pathwise_align"))
    flowing = rates["flow"]["rate"]
    rows = [
        ("start, 4 steps", f"rlcm_{rlcm:g}_0", 0),
        ("RLCM, JPEG size, early", f"rlcm_{rlcm:g}_0", 1),
        ("RLCM, JPEG size, at the end", f"rlcm_{rlcm:g}_0", -1),
        ("the same with a weak KL", f"rlcm_kl_{kl:g}_0", -1),
        ("DDPO, JPEG size, at the end", f"ddpo_{ddpo:g}_0", -1),
        ("RLCM, alignment", f"rlcm_align_{aligned:g}_0", -1),
        ("pathwise, alignment", f"pathwise_align_{pathwise:g}_0", -1),
        ("flow pipeline, start", f"flow_grpo_{flowing:g}_0", 0),
        ("Flow-GRPO, alignment", f"flow_grpo_{flowing:g}_0", -1),
    ]
    side, left, count = 64, 230, 12
    page = Image.new("RGB", (left + count * (side + 4), len(rows) * (side + 4)), "white")
    pen = ImageDraw.Draw(page)
    for number, (title, name, which) in enumerate(rows):
        folder = sorted((ROOT / name / "samples").glob("step_*"))[which]
        pen.text((6, number * (side + 4) + 24), f"{title}\nstep {int(folder.name[5:])}", fill="black", font_size=15)
        for place, file in enumerate(sorted(folder.glob("???.png"))[:count]):
            picture = Image.open(file).resize((side, side), Image.Resampling.NEAREST)
            page.paste(picture, (left + place * (side + 4), number * (side + 4)))
    target = Path(__file__).parent.parent / "docs" / "images" / "diffusion.png"
    target.parent.mkdir(exist_ok=True)
    page.save(target, optimize=True)
    print(target)


PARTS = {"compress": compress, "align": align, "flow": flow, "others": others, "steps": steps, "sheet": sheet}

if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
