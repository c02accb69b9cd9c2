"""Training pictures that are made while training goes on, from descriptions that the policy writes (Syn-GRPO).

What a config names; light, since the data server's process imports it too.
"""

from vision.synthetic.backgrounds import Backgrounds
from vision.synthetic.records import Generator, Request, Result, Unmade
from vision.synthetic.server import ServerConfig
from vision.synthetic.validity import Check, Legible, NoSecondInstance

__all__ = [
    "Backgrounds",
    "Check",
    "Generator",
    "Legible",
    "NoSecondInstance",
    "Request",
    "Result",
    "ServerConfig",
    "Unmade",
]
