"""Stop rules, the best checkpoint and forks, on the toy domain."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmrl import commands
from mmrl.checkpoint import SaveConfig
from mmrl.cli import main
from mmrl.run import RunFolder, RunFolderError
from mmrl.state import State
from mmrl.stopping import StopRule, Watch, find_metric, require_metric
from tests.toy import toy_config


def looked(rule: StopRule, *values: float) -> list[bool]:
    memory: dict[str, float] = {}
    return [rule.look(memory, {"eval/accuracy": value}) is not None for value in values]


@pytest.mark.parametrize(
    ("rule", "values", "fires"),
    [
        (StopRule("accuracy", drops=0.1), (0.5, 0.6, 0.51, 0.49), (False, False, False, True)),
        (StopRule("accuracy", drops=0.1, evaluations=2), (0.6, 0.4, 0.6, 0.4, 0.4), (False, False, False, False, True)),
        (StopRule("accuracy", above=8.0), (8.0, 8.1), (False, True)),
        (StopRule("accuracy", below="0.5x_start"), (0.4, 0.21, 0.19), (False, False, True)),
        (StopRule("accuracy", above="2x_start"), (0.4, 0.8, 0.81), (False, False, True)),
    ],
)
def test_a_rule_fires_where_it_should(rule, values, fires):
    assert tuple(looked(rule, *values)) == fires


def test_a_rule_ignores_steps_without_its_metric_and_says_why():
    rule, memory = StopRule("kl", above=1.0), {}
    assert rule.look(memory, {"rollout/reward_mean": 9.0}) is None
    assert memory == {}
    assert rule.look(memory, {"update/kl": 1.5}) == "update/kl is 1.5, above 1"


@pytest.mark.parametrize(
    "bad", [{}, {"drops": 0.1, "above": 1.0}, {"above": "twice"}, {"drops": 0.1, "evaluations": 0}]
)
def test_a_rule_that_means_nothing_is_refused(bad):
    with pytest.raises(ValueError, match="'accuracy'"):
        StopRule("accuracy", **bad)


def test_metrics_are_found_by_their_last_name_and_misspelt_ones_are_named():
    metrics = {"eval/accuracy": 1.0, "update/kl": 0.0, "reward/format": 0.0}
    assert find_metric("kl", metrics) == "update/kl"
    assert find_metric("update/kl", metrics) == "update/kl"
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        require_metric("acuracy", "save.best", metrics)


def test_keep_best_needs_a_best():
    with pytest.raises(ValueError, match=r"save.best is not set"):
        Watch((StopRule("accuracy", drops=0.1, then="keep_best"),), SaveConfig())


def test_the_best_is_kept_whichever_way_is_better():
    for lowest, best in ((False, 2), (True, 1)):
        watch, state = Watch((), SaveConfig(best="accuracy", lowest=lowest)), State()
        for step, value in enumerate((0.5, 0.2, 0.9, 0.9)):
            state.step = step
            watch.note_best(state, {"eval/accuracy": value})
        assert state.best_step == best


def noted(rules: tuple[StopRule, ...], *measured: tuple[float, float], lowest: bool = False) -> list[bool]:
    """Whether each (accuracy, gold) counted as best, the first before the first step."""
    watch, state, found = Watch(rules, SaveConfig(best="accuracy", lowest=lowest)), State(), []
    for step, (accuracy, gold) in enumerate(measured):
        state.step, line = step, {"eval/accuracy": accuracy, "eval/gold": gold}
        watch.look(state, line)
        found.append(watch.note_best(state, line))
    return found


def test_while_a_rule_is_violated_nothing_counts_as_best():
    """A reward that rises while the gold figure falls is being hacked; what comes after a recovery counts again."""
    rule = StopRule("gold", drops=0.1, evaluations=5, then="keep_best")
    measured = ((0.1, 0.5), (0.2, 0.5), (0.9, 0.3), (0.8, 0.39), (0.3, 0.4), (0.25, 0.5), (0.4, 0.5))
    assert noted((rule,), *measured) == [True, True, False, False, True, False, True]
    assert noted((), *measured) == [True, True, True, False, False, False, False]
    others = (StopRule("accuracy", above=9.0), rule)
    assert noted(others, *measured) == noted((rule,), *measured)  # any rule of several


def test_the_start_counts_as_best_even_where_it_violates_a_rule():
    """There is something to go back to in any case."""
    rule = StopRule("gold", below=0.6, evaluations=9)
    assert noted((rule,), (0.1, 0.5), (0.2, 0.5), (0.3, 0.7), (0.4, 0.5)) == [True, False, True, False]
    assert noted((rule,), (0.1, 0.5), (0.0, 0.7), lowest=True) == [True, True]


def test_a_rule_on_a_figure_of_every_step_speaks_for_the_evaluation_too():
    watch, state = Watch((StopRule("kl", above=1.0, evaluations=3),), SaveConfig(best="accuracy")), State()
    assert watch.note_best(state, {"eval/accuracy": 0.1})
    for step, (kl, wanted) in enumerate(((2.0, False), (0.5, True)), start=1):
        state.step, line = step, {"update/kl": kl, "eval/accuracy": 0.1 + step}
        watch.look(state, line)
        assert watch.note_best(state, line) is wanted


def run(folder: Path, monkeypatch, lines=(), *words: str, steps: int = 8) -> dict:
    monkeypatch.chdir(folder)
    config = toy_config(folder, steps=steps, lines=lines)
    assert main(["train", str(config), "--run", str(folder / "run"), *words]) == 0
    return json.loads((folder / "run" / "summary.json").read_text())


def test_a_rule_ends_the_run_and_the_best_checkpoint_is_its_result(tmp_path, monkeypatch):
    """The learning rate makes the policy worse, so the start is the best there is."""
    rule = "stop: [{metric: accuracy, drops: 0.01, evaluations: 1, then: keep_best}]"
    lines = [rule, "evaluate: {every: 1, samples: 0}", "save: {every: 1, keep: 1, best: accuracy}"]
    text = toy_config(tmp_path, steps=30).read_text().split("evaluate:")[0]
    (tmp_path / "own.yaml").write_text(text + "\n".join(lines) + "\nlogging: {progress: false}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "own.yaml", "--run", "run", "train.lr=0.5", "rewards.right.use={class_path: tests.toy.RightActions, init_args: {bonus: 0.0}}", "rewards.right.weight=-1.0"]) == 0  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] < 30
    assert "eval/accuracy is" in summary["stopped_by"]
    assert summary["kept_step"] == summary["best"]["step"] < summary["steps"]
    assert summary["eval_after"]["accuracy"]["value"] == summary["best"]["value"]
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoint() == folder.checkpoint("best") != folder.checkpoint("latest")
    assert (folder.checkpoints / "best").resolve() == folder.checkpoint("best").resolve()
    kept = {path.name for path in folder.checkpoints.glob("step_*")}
    assert kept == {folder.checkpoint("best").name, folder.checkpoint("latest").name}
    found = main(["evaluate", "run", "--checkpoint", "best"])
    assert found == 0
    with pytest.raises(RunFolderError, match=r"no checkpoint '7'"):
        folder.checkpoint("7")


def test_what_a_rule_remembers_survives_an_interruption(tmp_path, monkeypatch):
    """With it and without, the same run stops at the same step."""
    lines = ["stop: [{metric: reward_mean, below: 5.0, evaluations: 5}]"]
    whole = run(tmp_path, monkeypatch, lines)
    assert whole["steps"] == 5
    other = tmp_path / "other"
    other.mkdir()
    first = run(other, monkeypatch, lines, steps=3)
    assert first["steps"] == 3
    assert main(["train", "--run", str(other / "run"), "--resume", "train.steps=8"]) == 0
    again = json.loads((other / "run" / "summary.json").read_text())
    assert (again["steps"], again["stopped_by"]) == (5, whole["stopped_by"])


def test_a_misspelt_metric_is_named_before_anything_is_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = toy_config(tmp_path, lines=["stop: [{metric: reward_maen, below: 5.0}]"])
    assert main(["train", str(config), "--run", "run"]) == 2
    assert "did you mean 'reward_mean'" in capsys.readouterr().err
    config.write_text(
        config.read_text().replace("save: {every: 2}", "save: {every: 2, best: acuracy}").split("stop:")[0]
    )
    assert main(["train", str(config), "--run", "run2"]) == 2
    assert "did you mean 'accuracy'" in capsys.readouterr().err


def test_a_fork_starts_from_the_weights_and_may_change_any_key(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch)
    assert main(["train", "--from", "run", "--run", "fork", "train.lr=0.001", "train.steps=2"]) == 0
    before, after = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "fork"))
    assert after["eval_before"] == before["eval_after"]
    assert after["steps"] == 2
    assert json.loads((tmp_path / "fork" / "provenance.json").read_text())["forked_from"].endswith(
        "run/checkpoints/step_000008"
    )


def test_a_fork_that_was_killed_before_its_first_checkpoint_still_starts_from_there(tmp_path, monkeypatch):
    run(tmp_path, monkeypatch)
    assert main(["train", "--from", "run", "--run", "fork", "train.steps=4"]) == 0
    shutil.copytree("fork", "killed")
    shutil.rmtree("killed/checkpoints")
    for name in ("metrics.jsonl", "summary.json"):
        (tmp_path / "killed" / name).unlink()
    (tmp_path / "killed" / "checkpoints").mkdir()
    assert main(["train", "--run", "killed", "--resume"]) == 0
    one, two = (
        torch.load(f"{name}/checkpoints/step_000004/optimizer.pt", weights_only=True) for name in ("fork", "killed")
    )
    assert str(one) == str(two)
    shutil.rmtree("run")  # the fork has kept its start
    shutil.rmtree("killed/checkpoints")
    for name in ("metrics.jsonl", "summary.json"):
        (tmp_path / "killed" / name).unlink()
    (tmp_path / "killed" / "checkpoints").mkdir()
    assert main(["train", "--run", "killed", "--resume"]) == 0
    again = torch.load("killed/checkpoints/step_000004/optimizer.pt", weights_only=True)
    assert str(again) == str(one)


def test_the_reference_of_a_fork_is_where_it_started(tmp_path, monkeypatch):
    """Also after it was stopped and resumed, and whatever became of the run that it was forked from."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", str(toy_config(tmp_path, steps=6)), "--run", "run", "train.lr=0.1"]) == 0
    once = ["train.lr=0.1", "train.steps=2", "train.update.epochs=1", "train.update.minibatches=1"]
    assert main(["train", "--from", "run", "--run", "fork", *once]) == 0
    shutil.rmtree("run")
    assert main(["train", "--run", "fork", "--resume", "train.steps=4"]) == 0
    lines = [json.loads(line) for line in Path("fork/metrics.jsonl").read_text().splitlines()]
    kls = {line["step"]: line["update/kl"] for line in lines if "update/kl" in line}
    assert kls[1] == pytest.approx(0.0, abs=1e-6)
    assert kls[3] > 1e-4
    fork = commands.prepared("fork", ())[2].parts
    start = dict(torch.nn.Module.named_parameters(fork.reference))
    saved = load_file("fork/start/toy.safetensors")
    assert all(torch.equal(start[name], saved[name]) for name in start)


def test_resume_and_from_exclude_each_other(tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch)
    assert main(["train", "--from", "run", "--resume"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_what_may_not_change_on_resume_is_sent_to_a_fork(tmp_path, monkeypatch, capsys):
    run(tmp_path, monkeypatch)
    assert main(["train", "--run", "run", "--resume", "train.lr=0.5"]) == 1
    assert "mmrl train --from run" in capsys.readouterr().err
    assert main(["train", "--run", "run", "--resume", "train.steps=9", "save.keep=1", "evaluate.samples=1"]) == 0


def test_a_rule_reads_one_metric_of_those_that_share_a_name():
    """kl is measured by evaluations and, of other size, by every step between them."""
    watch, state = Watch((StopRule("kl", above="2x_start"),), SaveConfig()), State(eval_before={"kl": {}})
    for step, metrics, stops in (
        (0, {"eval/kl": 1.0}, False),
        (1, {"update/kl": 9.0}, False),
        (2, {"update/kl": 9.0, "eval/kl": 1.5}, False),
        (3, {"update/kl": 0.1}, False),
        (4, {"update/kl": 0.1, "eval/kl": 2.5}, True),
    ):
        state.step = step
        assert watch.look(state, metrics) is stops
    assert state.stopped_by == "eval/kl is 2.5, above 2"
    alone = Watch((StopRule("kl", above=1.0),), SaveConfig())
    assert alone.look(State(step=1), {"update/kl": 1.5})


def test_what_an_advantage_remembers_survives_a_stop(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(toy_config(tmp_path, steps=6))
    history = "{class_path: mmrl.advantages.PromptHistory, init_args: {buffer: 8, minimum: 2}}"
    words = [f"algorithm.advantage={history}", "rollout.group=1", "rollout.prompts=6"]
    assert main(["train", config, "--run", "whole", *words]) == 0
    assert main(["train", config, "--run", "halved", *words, "train.steps=4"]) == 0
    assert main(["train", "--run", "halved", "--resume", "train.steps=6"]) == 0
    one, two = (load_file(f"{name}/checkpoints/step_000006/policy/toy.safetensors") for name in ("whole", "halved"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    state = json.loads((tmp_path / "halved" / "checkpoints" / "step_000006" / "state.json").read_text())
    assert sum(len(rewards) for rewards in state["advantage"].values()) > 20
