"""Where a model behind an endpoint is, as the environment says it."""

from __future__ import annotations

import os

from rewards.pictures.judge_client import Endpoint, chat_url


def endpoint_of(owner: str, url_env: str, key_env: str, timeout_s: float, retries: int, pause_s: float) -> Endpoint:
    """Where `owner`, whose fields these are, asks.

    Raises:
        ValueError: a variable is not set, or holds no URL.
    """
    for name, example in ((url_env, "http://localhost:8000/v1"), (key_env, "<key>")):
        if name and not os.environ.get(name):
            raise ValueError(
                f"{owner}: the environment variable {name} is not set: `export {name}={example}` before you start"
            )
    if not url_env:
        raise ValueError(f"{owner}.url_env is empty: name the environment variable that holds the URL")
    key = os.environ[key_env].strip() if key_env else ""
    return Endpoint(chat_url(url_env, os.environ[url_env]), key, url_env, timeout_s, retries, pause_s)
