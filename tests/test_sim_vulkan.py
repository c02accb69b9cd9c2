"""Which driver draws, and where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla.sim import lavapipe, rendering
from vla.sim.base import SimulationError

STANZAS = """\
Types: deb
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/a.gpg

Types: deb
URIs: http://mirror.test/debian-security
Suites: bookworm-security
Components: main
"""
LINES = """\
# deb http://mirror.test/debian bookworm main
deb [signed-by=/a.gpg] http://mirror.test/debian bookworm main contrib
deb http://mirror.test/debian-security bookworm-security main
"""
PLAN = """\
Reading package lists...
Inst libdrm2 [2.4.114-1+b1] (2.4.123-1~bpo12+1 Debian Backports:oldstable-backports [amd64])
Inst libgl1-mesa-dev [22.3.6] (25.0.7-2~bpo12+1 Debian Backports:oldstable-backports [amd64]) []
Inst mesa-vulkan-drivers (25.0.7-2~bpo12+1 Debian Backports:oldstable-backports [amd64])
Conf libdrm2 (2.4.123-1~bpo12+1 Debian Backports:oldstable-backports [amd64])
"""


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in rendering.NAMED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(rendering, "PREFIX", tmp_path / "vulkan")
    monkeypatch.setattr(rendering, "_installed_mesa", lambda: None)


def test_backports_come_from_the_machines_own_mirror() -> None:
    found = lavapipe.backports(STANZAS, ".sources", "bookworm", "bookworm-backports")
    assert found.count("Suites:") == 1
    assert "Suites: bookworm-backports\n" in found
    assert "URIs: http://mirror.test/debian\n" in found
    assert "Signed-By: /usr/share/keyrings/a.gpg" in found
    lines = lavapipe.backports(LINES, ".list", "bookworm", "bookworm-backports")
    assert lines == "deb [signed-by=/a.gpg] http://mirror.test/debian bookworm-backports main contrib\n"


def test_what_a_simulated_installation_plans_is_unpacked() -> None:
    assert list(lavapipe._planned(PLAN)) == [
        ("libdrm2", "2.4.123-1~bpo12+1"),
        ("mesa-vulkan-drivers", "25.0.7-2~bpo12+1"),
    ]


def test_a_missing_driver_is_one_sentence() -> None:
    with pytest.raises(SimulationError, match="run `make vulkan`.*or observe the state"):
        rendering.settings()


def test_without_apt_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert lavapipe.main() == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("vulkan: there is no apt-get here")


def test_an_older_mesa_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "_installed_mesa", lambda: (22, 3))
    with pytest.raises(SimulationError, match=r"24\.3 or newer"):
        rendering.active()
    monkeypatch.setattr(rendering, "_installed_mesa", lambda: (24, 3))
    assert rendering.active() == "the system's Mesa 24.3"


def test_a_driver_that_the_user_names_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VK_ICD_FILENAMES", "/opt/driver.json")
    assert rendering.active() == "the Vulkan driver of VK_ICD_FILENAMES"
    assert rendering.settings() == {}


def test_the_unpacked_driver_is_named_to_the_workers() -> None:
    description = rendering.PREFIX / "usr/share/vulkan/icd.d/lvp_icd.x86_64.json"
    description.parent.mkdir(parents=True)
    description.write_text("{}")
    (rendering.PREFIX / "usr/lib/x86_64-linux-gnu").mkdir(parents=True)
    found = rendering.settings()
    assert found["VK_ICD_FILENAMES"] == str(description)
    assert found["LD_LIBRARY_PATH"].startswith(str(rendering.PREFIX / "usr/lib/x86_64-linux-gnu"))
