"""What the config of `mmrl init vla` reads: a folder for demonstrations, which its script fills at the first check."""

from __future__ import annotations

from pathlib import Path

ABOUT = """\
demonstrations/ is a LeRobotDataset of version 3. `mmrl check config.yaml` makes one by a script where there is none;
put your own in its place and remove `demonstrations.script` from the config.

To be played again in the simulator an episode needs its initial state: an int64 feature `seed` of shape (1,), the same
in all its frames, as `mmrl rollout config.yaml record.dataset=true` writes it too.
"""


def write(folder: Path) -> None:
    """`folder`/README.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(ABOUT)
