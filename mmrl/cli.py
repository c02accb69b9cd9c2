"""The command line. Heavy libraries are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WHICH = "latest, best or a step; default: the result of the run"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 done, 1 failed, 2 the request was wrong."""
    options = _parse(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TQDM_MININTERVAL", "0.5")
    os.environ.setdefault(
        "HF_DATASETS_DISABLE_PROGRESS_BARS", "1"
    )  # one for each episode or file; downloads keep theirs
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of what is printed has seen enough: `mmrl evaluate RUN | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (ValueError, ArithmeticError, ModuleNotFoundError, OSError, RuntimeError) as error:
        if os.environ.get("MMRL_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ValueError, ModuleNotFoundError, FileNotFoundError)) else 1
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options and words in any order: argparse itself takes key=value after an option for a mistake."""
    parser = _parser()
    options, more = parser.parse_known_args(arguments)
    unknown = [word for word in more if word.startswith("-") or "=" not in word or "overrides" not in options]
    if unknown:
        parser.error(f"unrecognised: {' '.join(unknown)}")
    if more:
        options.overrides = [*options.overrides, *more]
    if "config" in options and options.config is not None and "=" in options.config:
        options.config, options.overrides = None, [options.config, *options.overrides]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmrl", description="Reinforcement learning for models that see, paint and act.",
        epilog="MMRL_TRACEBACK=1 shows where an error comes from.",
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    _add_before(commands)
    train = commands.add_parser("train", help="train a policy by reinforcement learning")
    train.add_argument("config", nargs="?", help="a YAML file, or a recipe such as vision/cls_rl")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.steps=50 seed=1")
    train.add_argument(
        "--run", dest="folder", type=Path, metavar="DIR", help="the run folder (runs/<recipe>/<time>_seed<k>)"
    )
    train.add_argument("--resume", action="store_true", help="continue --run, or the newest run")
    train.add_argument("--from", dest="origin", type=Path, metavar="RUN", help="a new run from the weights of this one")
    train.set_defaults(run=_train)

    _add_runs(commands)
    _add_looking(commands)
    return parser


Commands = Any  # argparse has no public name for what add_subparsers gives


def _add_before(commands: Commands) -> None:
    """What comes before training."""
    init = commands.add_parser("init", help="a folder of one's own that runs as it is: config.yaml, code, data")
    init.add_argument("domain", help="vision, diffusion or vla")
    init.add_argument("folder", type=Path, metavar="DIR")
    init.set_defaults(run=_init)

    check = commands.add_parser("check", help="before spending: real samples, rewards, memory, time and disk")
    check.add_argument("config", help="a YAML file, or a recipe such as vision/cls_rl")
    check.add_argument("overrides", nargs="*", metavar="key=value")
    check.set_defaults(run=_check)


def _add_runs(commands: Commands) -> None:
    """What runs a policy."""
    warmup = commands.add_parser("warmup", help="make the base policy that RL improves")
    warmup.add_argument("config")
    warmup.add_argument("overrides", nargs="*", metavar="key=value")
    warmup.add_argument("--output", type=Path, metavar="DIR", help="where to save it (warmup.output)")
    warmup.set_defaults(run=_warmup)

    evaluate = commands.add_parser("evaluate", help="held-out evaluation of a run or of a config's start")
    evaluate.add_argument("target", metavar="RUN|CONFIG")
    evaluate.add_argument("overrides", nargs="*", metavar="key=value")
    evaluate.add_argument("--checkpoint", metavar="WHICH", help=WHICH)
    evaluate.set_defaults(run=_evaluate)

    rollout = commands.add_parser("rollout", help="generate or simulate only: samples, rewards, throughput")
    rollout.add_argument("config")
    rollout.add_argument("overrides", nargs="*", metavar="key=value")
    rollout.add_argument("--output", type=Path, default=Path("rollout"), metavar="DIR")
    rollout.set_defaults(run=_rollout)

    export = commands.add_parser("export", help="the result of a run as other tools load it, with a model card")
    export.add_argument("target", metavar="RUN", type=Path)
    export.add_argument("--to", type=Path, required=True, metavar="DIR")
    export.add_argument("--checkpoint", metavar="WHICH", help=WHICH)
    export.add_argument("--merge", action="store_true", help="put the adapter into the weights")
    export.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), help="of the weights written")
    export.set_defaults(run=_export)


def _add_looking(commands: Commands) -> None:
    """What only looks."""
    compare = commands.add_parser(
        "compare", help="settings x seeds from one start: table, report, nothing ranked by chance"
    )
    compare.add_argument("file", type=Path, metavar="FILE", help="recipe, arms, grid, seeds: see configs/compare/")
    compare.add_argument("--run", dest="folder", type=Path, metavar="DIR", help="default: runs/<name of the file>")
    compare.set_defaults(run=_compare)

    mixture = commands.add_parser("mixture", help="which mixture of tasks to train on, told from pilot runs")
    mixture.add_argument("config", help="a YAML file, or a recipe such as mixture/digits")
    mixture.add_argument("overrides", nargs="*", metavar="key=value")
    mixture.add_argument("--run", dest="folder", type=Path, metavar="DIR", help="default: runs/<name of the config>")
    mixture.set_defaults(run=_task, verb="mixture")

    report = commands.add_parser("report", help="one HTML page of one or several runs")
    report.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    report.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the (first) run")
    report.set_defaults(run=_report)

    inspect = commands.add_parser("inspect", help="one trajectory, decision by decision")
    inspect.add_argument("target", metavar="RUN|CONFIG")
    inspect.add_argument("--row", type=int, default=0, help="which trajectory of a fresh rollout")
    inspect.set_defaults(run=_inspect)

    rewards = commands.add_parser("rewards", help="how far to trust a reward: accuracy, biases, where it turns")
    rewards.add_argument("task", choices=("evaluate", "train", "pairs"), help="measure, train, write known pairs")
    rewards.add_argument("config", nargs="?", metavar="CONFIG|PAIRS", help="a YAML file, a recipe, or a file of pairs")
    rewards.add_argument("overrides", nargs="*", metavar="key=value")
    rewards.add_argument("--run", dest="folder", type=Path, metavar="DIR", help="default: runs/<name of the config>")
    rewards.set_defaults(run=_task, verb="rewards")

    listing = commands.add_parser("list", help="recipes and the parts of an algorithm, with one line each")
    listing.set_defaults(run=_list)


def _train(options: argparse.Namespace) -> int:
    from mmrl.commands import train

    if options.resume and options.origin:
        raise ValueError(
            "--resume and --from exclude each other: one goes on in the same folder, the other starts a new one"
        )
    return train(options.config, options.overrides, options.folder, options.resume, options.origin)


def _warmup(options: argparse.Namespace) -> int:
    from mmrl.commands import warmup

    return warmup(options.config, options.overrides, options.output)


def _evaluate(options: argparse.Namespace) -> int:
    from mmrl.commands import evaluate

    print(json.dumps(evaluate(options.target, options.overrides, options.checkpoint), indent=1))
    return 0


def _init(options: argparse.Namespace) -> int:
    from mmrl.starting import init

    print(init(options.domain, options.folder))
    return 0


def _check(options: argparse.Namespace) -> int:
    from mmrl.check import check

    check(options.config, options.overrides)
    return 0


def _export(options: argparse.Namespace) -> int:
    from mmrl.export import export

    print(export(options.target, options.to, options.checkpoint, options.merge, options.dtype))
    return 0


def _rollout(options: argparse.Namespace) -> int:
    from mmrl.commands import rollout

    print(json.dumps(rollout(options.config, options.overrides, options.output), indent=1))
    print(f"samples and rollout.json: {options.output}", file=sys.stderr)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from mmrl.compare import compare
    from mmrl.recipes import find_config

    return compare(find_config(str(options.file)), options.folder)


def _report(options: argparse.Namespace) -> int:
    from mmrl.report import write_report

    print(write_report(options.runs, options.output))
    return 0


def _task(options: argparse.Namespace) -> int:
    from mmrl.tasks import run_task

    verb = f"rewards {options.task}" if options.verb == "rewards" else options.verb
    return run_task(verb, options.config, options.overrides, options.folder)


def _inspect(options: argparse.Namespace) -> int:
    from mmrl.commands import inspect

    print(inspect(options.target, options.row))
    return 0


def _list(options: argparse.Namespace) -> int:
    from mmrl.commands import listing

    print(listing())
    return 0


if __name__ == "__main__":
    sys.exit(main())
