"""The small models that ship with mmrl, the pictures they learn from, and how they are made.

Bugs that were planted in a scratch copy, and the test that fails on each:

| planted bug | caught by |
|---|---|
| colours in another order than captions; the seed not used | test_captions_say_what_is_in_the_pictures |
| an object larger than the picture | test_captions_say_what_is_in_the_pictures |
| the same seed for both CLIPs | test_the_small_clips_read_pictures_that_they_never_saw |
| captions shifted against pictures in the loss | test_a_denoiser_learns_the_caption_of_its_picture |
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from diffusion import warmup
from diffusion.embedded import UNREAD
from diffusion.prompts import read_prompts
from diffusion.warmup import Fit, Making, SmallClip, SmallFlow, SmallUNet
from mmrl.cli import main
from mmrl.runtime import Runtime, RuntimeConfig
from mmrl.types import Samples
from rewards.pictures import Aesthetic, ClipAccuracy, ClipScore, emoji, small_clip
from rewards.pictures.base import find_path, pixels_of

ROOT = Path(__file__).resolve().parent.parent
CLIPS = ("assets/rewards/clip_a", "assets/rewards/clip_b")
PIPELINES = {
    "unet": (StableDiffusionPipeline, {"guidance_scale": 1.0}),
    "flow": (StableDiffusion3Pipeline, {"guidance_scale": 1.0, "max_sequence_length": UNREAD}),
}
ABSENT = {"unet": {}, "flow": {"text_encoder_3": None, "tokenizer_3": None}}
"""What diffusers wants to be told of a Stable Diffusion 3 that was saved without a T5."""
UNSEEN = 987_654_321
"""A seed that no warm-up has: clip_a's are below 4.1 million, clip_b's too, the pipelines' 0 and 1."""


@pytest.fixture(scope="module")
def pictures() -> tuple[list, list[str]]:
    return emoji.captioned(1, UNSEEN)


# ---- the pictures -----------------------------------------------------------------------------------------


def test_captions_say_what_is_in_the_pictures(pictures) -> None:
    found, texts = pictures
    assert texts == emoji.captions()
    assert len(set(texts)) == len(texts) == 96
    assert all(picture.size == (emoji.SIZE, emoji.SIZE) and picture.mode == "RGB" for picture in found)
    seen = {}
    for picture, text in zip(found, texts, strict=True):
        name, colour = text.removeprefix("a ").removesuffix(" background").split(" on a ")
        background = np.array(emoji.BACKGROUNDS[colour])
        corner = np.asarray(picture)[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert int((corner == background).all(-1).sum()) >= 3, text  # a corner may be under the object
        inside = (np.asarray(picture) != background).any(-1)
        assert 0.1 < inside.mean() < 0.9, text
        seen[name, colour] = inside
    # an object has about the same shape on every background, and another one than other objects
    assert all(abs(seen["car", one].mean() - seen["car", "blue"].mean()) < 0.25 for one in emoji.BACKGROUNDS)


def test_pictures_depend_on_the_seed_alone(pictures) -> None:
    again, _ = emoji.captioned(1, UNSEEN)
    others, _ = emoji.captioned(1, UNSEEN + 1)
    assert all(one.tobytes() == other.tobytes() for one, other in zip(pictures[0], again, strict=True))
    assert sum(one.tobytes() != other.tobytes() for one, other in zip(pictures[0], others, strict=True)) > 90
    more, texts = emoji.captioned(2, UNSEEN)
    assert texts == 2 * emoji.captions()
    assert [p.tobytes() for p in more[:96]] == [p.tobytes() for p in again]
    assert more[0].tobytes() != more[96].tobytes()


def test_an_emoji_is_its_own_shape() -> None:
    drawn = emoji.rendered("1F34C", 60)
    assert drawn.mode == "RGBA"
    assert max(drawn.size) <= 60 <= max(drawn.size) + 20
    alpha = np.asarray(drawn.getchannel("A"))
    for border in (alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]):
        assert int(border.max()) > 0  # no empty border is left
    assert len(set(emoji.OBJECTS.values())) == len(emoji.OBJECTS) == 16


def test_the_prompts_are_the_captions_and_none_is_in_both() -> None:
    train, held_out, everything = (
        [one.prompt for one in read_prompts(f"assets/diffusion/prompts/{name}.txt", name)]
        for name in ("train", "held_out", "all")
    )
    assert everything == emoji.captions()
    assert sorted(train + held_out) == sorted(everything)
    assert (len(train), len(held_out)) == (72, 24)
    for words in (emoji.OBJECTS, emoji.BACKGROUNDS):  # all of both are seen in training
        assert all(any(f" {word} " in prompt for prompt in train) for word in words)


# ---- what ships -------------------------------------------------------------------------------------------


def test_the_small_clips_read_pictures_that_they_never_saw(pictures) -> None:
    found, texts = pictures
    samples = Samples(found, {"prompt": texts})
    weights = []
    for folder in CLIPS:
        accuracy = ClipAccuracy(folder, "assets/diffusion/prompts/all.txt")(samples)
        assert bool(accuracy.applicable.all())
        assert float(accuracy.values.mean()) >= 0.95, folder
        cosine = ClipScore(folder)(samples).values
        others = ClipScore(folder)(Samples(found, {"prompt": texts[1:] + texts[:1]})).values
        assert float((cosine > others).float().mean()) >= 0.95
        weights.append(load_file(find_path(folder) / "open_clip_model.safetensors"))
        made = json.loads((find_path(folder) / "warmup.json").read_text())
        assert made["accuracy_96_captions"] >= 0.95
    one, other = weights
    assert one.keys() == other.keys()
    same = [name for name, tensor in one.items() if torch.equal(tensor, other[name])]
    assert all(one[name].numel() == 1 or not one[name].is_floating_point() for name in same), same


@pytest.mark.parametrize("folder", CLIPS)
def test_the_small_clips_are_open_clips_own(folder: str, pictures) -> None:
    """Without anything of mmrl: its own preprocessing and tokenizer give the same cosine."""
    name = f"local-dir:{find_path(folder)}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(pictures[1][:8])
    with torch.no_grad():
        seen = torch.stack([preprocess(picture) for picture in pictures[0][:8]])
        wanted = (model.eval().encode_image(seen, True) * model.encode_text(tokens, True)).sum(-1)
    found = ClipScore(folder)(Samples(pictures[0][:8], {"prompt": pictures[1][:8]})).values
    assert torch.allclose(found, wanted, atol=1e-5)
    assert sum(parameter.numel() for parameter in model.parameters()) < 600_000


@pytest.mark.parametrize("folder", CLIPS)
def test_the_aesthetic_head_is_colourfulness(folder: str, pictures) -> None:
    found = Aesthetic(folder)(Samples(pictures[0], {"prompt": pictures[1]})).values.double()
    wanted = torch.tensor([small_clip.colourfulness(picture) for picture in pictures[0]], dtype=torch.float64)
    assert float(torch.corrcoef(torch.stack([found, wanted]))[0, 1]) > 0.85


def test_colourfulness() -> None:
    assert small_clip.colourfulness(Image.new("RGB", (4, 4), (90, 90, 90))) == pytest.approx(0.0, abs=1e-9)
    red = small_clip.colourfulness(Image.new("RGB", (4, 4), (255, 0, 0)))
    assert red == pytest.approx(0.3 * np.hypot(1.0, 0.5))  # no spread: only the mean of its two axes


@pytest.mark.parametrize("kind", PIPELINES)
def test_the_small_pipelines_load_and_draw_in_plain_diffusers(kind: str) -> None:
    folder = ROOT / "assets" / "diffusion" / kind
    known, options = PIPELINES[kind]
    pipeline = DiffusionPipeline.from_pretrained(folder, **ABSENT[kind])
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is known
    prompts = ["a panda on a blue background", "a tomato on a yellow background"]
    drawn = pipeline(prompts, num_inference_steps=2, generator=torch.Generator().manual_seed(0), **options).images
    assert [picture.size for picture in drawn] == [(emoji.SIZE, emoji.SIZE)] * 2
    pixels = torch.stack([pixels_of(picture) for picture in drawn])
    for one, name in zip(pixels, ("blue", "yellow"), strict=True):  # the background is what two steps get right
        corner = one[:, :3, :3].mean((1, 2)) * 255
        distance = {c: float((corner - torch.tensor(rgb)).abs().sum()) for c, rgb in emoji.BACKGROUNDS.items()}
        assert min(distance, key=distance.__getitem__) == name
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    assert sum(parameter.numel() for module in modules for parameter in module.parameters()) < 3_100_000


def test_an_asset_is_at_most_12_mb_and_tells_its_quality() -> None:
    for name in (*CLIPS, "assets/diffusion/unet", "assets/diffusion/flow"):
        folder = ROOT / name
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 12 * 2**20
        made = json.loads((folder / "warmup.json").read_text())
        assert (ROOT / "configs" / "diffusion" / f"{made['config']}.yaml").is_file()
    for kind in PIPELINES:
        made = json.loads((ROOT / "assets" / "diffusion" / kind / "warmup.json").read_text())
        assert len(made["samplers"]) >= 5
        assert max(row["gold_accuracy"]["value"] for row in made["samplers"]) > 0.8
        assert all({"alignment", "ms_per_picture", "steps"} <= row.keys() for row in made["samplers"])


def test_every_asset_has_its_checksum() -> None:
    lines = (ROOT / "assets" / "SHA256SUMS").read_text().splitlines()
    sums = {name.lstrip("*"): digest for digest, name in (line.split(maxsplit=1) for line in lines if line.strip())}
    weights = [path for name in ("diffusion", "rewards") for path in (ROOT / "assets" / name).rglob("*.safetensors")]
    assert len(weights) >= 10
    for path in weights:
        named = {str(path.relative_to(ROOT / "assets")), str(path.relative_to(ROOT))} & sums.keys()
        assert named, f"{path} is not in assets/SHA256SUMS"
        assert sums[named.pop()] == hashlib.sha256(path.read_bytes()).hexdigest(), path


# ---- how they are made ------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.setattr(warmup, "PER_CAPTION", 1)
    return Runtime(RuntimeConfig(device="cpu"), 3)


TWO = Fit(2, 4, 1e-3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of two steps."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warmup, "PER_CAPTION", 1)
        summary = SmallUNet(TWO, TWO).make(Runtime(RuntimeConfig(device="cpu"), 3), folder / "unet", False)
        flow = SmallFlow(TWO, str(folder / "unet")).make(
            Runtime(RuntimeConfig(device="cpu"), 3), folder / "flow", False
        )
    (folder / "summaries.json").write_text(json.dumps({"unet": summary, "flow": flow}))
    return folder


@pytest.mark.parametrize("kind", PIPELINES)
def test_two_steps_make_a_pipeline_that_plain_diffusers_draws_with(kind: str, made: Path) -> None:
    known, options = PIPELINES[kind]
    pipeline = DiffusionPipeline.from_pretrained(made / kind, **ABSENT[kind])
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is known
    drawn = pipeline("a crab on a pink background", num_inference_steps=2, **options).images[0]
    assert drawn.size == (emoji.SIZE, emoji.SIZE)
    summary = json.loads((made / "summaries.json").read_text())[kind]
    shipped = json.loads((ROOT / "assets" / "diffusion" / kind / "warmup.json").read_text())
    assert summary["parameters"] == shipped["parameters"]  # what ships is what this makes
    assert summary["warmup"]["denoiser"] == {"steps": 2, "rows": 4, "lr": 1e-3}
    assert summary["autoencoder_psnr_db"] > 0


def test_the_flow_takes_over_the_autoencoder_of_another_pipeline(made: Path) -> None:
    one, other = (DiffusionPipeline.from_pretrained(made / kind, **ABSENT[kind]).vae for kind in PIPELINES)
    ours, theirs = one.state_dict(), other.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert one.config.scaling_factor == other.config.scaling_factor != 1.0


def test_the_same_seed_makes_the_same_pipeline(made: Path, few: Runtime, tmp_path: Path) -> None:
    """Its new weights are drawn from the global generator, which the runtime seeds."""
    SmallUNet(TWO, TWO).make(few, tmp_path / "unet", False)
    for part in ("unet", "vae"):
        file = f"{part}/diffusion_pytorch_model.safetensors"
        one, other = load_file(made / "unet" / file), load_file(tmp_path / "unet" / file)
        assert all(torch.allclose(tensor, other[name], atol=1e-6) for name, tensor in one.items())


def test_a_denoiser_learns_the_caption_of_its_picture(few: Runtime, tmp_path: Path, monkeypatch) -> None:
    """What the loss is given: latents of a picture with what the text encoder says of its own caption, and sometimes of
    none."""
    told: list[tuple[Tensor, Tensor]] = []

    class Listening(SmallUNet):
        def loss(
            self, denoiser: nn.Module, clean: Tensor, texts: tuple[Tensor, ...], generator: torch.Generator
        ) -> Tensor:
            told.append((clean.detach(), texts[0].detach()))
            return super().loss(denoiser, clean, texts, generator)

        def pipeline(self, vae):
            found = super().pipeline(vae)
            monkeypatch.setattr(warmup, "_fit", lambda parameters, loss, *rest: loss())
            known.append(found)
            return found

    known: list[StableDiffusionPipeline] = []
    Listening(Fit(1, 40, 1e-3), str(ROOT / "assets" / "diffusion" / "unet"), unconditional=0.5).make(
        few, tmp_path, False
    )
    ((clean, texts),) = told
    pipeline = known[0]
    with torch.no_grad():
        captions = [*emoji.captions(), ""]
        vectors = pipeline.encode_prompt(captions, "cpu", 1, False)[0]
        latents = warmup.encoded(pipeline.vae, warmup._pixels(1, 0))
    of_picture = torch.cdist(clean.flatten(1), latents.flatten(1)).argmin(-1)
    of_text = torch.cdist(texts.flatten(1), vectors.flatten(1)).argmin(-1)
    without = of_text == 96
    assert 5 < int(without.sum()) < 35
    assert torch.equal(of_picture[~without], of_text[~without])


def test_two_steps_make_a_clip_that_open_clip_loads(few: Runtime, tmp_path: Path) -> None:
    making: Making = SmallClip(steps=2)
    summary = making.make(few, tmp_path, False)
    model = open_clip.create_model(f"local-dir:{tmp_path}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    tokens = tokenizer(["a crab on a pink background"])
    assert tokens.shape == (1, small_clip.CONTEXT)
    assert model.encode_text(tokens).shape == (1, 64)
    assert summary["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert summary["held_out_pictures"] == 4 * 96
    assert 0 <= float(str(summary["accuracy_96_captions"])) < 0.5
    shipped = load_file(ROOT / CLIPS[0] / "open_clip_model.safetensors")
    ours = load_file(tmp_path / "open_clip_model.safetensors")
    assert {name: t.shape for name, t in ours.items()} == {name: t.shape for name, t in shipped.items()}
    head = load_file(tmp_path / "aesthetic.safetensors")
    assert {name: tuple(t.shape) for name, t in head.items()} == {"weight": (1, 64), "bias": (1,)}
    before = torch.get_rng_state()
    small_clip.untrained(small_clip.settings(small_clip.train_tokenizer(["a crab"])), 0)
    assert torch.equal(before, torch.get_rng_state())  # the global generator is left alone


def test_every_word_of_the_captions_is_one_token() -> None:
    shipped = CLIPTokenizer.from_pretrained(ROOT / CLIPS[0])
    fresh = small_clip.train_tokenizer(emoji.captions())
    for tokenizer in (shipped, fresh):
        for text in emoji.captions():
            ids = tokenizer(text).input_ids
            assert len(ids) == len(text.split()) + 2 <= small_clip.CONTEXT
            assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
        assert tokenizer.unk_token_id not in tokenizer("a zebra, 7 Ü").input_ids[1:-1]  # spelt, not unknown
    assert shipped("a panda").input_ids == fresh("a panda").input_ids


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20, 40])
def test_any_number_of_steps_can_be_fitted(steps: int) -> None:
    parameter = nn.Parameter(torch.ones(1))
    warmup._fit([parameter], lambda: parameter.square().sum(), Fit(steps, 1, 0.1), False)
    assert float(parameter.detach()) < 1.0


class Linear(nn.Linear):
    """As a CLIP is called, of a few numbers."""

    def forward(self, pixels: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        found = super().forward(pixels.flatten(1))
        return found, found.detach(), torch.tensor(1.0)


@pytest.mark.parametrize("steps", [1, 10, 11])
def test_any_number_of_steps_can_be_trained(steps: int) -> None:
    model = Linear(3 * emoji.SIZE**2, 4)
    before = model.weight.detach().clone()
    small_clip._train(model, torch.zeros(96, 2, dtype=torch.long), 0, steps, 1e-3, False)
    assert not torch.equal(model.weight, before)


@pytest.mark.parametrize("bad", [(0, 1, 1e-3), (1, 0, 1e-3), (1, 1, 0.0)])
def test_a_warm_up_of_nothing_is_refused(bad: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="a warm-up has steps .*: give more than 0"):
        Fit(*bad)
    with pytest.raises(ValueError, match="a warm-up has steps 0"):
        SmallClip(steps=0)


def test_the_command_makes_a_model_with_its_table(made: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(warmup, "PER_CAPTION", 1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a crab on a pink background\na car on a blue background\n")
    making = (
        f"{{class_path: diffusion.warmup.SmallUNet, init_args: {{autoencoder: {made / 'unet'}, "
        "denoiser: {steps: 2, rows: 4, lr: 1.0e-3}}}"
    )
    text = (
        "experiment: diffusion.experiments.Warmup\n"
        f"warmup:\n  output: out\n  make: {making}\n"
        "  samplers: [{scheduler: LCMScheduler, steps: 2, guidance: 1.0}, {steps: 3, guidance: 2.0}]\n"
        "prompts: prompts.txt\nmetrics: {size: rewards.pictures.Compressibility}\nlogging: {progress: false}\n"
    )
    (tmp_path / "make.yaml").write_text(text)
    assert main(["warmup", "make.yaml"]) == 0
    found = json.loads((tmp_path / "out" / "warmup.json").read_text())
    assert [(row["steps"], row["stepper"], row["size"]["n"]) for row in found["samplers"]] == [
        (2, "LCM", 2),
        (3, "DDIM", 2),
    ]
    assert DiffusionPipeline.from_pretrained(tmp_path / "out") is not None
    assert main(["train", "make.yaml", "--run", "run"]) != 0
    assert "run it with `mmrl warmup`" in capsys.readouterr().err
    (tmp_path / "make.yaml").write_text(text.replace("prompts: prompts.txt\n", ""))
    assert main(["warmup", "make.yaml"]) != 0
    assert "warmup.samplers draw `prompts`, which is missing" in capsys.readouterr().err
