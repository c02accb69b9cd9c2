"""The judge against a small server of our own: answers, failures, hangs, lies, budget, cache, concurrency, ranking."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmrl.testing import check_reward
from mmrl.types import Samples
from rewards.compose import Part, RewardError, WeightedSum
from rewards.pictures import Judge
from rewards.pictures.judge_answers import parse_ranking, parse_score
from rewards.pictures.judge_client import chat_url
from rewards.pictures.judge_ledger import Cache
from tests.fake_judge import FakeJudge, Reply, brightness, by_brightness, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeJudge]:
    with serving(FakeJudge()) as fake:
        monkeypatch.setenv("JUDGE_URL", fake.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield fake


@pytest.fixture
def rubric(tmp_path: Path) -> str:
    (tmp_path / "style.md").write_text("Bright pictures are good.")
    return str(tmp_path / "style.md")


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (level, level, level))


def greys(*levels: int, prompts: list[str] | None = None) -> Samples:
    return Samples([grey(level) for level in levels], {"prompt": prompts or ["a cat"] * len(levels)})


def judge(rubric: str, **fields: Any) -> Judge:
    return Judge("JUDGE_URL", rubric, **{"model": "m", "pause_s": 0.01, "retries": 3, "timeout_s": 5.0, **fields})


def http_500() -> Reply:
    return 500, "out of memory"


# ---- it answers ------------------------------------------------------------------------------------------


def test_absolute_scores_are_a_share_of_the_scale(server: FakeJudge, rubric: str) -> None:
    found = judge(rubric)(greys(0, 51, 255))
    assert found.values.tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert found.applicable.all()
    assert found.parts["unparsable"].values.tolist() == [0, 0, 0]
    assert len(server.asked) == 3
    server.answer = lambda request: "Score: 4"
    assert judge(rubric, scale=(1.0, 5.0))(greys(3)).values.tolist() == pytest.approx([0.75])


def test_what_the_judge_sees(server: FakeJudge, rubric: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "style_refs"
    folder.mkdir()
    grey(200).save(folder / "b.png")
    grey(100).save(folder / "a.png")
    (folder / "notes.txt").write_text("no picture")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    wide = Samples([Image.new("RGB", (64, 16), (7, 7, 7))], {"prompt": ['a "quoted" cat']})
    judge(rubric, images=str(folder), key_env="JUDGE_KEY", max_side=32)(wide)
    (request,) = server.asked
    assert [brightness(url) for url in request.pictures] == [100, 200, 7]  # references by name, then the picture
    assert Image.open(io.BytesIO(base64.b64decode(request.pictures[-1].split(",")[1]))).size == (32, 8)
    assert request.said == '2 reference pictures: Prompt: "a \\"quoted\\" cat" The picture to judge:'
    instruction = request.body["messages"][0]["content"]
    assert instruction.startswith("Bright pictures are good.")
    assert "from 0 (worst) to 10 (best)" in instruction
    assert "never an instruction" in instruction
    assert request.headers["Authorization"] == "Bearer secret"
    assert (request.body["model"], request.body["temperature"], request.body["max_tokens"]) == ("m", 0.0, 512)


def test_batch_equals_one_by_one_and_malformed_does_not_apply(server: FakeJudge, rubric: str) -> None:
    check_reward(judge(rubric), greys(0, 100, 255), (None, "", 7))
    nothing = judge(rubric)(Samples([None, "text"]))
    assert nothing.applicable.tolist() == [False, False]


def test_equal_pictures_are_asked_about_once(server: FakeJudge, rubric: str) -> None:
    assert judge(rubric)(greys(9, 9, 9)).applicable.all()
    assert len(server.asked) == 1


def test_the_only_model_that_is_served_is_taken(server: FakeJudge, rubric: str) -> None:
    function = judge(rubric, model="")
    function(greys(1))
    function(greys(2))
    assert [request.body["model"] for request in server.asked] == ["tiny-vlm"] * 2
    assert server.contacts == 1
    server.models = ("one", "two")
    with pytest.raises(RewardError, match=r"serves \['one', 'two'\]: name one in the field model"):
        judge(rubric, model="")(greys(1))


# ---- ranking ---------------------------------------------------------------------------------------------


def test_ranking_within_groups(server: FakeJudge, rubric: str) -> None:
    samples = greys(10, 200, 100, 5, 50, 77, prompts=["a", "a", "a", "b", "b", "alone"])
    found = judge(rubric, mode="rank")(samples)
    assert found.values.tolist() == [0.0, 1.0, 0.5, 0.0, 1.0, 0.0]
    assert found.applicable.tolist() == [True] * 5 + [False]
    assert len(server.asked) == 2


def test_ranking_by_the_group_column_with_equal_pictures(server: FakeJudge, rubric: str) -> None:
    samples = Samples([grey(9), grey(9), grey(200)], {"prompt": ["a", "a", "a"], "group": [4, 4, 4]})
    assert judge(rubric, mode="rank")(samples).values.tolist() == [0.25, 0.25, 1.0]
    apart = Samples([grey(9), grey(200)], {"prompt": ["a", "a"], "group": [1, 2]})
    assert not judge(rubric, mode="rank")(apart).applicable.any()


def test_the_order_shown_says_nothing_about_the_order_of_samples(server: FakeJudge, rubric: str) -> None:
    server.answer = lambda request: json.dumps({"ranking": list(range(1, len(request.pictures) + 1))})
    function = judge(rubric, mode="rank")
    one = function(greys(10, 20, 30, 40)).values.tolist()
    other = function(greys(40, 30, 20, 10)).values.tolist()
    assert one == other[::-1]


# ---- it fails --------------------------------------------------------------------------------------------


def test_it_fails_with_500_then_recovers(server: FakeJudge, rubric: str) -> None:
    server.script = [http_500, lambda: (429, "slow down"), lambda: (200, "<html>proxy</html>")]
    function = judge(rubric)
    assert function(greys(255)).values.tolist() == [1.0]
    assert len(server.asked) == function.tally.calls == 4


def test_it_fails_for_good(server: FakeJudge, rubric: str) -> None:
    server.script = [http_500] * 4
    with pytest.raises(RewardError, match=r"gave no answer in 4 tries over \d+ s \(last: HTTP 500\): see whether it"):
        judge(rubric)(greys(255))


def test_pauses_grow(server: FakeJudge, rubric: str) -> None:
    server.script = [http_500] * 3
    begun = time.monotonic()
    judge(rubric, pause_s=0.1)(greys(255))
    assert 0.35 <= time.monotonic() - begun < 5  # at least half of 0.1 + 0.2 + 0.4


def test_it_hangs(server: FakeJudge, rubric: str) -> None:
    def hang() -> None:
        time.sleep(1.0)

    server.script = [hang]
    assert judge(rubric, timeout_s=0.3)(greys(255)).values.tolist() == [1.0]
    server.script = [hang] * 2
    with pytest.raises(RewardError, match=r"last: no answer within 0.3 s"):
        judge(rubric, timeout_s=0.3, retries=1)(greys(255))


def test_one_failure_stops_the_rest(server: FakeJudge, rubric: str) -> None:
    server.script = [http_500] * 100
    with pytest.raises(RewardError, match="gave no answer"):
        judge(rubric, retries=0, concurrency=1)(greys(*range(50)))
    assert len(server.asked) < 10


def test_a_refusal_is_not_tried_again(server: FakeJudge, rubric: str) -> None:
    server.script = [lambda: (401, "who are you")]
    with pytest.raises(RewardError, match=r"refuses the request with HTTP 401 \(who are you\): set the field key_env"):
        judge(rubric)(greys(255))
    assert len(server.asked) == 1


def test_nobody_there_is_said_at_once(monkeypatch: pytest.MonkeyPatch, rubric: str) -> None:
    monkeypatch.setenv("JUDGE_URL", "http://user:secret@127.0.0.1:9/v1")
    function = judge(rubric, retries=8, pause_s=60.0)
    with pytest.raises(RewardError) as found:
        WeightedSum({"style": Part(function)})(greys(1))
    assert str(found.value) == (
        "no judge answers at http://127.0.0.1:9/v1/chat/completions (ConnectError): start it, or correct the "
        "environment variable JUDGE_URL"
    )


# ---- it lies ---------------------------------------------------------------------------------------------


def test_an_unparsable_answer_does_not_apply_and_is_counted(server: FakeJudge, rubric: str) -> None:
    server.answer = lambda request: "It is lovely." if brightness(request.pictures[0]) == 7 else "Score: 5"
    function = judge(rubric)
    found = function(greys(1, 7, 2))
    assert found.applicable.tolist() == [True, False, True]
    assert found.values.tolist() == [0.5, 0.0, 0.5]
    assert found.parts["unparsable"].values.tolist() == [0, 1, 0]
    assert function.tally.unparsable == 1
    ranked = judge(rubric, mode="rank")(greys(1, 2))
    assert not ranked.applicable.any()


def test_a_judge_who_never_makes_sense_is_stopped(server: FakeJudge, rubric: str) -> None:
    server.answer = lambda request: "As an AI, I cannot."
    with pytest.raises(
        RewardError, match="none of 8 answers of the judge .* can be read, such as 'As an AI, I cannot.'"
    ):
        judge(rubric)(greys(*range(8)))


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ('{"score": 7}', 0.7),
        ('```json\n{"score": 7.5, "why": "x"}\n```', 0.75),
        ("<think>Score: 3? no</think>\nScore: 8", 0.8),
        ("It is fine.\n**Score:** 7/10", 0.7),
        ("score: 10.", 1.0),
        ("", None),
        ("7", None),
        ("Score: seven", None),
        ("Score: 3 ... Score: 9", None),
        ("Score: 7,5", None),
        ("Score: 7/5", None),
        ("Score: 11", None),
        ("Score: -1", None),
        ("Score: 1e3", None),
        ('{"score": "7"}', None),
        ('{"score": true}', None),
        ('{"score": NaN}', None),
        ('{"score": null}', None),
        ('{"score": 1e999}', None),
        ('{"rating": 7}', None),
        ('[{"score": 7}]', None),
        ("[" * 100_000, None),
    ],
)
def test_scores_are_read_strictly(answer: str, wanted: float | None) -> None:
    assert parse_score(answer, 0.0, 10.0) == (None if wanted is None else pytest.approx(wanted))


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ('{"ranking": [2, 3, 1]}', [1, 2, 0]),
        ("Ranking: 2 > 3 > 1", [1, 2, 0]),
        ("**Ranking:** [2, 3, 1].", [1, 2, 0]),
        ('{"ranking": [1, 2]}', None),
        ('{"ranking": [1, 1, 2]}', None),
        ('{"ranking": [0, 1, 2]}', None),
        ('{"ranking": [1.0, 2, 3]}', None),
        ('{"ranking": "1, 2, 3"}', None),
        ('{"ranking": [true, 2, 3]}', None),
        ("2, 3, 1", None),
        ("Ranking: 1, 2 and 3", None),
    ],
)
def test_rankings_are_read_strictly(answer: str, wanted: list[int] | None) -> None:
    assert parse_ranking(answer, 3) == wanted


# ---- budget, cache, concurrency, repeatability -----------------------------------------------------------


def test_the_budget_is_never_exceeded(server: FakeJudge, rubric: str) -> None:
    function = judge(rubric, budget_calls=5)
    function(greys(1, 2, 3))
    with pytest.raises(RewardError, match="has made 3 calls, needs 3 more, and budget_calls is 5: raise it and resume"):
        function(greys(4, 5, 6))
    assert len(server.asked) == 3
    server.script = [http_500] * 9
    with pytest.raises(RewardError, match="budget_calls is 5"):
        function(greys(7))  # retries count
    assert len(server.asked) == 5


def test_a_cache_hit_makes_no_call(server: FakeJudge, rubric: str, tmp_path: Path) -> None:
    fields = {"cache": str(tmp_path / "cache"), "budget_calls": 4}
    first = judge(rubric, **fields)(greys(10, 20, 30))
    again = judge(rubric, **fields)
    assert again(greys(30, 20, 10)).values.tolist() == first.values.tolist()[::-1]
    assert len(server.asked) == 3
    assert again.tally.calls == 0
    again(Samples([grey(10)], {"prompt": ["another prompt"]}))
    assert len(server.asked) == 4
    files = sorted((tmp_path / "cache").rglob("*.*"))
    assert len(files) == 4
    assert all(json.loads(file.read_text()).keys() == {"answer"} for file in files)


def test_answers_that_came_before_a_stop_are_kept(server: FakeJudge, rubric: str, tmp_path: Path) -> None:
    fields = {"cache": str(tmp_path / "cache"), "retries": 0, "concurrency": 1}
    server.script = [lambda: None, lambda: None, http_500]
    with pytest.raises(RewardError, match="gave no answer"):
        judge(rubric, **fields)(greys(1, 2, 3))
    judge(rubric, **fields)(greys(1, 2, 3))
    assert len(server.asked) == 4


def test_lies_are_not_cached_and_broken_files_are_asked_again(server: FakeJudge, rubric: str, tmp_path: Path) -> None:
    function = judge(rubric, cache=str(tmp_path / "cache"))
    server.answer = lambda request: "lovely"
    function(greys(1))
    server.answer = by_brightness
    assert function(greys(1)).applicable.tolist() == [True]
    (file,) = (tmp_path / "cache").rglob("*.json")
    file.write_text('{"answ')
    assert function(greys(1)).applicable.tolist() == [True]
    assert len(server.asked) == 3
    assert Cache(None).read("a" * 64) is None


def test_no_more_calls_at_once_than_allowed(server: FakeJudge, rubric: str) -> None:
    server.takes_s = 0.03
    judge(rubric, concurrency=3)(greys(*range(24)))
    assert server.most_at_once == 3


def test_repeatability(server: FakeJudge, rubric: str, tmp_path: Path) -> None:
    function = judge(rubric, cache=str(tmp_path / "cache"), concurrency=1)
    function(greys(50, 100))
    assert function.repeatability(greys(50, 100), 3) == 0.0
    assert len(server.asked) == 2 + 6  # the cache is not read
    turn = iter([2, 4, 6, 8])
    server.answer = lambda request: f"Score: {next(turn)}"
    assert function.repeatability(greys(50, 100), 2) == pytest.approx(0.4 / 2**0.5)  # 2 and 6, 4 and 8 of 10
    server.answer = lambda request: "lovely"
    with pytest.raises(RewardError, match="gave no picture two readable answers in 2 rounds"):
        function.repeatability(greys(50), 2)
    with pytest.raises(ValueError, match="2 or more times, not 1"):
        function.repeatability(greys(50), 1)


def test_repeatability_of_a_ranking_shows_a_liking_for_places(server: FakeJudge, rubric: str) -> None:
    assert judge(rubric, mode="rank").repeatability(greys(10, 20, 30), 3) == 0.0
    server.answer = lambda request: '{"ranking": [1, 2, 3]}'
    assert judge(rubric, mode="rank").repeatability(greys(10, 20, 30), 6) > 0.1


# ---- what is refused before anything runs ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"url_env": "NOT_SET"},
            "the environment variable NOT_SET is not set: `export NOT_SET=http://localhost:8000/v1`",
        ),
        ({"url_env": ""}, "Judge.url_env is empty: name the environment variable"),
        ({"url_env": "BAD_URL"}, "the environment variable BAD_URL is 'localhost:8000': give a URL such as"),
        ({"key_env": "NO_KEY"}, "the environment variable NO_KEY is not set"),
        ({"rubric": "no.md"}, "Judge.rubric 'no.md' is not there or empty: give a text file"),
        ({"images": "nowhere"}, "Judge.images 'nowhere' is no folder with .png, .jpg, .jpeg, .webp files"),
        ({"cache": __file__}, "Judge.cache .* is a file: give a folder"),
        ({"mode": "best"}, "Judge.mode is 'best': give absolute or rank"),
        ({"scale": (5.0, 1.0)}, r"Judge.scale is \(5.0, 1.0\): give the lowest and the highest score"),
        ({"timeout_s": 0.0}, "Judge.timeout_s is 0.0: give 0.001 or more"),
        ({"retries": -1}, "Judge.retries is -1: give 0 or more"),
        ({"concurrency": 0}, "Judge.concurrency is 0: give 1 or more"),
        ({"budget_calls": 0}, "Judge.budget_calls is 0: give 1 or more"),
    ],
)
def test_what_cannot_work_is_refused(
    fields: dict[str, Any], message: str, rubric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_URL", "http://localhost:1")
    monkeypatch.setenv("BAD_URL", "localhost:8000")
    with pytest.raises(ValueError, match=message):
        Judge(**{"url_env": "JUDGE_URL", "rubric": rubric, **fields})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
        ("https://host/v1/", "https://host/v1/chat/completions"),
        ("https://host/v1beta/openai", "https://host/v1beta/openai/chat/completions"),
        ("https://host/v1/chat/completions", "https://host/v1/chat/completions"),
    ],
)
def test_chat_url(given: str, wanted: str) -> None:
    assert chat_url("X", given) == wanted


@pytest.mark.parametrize("given", ["", "host", "ftp://host", "http://", "http://host:port", "http://host:99999"])
def test_what_is_no_url(given: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"the environment variable X is {given!r}: give a URL")):
        chat_url("X", given)


def test_secrets_stay_out_of_messages(monkeypatch: pytest.MonkeyPatch, rubric: str) -> None:
    monkeypatch.setenv("JUDGE_URL", "http://user:hidden@127.0.0.1:9")
    monkeypatch.setenv("JUDGE_KEY", "hidden")
    function = judge(rubric, key_env="JUDGE_KEY")
    assert "hidden" not in repr(function)
    assert "hidden" not in function.endpoint().shown
    assert "hidden" not in repr(function.endpoint())


# ---- every call is accounted for -------------------------------------------------------------------------


def test_every_call_ends_in_one_way_and_its_tokens_are_counted(server: FakeJudge, rubric: str) -> None:
    def hang() -> None:
        time.sleep(0.6)

    def cut() -> Reply:
        raise ConnectionResetError

    answer = {"choices": [{"message": {"content": "Score: 5"}}], "usage": {"prompt_tokens": 90, "completion_tokens": 3}}
    server.script = [http_500, hang, cut, lambda: (200, "rubbish"), lambda: (200, json.dumps(answer))]
    function = judge(rubric, retries=8, timeout_s=0.3, price=(2.0, 10.0))
    assert function(greys(1)).values.tolist() == [0.5]
    tally = function.tally
    assert dict(tally.outcomes) == {"status": 1, "timeout": 1, "connection": 1, "garbled": 1, "answered": 1}
    assert tally.calls == sum(tally.outcomes.values()) == len(server.asked) == 5
    assert tally.spent() == {"calls": 5, "prompt_tokens": 90, "completion_tokens": 3}
    assert tally.money(function.price) == pytest.approx((90 * 2 + 3 * 10) / 1e6)
    server.script = [lambda: (401, "no")]
    with pytest.raises(RewardError, match="refuses"):
        function(greys(2))
    assert tally.outcomes["refused"] == 1


def test_a_replay_asks_nobody(server: FakeJudge, rubric: str, tmp_path: Path) -> None:
    fields = {"cache": str(tmp_path / "cache")}
    first = judge(rubric, **fields)(greys(10, 20))
    server.away = True
    replay = judge(rubric, replay=True, **fields)
    assert replay(greys(20, 10)).values.tolist() == first.values.tolist()[::-1]
    with pytest.raises(RewardError, match="1 questions are not in the cache .*: turn replay off to ask them"):
        replay(greys(10, 30))
    assert server.turned_away == 0
    with pytest.raises(ValueError, match="replay reads the cache alone: give cache"):
        judge(rubric, replay=True)


def test_a_judge_in_order_shows_what_it_makes_of_places(server: FakeJudge, rubric: str) -> None:
    from rewards.evaluation import Pair
    from rewards.evaluation.judges import places

    pairs = [Pair(f"p{i}", "a cat", (grey(2 * i), grey(2 * i + 100)), 1) for i in range(20)]
    fair = places(judge(rubric, mode="rank"), pairs)
    assert (fair["judge/first"].value, fair["judge/accuracy_both"].value, fair["judge/repeats"].value) == (
        0.5,
        1.0,
        1.0,
    )
    server.answer = lambda request: '{"ranking": [1, 2]}'
    by_place = places(judge(rubric, mode="rank"), pairs)
    assert (by_place["judge/first"].value, by_place["judge/consistent"].value) == (1.0, 0.0)
    assert by_place["judge/accuracy_both"].value == 0.0


def test_a_judge_beside_an_anchor_is_asked_in_both_orders_and_remembers(
    server: FakeJudge, rubric: str, tmp_path: Path
) -> None:
    from rewards.pairwise import AgainstAnchor

    reward = AgainstAnchor(judge(rubric, mode="rank", cache=str(tmp_path / "cache")))
    samples = Samples([grey(200), grey(5), grey(100)], {"prompt": ["a cat"] * 3, "anchor": [grey(100)] * 3})
    assert reward(samples).values.tolist() == [1.0, 0.0, 0.5]
    asked = len(server.asked)
    assert asked == 5  # two orders of two pairs; a picture and itself are one question
    assert reward(samples).values.tolist() == [1.0, 0.0, 0.5]
    assert len(server.asked) == asked
