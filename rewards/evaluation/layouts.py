"""The rows of public preference benchmarks, under the names that their own files have. Nothing is downloaded: give a
file, or a set that `datasets` can load.

| layout | set | read |
|---|---|---|
| RewardBench | allenai/reward-bench, 2403.13787 | prompt, chosen, rejected, subset |
| RMBench | THU-KEG/RM-Bench, 2410.16184 | prompt, chosen and rejected (3 each, ever more styled), domain |
| JudgeBench | ScalerLab/JudgeBench, 2410.12784 | question, response_A, response_B, label "A>B", source |
| VLRewardBench | MMInstruction/VL-RewardBench, 2411.17451 | query, response, image, human_ranking, query_source |
| MultimodalRewardBench | facebookresearch/multimodal_rewardbench, 2502.14191 | Text, Image, Output1, Output2, Better |
| GenAIBench | TIGER-Lab/GenAI-Bench, 2406.04485 | prompt, left_image, right_image, vote_type |
| PickAPic | yuvalkirstain/pickapic_v1, 2305.01569 | caption, jpg_0, jpg_1, label_0, has_label |
| HPDv2 | ymhao/HPDv2, 2306.09341 | prompt, image_path and rank; or file_path and human_preference |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rewards.evaluation.pairs import Layout, Pair, Row, need, picture, ranked

VOTES = {"leftvote": (1, 2), "rightvote": (2, 1), "tievote": (1, 1), "bothbad_vote": (1, 1)}


@dataclass(frozen=True)
class RewardBench(Layout):
    """Texts; a category a subset."""

    def pairs(self, row: Row, name: str, folder: Path) -> list[Pair]:
        texts = [str(need(row, "chosen")), str(need(row, "rejected"))]
        return ranked(
            str(row.get("id", name)), str(need(row, "prompt")), texts, (1, 2), (str(row.get("subset", "all")),)
        )


@dataclass(frozen=True)
class RMBench(Layout):
    """Texts in 3 styles: concise, detailed, detailed with markdown. Each chosen text beside each rejected one: `hard`
    where the rejected one has more style, `easy` where the chosen one has."""

    def pairs(self, row: Row, name: str, folder: Path) -> list[Pair]:
        chosen, rejected, found = need(row, "chosen"), need(row, "rejected"), []
        if len(chosen) != 3 or len(rejected) != 3:
            raise ValueError(f"{len(chosen)} chosen and {len(rejected)} rejected texts: there are 3 of each")
        name = str(row.get("id", name))
        for i, good in enumerate(chosen):
            for j, bad in enumerate(rejected):
                difficulty = "normal" if i == j else "hard" if i < j else "easy"
                categories = (str(row.get("domain", "all")), difficulty)
                pair = Pair(f"{name}-{i}-{j}", str(need(row, "prompt")), (good, bad), 0, categories, name)
                found.append(pair)
        return found


@dataclass(frozen=True)
class JudgeBench(Layout):
    """Texts; a category a source."""

    def pairs(self, row: Row, name: str, folder: Path) -> list[Pair]:
        label = str(need(row, "label"))
        if label not in ("A>B", "B>A", "A=B"):
            raise ValueError(f"label is {label!r}: JudgeBench has A>B and B>A")
        texts = [str(need(row, "response_A")), str(need(row, "response_B"))]
        ranks = {"A>B": (1, 2), "B>A": (2, 1), "A=B": (1, 1)}[label]
        source = str(row.get("source", "all"))
        return ranked(str(row.get("pair_id", name)), str(need(row, "question")), texts, ranks, (source,))


@dataclass(frozen=True)
class VLRewardBench(Layout):
    """Texts about a picture, which is the column `image`. In `human_ranking` 0 is the better one."""

    def pairs(self, row: Row, name: str, folder: Path) -> list[Pair]:
        texts, ranks = list(need(row, "response")), list(need(row, "human_ranking"))
        if len(texts) != 2 or sorted(ranks) != [0, 1]:
            raise ValueError(f"{len(texts)} texts with human_ranking {ranks!r}: there are two, ranked 0 and 1")
        columns = {"image": picture(need(row, "image"), folder)}
        categories = (str(row.get("query_source") or "all"),)
        return ranked(str(row.get("id", name)), str(need(row, "query")), texts, ranks, categories, columns)


@dataclass(frozen=True)
class MultimodalRewardBench(Layout):
    """Texts about a picture, which is the column `image`; safety and reasoning are parted as its authors part them."""

    def pairs(self, row: Row, name: str, folder: Path) -> list[Pair]:
        better = str(need(row, "Better")).replace(" ", "").lower()
        if better not in ("output1", "output2"):
            raise ValueError(f"Better is {row['Better']!r}: there are Output1 and Output2")
        name, category = str(row.get("ID", name)), str(row.get("Category", "all"))
        if category == "safety":
            category = "safety/bias" if name.lower().startswith("pairs") else "safety/toxicity"
        elif category == "reasoning":
            category = "reasoning/math" if name.lower().startswith("math") else "reasoning/coding"
        texts = [str(need(row, "Output1")), str(need(row, "Output2"))]
        ranks = (1, 2) if better == "output1" else (2, 1)
        columns = {"image": picture(row["Image"], folder)} if row.get("Image") else {}
        return ranked(name, str(need(row, "Text")), texts, ranks, (category,), columns)


@dataclass(frozen=True)
class GenAIBench(Layout):
    """Pictures of a prompt; or edits of a picture, which is the column `source_image`. Votes of "both bad" are ties."""

    def pairs(self, row: Row, name: str, folder: Path) -> list[Pair]:
        vote = str(need(row, "vote_type"))
        if vote not in VOTES:
            raise ValueError(f"vote_type is {vote!r}: there are {', '.join(VOTES)}")
        edits = "left_output_image" in row
        keys = ("left_output_image", "right_output_image") if edits else ("left_image", "right_image")
        pictures = [picture(need(row, key), folder) for key in keys]
        prompt = str(need(row, "instruct_prompt" if edits else "prompt"))
        columns = {"source_image": picture(row["source_image"], folder)} if row.get("source_image") else {}
        return ranked(name, prompt, pictures, VOTES[vote], ("edits" if edits else "generation",), columns)


@dataclass(frozen=True)
class PickAPic(Layout):
    """Pictures of a caption; label_0 is 1, 0, or 0.5 for a tie. Rows without a label say nothing."""

    def pairs(self, row: Row, name: str, folder: Path) -> list[Pair]:
        if row.get("has_label", True) is False:
            return []
        label = float(need(row, "label_0"))
        if label not in (0.0, 0.5, 1.0):
            raise ValueError(f"label_0 is {label:g}: there are 0, 0.5 and 1")
        pictures = [picture(need(row, key), folder) for key in ("jpg_0", "jpg_1")]
        return ranked(name, str(need(row, "caption")), pictures, (1 - label, label))


@dataclass(frozen=True)
class HPDv2(Layout):
    """Pictures of a prompt: test.json has a `rank` a picture, train.json 1 for the preferred one."""

    def pairs(self, row: Row, name: str, folder: Path) -> list[Pair]:
        paths = need(row, "image_path" if "image_path" in row else "file_path")
        ranks = row["rank"] if "rank" in row else [-wanted for wanted in need(row, "human_preference")]
        if len(ranks) != len(paths):
            raise ValueError(f"{len(ranks)} ranks for {len(paths)} pictures: there is one each")
        return ranked(name, str(need(row, "prompt")), [picture(path, folder) for path in paths], ranks)
