"""A small server of our own in place of vLLM: the same tiny model behind it, and it can fail, hang, lie and go away."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open

from tests.answering import Handler, Service, answering
from vision.policy import VisionPolicy
from vision.sampling import draw
from vision.transitions import Prompt

Said = dict[str, Any]
BASE = "tiny"


@dataclass
class FakeVLLM:
    """`policy` is the model it serves, with weights of its own. Counts what it is asked.

    `lie` changes an answer before it is sent; `fails` is asked before each call and may say how it fails: "500", "cut",
    "garbled", "lost" (done, but the answer is cut) or "hang". `deaf`: new weights are taken, and not used. `away`:
    connections are cut."""

    policy: VisionPolicy
    lie: Callable[[Said], None] = lambda said: None
    fails: Callable[[str], str | None] = lambda path: None
    deaf: bool = False
    away: bool = False
    refuses: dict[str, tuple[int, str]] = field(default_factory=dict)
    hang_s: float = 1.0
    adapters: dict[str, str] = field(default_factory=dict)
    version: str = "default"
    asked: list[str] = field(default_factory=list)
    drawn_with: list[str] = field(default_factory=list)
    pushed: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    url: str = ""
    lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.first = {name: tensor.clone() for name, tensor in self.policy.model.state_dict().items()}

    def restart(self) -> None:
        """As after a crash: with the weights that it had first."""
        self.adapters.clear()
        self.version = "default"
        self.policy.model.load_state_dict(self.first)

    def load(self, path: str) -> None:
        """Weights of a folder, which must be whole."""
        assert not Path(path).name.startswith(".")
        file = next(Path(path).glob("*.safetensors"))
        with safe_open(str(file), "pt") as found:
            assert list(found.keys())
        if not self.deaf:
            self.policy.load_weights(Path(path))

    def answer(self, path: str, body: Said) -> tuple[int, str]:
        if path in self.refuses:
            return self.refuses[path]
        if path == "/v1/models":
            models = [{"id": BASE}, *({"id": name, "parent": BASE, "root": at} for name, at in self.adapters.items())]
            return 200, json.dumps({"data": models})
        if path == "/version":
            return 200, json.dumps({"version": "fake"})
        if path == "/weight_info":
            return 200, json.dumps({"weight_version": self.version})
        if path == "/v1/load_lora_adapter":
            if body["lora_name"] in self.adapters:
                return 400, json.dumps({"error": {"message": "has already been loaded"}})
            self.load(body["lora_path"])
            self.adapters[body["lora_name"]] = body["lora_path"]
            self.pushed.append(body["lora_name"])
            return 200, "Success"
        if path == "/v1/unload_lora_adapter":
            return (200, "Success") if self.adapters.pop(body["lora_name"], None) else (404, "{}")
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.load(body["kwargs"]["weights_path"])
            return 200, "{}"
        if path in ("/reset_prefix_cache", "/reset_encoder_cache"):
            return 200, ""
        if path == "/update_weight_version":
            self.version = body["new_version"]
            self.pushed.append(self.version)
            return 200, "{}"
        assert path == "/v1/chat/completions", path
        return self.chat(body)

    def chat(self, body: Said) -> tuple[int, str]:
        if body["model"] != BASE and body["model"] not in self.adapters:
            return 404, json.dumps({"error": {"message": "The model does not exist"}})
        for name, plain in {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}.items():
            assert body[name] == plain
        self.drawn_with.append(body["model"] if body["model"] != BASE else self.version)
        prompt = self.read(body["messages"])
        generator = torch.Generator().manual_seed(body["seed"])
        drawn = draw(self.policy, [prompt], body["n"], body["max_tokens"], generator)
        choices = []
        for row, alive in enumerate(drawn.alive):
            tokens = drawn.transitions.completions[row][alive].tolist()
            said = [{"token": "?", "logprob": value} for value in drawn.logprobs[row][alive].tolist()]
            reason = "length" if bool(drawn.truncated[row]) else "stop"
            choice = {"index": row, "token_ids": tokens, "logprobs": {"content": said}, "finish_reason": reason}
            choices.append({**choice, "message": {"role": "assistant", "content": "?"}})
        said = {"model": body["model"], "choices": choices[::-1], "prompt_token_ids": prompt.tokens.tolist()}
        self.lie(said)
        return 200, json.dumps(said)

    def read(self, messages: list[Said]) -> Prompt:
        """The prompt as this server's own processor makes it."""
        content = []
        for part in messages[0]["content"]:
            if part["type"] == "text":
                content.append({"type": "text", "text": part["text"]})
            else:
                data = base64.b64decode(part["image_url"]["url"].split(",", 1)[1])
                content.append({"type": "image", "image": Image.open(io.BytesIO(data))})
        found = dict(
            self.policy.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt",
            )
        )  # fmt: skip
        tokens = found.pop("input_ids")[0]
        found.pop("attention_mask")
        per_token = {name: tensor[0] for name, tensor in found.items() if tensor.shape == (1, len(tokens))}
        vision = {name: tensor for name, tensor in found.items() if name not in per_token}
        return Prompt("asked", tokens, per_token, vision, str(hash(data)))


@contextmanager
def serving(fake: FakeVLLM) -> Iterator[FakeVLLM]:
    """`fake` at `fake.url`."""

    class Server(Handler):
        def handle_any(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"null")
            with fake.lock:
                fake.asked.append(self.path)
                how = "cut" if fake.away else fake.fails(self.path)
                fake.at_once += 1
                fake.most_at_once = max(fake.most_at_once, fake.at_once)
            try:
                self.respond(how, body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True
            finally:
                with fake.lock:
                    fake.at_once -= 1

        def respond(self, how: str | None, body: Said) -> None:
            if how == "cut":
                return self.cut()
            if how == "500":
                return self.send(500, "out of memory")
            if how == "garbled":
                return self.send(200, '{"choices": [')
            if how == "hang":
                time.sleep(fake.hang_s)
                return self.cut()
            with fake.lock:  # one model
                status, text = fake.answer(self.path, body)
            if how == "lost":
                return self.cut()
            return self.send(status, text)

        do_GET = do_POST = handle_any

    class Loud(Service):
        request_queue_size = 64

        def handle_error(self, request: object, address: object) -> None:
            print("fake vLLM:", repr(sys.exception()))

    with answering(Server, service=Loud) as fake.url:
        yield fake
