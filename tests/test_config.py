"""Configs: what is refused and in which words, overrides, and that a resolved config is the run's own."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml

from mmrl.advantages import GroupRelative
from mmrl.config import ConfigError, Loaded, load
from mmrl.recipes import find_asset, find_config, recipes_folder
from mmrl.regularisers import K3
from mmrl.schedules import Constant, Cosine
from mmrl.surrogates import CISPO, PPOClip
from mmrl.yaml_files import flatten
from tests.toy import ToyExperiment, toy_config


def loaded(folder: Path, *overrides: str) -> ToyExperiment:
    found = load(str(toy_config(folder)), overrides).experiment
    assert isinstance(found, ToyExperiment)
    return found


def refused(folder: Path, *overrides: str, lines: tuple[str, ...] = (), edit: tuple[str, str] = ("", "")) -> str:
    """The sentence with which a config is refused."""
    path = toy_config(folder, lines=lines)
    path.write_text(path.read_text().replace(*edit) if edit[0] else path.read_text())
    with pytest.raises(ConfigError) as caught:
        load(str(path), overrides)
    return str(caught.value)


def test_values_reach_the_experiment(tmp_path: Path) -> None:
    found = loaded(tmp_path)
    assert found.algorithm.surrogate == PPOClip(0.2, 0.2, 3.0)
    assert found.algorithm.regularisers == (K3(0.01),)
    assert (found.train.steps, found.train.lr, found.train.update.minibatches) == (8, 0.01, 2)
    assert found.train.betas == (0.9, 0.95)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.steps=5", "train.steps", 5),
        ("train.lr=1e-4", "train.lr", 1e-4),
        ("train.update.micro_steps=2", "train.update.micro_steps", 2),
        ("save.every=null", "save.every", None),
        ("train.betas=[0.8, 0.99]", "train.betas", (0.8, 0.99)),
        ("algorithm.surrogate.clip_high=0.3", "algorithm.surrogate.clip_high", 0.3),
        ("algorithm.surrogate.init_args.clip_high=0.3", "algorithm.surrogate.clip_high", 0.3),  # as the file has it
        ("train.schedule.warmup_steps=3", "train.schedule.warmup_steps", 3),  # the default class, unnamed in the file
        ("seed=7", "seed", 7),
    ],
)
def test_overrides(tmp_path: Path, override: str, path: str, value: object) -> None:
    found: object = loaded(tmp_path, override)
    for name in path.split("."):
        found = vars(found)[name]
    assert found == value


def test_override_into_a_list(tmp_path: Path) -> None:
    assert loaded(tmp_path, "algorithm.regularisers.0.coef=0.5").algorithm.regularisers == (K3(0.5),)
    assert loaded(tmp_path, "algorithm.regularisers=[]").algorithm.regularisers == ()
    message = refused(tmp_path, "algorithm.regularisers.1.coef=0.5")
    assert "'1' is not a place in a list of 1" in message


def test_override_into_a_mapping_of_parts(tmp_path: Path) -> None:
    found = loaded(
        tmp_path, "rewards.right.weight=2", "rewards.right.use.bonus=0.5", "rewards.b.use=tests.toy.RightActions"
    )
    assert {name: (part.weight, vars(part.use)["bonus"]) for name, part in found.rewards.items()} == {
        "right": (2.0, 0.5),
        "b": (1.0, 0.0),
    }


def test_changing_a_class_does_not_inherit_the_other_ones_arguments(tmp_path: Path) -> None:
    found = loaded(tmp_path, "algorithm.surrogate=mmrl.surrogates.CISPO", "train.schedule=mmrl.schedules.Cosine")
    assert found.algorithm.surrogate == CISPO()
    assert found.train.schedule == Cosine()
    overridden = loaded(tmp_path, "algorithm.surrogate=mmrl.surrogates.GSPO", "algorithm.surrogate.clip_low=0.1")
    assert vars(overridden.algorithm.surrogate) == {"clip_low": 0.1, "clip_high": 4e-4}


def test_argument_of_the_default_class_is_kept_apart(tmp_path: Path) -> None:
    lines = ("runtime: {threads: 1}",)
    path = toy_config(tmp_path, lines=lines)
    text = path.read_text().replace("lr: 0.01,", "lr: 0.01, schedule: {class_path: mmrl.schedules.Constant},")
    path.write_text(text)
    assert vars(load(str(path)).experiment.train)["schedule"] == Constant()
    path.write_text(path.read_text().replace("init_args: {normalise: true}", "init_args: {eps: 0.5}"))
    found = load(str(path)).experiment
    assert isinstance(found, ToyExperiment)
    assert found.algorithm.advantage == GroupRelative(normalise=True, eps=0.5)


def test_the_surrogate_of_the_docs_runs_from_a_folder_of_ones_own(tmp_path: Path) -> None:
    code = (
        (Path(__file__).parent.parent / "docs" / "add-an-algorithm.md")
        .read_text()
        .split("```python\n")[1]
        .split("```")[0]
    )
    (tmp_path / "sapo.py").write_text(code)
    surrogate = loaded(tmp_path, "algorithm.surrogate=sapo.SAPO", "algorithm.surrogate.tau=0.5").algorithm.surrogate
    assert vars(surrogate) == {"tau": 0.5}
    logprobs, mask = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, dtype=torch.bool)
    advantages = torch.tensor([[1.0, -2.0]])
    none = torch.zeros(1, 2)
    loss, _ = surrogate(logprobs, types.SimpleNamespace(old_logprobs=none, advantages=advantages, mask=mask))  # type: ignore[arg-type]
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)  # at a ratio of 1 it is the policy gradient


# ---- what is refused --------------------------------------------------------------------------------------


def test_unknown_top_key_gets_a_suggestion(tmp_path: Path) -> None:
    assert "unknown key 'sede'" in refused(tmp_path, "sede=3")
    assert "did you mean 'seed'?" in refused(tmp_path, "sede=3")
    assert "did you mean 'rollout'?" in refused(tmp_path, lines=("rollouts: {prompts: 2}",))


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("train.stesp=5", "steps"),
        ("train.update.micro_rwos=5", "micro_rows"),
        ("algorithm.surrogate.clip_hihg=0.3", "clip_high"),
        ("rewards.right.wieght=2", "weight"),
        ("algorithm.surrogate=mmrl.surrogates.PPOClp", "mmrl.surrogates.PPOClip"),
        ("algorithm.surrogate=mmrl.surogates.PPOClip", "mmrl.surrogates"),
    ],
)
def test_unknown_nested_key_gets_a_suggestion(tmp_path: Path, override: str, near: str) -> None:
    assert re.search(rf"did you mean '[\w.]*{near}'\?", refused(tmp_path, override))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=1.5", ["train.steps", "Expected a int", "1.5"]),
        ("train.lr=fast", ["train.lr", "Expected a float", "fast"]),
        ("rollout.group=two", ["rollout.group", "Expected a int", "two"]),
        ("policy.kind=cubic", ["policy.kind", "categorical", "gaussian", "cubic"]),
        ("runtime.device=cuda", ["runtime.device", "auto", "cpu"]),
        (
            "algorithm.surrogate=mmrl.aggregates.TokenMean",
            ["algorithm.surrogate", "TokenMean", "subclass of Surrogate"],
        ),
        ("algorithm.surrogate=mmrl.surrogates.Nope", ["algorithm.surrogate", "mmrl.surrogates", "no attribute 'Nope'"]),
        ("algorithm.surrogate=nothing.here.Nope", ["algorithm.surrogate", "No module named 'nothing'"]),
        ("algorithm.advantage=null", ["algorithm.advantage", "required"]),
        ("algorithm.surrogate.dual_clip=1.0", ["PPOClip.dual_clip is 1.0: give more than 1 + clip_high"]),
        ("train.update.micro_rows=0", ["update.micro_rows is 0: give 1 or more"]),
        ("train.lr=0", ["train.lr is 0.0", "more than 0"]),
        ("save.keep=0", ["save.keep is 0", "give 1 or more"]),
        ("train.steps", ["'train.steps' is not an override: write key=value"]),
        ("=5", ["'=5' is not an override"]),
        ("rollout={prompts: 1, prompts: 2}", ["the key 'prompts' stands twice"]),
    ],
)
def test_bad_value_is_one_sentence_with_the_key(tmp_path: Path, override: str, words: list[str]) -> None:
    message = refused(tmp_path, override)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_duplicate_key_with_its_line(tmp_path: Path) -> None:
    message = refused(tmp_path, lines=("seed: 1", "seed: 2"))
    assert re.search(r"toy.yaml, line \d+: the key 'seed' stands twice: remove one", message)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds NoneType, not keys"),
        ("- a\n", "holds list, not keys"),
        ("a: [1\n", "is not YAML"),
        ("seed: !!python/object/apply:os.getcwd []\n", "is not YAML"),
        ("seed: 1\n", "the key `experiment` is missing"),
        ("experiment: visoin\n", "'visoin' is not one of vision, diffusion, vla"),
        ("experiment: tests.toy.ToyRollout\n", "is not a mmrl.experiment.Experiment"),
        ("experiment: tests.toy.Nope\n", "tests.toy has no Nope"),
    ],
)
def test_what_is_no_config(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_names_the_listing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist: `mmrl list` names the recipes"):
        load(str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="did you mean 'vision/cls_rl'"):
        load("vision/cls_rll")


def test_missing_extra_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "vla"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "experiments.py").write_text("import a_robot_simulator\n")
    path = tmp_path / "arm.yaml"
    path.write_text("experiment: vla\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "vla"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError) as caught:
        load(str(path))
    assert "'vla' needs 'a_robot_simulator', which is not installed: `pip install \".[vla]\"`" in str(caught.value)


def test_override_below_a_number_is_refused(tmp_path: Path) -> None:
    assert "train.lr" in refused(tmp_path, "train.lr.x=1")


def test_a_number_in_place_of_a_section_is_refused(tmp_path: Path) -> None:
    assert "train" in refused(tmp_path, "train=5")


def test_override_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    assert "train.betas=[1" in refused(tmp_path, "train.betas=[1")


@pytest.mark.parametrize("value", ["../models/Qwen2.5-VL", "./photos.d"])
def test_relative_paths_with_dots_are_values(tmp_path: Path, value: str) -> None:
    assert loaded(tmp_path, f"logging.wandb_project={value}").logging.wandb_project == value


@pytest.mark.parametrize("value", ["Qwen/Qwen2.5-VL-3B-Instruct", "/data/v1.5", "a.b", "1.2.3"])
def test_values_with_dots_are_values(tmp_path: Path, value: str) -> None:
    assert loaded(tmp_path, f"logging.wandb_project={value}").logging.wandb_project == value


# ---- resolved ---------------------------------------------------------------------------------------------


def resolved_again(folder: Path, first: Loaded) -> Loaded:
    path = folder / "elsewhere.yaml"
    path.write_text(first.resolved)
    return load(str(path))


def test_resolved_reproduces_the_experiment(tmp_path: Path) -> None:
    first = load(str(toy_config(tmp_path)), ["train.steps=5", "algorithm.surrogate=mmrl.surrogates.GSPO", "seed=3"])
    second = resolved_again(tmp_path, first)
    assert second.experiment == first.experiment
    assert second.recipe == first.recipe == "toy"
    assert yaml.safe_load(second.resolved) == yaml.safe_load(first.resolved)
    assert "clip_low: 0.0003" in first.resolved  # defaults are written out


def test_resolved_is_the_same_text(tmp_path: Path) -> None:
    first = load(str(toy_config(tmp_path)))
    assert resolved_again(tmp_path, first).resolved == first.resolved


def test_every_recipe_is_short_and_found_by_name() -> None:
    recipes = sorted(recipes_folder().glob("*/*.yaml"))
    assert recipes
    for recipe in recipes:
        assert len(recipe.read_text().splitlines()) <= 40
        assert recipe.read_text().startswith("# ")
        assert find_config(f"{recipe.parent.name}/{recipe.stem}") == recipe


def test_find_asset() -> None:
    assert find_asset("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert Path(find_asset("assets/none")).is_absolute()


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2]}


def test_code_beside_the_config_is_found(tmp_path: Path) -> None:
    (tmp_path / "my_own_reward.py").write_text(
        "from dataclasses import dataclass\nfrom tests.toy import RightActions\n\n"
        "@dataclass(frozen=True)\nclass Mine(RightActions):\n    more: int = 4\n"
    )
    toy_config(tmp_path)
    code = (
        "from mmrl.config import load\n"
        "found = load('toy.yaml', ['rewards.right.use=my_own_reward.Mine']).experiment\n"
        "print(found.rewards['right'].use)"
    )
    root = Path(__file__).resolve().parent.parent
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert run.stdout.strip() == "Mine(bonus=0.0, more=4)", run.stderr


def test_overrides_may_stand_after_options(capsys: pytest.CaptureFixture[str]) -> None:
    from mmrl.cli import main

    assert main(["train", "no_such_config", "--run", "nowhere", "train.steps=5"]) == 2
    assert "no_such_config does not exist" in capsys.readouterr().err


def test_resuming_with_an_override_needs_no_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mmrl.cli import main

    assert main(["train", "train.steps=5", "--run", str(tmp_path / "nowhere"), "--resume"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_an_experiment_may_be_extended_in_another_module(tmp_path: Path) -> None:
    """Whose annotations know other names than those of the parent's module."""
    (tmp_path / "my_own_experiment.py").write_text(
        "from dataclasses import dataclass\nimport tests.toy as toy\n\n"
        "@dataclass(frozen=True)\nclass Mine(toy.ToyExperiment):\n    extra: int = 1\n"
    )
    path = toy_config(tmp_path, lines=("extra: 4",))
    path.write_text(path.read_text().replace("tests.toy.ToyExperiment", "my_own_experiment.Mine"))
    assert vars(load(str(path)).experiment)["extra"] == 4
    assert "did you mean 'extra'?" in refused(
        tmp_path, "extar=3", edit=("tests.toy.ToyExperiment", "my_own_experiment.Mine")
    )
