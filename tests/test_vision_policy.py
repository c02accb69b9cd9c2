"""The policy over tokens, on four architectures of transformers: parity, prefix sharing, padding, bans.

Planted bugs and the tests here that catch them:
- a token shift by one, or a temperature in sampling alone: test_rescored_logprobs_are_the_recorded_ones
- position ids on left-padded rows: test_padding_on_the_left_changes_nothing
- dropout left on: test_ratio_is_one_with_dropout_in_the_model
- a mask leak from padding: test_what_follows_the_end_changes_nothing
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from mmrl.runtime import acting
from tests.tiny_vlms import ARCHITECTURES, make
from vision.adapters import LoRA
from vision.data.base import Example
from vision.data.digits import Digits
from vision.encoding import Encoder
from vision.policy import PolicyConfig, VisionPolicy
from vision.prefix import NoPlainCache, Prefilled
from vision.prompts import Direct, Think
from vision.sampling import decoded, draw, pick, written
from vision.transitions import TokenTransitions

DIGITS = Digits().examples()
TWO_PICTURES = Example("two", (DIGITS[0].images[0], DIGITS[1].images[0].resize((64, 32))), "Which are they?", "one")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    make(request.param, path)
    return path


def load(folder, **options) -> VisionPolicy:
    return VisionPolicy.load(PolicyConfig(str(folder), **{"freeze_vision": False, **options})).eval()


def prompts_of(policy: VisionPolicy) -> list:
    """Prompts of three lengths, so that rows are padded on the left, one of them with two pictures."""
    short, long = Encoder(policy.processor, Direct(suffix=""), ()), Encoder(policy.processor, Think(), ())
    return [*short.many(DIGITS[:2]), long(TWO_PICTURES), long(DIGITS[3])]


def drawn_from(policy: VisionPolicy, group: int = 3, tokens: int = 6, seed: int = 0):
    return draw(policy, prompts_of(policy), group, tokens, torch.Generator().manual_seed(seed))


def rescore(policy: VisionPolicy, drawn) -> torch.Tensor:
    steps = torch.arange(drawn.logprobs.shape[1]).expand(len(drawn.logprobs), -1)
    return torch.where(drawn.alive, policy(drawn.transitions, steps).logprobs, 0.0)


def gradients(policy: VisionPolicy, drawn) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    rescore(policy, drawn).sum().backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def assert_same_gradients(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    largest = max(g.abs().max() for g in one.values())
    assert largest > 0
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=float(1e-5 * largest), msg=name)


def test_rescored_logprobs_are_the_recorded_ones(folder):
    policy = load(folder)
    drawn = drawn_from(policy)
    assert policy.sharing
    assert (rescore(policy, drawn) - drawn.logprobs).abs().max() < 1e-5


def test_naive_path_gives_the_same_logprobs_and_gradients(folder):
    policy = load(folder)
    drawn = drawn_from(policy)
    shared = gradients(policy, drawn)
    policy.sharing = False
    assert (rescore(policy, drawn) - drawn.logprobs).abs().max() < 1e-5
    assert_same_gradients(shared, gradients(policy, drawn))


def test_sampling_without_sharing_draws_the_same(folder):
    policy = load(folder)
    shared = drawn_from(policy)
    policy.sharing = False
    alone = drawn_from(policy)
    assert torch.equal(shared.transitions.completions, alone.transitions.completions)
    torch.testing.assert_close(shared.logprobs, alone.logprobs, atol=1e-5, rtol=0)


def test_padding_on_the_left_changes_nothing(folder):
    """A short prompt beside a long one is padded; alone it is not."""
    policy = load(folder)
    drawn = drawn_from(policy, group=2)
    together = rescore(policy, drawn)
    for row in range(len(drawn.alive)):
        alone = drawn.transitions.rows(torch.tensor([row]))
        steps = torch.arange(drawn.alive.shape[1])[None]
        found = torch.where(drawn.alive[row], policy(alone, steps).logprobs[0], 0.0)
        torch.testing.assert_close(found, together[row], atol=1e-5, rtol=0)


def test_what_follows_the_end_changes_nothing(folder):
    policy = load(folder)
    drawn = drawn_from(policy)
    cut = drawn.alive.clone()
    cut[:, 3:] = False
    noise = torch.randint_like(drawn.transitions.completions, 7, 40)
    noisy = dataclasses.replace(drawn.transitions, completions=torch.where(cut, drawn.transitions.completions, noise))
    steps = torch.arange(drawn.alive.shape[1]).expand(len(cut), -1)
    before, after = policy(drawn.transitions, steps).logprobs, policy(noisy, steps).logprobs
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=1e-6, rtol=0)


def test_memory_checkpointing_keeps_logprobs_and_gradients(folder):
    plain, saving = load(folder), load(folder, gradient_checkpointing=True)
    drawn = drawn_from(plain)
    assert_same_gradients(gradients(plain, drawn), gradients(saving, drawn))
    saving.sharing = False
    assert_same_gradients(gradients(plain, drawn), gradients(saving, drawn))


def test_lora_shares_prompts_with_the_same_gradients(folder):
    policy = load(folder, adapter=LoRA(rank=4, alpha=8))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:  # a new adapter is zero there, which would hide every error
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    drawn = drawn_from(policy)
    shared = gradients(policy, drawn)
    assert shared
    assert all("lora" in name for name in shared)
    assert not any("visual" in name or "vision" in name for name in shared)
    policy.sharing = False
    assert_same_gradients(shared, gradients(policy, drawn))


def test_features_of_a_frozen_tower_are_computed_once(folder):
    policy, fresh = load(folder, freeze_vision=True), load(folder, freeze_vision=True, cache_features=False)
    assert policy.features is not None
    assert fresh.features is None
    drawn = drawn_from(policy)
    torch.testing.assert_close(rescore(policy, drawn), rescore(fresh, drawn), atol=1e-5, rtol=0)
    assert_same_gradients(gradients(policy, drawn), gradients(fresh, drawn))
    pictures = len({prompt.image_key for prompt in drawn.transitions.prompts})
    projector_is_trained = folder.name.startswith(("smolvlm", "llava"))
    assert policy.features.computed == (0 if projector_is_trained else pictures)
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    everything_frozen = VisionPolicy(policy.model, policy.processor, policy.config).eval()
    torch.testing.assert_close(rescore(everything_frozen, drawn), rescore(policy, drawn), atol=1e-5, rtol=0)
    assert everything_frozen.features.computed == pictures


def test_a_trained_tower_is_never_cached(folder):
    assert load(folder, freeze_vision=False).features is None


def test_picture_tokens_are_banned_everywhere(folder):
    policy = load(folder)
    banned = policy.banned.nonzero().flatten()
    names = policy.processor.tokenizer.convert_ids_to_tokens(banned.tolist())
    assert policy.processor.image_token in names
    assert policy.processor.tokenizer.eos_token_id not in banned
    logits = torch.zeros(1, len(policy.banned))
    logits[:, banned] = 100.0
    log_softmax = policy.log_softmax(logits)
    assert torch.isinf(log_softmax[:, banned]).all()
    torch.testing.assert_close(log_softmax.exp().sum(), torch.tensor(1.0))
    drawn = drawn_from(policy, group=20, tokens=8)
    assert not torch.isin(drawn.transitions.completions[drawn.alive], banned).any()


def test_saved_weights_come_back_exactly(folder, tmp_path):
    policy, other = load(folder), load(folder)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    policy.save_pretrained(tmp_path)
    other.load_weights(tmp_path)
    for (name, one), two in zip(policy.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name
    assert VisionPolicy.load(PolicyConfig(str(tmp_path))) is not None


def test_the_same_rows_in_another_order_and_number(folder):
    policy = load(folder)
    drawn = drawn_from(policy)
    index = torch.tensor([7, 0, 3, 3])
    steps = torch.arange(drawn.alive.shape[1]).expand(4, -1)
    found = torch.where(drawn.alive[index], policy(drawn.transitions.rows(index), steps).logprobs, 0.0)
    torch.testing.assert_close(found, rescore(policy, drawn)[index], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen")
    make("qwen2_5_vl", path)
    return path


def test_ratio_is_one_with_dropout_in_the_model(qwen):
    """Attention dropout in the checkpoint's config must be off while acting and while training."""
    policy = load(qwen)
    for module in policy.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    policy.train()
    with acting(policy):
        drawn = drawn_from(policy)
    assert policy.training
    with acting(policy):
        assert (rescore(policy, drawn) - drawn.logprobs).abs().max() < 1e-5
    assert (rescore(policy, drawn) - drawn.logprobs).abs().max() > 1e-3  # the trap is real


def test_reused_prefill_gives_the_same_gradient_once(qwen):
    policy = load(qwen, reuse_prefill=True)
    prompts = prompts_of(policy)
    generator = torch.Generator().manual_seed(0)
    drawn = draw(policy, prompts, 3, 6, generator, keep_prefill=True)
    reused = gradients(policy, drawn)
    assert policy._kept is None
    assert_same_gradients(reused, gradients(policy, drawn))


def test_reused_prefill_is_dropped_when_a_weight_changed(qwen):
    policy = load(qwen, reuse_prefill=True)
    drawn = draw(policy, prompts_of(policy), 3, 6, torch.Generator().manual_seed(0), keep_prefill=True)
    with torch.no_grad():
        next(policy.parameters()).mul_(1.1)
    stale = gradients(policy, drawn)
    assert_same_gradients(stale, gradients(policy, drawn))


def test_an_architecture_without_a_plain_cache_falls_back_and_says_so(qwen, monkeypatch):
    policy = load(qwen)
    drawn = drawn_from(policy)

    def refuse(*args: object) -> Prefilled:
        raise NoPlainCache("ThisModel does not keep a plain key-value cache")

    monkeypatch.setattr("vision.policy.prefill", refuse)
    with pytest.warns(UserWarning, match="ThisModel does not keep a plain key-value cache: prompts are not shared"):
        again = rescore(policy, drawn)
    assert not policy.sharing
    assert (again - drawn.logprobs).abs().max() < 1e-5


def test_entropy_is_reported_when_asked_for(qwen):
    policy = load(qwen)
    drawn = drawn_from(policy)
    steps = torch.arange(drawn.alive.shape[1]).expand(len(drawn.alive), -1)
    assert policy(drawn.transitions, steps).entropy is None
    policy.report_entropy = True
    entropy = policy(drawn.transitions, steps).entropy
    torch.testing.assert_close(entropy[drawn.alive], drawn.stats["entropy"][drawn.alive], atol=1e-5, rtol=0)


def test_end_of_sequence_ends_a_row_and_counts(qwen):
    policy = load(qwen)
    drawn = drawn_from(policy, group=40, tokens=12)
    ended = drawn.alive.sum(-1) < 12
    last = drawn.alive.sum(-1) - 1
    tokens = drawn.transitions.completions[torch.arange(len(last)), last]
    assert ended.any()
    assert torch.isin(tokens[ended], torch.tensor(policy.eos_ids)).all()
    assert not drawn.truncated[ended].any()
    assert drawn.truncated[~torch.isin(tokens, torch.tensor(policy.eos_ids))].all()
    assert not any("<|im_end|>" in text for text in decoded(policy, written(policy, drawn.transitions.completions)))


def test_pick_follows_the_distribution_and_never_takes_the_impossible():
    log_softmax = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0]).log().expand(20_000, -1)
    found = pick(log_softmax, torch.Generator().manual_seed(0))
    shares = torch.bincount(found, minlength=5) / len(found)
    assert shares[1] == shares[4] == 0
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0]), atol=0.012, rtol=0)


def test_greedy_takes_the_most_likely(qwen):
    policy = load(qwen)
    drawn = draw(policy, prompts_of(policy), 1, 4, None)
    steps = torch.arange(drawn.alive.shape[1]).expand(len(drawn.alive), -1)
    best = policy.log_softmax(policy._read(drawn.transitions, steps.shape[1]).logits).argmax(-1)
    assert torch.equal(best[drawn.alive], drawn.transitions.completions[drawn.alive])


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="could not be loaded as a vision-language model") as error:
        VisionPolicy.load(PolicyConfig(str(tmp_path / "nothing")))
    assert "\n" not in str(error.value)


def test_picture_features_and_tokens_always_agree(qwen):
    """Feeding sampled answers back never breaks the model: the field's most reported crash."""
    policy = load(qwen)
    for seed in range(5):
        drawn = drawn_from(policy, group=4, tokens=10, seed=seed)
        rescore(policy, drawn)


def test_max_pixels_bounds_the_picture(qwen):
    small = load(qwen, max_pixels=256)
    big = Image.new("RGB", (64, 64))
    prompt = Encoder(small.processor, Direct(), ())(Example("big", (big,), "What?", "a"))
    assert int(prompt.vision["image_grid_thw"].prod()) * 64 <= 256 + 64 * 4


def test_transitions_keep_each_prompt_once(qwen):
    policy = load(qwen)
    drawn = drawn_from(policy, group=5)
    assert isinstance(drawn.transitions, TokenTransitions)
    assert len(drawn.transitions.prompts) == 4
    assert len(drawn.transitions.rows(torch.arange(5, 15)).prompts) == 2
