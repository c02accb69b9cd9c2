"""The report of a run folder: what it says, the unwelcome too, and that no text of a model runs in it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mmrl.findings import findings
from mmrl.metrics import wilson
from mmrl.report import print_table, samples, write_report
from mmrl.run_files import read_run
from vision.remarks import remarks

STEPS = 60
ATTACK = "<script>alert('x')</script><img src=x onerror=alert(1)>"


def estimate(share: float) -> dict[str, float]:
    found = wilson(share * 400, 400)
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def control(share: float) -> dict[str, object]:
    tried = [{"lr": 3e-4, "dev_accuracy": share - 0.03}, {"lr": 1e-3, "dev_accuracy": share + 0.01}]
    return {"lr": 1e-3, "steps": 410, "cpu_s": 171.2, "eval": {"accuracy": estimate(share)}, "tried": tried}


def a_summary(
    after: float = 0.86, continued: float = 0.74, ceiling: float = 0.93, blind: float = 0.11
) -> dict[str, object]:
    before = {"accuracy": estimate(0.705), "format": estimate(0.9), "accuracy_image_shuffled": estimate(0.12)}
    reached = {"accuracy": estimate(after), "format": estimate(0.99), "accuracy_image_shuffled": estimate(blind)}
    found = {
        "recipe": "cls_rl", "domain": "vision", "seed": 0, "steps": STEPS, "wall_s": 182.0, "cpu_s": 171.3,
        "eval_before": before, "eval_after": reached, "primary_metric": "accuracy",
        "parity": {"logprob_diff_max": 1.9e-6, "first_pass_ratio_max": 1.0000019},
        "throughput": {"decisions_per_s": 2458.8, "samples_per_s": 187.7}, "peak_rss_mb": 980.3, "eval_cpu_s": 31.0,
        "controls_cpu_s": 690.1, "algorithm": {"aggregate": "TokenMean"}, "base_policy": "assets/vision/digits",
        "controls": {"sft_continued": control(continued), "sft_all_labels": control(ceiling)},
    }  # fmt: skip
    return {**found, "remarks": remarks(found)}


def evaluation(step: int, share: float) -> dict[str, float]:
    found = estimate(share)
    ends = {f"eval/accuracy/{end}": found[end] for end in ("low", "high")}
    return {"step": step, "eval/accuracy": found["value"], **ends}


def metrics(step: int) -> dict[str, float]:
    return {
        "step": step, "rollout/reward_mean": 1.2 + 0.5 * step / STEPS + 0.1 * (-1) ** step,
        "rollout/entropy": 0.5 - 0.005 * step,
        "rollout/zero_spread_groups": 0.4, "rollout/length_mean": 11.5, "update/grad_norm": 2.0 + step % 5,
        "update/approx_kl": 1e-3, "update/clip_frac_low": 0.01, "update/clip_frac_high": 0.02,
        "parity/logprob_diff_max": 0.0 if step % 7 == 0 else 1.9e-6,
    }  # fmt: skip


def write_samples(folder: Path, right: list[bool]) -> None:
    folder.mkdir(parents=True)
    rows = []
    for number, verdict in enumerate(right):
        Image.new("L", (32, 32), 40 * number).save(folder / f"{number:03d}_0.png")
        output = "<answer>three</answer>" if number else f"{ATTACK} \ud800"
        rows.append({
            "id": f"digits-{number}", "images": [f"{number:03d}_0.png", "../../../secret.png"],
            "prompt": "Which digit?", "expected": "three", "output": output, "sampled": "two", "right": verdict,
        })  # fmt: skip
    (folder / "samples.json").write_text(json.dumps(rows))


def a_run(path: Path, finished: bool = True, **changes: object) -> Path:
    """A run folder as `mmrl train` leaves it."""
    path.mkdir(parents=True)
    (path.parent / "secret.png").write_bytes(b"not to be shown")
    (path / "config.yaml").write_text("experiment: vision\nrecipe: cls_rl\nseed: 0\n# <b>kept</b>\n")
    facts = {"command": ["mmrl", "train"], "commit": "c0ffee", "python": "3.12", "versions": {"torch": "2.11"}}
    (path / "provenance.json").write_text(json.dumps(facts))
    lines = [evaluation(0, 0.705), *map(metrics, range(1, 41)), evaluation(40, 0.8)]
    if finished:
        lines += [*map(metrics, range(41, STEPS + 1)), evaluation(STEPS, 0.86)]
        (path / "summary.json").write_text(json.dumps({**a_summary(), **changes}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_samples(path / "samples" / "step_000000", [False, False, True, True])
    write_samples(path / "samples" / "step_000040", [True, False, False, True])
    return path


class Page(HTMLParser):
    """What matters of a page: its text, its tags, and every address that it names."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")
        ]
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_of_one_run(tmp_path: Path) -> None:
    target = write_report([a_run(tmp_path / "runs" / "one")])
    page = Page(target)
    assert target == tmp_path / "runs" / "one" / "report.html"
    text = " ".join(page.text.split())
    assert (
        text.index("Before and after")
        < text.index("what the same CPU buys")
        < text.index("Curves")
        < text.index("Samples")
    )
    for expected in (
        "0.860 [0.823, 0.891]",
        "0.705 [0.659, 0.748]",
        "171.2",
        "c0ffee",
        "Parity of sampling",
        "✗ wrong",
        "✓ right",
    ):
        assert expected in text, expected
    assert page.tags.count("figure") == 10  # every chart but the KL to a reference, which was not logged
    assert page.source.count("currentColor") > 50
    assert re.search(r"<text[^>]*>1e-05</text>", page.source)  # the parity limit is inside its chart
    assert not re.search(r"#0[123]0\w{3}\b", page.source)  # no stand-in colour is left
    assert len(page.ids) == len(set(page.ids))


def test_what_is_zero_throughout_is_said_and_not_drawn(tmp_path: Path) -> None:
    path = a_run(tmp_path / "runs" / "one")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    zero = [{**line, "update/clip_frac_low": 0.0, "update/approx_kl": 1e-13} for line in lines]
    (path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in zero))
    page = Page(write_report([path]))
    assert page.tags.count("figure") == 8
    assert "0 at every step: distance to the acting policy, ratio clipped from below." in " ".join(page.text.split())


def test_page_is_self_contained(tmp_path: Path) -> None:
    page = Page(write_report([a_run(tmp_path / "runs" / "one")]))
    assert page.addresses
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"@import|url\((?!#)", page.source)


def test_models_text_is_shown_and_not_run(tmp_path: Path) -> None:
    page = Page(write_report([a_run(tmp_path / "runs" / "one")]))
    assert ATTACK in page.text
    assert "&lt;script&gt;" in page.source
    assert "onerror" not in " ".join(re.findall(r"<img[^>]*>", page.source))


def test_pictures_stay_inside_the_samples_folder(tmp_path: Path) -> None:
    run = read_run(a_run(tmp_path / "runs" / "one"))
    assert all(len(pair["now"]["pictures"]) == 1 for pair in samples(run))


def test_what_a_tool_showed_after_each_turn_is_shown(tmp_path: Path) -> None:
    path = a_run(tmp_path / "runs" / "one")
    file = sorted(path.glob("samples/step_*/samples.json"))[-1]
    rows = json.loads(file.read_text())
    outside = tmp_path / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    Image.new("RGB", (8, 8), "red").save(file.parent / "turn.png")
    rows[0]["turns"] = [
        {"text": "<b>first</b>", "reply": "bar 2 too low.", "images": ["turn.png"]},
        {"text": "second", "reply": "same.", "images": [f"../../../../{outside.name}"]},
    ]
    file.write_text(json.dumps(rows))
    page = Page(write_report([path]))
    assert "bar 2 too low." in page.text
    assert "&lt;b&gt;first&lt;/b&gt;" in page.source
    assert page.source.count("what turn") == 1  # the picture from elsewhere is not shown


def test_samples_are_paired_by_id(tmp_path: Path) -> None:
    path = a_run(tmp_path / "runs" / "one")
    pairs = samples(read_run(path))
    assert [(pair["start"]["right"], pair["now"]["right"]) for pair in pairs] == [
        (False, True), (False, False), (True, False), (True, True),
    ]  # fmt: skip
    text = Page(write_report([path])).text
    for heading in ("Wrong at first, right now", "Right at first, wrong now", "Wrong both times", "Right both times"):
        assert heading in text


def test_unfinished_run_says_so(tmp_path: Path) -> None:
    path = a_run(tmp_path / "runs" / "one", finished=False)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 41, "rollout/rew')  # cut by a kill
    text = " ".join(Page(write_report([path])).text.split())
    assert "has not finished" in text
    assert "stopped after step 40" in text
    assert "at step 40" in text
    assert "accuracy rose from 0.705 to 0.800; the 95 % intervals do not overlap" in text
    assert "No supervised control" not in text


@pytest.mark.parametrize("lines", ["", json.dumps(evaluation(0, 0.7)) + "\n", json.dumps(metrics(1)) + "\n"])
def test_run_that_has_just_begun(tmp_path: Path, lines: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert "has not finished" in Page(write_report([tmp_path])).text


def test_several_runs_are_compared(tmp_path: Path) -> None:
    paths = [a_run(tmp_path / "runs" / f"seed{seed}", seed=seed) for seed in range(3)]
    page = Page(
        write_report([*paths, a_run(tmp_path / "runs" / "late", finished=False)], tmp_path / "new" / "all.html")
    )
    assert "4 runs compared" in page.text
    assert "cls_rl, seed 2" in page.text
    assert "not finished" in page.text
    assert "var(--run3)" in page.source
    assert page.tags.count("figure") == 10


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="folder of a run"):
        write_report([tmp_path])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "RL (0.860) is below sft_all_labels (0.930), which is a ceiling"),
        ({"ceiling": 0.8}, "RL (0.860) reaches sft_all_labels (0.800)"),
        (
            {},
            "RL (0.860) is above sft_continued (0.740), more supervised training at the same CPU: the",
        ),
        (
            {"continued": 0.87},
            "not above sft_continued (0.870), more supervised training at the same CPU: that buys as much",
        ),
        ({"continued": 0.86}, "RL (0.860) is not above sft_continued (0.860)"),
        ({}, "the answers depend on the picture"),
        ({"blind": 0.8}, "the policy hardly looks at the picture"),
        ({"after": 0.72}, "on 400 held-out cases; the 95 % intervals overlap, so this may be chance"),
        ({"after": 0.6}, "accuracy fell from 0.705 to 0.600"),
    ],
)
def test_findings_say_it_plainly(changes: dict[str, float], said: str) -> None:
    assert said in " ".join(findings(a_summary(**changes)))


def test_findings_name_what_is_missing_or_broken() -> None:
    broken = {**a_summary(), "controls": {}, "parity": {"logprob_diff_max": 3e-4}}
    text = " ".join(findings({**broken, "remarks": remarks(broken)}))
    assert "No supervised control was run" in text
    assert "Parity is 3.0e-04, above the float32 limit 1e-05" in text
    assert "no evaluation after training" in findings({**a_summary(), "eval_after": {}})[0]


def test_terminal_table_has_controls_and_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    summary = a_summary()
    print_table(summary)
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "0.860 [0.823, 0.891]",
        "what the same CPU buys",
        "sft_continued │ 171",
        "parity 1.9e-06",
        "171.3 / 31.0 / 690.1",
    ):
        assert expected in text, expected
    assert all(sentence in text for sentence in findings(summary))
    print_table({**summary, "controls": {}})
    assert "the same CPU buys" not in capsys.readouterr().out  # nothing is said twice
