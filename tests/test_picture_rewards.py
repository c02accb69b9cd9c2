"""Rewards of pictures: closed forms, gradients, batches, what does not apply, and what is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from mmrl.testing import check_reward
from mmrl.types import RewardFunction, Samples
from rewards.compose import Part, RewardError, WeightedSum
from rewards.pictures import (
    LPIPS,
    SSIM,
    Aesthetic,
    ClipAccuracy,
    ClipScore,
    ColourEntropy,
    Compressibility,
    DarkShare,
    Diversity,
    HPSv2,
    ImageReward,
    Incompressibility,
    PickScore,
    default_watchdogs,
    small_clip,
)
from rewards.pictures.base import fit, pixels_of
from rewards.pictures.clip import Tower, load_tower, open_clip_tower

SIDE = 16
PROMPTS = ("a red tomato", "a blue panda", "a green doughnut")
MALFORMED = (None, "", 7, "a text", Image.new("RGB", (0, 4)))


def flat(colour: object, side: int = SIDE) -> Image.Image:
    return Image.new("RGB", (side, side), colour)  # type: ignore[arg-type]


def noise(seed: int, side: int = SIDE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def pictures(*outputs: object, **columns: list[object]) -> Samples:
    return Samples(outputs, columns, [str(i) for i in range(len(outputs))])


def prompted(count: int = 3) -> Samples:
    return pictures(*[noise(i) for i in range(count)], prompt=[PROMPTS[i % 3] for i in range(count)])


# ---- a small CLIP, random --------------------------------------------------------------------------------


class Small(NamedTuple):
    """A random CLIP in a folder as small_clip.make writes one, and what was written."""

    folder: str
    model: open_clip.CLIP
    tokenizer: CLIPTokenizer

    def tokens(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor(self.tokenizer(list(texts), padding="max_length").input_ids)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    tokenizer = small_clip.train_tokenizer(PROMPTS)
    known = small_clip.settings(tokenizer)
    about = {
        "embed_dim": 16,
        "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 4, "image_size": SIDE},
        "text_cfg": {**known["text_cfg"], "width": 32, "heads": 2, "layers": 1},  # type: ignore[dict-item]
    }
    model, folder = small_clip.untrained(about, 0), tmp_path_factory.mktemp("clip")
    small_clip.write(folder, model, about, tokenizer)
    return Small(str(folder), model.eval(), tokenizer)


@pytest.fixture(scope="module")
def clip_folder(small: Small) -> str:
    return small.folder


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a stub in the place of a package."""

    def put(name: str, **contents: object) -> None:
        stub = types.ModuleType(name)
        stub.__spec__ = ModuleSpec(name, None)
        vars(stub).update(contents)
        monkeypatch.setitem(sys.modules, name, stub)

    return put


# ---- JPEG ------------------------------------------------------------------------------------------------


def test_jpeg_is_the_length_of_the_encoded_bytes() -> None:
    buffer = io.BytesIO()
    noise(0).save(buffer, format="JPEG", quality=95)
    size = len(buffer.getvalue()) / 1000
    assert Incompressibility()(pictures(noise(0))).values.tolist() == pytest.approx([size])
    assert Compressibility()(pictures(noise(0))).values.tolist() == pytest.approx([-size])


def test_a_flat_picture_is_more_compressible_than_noise() -> None:
    plain, noisy = Compressibility()(pictures(flat("red", 64), noise(0, 64))).values.tolist()
    assert plain > noisy
    assert Compressibility(quality=10)(pictures(noise(0, 64))).values > noisy


def test_alpha_and_grey_pictures_are_read_as_rgb() -> None:
    modes = pictures(*[flat("grey").convert(mode) for mode in ("L", "RGBA", "P", "1")])
    assert bool(Compressibility()(modes).applicable.all())


@pytest.mark.parametrize(
    "function", [Compressibility(), Incompressibility(), DarkShare(), ColourEntropy(), SSIM()], ids=repr
)
def test_batch_equals_one_by_one_and_malformed_does_not_apply(function: RewardFunction) -> None:
    samples = pictures(flat("red"), noise(1), noise(2, 24), reference=[flat("red"), noise(2), noise(2, 24)])
    check_reward(function, samples, MALFORMED)
    assert not bool(function(pictures(*MALFORMED, reference=[None] * len(MALFORMED))).applicable.any())


# ---- watchdogs -------------------------------------------------------------------------------------------


def test_dark_share() -> None:
    half = np.zeros((8, 8, 3), np.uint8)
    half[:, 4:] = 255
    found = DarkShare()(pictures(flat("black"), flat("white"), Image.fromarray(half))).values.tolist()
    assert found == [1.0, 0.0, 0.5]


def test_colour_entropy() -> None:
    four = np.zeros((8, 8, 3), np.uint8)
    four[:4, :4, 0], four[4:, :4, 1], four[:4, 4:, 2] = 255, 255, 255
    found = ColourEntropy()(pictures(flat("red"), Image.fromarray(four))).values.tolist()
    assert found == [0.0, 2.0]  # four colours of equal shares
    assert 0 < float(ColourEntropy()(pictures(noise(0, 64))).values[0]) <= 9


def test_diversity_is_the_mean_distance_within_a_prompt() -> None:
    black, white, grey = flat("black"), flat("white"), flat((51, 51, 51))
    samples = pictures(black, white, grey, black, black, prompt=["a", "a", "a", "b", "b"])
    found = Diversity()(samples)
    assert found.values.tolist() == pytest.approx([(1 + 0.2) / 2, (1 + 0.8) / 2, (0.2 + 0.8) / 2, 0, 0], abs=1e-6)
    assert found.applicable.tolist() == [True] * 5


def test_diversity_goes_by_group_and_leaves_out_what_is_alone() -> None:
    samples = pictures(flat("black"), flat("white", 9), None, flat("white"), prompt=["a"] * 4, group=[0, 0, 0, 1])
    found = Diversity()(samples)
    assert found.values.tolist() == pytest.approx([1, 1, 0, 0], abs=1e-6)
    assert found.applicable.tolist() == [True, True, False, False]


def test_default_watchdogs_run_in_a_sum() -> None:
    watched = WeightedSum({name: Part(use) for name, use in default_watchdogs().items()})(prompted())
    assert set(watched.parts) == {"dark_share", "colour_entropy", "diversity"}


# ---- similarity ------------------------------------------------------------------------------------------


def test_ssim_of_the_same_picture_is_1(tmp_path: Path) -> None:
    noise(3).save(tmp_path / "three.png")
    samples = pictures(noise(0), noise(1), noise(3), reference=[noise(0), noise(2), str(tmp_path / "three.png")])
    same, other, by_path = SSIM()(samples).values.tolist()
    assert same == by_path == pytest.approx(1.0)
    assert other < 0.5


def test_ssim_where_it_does_not_apply() -> None:
    samples = pictures(flat("red"), flat("red", 4), flat("red"), reference=[None, flat("red", 4), flat("red", 40)])
    assert SSIM()(samples).applicable.tolist() == [False, False, True]


def test_ssim_names_a_missing_column_and_file() -> None:
    with pytest.raises(ValueError, match=r"SSIM reads the column 'reference', and the data has \['prompt'\]"):
        SSIM()(prompted())
    with pytest.raises(ValueError, match="names 'nowhere.png', which is no picture here"):
        SSIM()(pictures(flat("red"), reference=["nowhere.png"]))


def test_lpips_by_its_package(module: Callable[..., None]) -> None:
    class Distance(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, one: Tensor, other: Tensor, normalize: bool) -> Tensor:
            assert normalize
            return (one - other).square().mean((1, 2, 3), keepdim=True)

    module("lpips", LPIPS=Distance)
    samples = pictures(flat("white"), flat("white"), flat("red"), reference=[flat("white", 9), flat("black"), None])
    found = LPIPS(net="vgg")(samples)
    assert found.values.tolist() == pytest.approx([0, -1, 0], abs=1e-6)
    assert found.applicable.tolist() == [True, True, False]


# ---- CLIP ------------------------------------------------------------------------------------------------


def test_clip_score_is_the_cosine(small: Small) -> None:
    samples, model = prompted(), small.model
    function = ClipScore(small.folder)
    with torch.no_grad():
        pixels = torch.stack([pixels_of(picture) for picture in samples.outputs]) * 2 - 1  # type: ignore[arg-type]
        wanted = (model.encode_image(pixels, True) * model.encode_text(small.tokens(PROMPTS), True)).sum(-1)
    assert torch.allclose(function(samples).values, wanted, atol=1e-6)
    hessel = dataclasses.replace(function, scale="hessel")
    assert torch.allclose(hessel(samples).values, 2.5 * wanted.clamp(min=0), atol=1e-6)


def test_clip_score_of_batches_sizes_and_malformed(clip_folder: str) -> None:
    check_reward(ClipScore(clip_folder, batch_size=2), prompted(5), MALFORMED)
    mixed = pictures(noise(0), noise(1, 24), None, noise(2), prompt=["a", "b", "c", "d"])
    found = ClipScore(clip_folder)(mixed)
    assert found.applicable.tolist() == [True, True, False, True]
    alone = [ClipScore(clip_folder)(pictures(noise(1, 24), prompt=["b"])).values[0]]
    assert torch.allclose(found.values[1], alone[0], atol=1e-6)


@pytest.mark.parametrize("side", [SIDE, 24])
def test_the_gradient_of_clip_score_reaches_the_pixels(clip_folder: str, side: int) -> None:
    function, samples = ClipScore(clip_folder), prompted(2)
    pixels = torch.stack([pixels_of(noise(i, side)) for i in range(2)]) * 0.6 + 0.2  # no resized pixel is clamped
    pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(function.on_pixels(pixels, samples).sum(), pixels)
    assert bool((gradient.flatten(1).norm(dim=1) > 0).all())
    step = 1e-2 * gradient / gradient.norm()
    with torch.no_grad():
        up, down = (function.on_pixels(pixels + sign * step, samples).sum() for sign in (1, -1))
    assert float(up - down) == pytest.approx(2 * float((gradient * step).sum()), rel=0.02)


def test_clip_score_leaves_no_gradient_in_its_model(clip_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, create = [], open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: loaded.append(create(*a, **k)) or loaded[-1])
    load_tower.cache_clear()
    pixels = pixels_of(noise(0))[None].requires_grad_()
    ClipScore(clip_folder).on_pixels(pixels, prompted(1)).sum().backward()
    (model,) = loaded
    assert not model.training
    assert all(weight.grad is None and not weight.requires_grad for weight in model.parameters())
    assert not ClipScore(clip_folder)(prompted(1)).values.requires_grad


def test_clip_accuracy_is_the_share_of_right_choices(clip_folder: str, tmp_path: Path) -> None:
    samples = pictures(*[noise(i) for i in range(6)], prompt=[*PROMPTS, *PROMPTS])
    scores = torch.stack(
        [ClipScore(clip_folder)(pictures(*samples.outputs, prompt=[prompt] * 6)).values for prompt in PROMPTS]
    )
    wanted = (scores.argmax(0) == torch.tensor([0, 1, 2, 0, 1, 2])).float()
    function = ClipAccuracy(clip_folder, PROMPTS, batch_size=4)
    assert torch.equal(function(samples).values, wanted)
    (tmp_path / "prompts.txt").write_text("\n".join([*PROMPTS, "", PROMPTS[0]]))
    assert torch.equal(ClipAccuracy(clip_folder, str(tmp_path / "prompts.txt"))(samples).values, wanted)
    other = function(pictures(noise(0), noise(1), prompt=["not listed", PROMPTS[0]]))
    assert other.applicable.tolist() == [False, True]
    check_reward(function, samples, MALFORMED)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipScore("ViT-B-23", "openai"), "'ViT-B-23' is neither a folder .* such as ViT-B-32"),
        (lambda: ClipScore("ViT-B-32"), "ClipScore.pretrained is missing: ViT-B-32 needs a tag"),
        (lambda: ClipScore("ViT-B-32", "no/weights.pt"), "ClipScore.pretrained 'no/weights.pt' is not there"),
        (lambda: ClipScore("tests"), "'tests' is a folder without open_clip_config.json"),
        (lambda: ClipScore("ViT-B-32", "openai", device="gpu"), "ClipScore.device is 'gpu'"),
        (lambda: ClipScore("ViT-B-32", "openai", batch_size=0), "ClipScore.batch_size is 0"),
        (lambda: ClipAccuracy("ViT-B-32", ("a", "a"), "openai"), "has 1 different prompts: give 2 or more"),
        (lambda: ClipAccuracy("ViT-B-32", "no.txt", "openai"), "ClipAccuracy.prompts 'no.txt' is not there"),
        (lambda: Aesthetic("ViT-L-14", "openai"), "Aesthetic.head 'ViT-L-14/aesthetic.safetensors' is not there"),
        (lambda: HPSv2("no.pt"), "HPSv2.weights 'no.pt' is not there: give the file HPS_v2.1_compressed.pt"),
        (lambda: PickScore("./no"), "PickScore.model './no' is no folder here"),
        (lambda: PickScore("tests"), "PickScore.model 'tests' is a folder without config.json"),
        (lambda: Compressibility(0), "Compressibility.quality is 0: JPEG has 1 to 100"),
        (lambda: DarkShare(0.0), "DarkShare.below is 0.0"),
        (lambda: ColourEntropy(1), "ColourEntropy.levels is 1"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        make()
    assert "\n" not in str(found.value)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for make, package in (
        (LPIPS, "lpips"),
        (SSIM, "scikit-image"),
        (ImageReward, "image-reward"),
        (HPSv2, "open_clip_torch"),
    ):
        with pytest.raises(ValueError, match=f"needs the package '{package}'.*pip install {package}"):
            make()


def test_weights_that_are_not_there_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="PickScore.model 'someone/else' is not in the hub cache, and HF_HUB_OFFLINE"):
        PickScore("someone/else")
    (tmp_path / "weights.pt").write_bytes(b"no weights")
    with pytest.raises(RewardError, match="the CLIP model 'ViT-B-32' .* cannot be loaded .*local folder or file"):
        ClipScore("ViT-B-32", str(tmp_path / "weights.pt"))(prompted(1))


def test_prompts_are_asked_for(clip_folder: str) -> None:
    with pytest.raises(ValueError, match=r"ClipScore reads the column 'prompt', and the data has \['text'\]"):
        ClipScore(clip_folder)(pictures(noise(0), text=["a"]))


# ---- open_clip's own architectures and folders -----------------------------------------------------------


def test_preprocessing_is_that_of_open_clip() -> None:
    """Up to the rounding of 8-bit pictures, after resizing and cutting."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    for width, height in ((40, 31), (31, 53), (20, 20), (16, 16)):
        picture = small.resize((width, height), Image.Resampling.BICUBIC)
        theirs = pixels_of(Compose([Resize(16, InterpolationMode.BICUBIC), CenterCrop(16)])(picture))
        ours = fit(pixels_of(picture)[None], (16, 16))[0]
        assert float((ours - theirs).abs().max()) < 0.01


def test_fit_fills_with_black_or_squashes() -> None:
    wide = torch.ones(1, 3, 8, 16)
    longest, squashed = fit(wide, (8, 8), "longest"), fit(wide, (8, 8), "squash")
    assert longest[0, 0, :, 0].tolist() == pytest.approx([0, 0, 1, 1, 1, 1, 0, 0], abs=1e-5)
    assert torch.allclose(squashed, torch.ones(1, 3, 8, 8))


def test_a_tower_of_open_clip_from_its_own_folder(tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    sizes = {
        "embed_dim": 8,
        "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": SIDE},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    model = open_clip.CLIP(**sizes).eval()
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    settings = {"model_cfg": sizes, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    samples = prompted(2)
    with torch.no_grad():
        pixels = torch.stack([pixels_of(noise(i)) for i in range(2)]) * 2 - 1
        texts = open_clip.get_tokenizer("ViT-B-32", context_length=12)(list(PROMPTS[:2]))
        wanted = (model.encode_image(pixels, True) * model.encode_text(texts, True)).sum(-1)
    assert torch.allclose(ClipScore(str(tmp_path))(samples).values, wanted, atol=1e-5)
    assert isinstance(open_clip_tower(f"local-dir:{tmp_path}", "", "cpu", "longest"), Tower)


# ---- heads and preference models -------------------------------------------------------------------------


def test_aesthetic_is_a_linear_head_on_the_unit_vector(small: Small, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    weight, bias = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([5.0])
    save_file({"weight": weight, "bias": bias}, tmp_path / "head.safetensors")
    function = Aesthetic(small.folder, head=str(tmp_path / "head.safetensors"))
    pixels = torch.stack([pixels_of(noise(i)) for i in range(3)])
    with torch.no_grad():
        wanted = (small.model.encode_image(pixels * 2 - 1, True) @ weight.T + bias)[:, 0]
    assert torch.allclose(function(prompted()).values, wanted, atol=1e-5)
    assert torch.allclose(function.on_pixels(pixels, prompted()), wanted, atol=1e-5)
    check_reward(function, prompted(), MALFORMED)


def test_a_head_of_several_layers_is_multiplied_out(small: Small, tmp_path: Path) -> None:
    """LAION's: numbered layers with dropout, and nothing else, between them."""
    from torch import nn

    class LAION(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(16, 8), nn.Dropout(), nn.Linear(8, 4), nn.Dropout(), nn.Linear(4, 1))

    head = LAION().eval()
    torch.save(head.state_dict(), tmp_path / "laion.pth")
    function = Aesthetic(small.folder, head=str(tmp_path / "laion.pth"))
    pixels = torch.stack([pixels_of(noise(i)) for i in range(3)])
    with torch.no_grad():
        wanted = head.layers(small.model.encode_image(pixels * 2 - 1, True))[:, 0]
    assert torch.allclose(function(prompted()).values, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": torch.ones(1, 5), "bias": torch.ones(1)}, "reads vectors of 5 numbers and .* gives 16"),
        ({"weight": torch.ones(2, 16), "bias": torch.ones(2)}, "its last layer gives 2 numbers"),
        ({"mean": torch.ones(1)}, r"no stack of linear layers to one number \(ValueError: it has \['mean'\]"),
    ],
)
def test_a_head_that_does_not_fit(clip_folder: str, tmp_path: Path, weights: dict[str, Tensor], message: str) -> None:
    torch.save(weights, tmp_path / "head.pth")
    with pytest.raises(RewardError, match=message):
        Aesthetic(clip_folder, head=str(tmp_path / "head.pth"))(prompted(1))


def test_pickscore_from_a_local_folder(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    letters = sorted(set("".join(PROMPTS)))
    words = ["<|startoftext|>", *letters, *[f"{letter}</w>" for letter in letters], "<|endoftext|>"]
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(words), "max_position_embeddings": 8, "eos_token_id": len(words) - 1}
    config = CLIPConfig(
        text_config=text, vision_config={**tower, "image_size": SIDE, "patch_size": 8}, projection_dim=8
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[])
    tokenizer.save_pretrained(tmp_path)
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    processor.save_pretrained(tmp_path)
    samples = prompted()
    inputs = tokenizer(list(PROMPTS), padding=True, truncation=True, max_length=8, return_tensors="pt")
    with torch.no_grad():
        seen = processor(images=list(samples.outputs), return_tensors="pt")
        wanted = model(**inputs, **seen).logits_per_image.diagonal()
    function = PickScore(str(tmp_path), str(tmp_path))
    assert torch.allclose(function(samples).values, wanted, atol=1e-4)
    check_reward(function, samples, MALFORMED)


def test_image_reward_by_its_package(module: Callable[..., None]) -> None:
    class Model:
        def score(self, prompt: str, images: list[Image.Image]) -> float:
            return len(prompt) + images[0].size[0]

    def load(name: str, device: str) -> Model:
        if name != "mine":
            raise RuntimeError(f"{name} does not exist")
        return Model()

    module("ImageReward", load=load)
    found = ImageReward("mine")(pictures(noise(0), None, prompt=["abc", "d"]))
    assert found.values.tolist() == [3 + SIDE, 0]
    assert found.applicable.tolist() == [True, False]
    with pytest.raises(RewardError, match="ImageReward cannot load 'other'.*other does not exist"):
        ImageReward("other")(prompted(1))


def test_hpsv2_is_100_cosines_with_black_borders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def tower(model: str, file: str, device: str, mode: str) -> Tower:
        assert (model, Path(file).name, mode) == ("ViT-H-14", "hps.pt", "longest")
        return Tower(lambda x: x.mean((2, 3)), lambda texts: torch.tensor([[1.0, 0.0, 0.0]] * len(texts)), device)

    (tmp_path / "hps.pt").touch()
    monkeypatch.setattr("rewards.pictures.preference.open_clip_tower", tower)
    found = HPSv2(str(tmp_path / "hps.pt"))(pictures(flat("red"), flat("white"), prompt=["a", "b"])).values
    assert found.tolist() == pytest.approx([100, 100 / math.sqrt(3)], rel=1e-5)
