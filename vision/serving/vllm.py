"""vLLM's OpenAI-compatible server, `vllm serve`, as its documentation and source describe it.

Answers come from /v1/chat/completions with `return_token_ids` (from 0.10.2 on). A LoRA is loaded under a name of its
own by /v1/load_lora_adapter, so that each answer says with which it was drawn. Full weights are read anew from a folder
by the worker's `reload_weights`, through /collective_rpc, and named by /update_weight_version.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from rewards.messages import data_url, picture_part, text_part
from rewards.transport import Attempt, Patience, call, connect, insist, is_url, read, run_all, shown
from vision.policy import VisionPolicy
from vision.serving.base import Answer, Forgotten, Question, Reply, Sampling, Server, ServerError
from vision.serving.weights import forget, hand_over

if TYPE_CHECKING:
    import httpx

LOGGER = logging.getLogger(__name__)
PUSHES = 3
"""Times that a server is told of new weights before its saying that it has others is believed."""
LONGEST_PAUSE_S = 10.0
NEVER = -100.0
"""The least `logit_bias`."""
ADVICE = {
    401: "set rollout.server.key_env",
    "/v1/load_lora_adapter": "start vLLM with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora and a --max-lora-rank "
    "of at least policy.adapter.rank, and rollout.server.folder where it can read it",
    "/collective_rpc": "start vLLM with VLLM_SERVER_DEV_MODE=1, and rollout.server.folder where it can read it",
    "/weight_info": "start a vLLM that has weight versions, with VLLM_SERVER_DEV_MODE=1, or train a LoRA",
}
"""By status or by path: what to do about a refusal."""


@dataclass(frozen=True, kw_only=True)
class VLLM(Server):
    """The server at `url`, which serves policy.model under the name `model` ("": the only one that is no adapter).

    Weights go through `folder`, which the server sees under the same path. `key_env` names the environment variable
    with its key, if it has one. At most `concurrency` questions are asked at a time; each may take `timeout_s`. What
    fails is asked again after growing pauses of `pause_s` and more until `wait_s` after it first failed.
    """

    url: str
    folder: str
    model: str = ""
    key_env: str = ""
    concurrency: int = 32
    timeout_s: float = 300.0
    wait_s: float = 60.0
    pause_s: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_url(self.url):
            raise ValueError(f"rollout.server.url is {self.url!r}: give a URL such as http://localhost:8000")
        if not self.folder:
            raise ValueError("rollout.server.folder is empty: name a folder that this process and the server both see")
        if self.key_env and not os.environ.get(self.key_env):
            raise ValueError(
                f"rollout.server.key_env is {self.key_env!r}, which is not set: `export {self.key_env}=<key>` first"
            )
        for name, least in {"concurrency": 1, "timeout_s": 1e-3, "wait_s": 0, "pause_s": 0}.items():
            if not vars(self)[name] >= least:
                raise ValueError(f"rollout.server.{name} is {vars(self)[name]}: give {least:g} or more")

    def check(self, policy: VisionPolicy) -> None:
        with self._client() as client:
            served = self._base(client)
            version = read(call(client, "GET", f"{self._root}/version", self.timeout_s), lambda said: said["version"])
            if not isinstance(policy.model, PeftModel):
                self._get(client, "/weight_info", _weight_version)
        LOGGER.info("%s: vLLM %s serves %s", shown(self.url), version.value, served)

    def push(self, policy: VisionPolicy, version: str, old: str | None) -> None:
        folder = Path(self.folder)
        path, adapter = str(hand_over(policy, folder, version)), isinstance(policy.model, PeftModel)
        with self._client() as client:
            for _ in range(PUSHES):
                if self._has(client, version):
                    break
                if adapter:
                    self._load(client, version, path)
                else:
                    self._reload(client, version, path)
            else:
                raise ServerError(
                    f"the server at {shown(self.url)} was given the weights {version} {PUSHES} times and does not say "
                    "that it has them: nothing was drawn with old ones; see its log, then resume"
                )
            if old is not None:
                if adapter:  # one that it has lost already is no failure
                    call(client, "POST", f"{self._root}/v1/unload_lora_adapter", self.timeout_s, {"lora_name": old})
                forget(folder, old)

    def generate(self, questions: Sequence[Question], sampling: Sampling, version: str) -> list[Reply]:
        with self._client() as client:
            if not self._has(client, version):
                raise Forgotten(f"the server at {shown(self.url)} does not have the weights {version}")
            model = version if version in self._served(client) else self._base(client)
            jobs = {
                number: functools.partial(self._answered, client, question, sampling, model)
                for number, question in enumerate(questions)
            }
            found = run_all(jobs, self.concurrency)
            if not self._has(client, version):  # a server that was started anew has its first weights again
                raise Forgotten(f"the server at {shown(self.url)} lost the weights {version} while it answered")
        return [found[number] for number in range(len(questions))]

    @property
    def _root(self) -> str:
        return self.url.strip().rstrip("/").removesuffix("/v1")

    def _client(self) -> httpx.Client:
        return connect(os.environ[self.key_env].strip() if self.key_env else "", self.timeout_s, self.concurrency)

    def _answered(
        self, client: httpx.Client, question: Question, sampling: Sampling, model: str, stop: threading.Event
    ) -> Reply:
        body = _body(question, sampling, model)
        ended = self._insist(client, "POST", "/v1/chat/completions", body, _reply, stop)
        if ended.status == 404:
            raise Forgotten(f"the server at {shown(self.url)} does not know the model {model} any more")
        named, reply = self._value(ended, "/v1/chat/completions")
        if named != model:
            raise ServerError(
                f"{question.id}: the server was asked for the model {model!r} and answered as {named!r}: ask one that "
                "serves it itself"
            )
        return reply

    def _load(self, client: httpx.Client, version: str, path: str) -> None:
        """Load an adapter. It may be there: a server refuses one that it took when its answer was lost."""
        body = {"lora_name": version, "lora_path": path}
        ended = self._insist(client, "POST", "/v1/load_lora_adapter", body, None, threading.Event())
        if not (ended.outcome == "refused" and self._has(client, version)):
            self._value(ended, "/v1/load_lora_adapter")

    def _reload(self, client: httpx.Client, version: str, path: str) -> None:
        """Read full weights from `path`, forget what was computed with the old ones, and then take their name."""
        self._post(client, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": path}})
        for cache in ("/reset_prefix_cache", "/reset_encoder_cache"):
            self._post(client, cache, None)
        self._post(client, "/update_weight_version", {"new_version": version})

    def _has(self, client: httpx.Client, version: str) -> bool:
        """Whether it says that it has the weights `version`: an adapter by its name, full ones by their version."""
        if version in self._served(client):
            return True
        ended = self._insist(client, "GET", "/weight_info", None, _weight_version, threading.Event())
        return ended.outcome != "refused" and self._value(ended, "/weight_info") == version

    def _served(self, client: httpx.Client) -> dict[str, str]:
        """Models by name, with the one that each is an adapter of ("": none)."""
        return self._get(
            client, "/v1/models", lambda said: {str(m["id"]): str(m.get("parent") or "") for m in said["data"]}
        )

    def _base(self, client: httpx.Client) -> str:
        names = [name for name, parent in self._served(client).items() if not parent]
        if self.model in names:
            return self.model
        if self.model or len(names) != 1:
            raise ServerError(
                f"the server at {shown(self.url)} serves {names} and rollout.server.model is {self.model!r}: name the "
                "one that policy.model is"
            )
        return names[0]

    def _get[T](self, client: httpx.Client, path: str, reader: Any) -> T:
        ended: Attempt[T] = self._insist(client, "GET", path, None, reader, threading.Event())
        return self._value(ended, path)

    def _post(self, client: httpx.Client, path: str, body: object) -> None:
        self._value(self._insist(client, "POST", path, body, None, threading.Event()), path)

    def _insist(
        self, client: httpx.Client, method: str, path: str, body: object, reader: Any, stop: threading.Event
    ) -> Attempt[Any]:
        mark = hashlib.sha256(f"{path} {body}".encode()).digest()

        def once() -> Attempt[Any]:
            ended = call(client, method, self._root + path, self.timeout_s, body)
            return ended if reader is None else read(ended, reader)

        def failed(attempts: int, reason: str, pause: float) -> None:
            LOGGER.warning("%s%s: %s; try %d in %.1f s", shown(self.url), path, reason, attempts + 1, pause)

        patience = Patience(self.pause_s, None, self.wait_s, LONGEST_PAUSE_S)
        return insist(once, patience, mark, stop, failed)

    def _value[T](self, ended: Attempt[T], path: str) -> T:
        where = f"the server at {shown(self.url)}"
        if ended.outcome == "answered" and ended.value is not None:
            return ended.value
        if ended.outcome == "refused":
            advice = ADVICE.get(ended.status) or ADVICE.get(path, "its own words say why")
            raise ServerError(f"{where} refuses {path} with {ended.reason}: {advice}")
        if ended.outcome == "stopped":
            raise ServerError(f"{where} was not asked, because another question failed")
        last = f"{ended.reason} {ended.said}".strip()
        raise ServerError(
            f"{where} gave no answer at {path} for {self.wait_s:g} s and more (last: {last}): start it again, then "
            "--resume; rollout.server.wait_s is how long it is waited for"
        )


def _body(question: Question, sampling: Sampling, model: str) -> dict[str, object]:
    """Everything that a model's own generation config would set otherwise is spelt out."""
    pictures = [picture_part(data_url(picture.convert("RGB"))) for picture in question.pictures]
    return {
        "model": model,
        "messages": [{"role": "user", "content": [*pictures, text_part(question.text)]}],
        "n": sampling.group, "max_tokens": sampling.limit, "seed": question.seed,
        "temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "stop_token_ids": list(sampling.stops), "skip_special_tokens": False,
        "logit_bias": {str(token): NEVER for token in sampling.banned},
        "logprobs": True, "top_logprobs": 0, "return_token_ids": True,
    }  # fmt: skip


def _weight_version(said: Any) -> str:
    return str(said["weight_version"])


def _reply(said: Any) -> tuple[str, Reply]:
    """The model's name and what it answered. What a server leaves out is empty, so that it is said what is missing."""
    answers = []
    for choice in sorted(said["choices"], key=lambda choice: int(choice["index"])):
        content = (choice.get("logprobs") or {}).get("content") or ()
        logprobs = [float("nan") if (p := entry["logprob"]) is None else float(p) for entry in content]
        tokens = [int(token) for token in choice.get("token_ids") or ()]
        answers.append(Answer(tuple(tokens), tuple(logprobs), str(choice["finish_reason"])))
    prompt = [int(token) for token in said.get("prompt_token_ids") or ()]
    return str(said["model"]), Reply(tuple(prompt), tuple(answers))
