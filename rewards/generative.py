"""Whether a principle holds, asked of a language model that was not trained for it: the same r = logit(Yes) -
logit(No), read off its next token in one forward pass. It does not think first, as the generative form of RLBFF (arXiv
2509.21319) does."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from mmrl.types import Samples, Scores
from rewards.compose import RewardError
from rewards.pictures.base import check_device, find_path, need_package, picture_of, said, scores_of
from rewards.principles import FIELD, YesNo, fill

QUESTION = (
    "Prompt: {prompt}\n\nResponse: {output}\n\nDoes the response satisfy this principle: {principle}? Answer Yes or No."
)


@dataclass(frozen=True, kw_only=True)
class GenerativeYesNo(YesNo):
    """Any causal model of transformers by its folder or name, and with `pictures` any image-text model, which sees the
    output before the question. `yes` and `no` have to be one token each; a model without a chat template may want them
    with a space before them."""

    model: str
    pictures: bool = False
    question: str = QUESTION
    yes: str = "Yes"
    no: str = "No"
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_device("GenerativeYesNo", self.device, 1)
        need_package("GenerativeYesNo", "transformers", "transformers")
        named = set(FIELD.findall(self.question))
        needed = {"principle"} if self.pictures else {"principle", "output"}
        if missing := sorted(needed - named):
            raise ValueError(f"GenerativeYesNo.question does not name {missing}: write {{{missing[0]}}} where it goes")
        if self.yes == self.no:
            raise ValueError(f"GenerativeYesNo.yes and no are both {self.yes!r}: give two answers")

    def margins(self, samples: Samples, principles: Sequence[str]) -> Scores:
        model, processor = load_generative(self.model, self.pictures, self.device)
        yes, no = (self._token(processor, answer) for answer in (self.yes, self.no))
        prompts = samples.columns.get("prompt", [""] * len(samples))
        found: list[float | None] = []
        for output, prompt, principle in zip(samples.outputs, prompts, principles, strict=True):
            picture = picture_of(output) if self.pictures else None
            if picture is None and (self.pictures or not isinstance(output, str)):
                found.append(None)
                continue
            said_of = "the picture" if self.pictures else output
            asked = fill(self.question, {"prompt": prompt, "output": said_of, "principle": principle})
            with torch.no_grad():
                logits = model(**self._inputs(processor, asked, picture)).logits[0, -1]
            found.append(float(logits[yes] - logits[no]))
        return scores_of(found)

    def _inputs(self, processor: Any, asked: str, picture: Image.Image | None) -> dict[str, Any]:
        if picture is None and processor.chat_template is None:
            return dict(processor(asked, return_tensors="pt").to(self.device))
        content: Any = [{"type": "image", "image": picture}, {"type": "text", "text": asked}] if picture else asked
        found = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        return dict(found.to(self.device))

    def _token(self, processor: Any, answer: str) -> int:
        tokenizer = processor.tokenizer if self.pictures else processor
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
            raise RewardError(
                f"{answer!r} is not one token of the model {self.model!r}: give GenerativeYesNo.yes and no that are"
            )
        return int(ids[0])


@functools.cache
def load_generative(name: str, pictures: bool, device: str) -> tuple[Any, Any]:
    """The model, and its tokenizer or processor, once per process.

    Raises:
        RewardError: they cannot be had.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

    path = find_path(name)
    source = str(path) if path.is_dir() else name
    kind: Any = AutoModelForImageTextToText if pictures else AutoModelForCausalLM
    reader: Any = AutoProcessor if pictures else AutoTokenizer
    try:
        model = kind.from_pretrained(source, use_safetensors=True).to(device).eval().requires_grad_(False)
        return model, reader.from_pretrained(source)
    except Exception as error:  # of any kind: network, hub, disk, another kind of model
        raise RewardError(
            f"the model {name!r} cannot be loaded ({said(error)}): give a folder of one that answers"
            f"{' about pictures' if pictures else ''}, or download it beforehand"
        ) from error
