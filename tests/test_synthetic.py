"""Syn-GRPO: labels that stay valid, a server that loses nothing, descriptions that are paid for what they caused."""

from __future__ import annotations

import multiprocessing.process
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vision.backdrops import HELD_OUT, PATTERNS, SEEN, NotUnderstood, background, vocabulary
from vision.data import Placed
from vision.data.base import Example
from vision.photographs import PHOTOGRAPHS
from vision.synthetic.backgrounds import Backgrounds
from vision.synthetic.diversity import Baseline, group_entropy, spread
from vision.synthetic.outpainting import Outpainting
from vision.synthetic.probe import edges_told_apart
from vision.synthetic.records import Generator, Request, Result
from vision.synthetic.server import DataServer, ServerConfig, ServerError
from vision.synthetic.validity import Check, Legible, NoSecondInstance, made, names_a_label, pasted

pytestmark = pytest.mark.timeout(180)

DIGITS = Placed(count=40).examples()


def request(number: int, description: str = "red stripes", example: Example | None = None) -> Request:
    one = example or DIGITS[number % len(DIGITS)]
    picture = np.asarray(one.pictures()[0])
    return Request(number, one.id, one.columns["labels"], picture, one.columns["mask"], description, 0, number)


# ---- the source -----------------------------------------------------------------------------------------------


def test_placed_is_the_same_twice_and_keeps_its_pictures_when_it_grows() -> None:
    again, longer = Placed(count=40).examples(), Placed(count=60).examples()
    for one, other, third in zip(DIGITS, again, longer, strict=False):
        assert one.id == other.id == third.id
        assert one.images[0].tobytes() == other.images[0].tobytes() == third.images[0].tobytes()


def test_held_out_digits_are_other_digits_on_other_photographs() -> None:
    other = Placed(first=1200, count=40, backgrounds=HELD_OUT).examples()
    assert not {example.id for example in other} & {example.id for example in Placed().examples()}
    assert not set(HELD_OUT) & set(SEEN)
    assert {example.columns["background"] for example in other} == set(HELD_OUT)


@pytest.mark.parametrize("objects", ["digits", "emoji"])
@pytest.mark.parametrize("task", ["name", "box", "count", "detect"])
def test_every_box_holds_its_object_exactly(objects: str, task: str) -> None:
    each = 1 if task == "name" else 3
    source = Placed(objects, task, ("red plain",), count=12, objects_each=each, size=64, scale=(0.25, 0.4), classes=6)
    for example in source.examples():
        mask, boxes = example.columns["mask"], example.columns["boxes"]
        assert mask.any()
        for left, top, right, bottom in boxes:
            inside = mask[top:bottom, left:right]
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        if task == "count":
            assert example.answer == str(len(example.columns["labels"])) == str(len(boxes))
        if task == "box":
            assert example.answer == " ".join(map(str, boxes[0]))
            assert example.columns["labels"].count(example.columns["labels"][0]) == 1  # the question has one answer
        if task == "detect":
            assert len(example.answer.split("; ")) == len(boxes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"classes": 11}, "Placed.classes is 11"),
        ({"count": 0}, "count 0"),
        ({"scale": (0.9, 0.5)}, "Placed.scale"),
        ({"backgrounds": ()}, "0 backgrounds"),
    ],
)
def test_wrong_sizes_are_refused(changes: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Placed(**changes)


def test_digits_run_out() -> None:
    with pytest.raises(ValueError, match="there are 1797 digits"):
        Placed(first=1790, count=10).examples()


# ---- backgrounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", vocabulary())
def test_every_word_of_the_vocabulary_is_a_picture_that_its_seed_fixes(words: str) -> None:
    one, same, other = (background(words, 32, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (32, 32, 3)
    assert one.dtype == np.uint8
    assert (one == same).all()
    assert (one != other).any()


def test_descriptions_are_read_by_their_words() -> None:
    chance = np.random.default_rng(0)
    red = background("something RED, with stripes!", 32, chance).reshape(-1, 3).mean(0)
    assert red[0] > red[1] + 50
    assert background("plain", 8, chance).std((0, 1)).max() == 0
    with pytest.raises(NotUnderstood, match="not understood"):
        background("a submarine", 32, chance)
    with pytest.raises(NotUnderstood):
        background(HELD_OUT[0], 32, chance)  # not among those that a generator draws from
    with pytest.raises(ValueError, match="names 'moon'"):
        Backgrounds(("moon",))
    assert len(vocabulary()) == len(PATTERNS) * 8 + len(SEEN)
    assert len(PHOTOGRAPHS) == len(SEEN) + len(HELD_OUT)


# ---- labels stay valid ----------------------------------------------------------------------------------------


def test_the_objects_pixels_come_back_bit_for_bit() -> None:
    words = vocabulary()[1:]  # without the plain black that they stand on
    asked = [request(number, words[number % len(words)]) for number in range(120)]
    results = made(Backgrounds(), (), asked)
    for result in results:
        assert result.picture is not None
        mask = result.request.mask
        assert (result.picture[mask] == result.request.foreground[mask]).all()
        assert (result.picture[~mask] != result.request.foreground[~mask]).any()
        assert result.checks == ("foreground",)


@pytest.mark.parametrize(
    ("description", "label"),
    [
        ("a seven on grass", "seven"), ("Sevens", "seven"), ("top  hats", "top hat"), ("a top-hat", "top hat"),
        ("boxes of red", "box"), ("seventeen", ""), ("hat on top", ""), ("carpet", ""), ("", ""),
    ],
)  # fmt: skip
def test_a_description_that_names_the_object_is_found(description: str, label: str) -> None:
    assert names_a_label(description, ("seven", "top hat", "car", "box")) == label


def test_refusals_say_why() -> None:
    asked = [request(0, "a zero"), request(1, "a submarine"), request(2, "red plain"), request(3, "white plain")]
    results = made(Backgrounds(), (Legible(),), asked)
    assert [result.reason for result in results[:2]] == ["it names 'zero'", "not understood"]
    assert results[2].checks == ("Legible", "foreground")
    assert results[3].request.number == 3


def test_what_cannot_be_read_is_refused() -> None:
    one = request(0)
    white = np.full_like(one.foreground, 200)
    hidden = replace(one, foreground=white)
    assert Legible()(pasted(white, hidden), hidden) == "the object is not legible"
    assert Legible()(pasted(np.zeros_like(white), hidden), hidden) == ""


def test_a_second_instance_is_refused() -> None:
    size, mask = 48, np.zeros((48, 48), bool)
    one = request(5)
    rows, columns = np.nonzero(one.mask)
    box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
    own, pixels = one.mask[box], one.foreground[box]
    height, width = own.shape
    own, pixels = own[: size // 2, : size // 2], pixels[: size // 2, : size // 2]
    height, width = own.shape
    mask[:height, :width] = own
    foreground = np.zeros((size, size, 3), np.uint8)
    foreground[:height, :width][own] = pixels[own]
    asked = replace(one, mask=mask, foreground=foreground)
    behind = background("green plain", size, np.random.default_rng(0))
    assert NoSecondInstance()(pasted(behind, asked), asked) == ""
    twice = behind.copy()
    twice[-height:, -width:][own] = pixels[own]
    assert NoSecondInstance()(pasted(twice, asked), asked) == "a second instance"


def test_a_generator_of_another_size_is_refused() -> None:
    class Small(Generator):
        def fill(self, requests: Sequence[Request]) -> list:
            return [np.zeros((8, 8, 3), np.uint8) for _ in requests]

    (found,) = made(Small(), (), [request(0)])
    assert found.broken
    assert found.reason == "it gave uint8 (8, 8, 3) where uint8 (32, 32, 3) was wanted"


# ---- the server -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slow(Generator):
    """Takes its time; hangs on one word, dies of another, raises at a third."""

    seconds: float = 0.01

    def fill(self, requests: Sequence[Request]) -> list:
        for one in requests:
            if one.description == "hang":
                time.sleep(1000)
            if one.description == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if one.description == "raise":
                raise RuntimeError("no such thing")
        time.sleep(self.seconds)
        return [background("red plain", len(one.mask), np.random.default_rng(one.seed)) for one in requests]


@dataclass(frozen=True)
class Broken(Generator):
    def prepare(self) -> None:
        raise FileNotFoundError("no weights at /nowhere")

    def fill(self, requests: Sequence[Request]) -> list:
        return []


def drained(server: DataServer, seconds: float = 60.0) -> list[Result]:
    """Everything until nothing is left."""
    found = server.take(wait_s=seconds)
    assert server.depth == 0
    return found


def test_posting_and_taking_never_wait() -> None:
    server = DataServer(Slow(seconds=0.5), (), ServerConfig(batch=4))
    try:
        began = time.monotonic()
        server.post([request(number) for number in range(12)])
        assert server.take() == []
        assert time.monotonic() - began < 0.4
        found = drained(server)
        assert [result.request.number for result in found] == list(range(12))
        assert server.cpu_s() > 0
    finally:
        server.close()


def test_the_oldest_make_room() -> None:
    server = DataServer(Slow(seconds=2.0), (), ServerConfig(queue=6, batch=1))
    try:
        server.post([request(0)])
        time.sleep(0.5)  # until it is being made
        assert server.post([request(number) for number in range(1, 7)]) == []
        dropped = server.post([request(7), request(8)])
        assert [one.number for one in dropped] == [1, 2]
        assert server.tally.dropped == 2
        assert server.post([request(9)], keep=True) == []
        assert server.depth == 8
    finally:
        server.close()


def test_a_server_that_is_killed_loses_and_doubles_nothing() -> None:
    # room for all, and more tries than kills: several of them may hit the same batch, which is not to be refused for that
    server = DataServer(Slow(), (), ServerConfig(queue=100, batch=4, tries=6))
    chance, found = random.Random(0), []
    try:
        for kill in range(5):
            server.post([request(number) for number in range(20 * kill, 20 * kill + 20)])
            time.sleep(chance.random() * 0.1)
            while server.tally.restarts < kill:
                time.sleep(0.05)  # until the last one is back
            os.kill(server.pid, signal.SIGKILL)
            found += server.take()
        while server.tally.restarts < 5:
            time.sleep(0.05)  # it may have had nothing left to do when it was killed
        found += drained(server, 120.0)
    finally:
        server.close()
    assert sorted(result.request.number for result in found) == list(range(100))
    assert all(result.picture is not None for result in found)
    assert server.tally.restarts == 5
    same = made(Slow(), (), [result.request for result in found])
    assert all((one.picture == other.picture).all() for one, other in zip(found, same, strict=True))


def test_what_kills_every_process_is_refused_and_the_rest_is_made() -> None:
    server = DataServer(Slow(), (), ServerConfig(batch=1, hang_s=1.0, tries=1))
    try:
        server.post([request(0, "die"), request(1), request(2, "hang"), request(3, "raise"), request(4)])
        found = drained(server, 150.0)
    finally:
        server.close()
    reasons = [result.reason for result in found]
    assert reasons == [
        "1 processes were lost over it",
        "",
        "1 processes were lost over it",
        "RuntimeError: no such thing",
        "",
    ]
    assert server.tally.restarts == 2


def test_a_process_that_is_killed_while_it_starts_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    begin, killed = multiprocessing.process.BaseProcess.start, []

    def dies(process: multiprocessing.process.BaseProcess) -> None:
        begin(process)
        if len(killed) < most:
            killed.append(process.pid)
            process.kill()

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", dies)
    most = 1
    DataServer(Slow(), (), ServerConfig(tries=2)).close()
    killed, most = [], 2
    with pytest.raises(ServerError, match="Slow could not be started: it ended while it started"):
        DataServer(Slow(), (), ServerConfig(tries=2))
    assert len(killed) == 2


def test_a_generator_that_cannot_be_loaded_is_said_before_training() -> None:
    with pytest.raises(ServerError, match="Broken could not be started: FileNotFoundError: no weights at /nowhere"):
        DataServer(Broken(), ())
    with pytest.raises(ValueError, match=r"synthetic\.server\.queue is 0"):
        ServerConfig(queue=0)


def test_closing_leaves_no_process() -> None:
    server = DataServer(Slow(), ())
    pid = server.pid
    server.close()
    assert not Path(f"/proc/{pid}").exists()


# ---- diversity ----------------------------------------------------------------------------------------------------


def test_spread_of_answers() -> None:
    scores = torch.tensor([1.0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 1])
    assert torch.allclose(spread(scores, 4), torch.tensor([0.0, 1.0, 2 * (3 / 16) ** 0.5]))


def test_entropies_in_closed_form() -> None:
    assert group_entropy(["a", "b", "a", "b"], 4) == pytest.approx(np.log(2))
    assert group_entropy([], 4) == 0.0
    assert group_entropy(["a", "a", "a", "b"], 2) == pytest.approx(np.log(2) / 2)


def test_the_baseline_follows() -> None:
    baseline = Baseline(0.9)
    baseline.include([])
    assert baseline.value is None
    baseline.include([1.0, 0.0])
    assert baseline.value == 0.5
    baseline.include([1.0])
    assert baseline.value == pytest.approx(0.55)


class Never(Check):
    def __call__(self, picture: np.ndarray, request: Request) -> str:
        return "never"


def test_checks_are_named_up_to_the_one_that_refuses() -> None:
    result = made(Backgrounds(), (Legible(0.0), Never()), [request(0)])[0]
    assert (result.picture, result.checks, result.reason) == (None, ("Legible",), "never")


# ---- outpainting, and whether edges give made pictures away -------------------------------------------------------


def test_the_small_outpainter_paints_what_it_is_told_around_the_object() -> None:
    pytest.importorskip("diffusers")
    asked = [request(number, words) for number, words in enumerate(("red plain", "blue plain", "white plain"))]
    results = made(Outpainting(), (), asked)
    means = [r.picture[~r.request.mask].reshape(-1, 3).mean(0) for r in results]
    assert means[0].argmax() == 0
    assert means[1].argmax() == 2
    assert means[2].min() > 180
    for result in results:
        mask = result.request.mask
        assert (result.picture[mask] == result.request.foreground[mask]).all()
    again = made(Outpainting(), (), [asked[1]])[0]
    assert int(np.abs(again.picture.astype(int) - results[1].picture.astype(int)).max()) <= 1  # of another batch


def test_an_outpainter_in_its_own_process() -> None:
    pytest.importorskip("diffusers")
    server = DataServer(Outpainting(), (Legible(),), ServerConfig())
    try:
        server.post([request(0, "black plain"), request(1, "a one")])
        found = drained(server)
    finally:
        server.close()
    assert [result.picture is None for result in found] == [False, True]


def test_outpainting_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(ValueError, match="say where the {description} goes"):
        Outpainting(prompt="a photo")
    with pytest.raises(ValueError, match="steps 0"):
        Outpainting(steps=0)
    with pytest.raises(ValueError, match="could not be loaded as an inpainting pipeline"):
        Outpainting(str(tmp_path)).prepare()


def test_the_probe_sees_a_soft_edge_and_nothing_where_there_is_nothing() -> None:
    from scipy.ndimage import gaussian_filter

    chance, words = random.Random(0), vocabulary()
    asked = [request(number, chance.choice(words)) for number in range(160)]
    fair = edges_told_apart(made(Backgrounds(), (), asked))
    assert abs(fair["auc"] - 0.5) < 0.15
    soft = []
    for result in made(Backgrounds(), (), asked):
        blurred = gaussian_filter(result.picture.astype(float), (1.5, 1.5, 0)).astype(np.uint8)
        soft.append(replace(result, picture=pasted(blurred, result.request)))
    assert edges_told_apart(soft)["auc"] > 0.7
    with pytest.raises(ValueError, match="give at least 20"):
        edges_told_apart(soft[:5])
