"""Reason, render, compare: what is taken out of a turn, what the tool shows, what the reward pays for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmrl.types import Samples
from rewards.render import (
    Alike,
    AllElements,
    Baseline,
    Charts,
    Drawn,
    ElementAccuracy,
    Failure,
    Format,
    Rendered,
    Renderer,
    Tools,
    ValueAccuracy,
    Vision,
    Within,
)
from rewards.render.elements import chart_of
from rewards.render.judged import GAP, JudgedVision, side_by_side
from rewards.render.programs import program_of
from rewards.render.teacher import Teacher
from tests.fake_judge import FakeJudge, brightness, serving
from tests.rendering import need_bubblewrap
from vision.data.base import Example
from vision.data.charts import drawn
from vision.rrvf import RenderAndCompare

pytest.importorskip("vega_datasets")
pytestmark = pytest.mark.timeout(180)

BEFORE = (
    "import matplotlib.pyplot as plt; plt.figure(figsize=(0.32, 0.32), dpi=100); "
    "plt.axes((0, 0, 1, 1)); plt.axis('off'); plt.ylim(0, 8.5)\n"
)
BAR = 'plt.bar([0,1,2],[3,7,2],color="red")'
OTHER = 'plt.bar([0,1,2],[3,6,2],color="red")'
FAR = 'plt.plot([1,8,1],color="blue")'


def pixels(program: str) -> np.ndarray:
    chart = chart_of(program)
    assert chart is not None
    return np.asarray(drawn([chart], 32)[0])


class Table(Renderer):
    """Draws what it has a picture of, and counts."""

    def __init__(self, pictures: dict[str, np.ndarray]) -> None:
        self.pictures, self.asked, self.closed = pictures, [], False

    def render(self, programs: Sequence[str]) -> list[Rendered]:
        self.asked += programs
        missing = Rendered(failure=Failure.SYNTAX_ERROR, message="line 3: " + "x" * 500)
        return [Rendered(picture=self.pictures[p]) if p in self.pictures else missing for p in programs]

    def close(self) -> None:
        self.closed = True


TABLE = {program: pixels(program) for program in (BAR, OTHER, FAR)}
SOURCE = Example("a", (Image.fromarray(TABLE[BAR]),), "Draw this chart.", "never read")


# ---- the program in a turn --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "program"),
    [
        ("a(1)", "a(1)"),
        ("<answer> a(1) </answer>", "a(1)"),
        ("<think>b(2)</think><answer>a(1)</answer>", "a(1)"),
        ("<think>not <answer>b</answer></think><answer>a(1)</answer> done", "a(1)"),
        ("<think>so it is</think> a(1)", "a(1)"),
        ("Here:\n```python\na(1)\nb\n```\nand more", "a(1)\nb"),
        ("<answer>```\na(1)\n```</answer>", "a(1)"),
        ("```a(1)```", "a(1)"),
        ("<answer>a(1)", "a(1)"),
        ("```html\n<p>", "<p>"),
        ("", ""),
        ("<think>on and on", "<think>on and on"),
    ],
)
def test_the_program_of_a_turn(said: str, program: str) -> None:
    assert program_of(said) == program


def test_a_program_within_a_text_and_its_own_lines() -> None:
    inside = Table({f"one\n{BAR}!": TABLE[BAR]})
    within = Within(inside, "one\n", "!")
    right, wrong = within.render([BAR, "x"])
    assert right.picture is TABLE[BAR]
    assert wrong.message.startswith("line 2: ")
    within.close()
    assert inside.closed


# ---- the tool ---------------------------------------------------------------------------------------------


def test_the_tool_shows_the_rendering_and_what_differs_and_ends_when_alike() -> None:
    tool = RenderAndCompare(Table(TABLE))
    turns = [[f"<think>x</think><answer>{p}</answer>"] for p in (BAR, OTHER, FAR, "nonsense")]
    same, near, far, broken = tool.replies(turns, [SOURCE] * 4)
    assert same.over and same.text == "same."
    assert (near.over, near.text) == (False, "bar 2 too low.")
    assert near.pictures[0].tobytes() == TABLE[OTHER].tobytes()
    assert far.text == "should be bars. color should be red."
    assert not broken.over and broken.pictures == ()
    assert broken.text.startswith("syntax error: line 3: x") and len(broken.text) < 150
    assert isinstance(broken.record, Rendered) and broken.record.failure is Failure.SYNTAX_ERROR


def test_the_tool_reads_the_last_turn_and_stops_where_it_is_told() -> None:
    table = Table(TABLE)
    tool = RenderAndCompare(table, stop_at=0.5)
    (reply,) = tool.replies([[FAR, OTHER]], [SOURCE])
    assert reply.over and table.asked == [OTHER]
    assert not RenderAndCompare(table, stop_at=1.1).replies([[BAR]], [SOURCE])[0].over
    tool.close()
    assert table.closed
    with pytest.raises(ValueError, match="stop_at is 0"):
        RenderAndCompare(table, stop_at=0)


@pytest.fixture(scope="module")
def charts() -> Iterator[Within]:
    need_bubblewrap()
    with Within(Charts(workers=1), BEFORE) as renderer:
        yield renderer


def test_the_sandbox_draws_what_the_turn_says(charts: Within) -> None:
    hostile = "import os; os.system('id'); open('/etc/passwd')"
    replies = RenderAndCompare(charts).replies([[BAR], [OTHER], ["plt.bar("], [hostile], [""]], [SOURCE] * 5)
    assert replies[0].over and np.asarray(replies[0].pictures[0]).tobytes() == TABLE[BAR].tobytes()
    assert replies[1].text == "bar 2 too low."
    assert replies[2].text.startswith("syntax error: line 1: ")
    failures = [reply.record.failure for reply in replies[3:]]  # type: ignore[attr-defined]
    assert None not in failures


# ---- the reward -------------------------------------------------------------------------------------------


def conversations(*programs: Sequence[str | None], said: Sequence[Sequence[str]] = (), source: str = BAR) -> Samples:
    """One conversation each; None is a turn whose program draws nothing."""
    records = [
        [Rendered(failure=Failure.ERROR) if p is None else Rendered(picture=TABLE[p]) for p in r] for r in programs
    ]
    turns = said or [[f"<answer>{p}</answer>" for p in row] for row in programs]
    pictures = [[Image.fromarray(TABLE[source])] for _ in programs]
    columns = {"records": records, "turns": turns, "pictures": pictures}
    return Samples([row[-1] for row in turns], columns)


def test_vision_is_of_the_last_rendering_and_failing_code_gets_none() -> None:
    values = Vision()(conversations([BAR], [FAR, OTHER], [OTHER, FAR], [BAR, None])).values.tolist()
    assert values[0] == pytest.approx(1.0)
    assert 0.6 < values[1] < 1 and values[2] < 0.2 and values[3] == 0.0
    with pytest.raises(ValueError, match="Vision reads the column 'records'"):
        Vision()(Samples(["a"]))


def test_format_punishes_failing_code_and_other_tags() -> None:
    said = [["<think>x</think><answer>y</answer>"], ["<answer>y</answer>"], ["y"], ["y", "<answer>y</answer>"], ["y"]]
    samples = conversations([BAR], [BAR], [BAR], [None, BAR], [None], said=said)
    assert Format()(samples).values.tolist() == [0.0, 0.0, -0.5, -0.5, -1.0]
    assert Format(optional=())(samples).values.tolist() == [0.0, -0.5, -0.5, -0.5, -1.0]
    with pytest.raises(ValueError, match="penalty"):
        Format(failing=0.1)


def test_tools_grow_to_a_cap_and_a_good_first_try_is_not_punished() -> None:
    samples = conversations([FAR], [FAR, OTHER], [OTHER, OTHER, FAR], [None, None], [BAR], [FAR, None])
    assert Tools()(samples).values.tolist() == [0.5, 1.0, 1.0, 0.0, 1.0, 0.5]
    assert Tools(cap=4)(samples).values.tolist() == [0.25, 0.5, 0.75, 0.0, 1.0, 0.25]
    with pytest.raises(ValueError, match="cap"):
        Tools(cap=0)
    assert Drawn()(samples).values.tolist() == [1.0, 1.0, 1.0, 0.0, 1.0, 0.0]


def test_a_blank_or_a_mean_picture_scores_no_better_than_random_pairs() -> None:
    from vision.data import TableCharts

    pictures = [np.asarray(example.images[0]) for example in TableCharts(count=120).examples()]
    vision = Vision(Alike(Baseline.of(pictures, seed=0, pairs=256)))

    def mean_score(answers: Sequence[np.ndarray], sources: Sequence[np.ndarray]) -> float:
        columns = {
            "records": [[Rendered(picture=answer)] for answer in answers],
            "pictures": [[Image.fromarray(source)] for source in sources],
        }
        return float(vision(Samples([""] * len(answers), columns)).values.mean())

    asked = pictures[60:90]
    answers = [mean_score([one] * len(asked), asked) for one in pictures[:30]]
    random = float(np.mean(answers))
    white, mean = np.full_like(pictures[0], 255), np.mean(pictures, axis=0).astype(np.uint8)
    for constant in (white, white // 2, mean, np.median(pictures, axis=0).astype(np.uint8)):
        assert mean_score([constant] * len(asked), asked) <= random
    assert random < 0.1
    # one chart as the only answer is a random pair on average; the best of them is what a blind policy can reach
    assert max(answers) < 0.25
    assert mean_score(asked, asked) == pytest.approx(1.0)


def test_a_judge_sees_source_and_rendering_side_by_side_and_is_not_asked_of_blank_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rewards.pictures.judge import Judge

    (tmp_path / "rubric.md").write_text("Score how alike the left and the right picture are.")
    with serving(FakeJudge()) as server:
        monkeypatch.setenv("JUDGE_URL", server.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        judge = Judge("JUDGE_URL", str(tmp_path / "rubric.md"), model="m", pause_s=0.01)
        samples = conversations([BAR], [None], [OTHER, FAR])
        blank = Rendered(picture=np.full((32, 32, 3), 255, np.uint8))
        columns = {name: [*column, column[0]] for name, column in samples.columns.items()}
        columns["records"] = [*samples.columns["records"], [blank]]
        found = JudgedVision(judge)(Samples([*samples.outputs, ""], columns))
        assert found.values.tolist() == pytest.approx([1.0, 0.0, 1.0, 0.0])  # it likes the white corner of the source
        assert found.applicable.all() and len(server.asked) == 2
        assert "On the left is the source" in server.asked[0].said
        with pytest.raises(ValueError, match="absolute"):
            JudgedVision(Judge("JUDGE_URL", str(tmp_path / "rubric.md"), mode="rank"))


def test_two_pictures_side_by_side() -> None:
    both = np.asarray(side_by_side(TABLE[BAR], np.zeros((64, 32, 3), np.uint8)))
    assert both.shape == (32, 32 + GAP + 16, 3)
    assert np.array_equal(both[:, :32], TABLE[BAR])
    assert not both[:, 32 + GAP :].any()


# ---- elements, for evaluation -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "kind", "values", "colours"),
    [
        (BAR, "bar", (3, 7, 2), ("red",)),
        ('import matplotlib.pyplot as plt\nplt.plot([0, 1], [4, 5.5], "--", c="k")', "plot", (4, 5.5), ("k",)),
        ("ax.bar(x=[0, 1], height=(2, 3))", "bar", (2, 3), ()),
        ('plt.pie(x=[5, 5], colors=["red", "blue"])', "pie", (0.5, 0.5), ("red", "blue")),
        ("plt.bar([1], [2])\nplt.plot([3])", "plot", (3,), ()),
        ("plt.pie([0, 0])", "pie", (0, 0), ()),
        ("plt.bar(range(3), range(3))", "bar", (), ()),
    ],
)
def test_a_chart_is_read_from_its_program(program: str, kind: str, values: tuple, colours: tuple) -> None:
    chart = chart_of(program)
    assert chart is not None
    assert (chart.kind, chart.values, chart.colours) == (kind, values, colours)


@pytest.mark.parametrize("program", ["", "plt.bar(", "1 + 1", "(" * 3000, "plt.bar\0", "9" * 5000, "-" * 3999 + "1"])
def test_what_is_no_chart(program: str) -> None:
    assert chart_of(program) is None


def test_elements_are_counted_and_nothing_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "ran"
    said = [
        f"<answer>{BAR}</answer>", OTHER, FAR, f'open("{trap}", "w"); {BAR}', "nonsense", BAR.replace(",2]", "]"),
        BAR.replace(",2]", ",2,5]"),
    ]  # fmt: skip
    samples = Samples(said, {"answer": [BAR] * len(said)})
    right = [1.0, 4 / 5, 0.0, 1.0, 0.0, 4 / 5, 5 / 6]
    assert ElementAccuracy()(samples).values.tolist() == pytest.approx(right)
    assert AllElements()(samples).values.tolist() == [1, 0, 0, 1, 0, 0, 0]
    assert ValueAccuracy()(samples).values.tolist() == pytest.approx([1, 2 / 3, 0, 1, 0, 2 / 3, 3 / 4])
    assert not trap.exists()
    pies = Samples(["plt.pie([10,6,4])"], {"answer": ["plt.pie([5,3,2])"]})
    assert AllElements()(pies).values.tolist() == [1.0]  # the same picture
    with pytest.raises(ValueError, match="no chart"):
        ElementAccuracy()(Samples(["x"], {"answer": ["three"]}))


def test_a_teacher_is_shown_both_pictures_and_its_words_reach_the_policy(monkeypatch, tmp_path) -> None:
    black, white = (np.full((8, 8, 3), shade, np.uint8) for shade in (0, 255))

    def says(request) -> str:
        return f"from {brightness(request.pictures[1])}\nto {brightness(request.pictures[0])}. " + "x" * 500

    with serving(FakeJudge(answer=says, script=[lambda: (503, "busy")])) as fake:
        monkeypatch.setenv("TEACHER_URL", fake.url)
        teacher = Teacher("TEACHER_URL", "tiny-vlm", most_letters=60, pause_s=0.01, cache=str(tmp_path))
        told = teacher.of_all([black, white, black], [white, black, white])
        assert [one[:13] for one in told] == ["from 0 to 255", "from 255 to 0", "from 0 to 255"]
        assert {len(one) for one in told} == {60}
        assert teacher(black, white) == told[0]
        assert len(fake.asked) == 3  # two pairs, one of them twice: the first call failed
    monkeypatch.delenv("TEACHER_URL")
    with pytest.raises(ValueError, match="TEACHER_URL is not set"):
        Teacher("TEACHER_URL", "tiny-vlm")
