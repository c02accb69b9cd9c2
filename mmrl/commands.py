"""What the command line does, without the parsing."""

from __future__ import annotations

import dataclasses
import json
import resource
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import yaml

from mmrl import checkpoint
from mmrl.config import Loaded, load
from mmrl.recipes import find_config, recipe_name, recipes_folder
from mmrl.report import print_table, write_report
from mmrl.run import RunFolder, find_run
from mmrl.run_files import mapping
from mmrl.runtime import Runtime, acting
from mmrl.scoring import score
from mmrl.trainer import Trainer
from mmrl.yaml_files import ConfigError, flatten, read_yaml


def train(
    config: str | None, overrides: Sequence[str], folder: Path | None, resume: bool, origin: Path | None = None
) -> int:
    """Train, run the controls, write summary and report. Returns the exit status. `origin` is a run whose weights a
    new run starts from."""
    folder, origin = folder and find_run(folder), origin and find_run(origin)
    if resume:
        folder = folder or RunFolder.newest(recipe_name(find_config(config)) if config else None)
        config = config or str(folder / "config.yaml")
    if config is None and origin is not None:
        config = str(origin / "config.yaml")
    if config is None:
        raise ConfigError("which config? `mmrl train vision/cls_rl`, or `mmrl train --resume` for the newest run")
    loaded = load(config, overrides)
    experiment = loaded.experiment
    runtime = Runtime(experiment.runtime, experiment.seed)
    run = RunFolder(Path(runtime.from_main(str(folder or RunFolder.default_path(loaded.recipe, experiment.seed)))))
    if resume:
        run.check_resumable(flatten(yaml.safe_load(loaded.resolved)))
        run.check_writable()
    elif runtime.is_main:
        run.refuse_existing()  # before a model is loaded
    fork = RunFolder(origin).checkpoint() if origin is not None else None
    parts = experiment.build(runtime, run.start() if fork is None else fork / "policy")
    if origin is not None and runtime.is_main and parts.policy.critic_parameters() and not _had_critic(origin):
        print(f"critic: new, since {origin} had none (train.critic_warmup: so many steps for it alone)")
    if not resume and runtime.is_main:
        run.create(loaded.resolved, loaded.folder, fork)
    runtime.wait()
    experiment.begin(parts, runtime, run.path)
    trainer = Trainer(
        parts, experiment.train, runtime, run, experiment.evaluate, experiment.save, experiment.logging,
        experiment.stop, overrides if resume else (),
    )  # fmt: skip
    with run.in_use() if runtime.is_main else nullcontext():
        with closing(parts):
            summary = trainer.fit(resume)
        if not runtime.is_main:
            return 0
        if trainer.interrupted:
            print(f"stopped at step {summary['steps']}; continue with: mmrl train --run {run.path} --resume")
            return 130
        return _finish(loaded, run, summary, runtime)


def _had_critic(run: Path) -> bool:
    return mapping(read_yaml(run / "config.yaml").get("policy")).get("critic") is not None


def _finish(loaded: Loaded, run: RunFolder, summary: dict[str, object], runtime: Runtime) -> int:
    experiment = loaded.experiment
    before = _cpu_of_children()
    summary = {
        "recipe": loaded.recipe,
        "domain": experiment.domain,
        "seed": experiment.seed,
        **summary,
        "algorithm": read_yaml(run.path / "config.yaml").get("algorithm"),
        "base_policy": experiment.base_policy,
    }
    pending = {**summary, "controls": {}, "controls_pending": True}
    run.write_summary({**pending, "remarks": experiment.remarks(pending)})  # controls may be killed too
    found = experiment.run_controls(runtime, float(str(summary["cpu_s"])))
    summary |= {"controls_cpu_s": round(_cpu_of_children() - before, 2)} | (
        {} if found is None else {"controls": found}
    )
    summary["remarks"] = experiment.remarks(summary)
    run.write_summary(summary)
    print_table(summary)
    if "stopped_by" in summary:
        kept = f"; the result is the best checkpoint, of step {summary['kept_step']}" if "kept_step" in summary else ""
        print(f"stopped at step {summary['steps']}, since {summary['stopped_by']}{kept}")
    print(f"report: {write_report([run.path])}")
    return 0


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime + time.process_time()


def warmup(config: str, overrides: Sequence[str], output: Path | None) -> int:
    """Make a base policy."""
    loaded = load(config, overrides)
    runtime = Runtime(loaded.experiment.runtime, loaded.experiment.seed)
    if runtime.sharded:
        raise ConfigError("mmrl warmup makes small models, and does not shard them: launch it without --use_fsdp")
    section = yaml.safe_load(loaded.resolved).get("warmup") or {}
    target = output or Path(str(section.get("output", "warmup")))
    target.mkdir(parents=True, exist_ok=True)
    summary = loaded.experiment.run_warmup(runtime, target)
    checkpoint.write_atomically(target / "warmup.json", json.dumps({"config": loaded.recipe, **summary}, indent=1))
    for name, figures in summary.items():
        if name.startswith("eval_") and isinstance(figures, dict) and figures:
            first = next(iter(figures))
            print(f"{name}: {first} {figures[first]['value']:.3f}")
    print(f"saved to {target}")
    return 0


def prepared(target: str, overrides: Sequence[str], which: str | None = None) -> tuple[Loaded, Runtime, Trainer]:
    """A trainer at a checkpoint of a run (`which` as in RunFolder.checkpoint), or at a config's start."""
    folder = find_run(Path(target))
    is_run = (folder / "config.yaml").is_file()
    loaded = load(str(folder / "config.yaml") if is_run else target, overrides)
    found = RunFolder(folder).checkpoint(which) if is_run else None
    runtime = Runtime(loaded.experiment.runtime, loaded.experiment.seed)
    # a checkpoint's policy is the average already, and nothing is collected ahead of anything
    train = dataclasses.replace(loaded.experiment.train, ema=None, ahead=None)
    parts = loaded.experiment.build(runtime, RunFolder(folder).start())
    loaded.experiment.begin(parts, runtime, folder if is_run else None)
    trainer = Trainer(parts, train, runtime)
    if found is not None:
        checkpoint.load(found, trainer.parts.policy, trainer.optimizer)
    return loaded, runtime, trainer


def evaluate(target: str, overrides: Sequence[str], which: str | None = None) -> dict[str, object]:
    """Held-out figures of a checkpoint of a run or of a config's start."""
    _, _, trainer = prepared(target, overrides, which)
    with closing(trainer.parts):
        return {name: dataclasses.asdict(estimate) for name, estimate in trainer.evaluate().items()}


def rollout(config: str, overrides: Sequence[str], output: Path) -> dict[str, object]:
    """Rollouts without training."""
    loaded = load(config, overrides)
    output.mkdir(parents=True, exist_ok=True)
    return loaded.experiment.run_rollout(Runtime(loaded.experiment.runtime, loaded.experiment.seed), output)


def inspect(target: str, row: int) -> str:
    """One trajectory of a fresh rollout as a table: recorded and re-scored log-prob, reward, credit, and what
    the domain says of each decision."""
    loaded, runtime, trainer = prepared(target, ())
    parts = trainer.parts
    with acting(parts.policy):
        found = parts.collector.collect(parts.policy, runtime.generator("collect"))
    if not 0 <= row < len(found):
        raise ConfigError(f"--row is {row} and the rollout has {len(found)} trajectories")
    micro_rows = trainer.train.update.micro_rows
    again = score(parts.policy, found, micro_rows)
    if parts.algorithm.needs_reference and parts.reference is not None:
        found = found.with_(ref_logprobs=score(parts.reference, found, micro_rows))
    credit = parts.algorithm.advantage(parts.algorithm.shape(found)).advantages
    lines = [
        f"trajectory {row} of {len(found)}, group {int(found.group_ids[row])}, reward {float(found.returns()[row]):.3f}"
    ]
    lines.append(f"{'t':>4} {'logprob':>10} {'re-scored':>10} {'reward':>8} {'advantage':>10} mask")
    said = loaded.experiment.told(parts, found, row) or [""] * found.logprobs.shape[1]
    for t in range(int(found.alive[row].sum())):
        old, new, reward, worth = (float(n[row, t]) for n in (found.logprobs, again, found.rewards, credit))
        numbers = f"{t:>4} {old:>10.4f} {new:>10.4f} {reward:>8.3f} {worth:>10.4f} {bool(found.mask[row, t])!s:<5}"
        lines.append(f"{numbers} {said[t]}".rstrip())
    return "\n".join(lines)


def listing() -> str:
    """Recipes with their first comment, then the parts an algorithm can be made of."""
    files, lines = sorted(recipes_folder().glob("*/*.yaml")), []
    for heading, of_compare in (("recipes", False), ("comparisons, for `mmrl compare`", True)):
        lines.append(heading)
        for path in files:
            if (path.parent.name == "compare") == of_compare:
                comment = path.read_text().splitlines()[0].lstrip("# ")
                lines.append(f"  {f'{path.parent.name}/{path.stem}':<28} {comment}")
    import mmrl.advantages
    import mmrl.regularisers
    import mmrl.selectors
    import mmrl.shapers
    import mmrl.surrogates

    for module in (mmrl.advantages, mmrl.surrogates, mmrl.regularisers, mmrl.shapers, mmrl.selectors):
        lines.append(module.__name__.removeprefix("mmrl."))
        for name in module.__all__:
            about = (vars(module)[name].__doc__ or "").splitlines()[0]
            lines.append(f"  {module.__name__}.{name:<26} {about}")
    return "\n".join(lines)
