"""One test for each place where users of such tools get stuck, as far as it concerns vision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.check import Groups, verdict, zero_spread
from mmrl.cli import main
from mmrl.config import ConfigError, load
from mmrl.experiment import Trial, Tried
from mmrl.regularisers import K3
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.scoring import score
from mmrl.settings import TrainConfig
from mmrl.surrogates import PPOClip
from mmrl.trainer import Parts, Trainer
from rewards.compose import Part, WeightedSum
from rewards.text import AnswerMatch
from tests.tiny_vlms import make
from vision.adapters import LoRA
from vision.collector import AnswerCollector, RolloutConfig
from vision.data.digits import Digits
from vision.encoding import Encoder
from vision.policy import PolicyConfig, VisionPolicy
from vision.prompts import Template

EXAMPLES = Digits().examples()[:12]
CONFIG = """\
experiment: vision
policy: {{model: {model}, adapter: {adapter}}}
data:
  train: rows.jsonl
  eval: held_out.jsonl
  columns: {{question: text, answer: label}}
  prompt: "{{question}} ({{kind}}) Answer in <answer></answer>."
rewards:
  right: {{use: own_words.score}}
  length: {{use: own_words.length, weight: 0.5}}
algorithm: {{advantage: mmrl.advantages.GroupRelative, surrogate: mmrl.surrogates.PPOClip, aggregate: mmrl.aggregates.TokenMean}}
rollout: {{prompts: 2, group: 2, max_new_tokens: 4}}
train: {{steps: 2, lr: 1.0e-3}}
evaluate: {{every: null, samples: 2, metrics: {{accuracy: own_words.score, short: own_words.length}}, by: kind}}
imports: [own_words]
"""
REWARD = """\
def score(completions, answer, **row):
    return [float(text == right) for text, right in zip(completions, answer)]
def length(completions, kind, **row):
    return [None if k == "odd" else 1.0 / (1 + len(text)) for text, k in zip(completions, kind)]
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make("qwen2_5_vl", folder)
    return folder


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory) -> Path:
    """A LoRA that is not zero."""
    policy = VisionPolicy.load(PolicyConfig(str(model), adapter=LoRA(rank=4, alpha=8)))
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    folder = tmp_path_factory.mktemp("models") / "lora"
    policy.save_pretrained(folder)
    return folder


@pytest.fixture
def project(tmp_path, model, monkeypatch) -> Path:
    for name, chosen in (("rows", EXAMPLES[:8]), ("held_out", EXAMPLES[8:])):
        rows = []
        for number, example in enumerate(chosen):
            example.pictures()[0].save(tmp_path / f"{example.id}.png")
            kind = "odd" if number % 2 else "even"
            rows.append({"image": f"{example.id}.png", "text": "Which?", "label": example.answer, "kind": kind})
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "own_words.py").write_text(REWARD)
    (tmp_path / "config.yaml").write_text(CONFIG.format(model=model, adapter="{rank: 4, alpha: 8}"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stuck_on_my_data_does_not_load(project):
    """Columns by other names, a template with a column in it, refused rows by number with the reason."""
    experiment = load("config.yaml").experiment
    example = experiment.data.split.pool[0]
    assert experiment.data.style.text(example, ()) == f"Which? ({example.columns['kind']}) Answer in <answer></answer>."
    with (project / "rows.jsonl").open("a") as file:
        file.write('\n{"image": "gone.png", "text": "Which?", "label": "one", "kind": "odd"}')
    with pytest.raises(ValueError, match=r"rows.jsonl: 1 of 9 rows are refused: row 9 \(gone.png is missing\)"):
        _ = load("config.yaml").experiment.data.split
    with pytest.raises(ConfigError, match="data has train: give `train` and `eval`"):
        load("config.yaml", ["data.eval=null"])


def test_stuck_on_my_reward_is_a_function(project):
    """Plain functions with columns as keywords, None where one does not apply, `imports:` first."""
    assert main(["train", "config.yaml", "--run", "run", "logging.progress=false"]) == 0
    summary = json.loads((project / "run" / "summary.json").read_text())
    assert set(summary["eval_after"]) >= {"accuracy", "accuracy[even]", "accuracy[odd]", "short"}
    assert summary["eval_after"]["short"]["n"] == summary["eval_after"]["accuracy[even]"]["n"] == 2
    rows = json.loads(next((project / "run" / "samples").glob("*/samples.json")).read_text())
    assert {tuple(sorted(row["parts"])) for row in rows} == {("length", "right"), ("right",)}
    with pytest.raises(ConfigError, match="imports names 'own_wrods', which cannot be imported"):
        load("config.yaml", ["imports=[own_wrods]"])


def test_stuck_on_does_it_fit_and_how_long(project, capsys):
    """One step for real: samples with rewards, groups without spread, memory, time and disk."""
    assert main(["check", "config.yaml"]) == 0
    said = capsys.readouterr().out
    for words in ("8 to train on, 4 held out", "zero-spread groups", "accuracy 0.00", "DO NOT START", "largest sample",
                  "2 steps and 2 evaluations", "MB a checkpoint", "applies to", "worst", "best"):  # fmt: skip
        assert words in said, words
    assert not (project / "runs").exists()
    assert [path.name for path in project.glob(".mmrl*")] == []


def policy_with(model: Path, adapter: object, **more: object) -> VisionPolicy:
    return VisionPolicy.load(PolicyConfig(str(model), adapter=adapter, **more)).eval()


def one_step(policy: VisionPolicy, reference) -> tuple[torch.Tensor, torch.Tensor, dict]:
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    encode = Encoder(policy.processor, Template(), ())
    reward = WeightedSum({"right": Part(AnswerMatch())})
    collector = AnswerCollector(EXAMPLES, encode, reward, RolloutConfig(2, 3, 4), runtime)
    with acting(policy):
        rollout = collector.collect(policy, torch.Generator().manual_seed(0))
    own, other = score(policy, rollout, 4), score(reference, rollout, 4)
    algorithm = Algorithm(GroupRelative(), PPOClip(), TokenMean(), regularisers=(K3(coef=0.1),))
    trainer = Trainer(Parts(policy, collector, None, algorithm, reference), TrainConfig(lr=1e-2), runtime)
    return own, other, trainer.step()


def test_stuck_on_kl_that_pulls_my_lora_back_out(model, adapter):
    """With `reference: start` KL is exactly 0 at step 0 although the adapter is not zero, and grows only with
    training; with `base` it is not 0."""
    policy = policy_with(model, str(adapter))
    before = {name: p.requires_grad for name, p in policy.named_parameters()}
    reference = policy.reference()
    own, other, metrics = one_step(policy, reference)
    assert torch.equal(own, other)
    assert abs(metrics["update/kl"]) < 1e-9
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained == {name for name, wanted in before.items() if wanted}
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B.default" in name:
                parameter += 0.05
    rollout = one_rollout_of(policy)
    assert torch.equal(score(reference, rollout, 4), other)
    assert not torch.equal(score(policy, rollout, 4), other)
    _, _, metrics = one_step(policy, reference)
    assert metrics["update/kl"] > 1e-6
    fresh = policy_with(model, str(adapter), reference="base")
    own, base, metrics = one_step(fresh, fresh.reference())
    assert float((own - base).abs().max()) > 1e-3
    assert metrics["update/kl"] > 1e-6
    plain = policy_with(model, None)
    assert torch.allclose(base, score(plain, one_rollout_of(fresh), 4), atol=1e-5)


def one_rollout_of(policy: VisionPolicy):
    """The rollout that `one_step` scores, drawn again from the untrained adapter of `policy`'s folder."""
    again = policy_with(Path(policy.config.model), policy.config.adapter)
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    encode = Encoder(again.processor, Template(), ())
    reward = WeightedSum({"right": Part(AnswerMatch())})
    collector = AnswerCollector(EXAMPLES, encode, reward, RolloutConfig(2, 3, 4), runtime)
    with acting(again):
        return collector.collect(again, torch.Generator().manual_seed(0))


def test_stuck_on_an_adapter_that_is_not_there(model, tmp_path):
    with pytest.raises(ValueError, match=r"policy.adapter .*there is no adapter_config.json in it"):
        policy_with(model, str(tmp_path))


def test_stuck_on_checkpointing_with_a_shared_prefix(model, adapter):
    """Both together give the log-probs and gradients of either alone."""
    found = []
    for checkpointing, shared in ((False, "auto"), (True, "auto"), (False, "never")):
        policy = policy_with(model, str(adapter), gradient_checkpointing=checkpointing, shared_prefix=shared)
        rollout = one_rollout_of(policy)
        steps = torch.arange(rollout.logprobs.shape[1]).expand(len(rollout), -1)
        logprobs = policy(rollout.transitions, steps).logprobs
        logprobs[rollout.mask].sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
        found.append((torch.where(rollout.mask, logprobs.detach(), 0.0), gradient))
    for logprobs, gradient in found[1:]:
        assert torch.allclose(logprobs, found[0][0], atol=1e-5)
        assert torch.allclose(gradient, found[0][1], rtol=1e-4, atol=1e-5)


def test_stuck_on_which_checkpoint_is_best(project):
    """`save.best` on any logged metric; the best one stays and can be named."""
    words = ["save.best=short", "save.keep=1", "evaluate.every=1", "train.steps=3", "logging.progress=false"]
    assert main(["train", "config.yaml", "--run", "run", *words]) == 0
    summary = json.loads((project / "run" / "summary.json").read_text())
    lines = [json.loads(line) for line in (project / "run" / "metrics.jsonl").read_text().splitlines()]
    values = [line["eval/short"] for line in lines if "eval/short" in line]
    assert summary["best"]["value"] == max(values)
    assert values[summary["best"]["step"]] == max(values)
    assert main(["evaluate", "run", "--checkpoint", "best"]) == 0


def test_stuck_on_i_extended_the_run_and_was_refused(project, capsys):
    assert main(["train", "config.yaml", "--run", "run", "logging.progress=false"]) == 0
    assert main(["train", "--run", "run", "--resume", "train.steps=3", "evaluate.every=1", "save.keep=1"]) == 0
    assert main(["train", "--run", "run", "--resume", "rollout.group=4"]) == 1
    assert "mmrl train --from run" in capsys.readouterr().err
    assert main(["train", "--from", "run", "--run", "fork", "rollout.group=4", "logging.progress=false"]) == 0


@pytest.mark.parametrize("merge", [False, True])
def test_stuck_on_i_cannot_use_the_result_elsewhere(project, adapter, merge):
    """A LoRA for peft or a merged model for transformers, with processor and model card: the same numbers."""
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText, AutoProcessor

    config = (project / "config.yaml").read_text().replace("{rank: 4, alpha: 8}", str(adapter))
    (project / "config.yaml").write_text(config)
    assert main(["train", "config.yaml", "--run", "run", "logging.progress=false"]) == 0
    assert main(["export", "run", "--to", "out", *(["--merge"] if merge else [])]) == 0
    base = load("run/config.yaml").experiment.policy.model
    if merge:
        model = AutoModelForImageTextToText.from_pretrained("out", dtype=torch.float32)
    else:
        model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32), "out")
    processor = AutoProcessor.from_pretrained("out")
    message = [{"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (32, 32), (90, 0, 0))}, {"type": "text", "text": "Which?"}]}]  # fmt: skip
    inputs = processor.apply_chat_template(message, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)  # fmt: skip
    trained = VisionPolicy.load(load("run/config.yaml").experiment.policy)
    trained.load_weights(project / "run" / "checkpoints" / "step_000002" / "policy")
    with torch.no_grad():
        theirs, ours = model.eval()(**inputs).logits, trained.eval().model(**inputs).logits
        start = VisionPolicy.load(load("run/config.yaml").experiment.policy).eval().model(**inputs).logits
    assert torch.allclose(theirs, ours, atol=1e-4)
    assert float((ours - start).abs().max()) > 1e-3  # it was trained
    card = (project / "out" / "README.md").read_text()
    for words in (f"base_model: {base}", "own_words.score", "accuracy[even]", "rows.jsonl", "from_pretrained"):
        assert words in card
    assert main(["export", "run", "--to", "out"]) == 2  # never over something


def test_check_says_when_not_to_start():
    trials = [Trial(None, (), {"accuracy": share}, "", None, "", 0.0) for share in (0.0, 0.1, 0.5, 0.99)]
    said = [verdict(trial) for trial in trials]
    assert [text.split(":")[0].split(" to start")[0] for text in said] == ["DO NOT START", "CAREFUL", "OK", "CAREFUL"]


def test_check_tells_groups_all_right_from_groups_all_wrong(model):
    policy = policy_with(model, None)
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    encode = Encoder(policy.processor, Template(), ())
    reward = WeightedSum({"right": Part(AnswerMatch())})
    collector = AnswerCollector(EXAMPLES, encode, reward, RolloutConfig(4, 2, 3), runtime)
    with acting(policy):
        rollout = collector.collect(policy, torch.Generator().manual_seed(0))
    total = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    last = rollout.alive & ~torch.nn.functional.pad(rollout.alive[:, 1:], (0, 1))
    rollout = rollout.with_(rewards=torch.where(last, total[:, None], 0.0))

    tried = [Tried(str(number), "", "", "", bool(value)) for number, value in enumerate(total)]
    trial = Trial(rollout, tried, {}, "", collector, "", 0.0)
    assert zero_spread(trial) == Groups(all_right=0.25, all_wrong=0.5)
