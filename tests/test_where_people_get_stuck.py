"""One test for each place where users of such tools get stuck, for a model that answers and for one that draws."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmrl.advantages import GroupRelative
from mmrl.aggregates import TokenMean
from mmrl.algorithm import Algorithm
from mmrl.cli import main
from mmrl.config import ConfigError, load
from mmrl.experiment import Trial, Tried
from mmrl.parts import Parts
from mmrl.regularisers import K3
from mmrl.runtime import Runtime, RuntimeConfig, acting
from mmrl.scoring import score
from mmrl.settings import TrainConfig
from mmrl.surrogates import PPOClip
from mmrl.trainer import Trainer
from mmrl.types import Rollout
from mmrl.verdicts import Groups, verdict_on_share, zero_spread
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


def collector_for(policy: VisionPolicy, config: RolloutConfig = RolloutConfig(2, 3, 4)) -> AnswerCollector:
    runtime = Runtime(RuntimeConfig(device="cpu"), 0)
    reward = WeightedSum({"right": Part(AnswerMatch())})
    return AnswerCollector(EXAMPLES, Encoder(policy.processor, Template(), ()), reward, config, runtime)


def collected(collector: AnswerCollector, policy: VisionPolicy) -> Rollout:
    with acting(policy):
        return collector.collect(policy, torch.Generator().manual_seed(0))


def one_step(policy: VisionPolicy, reference) -> tuple[torch.Tensor, torch.Tensor, dict]:
    collector = collector_for(policy)
    rollout = collected(collector, policy)
    own, other = score(policy, rollout, 4), score(reference, rollout, 4)
    algorithm = Algorithm(GroupRelative(), PPOClip(), TokenMean(), regularisers=(K3(coef=0.1),))
    parts = Parts(policy, collector, None, algorithm, reference)
    trainer = Trainer(parts, TrainConfig(lr=1e-2), Runtime(RuntimeConfig(device="cpu"), 0))
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


def test_stuck_on_a_fork_whose_kl_pulls_it_back_to_the_first_model(model, adapter, tmp_path):
    """A fork keeps to what it started from, where the config asks for a new adapter or for none too."""
    for name, asked in {"folder": str(adapter), "new": LoRA(rank=2, alpha=4), "none": None}.items():
        first, again = policy_with(model, asked), policy_with(model, asked)
        with torch.no_grad():
            for parameter in first.parameters():
                if parameter.requires_grad:
                    parameter += 0.02
        first.save_pretrained(tmp_path / name)
        again.load_weights(tmp_path / name)
        rollout = collected(collector_for(again), again)
        reference = again.reference(moved=True)
        assert torch.allclose(score(reference, rollout, 4), score(again, rollout, 4), atol=1e-6)
        assert not torch.allclose(score(policy_with(model, asked), rollout, 4), score(again, rollout, 4), atol=1e-4)
        assert not any(parameter.requires_grad for key, parameter in again.named_parameters() if ".start." in key)


def one_rollout_of(policy: VisionPolicy):
    """The rollout that `one_step` scores, drawn again from the untrained adapter of `policy`'s folder."""
    again = policy_with(Path(policy.config.model), policy.config.adapter)
    return collected(collector_for(again), again)


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
    assert "critic" not in capsys.readouterr().out


def test_stuck_on_a_critic_that_a_fork_does_not_have_yet(project, capsys):
    """It is new, and that is said; the fork of a run that has one goes on with it."""
    learns = [
        "policy.critic={widths: [4]}", "algorithm.value_loss=mmrl.value_loss.ValueRegression",
        "algorithm.advantage=mmrl.advantages.GAE",
    ]  # fmt: skip
    quietly = ["logging.progress=false", "train.steps=1"]
    assert main(["train", "config.yaml", "--run", "run", *quietly]) == 0
    assert main(["train", "--from", "run", "--run", "fork", *learns, *quietly]) == 0
    assert "critic: new, since run had none" in capsys.readouterr().out
    assert main(["train", "--from", "fork", "--run", "again", *quietly]) == 0
    assert "critic: new" not in capsys.readouterr().out
    assert main(["train", "--from", "fork", "--run", "wider", "policy.critic={widths: [5]}", *quietly]) == 2
    assert "holds a critic of the shapes" in capsys.readouterr().err


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
    said = [verdict_on_share("accuracy", share) for share in (0.0, 0.1, 0.5, 0.99)]
    assert [text.split(":")[0].split(" to start")[0] for text in said] == ["DO NOT START", "CAREFUL", "OK", "CAREFUL"]


def test_check_tells_groups_all_right_from_groups_all_wrong(model):
    policy = policy_with(model, None)
    collector = collector_for(policy, RolloutConfig(4, 2, 3))
    rollout = collected(collector, policy)
    total = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    last = rollout.alive & ~torch.nn.functional.pad(rollout.alive[:, 1:], (0, 1))
    rollout = rollout.with_(rewards=torch.where(last, total[:, None], 0.0))

    tried = [Tried(str(number), "", "", "", bool(value)) for number, value in enumerate(total)]
    trial = Trial(rollout, tried, {}, "", collector, "", 0.0)
    assert zero_spread(trial) == Groups(all_right=0.25, all_wrong=0.5)


def test_check_of_rewards_that_never_apply_says_so(project, capsys):
    (project / "never_applies.py").write_text(
        "def score(completions, **row):\n    return [None for _ in completions]\n"
    )
    assert main(["check", "config.yaml", "rewards={mine: {use: never_applies.score}}"]) == 0
    said = capsys.readouterr().out
    assert "DO NOT START: no reward applies to any of these outputs" in said
    assert "none of the rewards (mine) applies to any of 4 outputs" in said
    assert "worst" not in said


def test_check_of_groups_of_one_says_that_nothing_can_be_learnt(project, capsys):
    (project / "half.py").write_text(
        "def score(completions, **row):\n    return [float(number % 2) for number, _ in enumerate(completions)]\n"
    )
    words = ["rewards={mine: {use: half.score}}", "evaluate.metrics={accuracy: half.score}", "rollout.group=1"]
    assert main(["check", "config.yaml", *words]) == 0
    assert "DO NOT START: every advantage is 0" in capsys.readouterr().out


# ---- a model that draws ----------------------------------------------------------------------------------

DRAWING = """\
experiment: diffusion
policy: {{model: {model}, adapter: {adapter}}}
data: {{train: prompts.jsonl, eval: held_out.jsonl}}
sampling: {{steps: 4, guidance: 3.0, size: [16, 16]}}
rewards:
  bright: {{use: own_pictures.bright}}
  ink: {{use: own_pictures.ink, weight: 0.5}}
algorithm:
  advantage: mmrl.advantages.GroupRelative
  surrogate: {{class_path: mmrl.surrogates.PPOClip, init_args: {{clip_low: 1.0e-4, clip_high: 1.0e-4}}}}
  aggregate: mmrl.aggregates.TokenMean
  regularisers: [{{class_path: mmrl.regularisers.ExactKL, init_args: {{coef: 0.01}}}}]
rollout: {{prompts: 2, group: 2}}
train: {{steps: 3, lr: 1.0e-2}}
evaluate: {{every: 1, samples: 2, metrics: {{dark: own_pictures.dark}}}}
sheet: {{scheduler: DPMSolverMultistepScheduler, steps: 6, guidance: 2.0, size: [16, 16], seeds: [5]}}
save: {{every: 1, keep: 1, best: dark}}
logging: {{progress: false}}
imports: [own_pictures]
"""
OWN_PICTURES = """\
def bright(images, prompts, **row):
    return [sum(image.convert("L").tobytes()) / 255 / image.width / image.height for image in images]
def ink(images, style, **row):
    return [1.0 if s == "ink" else None for s in style]
def dark(images, prompts, metadata):
    return [1 - value for value in bright(images, prompts)], {}
"""


@pytest.fixture(scope="module")
def drawing(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny pipeline and a LoRA for it that is not zero."""
    from diffusion.adapters import LoRA as PictureLoRA
    from diffusion.policy import DiffusionPolicy
    from diffusion.policy import PolicyConfig as PictureConfig
    from tests.tiny_pipelines import make as make_pipeline

    folder = tmp_path_factory.mktemp("drawing")
    make_pipeline("sd", folder / "sd")
    policy = DiffusionPolicy.load(PictureConfig(str(folder / "sd"), PictureLoRA(rank=4, alpha=8)))
    torch.manual_seed(1)
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    policy.save_pretrained(folder / "lora")
    return folder / "sd", folder / "lora"


@pytest.fixture(scope="module")
def drawn(drawing, tmp_path_factory) -> Path:
    """The folder of a run that went on from the LoRA."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, prompts in (("prompts", ("a red cat", "a blue dog", "a dog")), ("held_out", ("a cat", "a red dog"))):
        rows = [{"prompt": text, "style": "ink" if n % 2 else "oil"} for n, text in enumerate(prompts)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (folder / "own_pictures.py").write_text(OWN_PICTURES)
    (folder / "config.yaml").write_text(DRAWING.format(model=drawing[0], adapter=drawing[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "config.yaml", "--run", "run"]) == 0
    return folder


def logged(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_stuck_on_my_picture_reward_is_a_function(drawn):
    """Pictures, prompts and the columns of the data; None where one does not apply; DDPO's signature for a metric."""
    summary = json.loads((drawn / "run" / "summary.json").read_text())
    after = summary["eval_after"]
    assert (after["reward_ink"]["n"], after["reward_bright"]["n"]) == (2, 4)
    assert after["dark"]["value"] == pytest.approx(1 - after["reward_bright"]["value"], abs=1e-6)
    rows = json.loads((drawn / "run" / "samples" / "step_000003" / "samples.json").read_text())
    assert [sorted(row["parts"]) for row in rows] == [["bright"], ["bright", "ink"]]


def test_stuck_on_kl_that_pulls_my_picture_lora_back_out(drawn, monkeypatch):
    """KL to the LoRA one started from is exactly 0 at step 0, though it is not zero; to the bare model it is not."""
    lines = logged(drawn / "run")
    assert lines[0]["eval/kl"] == 0.0
    steps = [line["update/kl"] for line in lines if "update/kl" in line]
    assert steps[0] == 0.0
    assert steps[-1] > 0
    monkeypatch.chdir(drawn)
    words = ["policy.reference=base", "train.steps=1", "evaluate.samples=0", "save.best=null"]
    assert main(["train", "config.yaml", "--run", "to_base", *words]) == 0
    to_base = logged(drawn / "to_base")
    assert to_base[0]["eval/kl"] > 1e-4
    assert next(line["update/kl"] for line in to_base if "update/kl" in line) > 1e-4


def test_stuck_on_training_pictures_that_look_worse_than_inference(drawn, drawing):
    """Samples show, beside a picture as in training, the one that plain diffusers draws with the sampler that the
    pictures are for."""
    from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler

    folder = drawn / "run" / "samples" / "step_000000"
    rows = json.loads((folder / "samples.json").read_text())
    assert [row["images"] for row in rows] == [["000.png", "000_sheet1.png"], ["001.png", "001_sheet1.png"]]
    assert rows[0]["output"] == "first: as in training, 4 steps; then: DPMSolverMultistepScheduler, 6 steps"
    plain = DiffusionPipeline.from_pretrained(drawing[0])
    plain.load_lora_weights(drawing[1])
    plain.scheduler = DPMSolverMultistepScheduler.from_config(plain.scheduler.config)
    options = {"num_inference_steps": 6, "guidance_scale": 2.0, "height": 16, "width": 16}
    for row in rows:
        theirs = plain(row["prompt"], generator=torch.Generator().manual_seed(5), **options).images[0]
        ours = Image.open(folder / row["images"][1])
        apart = [abs(a - b) for a, b in zip(theirs.tobytes(), ours.tobytes(), strict=True)]
        assert max(apart) <= 1


def test_stuck_on_which_pictures_are_best(drawn, monkeypatch):
    """The best checkpoint by a figure that is only measured stays, and can be named."""
    summary = json.loads((drawn / "run" / "summary.json").read_text())
    values = [line["eval/dark"] for line in logged(drawn / "run") if "eval/dark" in line]
    assert (summary["best"]["value"], values[summary["best"]["step"]]) == (max(values), max(values))
    monkeypatch.chdir(drawn)
    assert main(["evaluate", "run", "--checkpoint", "best"]) == 0


@pytest.mark.parametrize("merge", [False, True])
def test_stuck_on_i_cannot_use_my_pictures_model_elsewhere(drawn, drawing, monkeypatch, merge):
    """A LoRA, or a whole pipeline, that plain diffusers draws other pictures with, and says how in its card."""
    from diffusers import DiffusionPipeline

    monkeypatch.chdir(drawn)
    out = "merged" if merge else "lora"
    assert main(["export", "run", "--to", out, "--checkpoint", "latest", *(["--merge"] if merge else [])]) == 0
    pictures = []
    for folder, lora in (("merged" if merge else drawing[0], None if merge else out), (drawing[0], drawing[1])):
        plain = DiffusionPipeline.from_pretrained(folder)
        if lora is not None:
            plain.load_lora_weights(lora)
        options = {"num_inference_steps": 3, "height": 16, "width": 16, "output_type": "pt"}
        pictures.append(plain("a cat", generator=torch.Generator().manual_seed(0), **options).images)
    assert float((pictures[0] - pictures[1]).abs().max()) > 1e-3
    card = (drawn / out / "README.md").read_text()
    for words in (f"base_model: {drawing[0]}", "own_pictures.bright", "held_out.jsonl", "from_pretrained"):
        assert words in card
