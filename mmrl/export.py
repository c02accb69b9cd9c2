"""The result of a run as other tools load it: weights by the domain, and a model card by what the run's files say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from mmrl.config import load
from mmrl.experiment import Exported
from mmrl.findings import estimates, findings, shown
from mmrl.run import RunFolder, find_run
from mmrl.run_files import read_run
from mmrl.runtime import Runtime
from mmrl.yaml_files import ConfigError


def export(run: Path, to: Path, which: str | None, merge: bool, dtype: str | None) -> str:
    """Write the checkpoint `which` of `run` to the folder `to`; returns what to say about it.

    Raises:
        ConfigError: `to` is not empty.
        RunFolderError: there is no such checkpoint.
    """
    if to.exists() and any(to.iterdir()):
        raise ConfigError(f"--to {to} is not empty: name a new folder, or remove what is in it")
    run = find_run(run)
    found = RunFolder(run).checkpoint(which)
    experiment = load(str(run / "config.yaml")).experiment
    policy = experiment.load_policy(Runtime(experiment.runtime, experiment.seed), RunFolder(run).start())
    policy.load_weights(found / "policy")
    aside = to.with_name(f".{to.name}.exporting")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    written = experiment.export(policy, aside, merge, dtype)
    (aside / "README.md").write_text(model_card(run, found, written, experiment.base_policy))
    if to.exists():
        to.rmdir()
    aside.rename(to)
    return f"{to}: step {int(found.name[5:])} of {run}, loads in {written.library}; README.md is its model card"


def model_card(path: Path, found: Path, written: Exported, base: str) -> str:
    """Markdown in the hub's form: what it started from, what it was trained on and for, and its figures."""
    run = read_run(path)
    state = json.loads((found / "state.json").read_text())
    reached = estimates(state["eval_after"] or state["eval_before"])
    before, step = estimates(run.summary.get("eval_before") or state["eval_before"]), state["step"]
    config = yaml.safe_load(run.config)
    about = {"base_model": base, "library_name": written.library, "tags": ["reinforcement-learning", "mmrl"]}
    rows = [f"| {name} | {shown(before.get(name))} | {shown(reached.get(name))} |" for name in {**before, **reached}]
    parts = [f"- `{name}`: {json.dumps(part)}" for name, part in (config.get("rewards") or {}).items()]
    of_result = run.finished and step == run.summary.get("kept_step", run.summary["steps"])
    said = [f"- {sentence}" for sentence in findings(run.summary)] if of_result else []
    versions = ", ".join(f"{name} {version}" for name, version in (run.provenance.get("versions") or {}).items())
    return "\n".join([
        "---", yaml.safe_dump(about, sort_keys=False).rstrip(), "---", "",
        f"# {run.summary.get('recipe', path.name)}, step {step}", "",
        f"Trained by reinforcement learning with mmrl from `{base}`, {step} steps, seed {run.summary.get('seed')}.", "",
        "## Use", "", "```python", written.usage.rstrip(), "```", "",
        "## Figures", "", "Held out, with 95 % intervals: before, and at the last evaluation up to this step.", "",
        "| metric | before | then |", "|---|---|---|", *rows, "", *said, "",
        "## Reward", "", *parts, "",
        "## Data", "", "```yaml", yaml.safe_dump(config.get("data"), sort_keys=False).rstrip(), "```", "",
        "## Provenance", "",
        f"- commit {run.provenance.get('commit') or 'unknown'}, started {run.provenance.get('started', 'unknown')}",
        f"- {versions or 'versions unknown'}", "",
        "<details><summary>Full config</summary>", "", "```yaml", run.config.rstrip(), "```", "", "</details>", "",
    ])  # fmt: skip
