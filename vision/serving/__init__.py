"""Generation servers: answers that are drawn, with their log-probs, outside of the process that trains."""

from vision.serving.base import Answer, Forgotten, Question, Reply, Sampling, Server, ServerError
from vision.serving.vllm import VLLM

__all__ = ["VLLM", "Answer", "Forgotten", "Question", "Reply", "Sampling", "Server", "ServerError"]
