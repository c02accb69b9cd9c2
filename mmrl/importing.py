"""Modules that may be the user's own, and what to say where their code fails."""

from __future__ import annotations

import importlib
import traceback
from types import ModuleType


def import_code(name: str) -> ModuleType:
    """A module that may be the user's own.

    Raises:
        ImportError: there is none, or its code fails: says in which line of which file.
        ValueError: that is no name.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise
    except Exception as error:  # whatever the code of a module may raise
        if not name:
            raise
        raise ImportError(where(error)) from error


def where(error: Exception) -> str:
    """What went wrong, and in which line of which file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    return f"{type(error).__name__}: {error} ({place(error)})"


def place(error: Exception) -> str:
    """The line and file that an error was raised in."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"line {frame.lineno} of {frame.filename}"
