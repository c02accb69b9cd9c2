"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.installed import installed


@pytest.fixture(scope="session")
def mmrl(tmp_path_factory) -> Path:
    """The command of an installed wheel, built once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    return installed(base.parent if base.name.startswith("popen-") else base)
