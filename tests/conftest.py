"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.installed import installed

LONGEST_FIRST = (
    "test_vla_acceptance", "test_vla_training", "test_acceptance", "test_vla_launch", "test_vla_words",
    "test_acceptance_diffusion", "test_sim_workers", "test_judge_run", "test_compare", "test_synthetic",
)  # fmt: skip
"""Files that take longest. Were one of them begun last, a worker would wait for the other at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, the others as they come."""
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session")
def mmrl(tmp_path_factory) -> Path:
    """The command of an installed wheel, built once for all workers of a test run."""
    base = tmp_path_factory.getbasetemp()
    return installed(base.parent if base.name.startswith("popen-") else base)
