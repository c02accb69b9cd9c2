"""What the policy is asked, and what a demonstration of the answer looks like.

The suffixes of THINK and DIRECT are those of CLS-RL (arXiv 2503.16188, as in its repository); the other two
are the paper's Think-After-Answer and Adaptive-Thinking.
"""

from __future__ import annotations

import abc
import random
from dataclasses import dataclass

from vision.data.base import Example, Source


@dataclass(frozen=True)
class Prompt(abc.ABC):
    """Question, an optional closed list of labels, and a suffix that says how to answer. `choices` None
    asks openly; a number puts so many labels, the right one among them, into the question."""

    choices: int | None = None
    template: str = "{question}{choices}{suffix}"
    suffix: str = ""

    def __post_init__(self) -> None:
        if self.choices is not None and self.choices < 2:
            raise ValueError(f"data.prompt.choices is {self.choices}: give 2 or more, or null to ask openly")

    def text(self, example: Example, labels: tuple[str, ...]) -> str:
        """What is asked about the pictures of `example`.

        Raises:
            ValueError: the template asks for a column that the example has not.
        """
        listed = f"\n[{', '.join(self.options(example, labels))}]" if self.choices is not None else ""
        own = {"question": example.question, "choices": listed, "suffix": self.suffix}
        try:
            return self.template.format(**{**example.columns, **own})
        except (KeyError, IndexError) as error:
            known = sorted({*example.columns, *own})
            raise ValueError(f"data.prompt asks for {error}, and {example.id} has {known}") from error
        except ValueError as error:
            raise ValueError(
                f"data.prompt {self.template!r} cannot be filled in ({error}): write braces meant as such twice"
            ) from error

    def options(self, example: Example, labels: tuple[str, ...]) -> list[str]:
        """The closed list of an example: always the same for the same example."""
        others = [label for label in labels if label != example.answer]
        shuffle = random.Random(example.id)
        chosen = shuffle.sample(others, min((self.choices or 1) - 1, len(others)))
        options = [example.answer, *chosen]
        shuffle.shuffle(options)
        return options

    @abc.abstractmethod
    def demonstration(self, answer: str, thought: str) -> str:
        """A completion that answers as the suffix asks."""

    def shown(self, source: Source, example: Example, chance: random.Random) -> str:
        """A right completion for an example, with what the source knows to say of it."""
        return self.demonstration(example.answer, source.thought(example))

    def parse(self, completion: str) -> tuple[str, str]:
        """Thought and answer of a completion, "" where there is none."""
        from rewards.text import tagged

        return tagged(completion, "think"), tagged(completion, "answer")


@dataclass(frozen=True)
class Think(Prompt):
    """CLS-RL: think, then answer."""

    suffix: str = " Please output the thinking process in <think> </think> and final answer in <answer> </answer> tags."

    def demonstration(self, answer: str, thought: str) -> str:
        return f"<think>{thought}</think><answer>{answer}</answer>"


@dataclass(frozen=True)
class Direct(Prompt):
    """No-Thinking-CLS-RL: nothing but the answer."""

    suffix: str = " Please directly output the answer."

    def demonstration(self, answer: str, thought: str) -> str:
        return answer

    def parse(self, completion: str) -> tuple[str, str]:
        return "", completion


@dataclass(frozen=True)
class ThinkAfterAnswer(Prompt):
    """Answer, then say why."""

    suffix: str = " Please output the answer in <answer> </answer> and then the reasons in <think> </think> tags."

    def demonstration(self, answer: str, thought: str) -> str:
        return f"<answer>{answer}</answer><think>{thought}</think>"


@dataclass(frozen=True)
class Adaptive(Prompt):
    """Adaptive-Thinking: the policy chooses whether to think."""

    suffix: str = (
        " Please decide whether thinking is needed: if so, think in <think> </think> first; "
        "give the final answer in <answer> </answer> tags."
    )

    def demonstration(self, answer: str, thought: str) -> str:
        thinking = f"<think>{thought}</think>" if thought else ""
        return f"{thinking}<answer>{answer}</answer>"


@dataclass(frozen=True)
class Template(Prompt):
    """Nothing but the template: the tags it asks for, if any, are those of the answer."""

    def demonstration(self, answer: str, thought: str) -> str:
        thinking = f"<think>{thought}</think>" if "<think>" in self.template else ""
        return f"{thinking}<answer>{answer}</answer>" if "<answer>" in self.template else f"{thinking}{answer}"

    def parse(self, completion: str) -> tuple[str, str]:
        thought, answer = super().parse(completion)
        return thought, answer if "<answer>" in self.template else completion


@dataclass(frozen=True)
class Describe(Prompt):
    """Syn-GRPO: answer, then describe what could be behind the object in the next picture of it."""

    suffix: str = (
        " Please output the answer in <answer> </answer> tags, and in <desc> </desc> tags another background, "
        "without the object."
    )

    def demonstration(self, answer: str, thought: str) -> str:
        return f"<answer>{answer}</answer><desc>{thought}</desc>"

    def shown(self, source: Source, example: Example, chance: random.Random) -> str:
        return self.demonstration(example.answer, source.description(example, chance))
