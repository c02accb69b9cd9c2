"""Bad input of every kind, drawn by hypothesis: it is refused in one sentence or means what it says, and no traceback
reaches whoever gave it.

What this found, and has been mended since: a binary config, keys that are lists, brackets a thousand deep, a date of
month 13, learning rates that are no number, masks that are no bool, statistics and parts of rewards of another shape
or not finite, a factor that turns a learning rate round, a word among scores read as its digits, a metrics file of other lines, a checkpoint with a bit flipped.
"""

from __future__ import annotations

import json
import math
import shutil
import string
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmrl import checkpoint
from mmrl.advantages import GAE, GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.batching import UpdateConfig
from mmrl.checkpoint import CheckpointError
from mmrl.cli import main
from mmrl.config import load
from mmrl.metrics import _lines_up_to
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.seals import seal
from mmrl.state import State
from mmrl.surrogates import PPOClip
from mmrl.types import Rollout, Samples, Scores
from mmrl.update import update
from mmrl.value_loss import ValueRegression
from mmrl.yaml_files import ConfigError, apply_override, flatten, read_yaml
from rewards.compose import Part, RewardError, WeightedSum
from rewards.functions import as_scores
from tests.toy import ToyPolicyConfig, fixed_rollout, toy_config


def fuzz(examples: int) -> settings:
    """The same draws every time, so that a failure is found again; folders of a fixture are used by all examples."""
    slow = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=slow)


def sentence(error: BaseException) -> str:
    """What it says, which is for people."""
    said = str(error)
    assert said.strip(), error
    assert "\n" not in said.strip(), said
    assert "Traceback" not in said
    return said


# ---- configs ----------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(),
    st.sampled_from(["", "1e-4", "null", "2020-13-45", "mmrl.surrogates.PPOClip", "mmrl.nothing", "os.path", "a.b.C", "~"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(SCALARS.filter(bool), inner, max_size=3)),
    max_leaves=5,
)
SNIPPETS = st.sampled_from(
    ["{", "}", "[", "]", ":", "- ", "\n", "? ", "&a ", "*a", "!!python/name:os.system ", "!!float x", "<<: ", "'", '"', "\t",
     "0x", "1_0", "2020-13-45", "seed: 1\n", "? [a, b]\n: 1\n", "\x00", "#", "|", "%YAML", "\ufeff", "=", "{a: 1, a: 2}"]
)  # fmt: skip


@fuzz(300)
@given(st.one_of(st.binary(max_size=60), st.lists(st.one_of(SNIPPETS, st.text(max_size=5)), max_size=12)))
def test_any_file_is_keys_or_is_refused(tmp_path: Path, content: bytes | list[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else "".join(content).encode(errors="replace"))
    try:
        assert isinstance(read_yaml(path), dict)
    except ConfigError as error:
        assert "config.yaml" in sentence(error)


@pytest.mark.parametrize(
    "content", [b"[" * 5000, b"a: " + b"{b: " * 3000, b"\xff\xfe\x00", b"a: 2020-13-45", b"? {a: 1}\n: 2"]
)
def test_files_that_were_found(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(tmp_path / "config.yaml")
    assert "config.yaml" in sentence(caught.value)


@fuzz(300)
@given(
    st.lists(st.sampled_from(["train", "lr", "algorithm", "regularisers", "0", "-1", "surrogate", "class_path", "init_args", "",
                              "rewards", "right", "use", "seed", "²"]), min_size=1, max_size=5),
    st.one_of(st.text(string.printable, max_size=8), SNIPPETS),
)  # fmt: skip
def test_any_override_is_put_in_place_or_is_refused(tmp_path: Path, path: list[str], text: str) -> None:
    raw = read_yaml(toy_config(tmp_path))
    try:
        apply_override(raw, f"{'.'.join(path)}={text}")
    except ConfigError as error:
        sentence(error)


LEAVES = [
    "seed", "train.lr", "train.steps", "train.update.epochs", "train.update.micro_rows", "train.betas", "train.ema", "save.every",
    "evaluate.every", "evaluate.samples", "algorithm", "algorithm.surrogate", "algorithm.surrogate.init_args.clip_low",
    "algorithm.regularisers", "algorithm.regularisers.0.init_args.coef", "rewards", "rewards.right.use", "rewards.right.weight",
    "rewards.right.timeout_s", "logging.progress", "policy", "policy.kind", "stop", "experiment", "imports", "unheard_of",
]  # fmt: skip


@fuzz(60)
@given(st.sampled_from(LEAVES), VALUES)
def test_any_value_of_any_key_is_refused_or_means_what_it_says(tmp_path: Path, key: str, value: object) -> None:
    raw = read_yaml(toy_config(tmp_path))
    node, (*path, last) = raw, key.split(".")
    for name in path:
        node = node[int(name)] if isinstance(node, list) else node.setdefault(name, {})  # type: ignore[attr-defined]
    node[int(last) if isinstance(node, list) else last] = value  # type: ignore[index]
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(raw))
    try:
        found = load(str(tmp_path / "toy.yaml"))
    except ConfigError as error:
        assert "toy.yaml" in sentence(error)
        return
    kept = flatten(yaml.safe_load(found.resolved))
    if isinstance(value, int | float) and key in kept:
        assert kept[key] == value, "another number than was given"
        assert math.isfinite(float(value))


@pytest.mark.parametrize("change", [
    "train.weight_decay=-1", "train.betas=[0.9, 1.5]", "train.schedule.warmup_steps=-1", "evaluate.samples=-1",
    "train.schedule={class_path: mmrl.schedules.Linear, init_args: {final: -0.5}}", "runtime.threads=0",
    "algorithm.value_loss={class_path: mmrl.value_loss.ValueRegression, init_args: {clip: -0.2}}", "train.lr=.nan",
    "algorithm.advantage.eps=-1", "rewards.right.weight=.inf", "rewards.right.timeout_s=0",
])  # fmt: skip
def test_numbers_that_were_let_through(tmp_path: Path, change: str) -> None:
    with pytest.raises(ConfigError, match="give ") as caught:
        load(str(toy_config(tmp_path)), [change])
    said = sentence(caught.value)
    assert change.split("=")[0].split(".")[-1] in said or "final is -0.5" in said or "clip is -0.2" in said


# ---- rollouts and masks -----------------------------------------------------------------------------------

ALGORITHMS = {
    "grpo": Algorithm(GroupRelative(), PPOClip(), TokenMean()),
    "ppo": Algorithm(GAE(), PPOClip(), TokenMean(), value_loss=ValueRegression()),
}
RUNTIME = Runtime(RuntimeConfig(device="cpu"), 0)
NUMBERS = ("logprobs", "rewards", "discounts", "values", "ref_logprobs", "behaviour_logprobs")
WHERE_READ = {"logprobs": "mask", "ref_logprobs": "mask", "behaviour_logprobs": "mask"}


def drawn(seed: int, critic: bool = True) -> Rollout:
    """A rollout of the toy policy with every optional field."""
    found = fixed_rollout(ToyPolicyConfig(critic=critic).make(), seed)
    chance = torch.Generator().manual_seed(seed)
    mask = found.alive & (torch.rand(found.mask.shape, generator=chance) < 0.8)
    mask[0, 0] = True
    return found.with_(mask=mask, ref_logprobs=found.logprobs.clone(), behaviour_logprobs=found.logprobs.clone())


def learned(rollout: Rollout, algorithm: Algorithm, micro_rows: int = 64) -> dict[str, torch.Tensor]:
    """The weights after one update."""
    policy = ToyPolicyConfig(critic=True).make()
    optimizer = torch.optim.SGD(policy.parameters(), 0.1)
    figures = update(policy, rollout, algorithm, optimizer, RUNTIME, UpdateConfig(micro_rows=micro_rows))
    assert all(math.isfinite(value) for value in figures.values()), figures
    return policy.state_dict()


BAD = st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30])


@fuzz(80)
@given(st.integers(0, 5), st.sampled_from(NUMBERS), st.integers(0, 79), BAD, st.sampled_from(list(ALGORITHMS)))
def test_a_bad_number_is_refused_where_it_is_read_and_changes_nothing_elsewhere(
    seed: int, name: str, place: int, bad: float, algorithm: str
) -> None:
    rollout = drawn(seed)
    tensor = vars(rollout)[name].clone()
    tensor.view(-1)[place] = bad
    read = bool(vars(rollout)[WHERE_READ.get(name, "alive")].view(-1)[place])
    try:
        changed = rollout.with_(**{name: tensor})
    except ValueError as error:
        assert read
        assert f"Rollout.{name}[" in sentence(error)
        return
    assert not read or math.isfinite(bad)
    if not read:
        found, wanted = (learned(each, ALGORITHMS[algorithm]) for each in (changed, rollout))
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


@fuzz(150)
@given(
    st.sampled_from([*NUMBERS, "mask", "alive", "group_ids", "last_value", "chain_ends", "prompt_ids", "replayed", "stats", "parts"]),
    st.lists(st.integers(0, 6), max_size=3),
    st.sampled_from([torch.float32, torch.bool, torch.long, torch.uint8]),
)  # fmt: skip
def test_a_field_of_another_shape_or_kind_is_refused(name: str, shape: list[int], kind: torch.dtype) -> None:
    rollout, tensor = drawn(0), torch.ones(shape, dtype=kind)
    changes: dict[str, object] = {name: tensor}
    if name == "stats":
        changes = {"stats": {"x": tensor}}
    if name == "parts":
        changes = {"reward_parts": {"x": tensor}, "applicable": {"x": tensor}}
    with pytest.raises(ValueError, match=r"Rollout") as caught:
        rollout.with_(**changes)
    sentence(caught.value)


@fuzz(30)
@given(st.integers(0, 2**31), st.integers(1, 20), st.sampled_from(list(ALGORITHMS)))
def test_any_masks_give_a_finite_update_that_micro_batches_do_not_change(seed: int, rows: int, algorithm: str) -> None:
    """Rows without a living decision, and groups without a trained one, among them."""
    chance, rollout = torch.Generator().manual_seed(seed), drawn(seed % 7)
    lengths = torch.randint(0, 6, (16, 1), generator=chance)
    alive = torch.arange(5)[None] < lengths
    mask = alive & (torch.rand((16, 5), generator=chance) < torch.rand((16, 1), generator=chance))
    rollout = rollout.with_(alive=alive, mask=mask, logprobs=fixed(rollout))
    found, wanted = learned(rollout, ALGORITHMS[algorithm], rows), learned(rollout, ALGORITHMS[algorithm])
    assert all(torch.allclose(found[key], wanted[key], atol=1e-5) for key in wanted)


def fixed(rollout: Rollout) -> torch.Tensor:
    """Log-probs of every decision, those that were not alive among them."""
    policy = ToyPolicyConfig(critic=True).make()
    with torch.no_grad():
        return policy(rollout.transitions, torch.arange(5).expand(16, 5)).logprobs


# ---- rewards ----------------------------------------------------------------------------------------------


class Gives:
    """A reward function that gives whatever it was told to."""

    value: object = None


def gives(completions: list[object], **_: object) -> object:
    return Gives.value


SCORES = st.recursive(
    st.one_of(st.none(), st.floats(), st.integers(), st.booleans(), st.text(max_size=3), st.binary(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner, inner), st.dictionaries(st.text(max_size=2), inner)),
    max_leaves=6,
)  # fmt: skip


@fuzz(300)
@given(SCORES, st.integers(0, 3))
def test_whatever_a_reward_gives_is_a_number_a_sample_or_is_refused(value: object, count: int) -> None:
    Gives.value = value
    reward = WeightedSum({"odd": Part("tests.test_fuzz.gives")})
    try:
        found = reward(Samples(["x"] * count, {}, [str(i) for i in range(count)]))
    except RewardError as error:
        assert "rewards.odd" in str(error)
        return
    assert isinstance(found, Scores)
    assert found.values.shape == found.applicable.shape == (count,)
    assert bool(torch.isfinite(found.values).all())
    assert isinstance(value, list | tuple | dict)
    given_numbers = [None if number is None else float(number) for number in value]
    assert [number is not None for number in given_numbers] == found.applicable.tolist()
    wanted = torch.tensor([number or 0.0 for number in given_numbers], dtype=torch.float32)
    assert torch.equal(found.values, wanted)


def test_a_word_is_not_read_as_its_digits() -> None:
    with pytest.raises(ValueError, match="it gave str"):
        as_scores("123")
    with pytest.raises(ValueError, match=r"it gave '0.5' among the scores"):
        as_scores([1.0, "0.5"])


# ---- files of a run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint."""
    policy = ToyPolicyConfig().make()
    optimizer = torch.optim.AdamW(policy.parameters())
    sum(p.sum() for p in policy.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    folder = tmp_path_factory.mktemp("written")
    return checkpoint.save(folder, policy, optimizer, {"0/torch": torch.get_rng_state()}, State(step=3), 2)


FILES = ["policy/toy.safetensors", "optimizer.pt", "generators.pt", "state.json", "seal.json"]
HARM = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 0.99)),
    st.tuples(st.just("flip"), st.floats(0, 0.99), st.integers(0, 7)),
    st.tuples(st.just("put"), st.binary(max_size=40)),
    st.tuples(st.just("add"), st.binary(min_size=1, max_size=10)),
    st.tuples(st.just("gone")),
)


def harmed(data: bytes, harm: tuple) -> bytes | None:
    """The content of a file that something happened to; None: it is gone."""
    match harm:
        case "cut", share:
            return data[: int(share * len(data))]
        case "flip", share, bit:
            place = int(share * len(data))
            return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
        case "put", content:
            return bytes(content)
        case "add", more:
            return data + bytes(more)
    return None


@fuzz(200)
@given(st.sampled_from(FILES), HARM, st.booleans())
def test_a_checkpoint_that_is_not_as_it_was_written_is_refused(
    tmp_path: Path, written: Path, name: str, harm: tuple, sealed: bool
) -> None:
    """Sealed again: as if it had been written so, by another version or for another model. What then loads is what the
    files say."""
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    folder = Path(shutil.copytree(written, tmp_path / "checkpoints" / written.name))
    before = (folder / name).read_bytes()
    data = harmed(before, harm)
    if data == before:
        return
    (folder / name).write_bytes(data) if data is not None else (folder / name).unlink()
    if not sealed:
        same = name == "seal.json" and data is not None and told(data) == told(before)
        try:
            checkpoint.verified(folder)
            assert same, "it was not noticed"
        except CheckpointError as error:
            assert str(folder) in sentence(error)
            assert not same
        return
    seal(folder)
    policy = ToyPolicyConfig().make()
    try:
        checkpoint.load(folder, policy, torch.optim.AdamW(policy.parameters()))
    except CheckpointError as error:
        assert str(folder) in sentence(error)


def told(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def test_another_architecture_is_refused_and_says_where_to_go_on(tmp_path: Path, written: Path) -> None:
    for step in ("step_000001", "step_000003"):
        shutil.copytree(written, tmp_path / step)
    policy = ToyPolicyConfig(hidden=16).make()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(tmp_path / "step_000003", policy, torch.optim.AdamW(policy.parameters()))
    assert "size mismatch" in sentence(caught.value)
    assert "remove that folder, and --resume goes on from step_000001" in str(caught.value)


@fuzz(200)
@given(st.lists(st.one_of(st.binary(max_size=20), st.sampled_from(
    [b'{"step": 1, "a": 2.0}', b'{"step": 9}', b"[]", b"3", b'{"step": "1"}', b'{"a": 1}', b'{"step": 1, "a": [1]}', b'{"step": 1, "a'])),
    max_size=5), st.integers(0, 5))  # fmt: skip
def test_any_metrics_file_is_read_as_far_as_it_is_one(tmp_path: Path, lines: list[bytes], step: int) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    found = _lines_up_to(tmp_path / "metrics.jsonl", step)
    assert all(line["step"] <= step for line in found)
    assert len(found) >= (lines.count(b'{"step": 1, "a": 2.0}') if step else 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    config = toy_config(folder, 2)
    assert main(["train", str(config), "--run", str(folder / "run")]) == 0
    return folder


@fuzz(12)
@given(
    st.sampled_from(["config.yaml", "checkpoints/latest", "checkpoints/step_000002/state.json", "metrics.jsonl",
                     "checkpoints/step_000002/optimizer.pt", "provenance.json"]), HARM)  # fmt: skip
def test_a_run_folder_with_a_harmed_file_resumes_or_says_why_not(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str], name: str, harm: tuple
) -> None:
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run = Path(shutil.copytree(finished / "run", tmp_path / "run", symlinks=True))
    data = harmed((run / name).read_bytes(), harm)
    (run / name).write_bytes(data) if data is not None else (run / name).unlink()
    status = main(["train", "--run", str(run), "--resume"])
    said = capsys.readouterr().err
    assert status in (0, 1, 2)
    assert "Traceback" not in said
    assert ("error: " in said) == (status != 0), said
    if name.startswith("checkpoints/step_"):
        assert status == 1
        assert "step_000002 is damaged or of another model" in said
