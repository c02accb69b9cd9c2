"""Videos of episodes, drawn in a small simulator of their own: the task's own step, new scenes, one process.

A first picture takes half a minute on a CPU, the others a few milliseconds; the simulator of training draws none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import torch
from torch import Tensor

from vla.policy import RobotPolicy
from vla.rollouts import Begun, Played, Watcher, play
from vla.sim import rendering
from vla.sim.base import Chunk, Observations, SimulationConfig, SimulationError, Simulator, TaskConfig
from vla.sim.start import start

CODECS = ("libx264", "libopenh264", "mpeg4")
"""The first that PyAV was built with; browsers play the former two."""


@dataclass(frozen=True)
class VideosConfig:
    """The first `episodes` of each task, not picked, and up to `failures` more that failed, `size` pixels a side.
    Before and after a run they are of the same held-out seeds."""

    episodes: int = 3
    failures: int = 2
    size: int = 192

    def __post_init__(self) -> None:
        if self.episodes < 0 or self.failures < 0:
            raise ValueError(
                f"videos has episodes {self.episodes} and failures {self.failures}: give 0 or more of each"
            )
        if self.size < 32 or self.size % 2:
            raise ValueError(f"videos.size is {self.size}: give an even number of pixels, 32 or more")


class Video:
    """One mp4 file, a frame at a time."""

    def __init__(self, path: Path, size: int, rate: int) -> None:
        codec = next(name for name in CODECS if name in av.codecs_available)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.container = av.open(str(path), "w", options={"movflags": "faststart"})
        stream = self.container.add_stream(codec, rate=Fraction(rate))
        assert isinstance(stream, av.VideoStream)
        self.stream = stream
        self.stream.width = self.stream.height = size
        self.stream.pix_fmt = "yuv420p"
        if codec == "libx264":
            self.stream.options = {"crf": "23", "preset": "veryfast"}

    def add(self, picture: Tensor) -> None:
        """One frame more, (3, Y, X) uint8."""
        frame = av.VideoFrame.from_ndarray(picture.movedim(0, -1).contiguous().cpu().numpy(), format="rgb24")
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Write what is left."""
        self.container.mux(self.stream.encode(None))
        self.container.close()


class Film(Watcher):
    """Writes a video of each of B episodes: its initial state, and what followed each step."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths, self.videos = paths, list[Video]()

    def began(self, simulator: Simulator) -> None:
        size = simulator.config.video_size
        assert size is not None
        rates = [simulator.tasks[number].control_hz for number in simulator.task_index.tolist()]
        self.videos = [Video(path, size, rate) for path, rate in zip(self.paths, rates, strict=True)]
        self._add(simulator, torch.arange(len(simulator)))

    def stepped(self, simulator: Simulator, seen: Observations, actions: Tensor, chunk: Chunk) -> None:
        self._add(simulator, chunk.alive[:, 0].cpu().nonzero()[:, 0])

    def _add(self, simulator: Simulator, rows: Tensor) -> None:
        if len(rows):
            for row, picture in zip(rows.tolist(), simulator.render(rows), strict=True):
                self.videos[row].add(picture)

    def close(self) -> None:
        """Finish all files."""
        for video in self.videos:
            video.close()


def film(
    policy: RobotPolicy,
    tasks: Sequence[TaskConfig],
    begun: Begun,
    paths: Sequence[Path],
    config: VideosConfig,
    simulation: SimulationConfig,
) -> Played | None:
    """Play one episode of each of `tasks` (n) from what is `begun` (n) and write `paths` (n); None, and a sentence that
    says why, where nothing can be drawn."""
    try:
        rendering.active()
        own = replace(
            simulation, copies=1, workers=1, backend="physx_cpu", step="official", terminate=False, rebuild=True,
            video_size=config.size,
        )  # fmt: skip
        with start(tasks, own) as simulator:
            camera = Film(paths)
            try:
                return play(policy, simulator, begun, camera)
            finally:
                camera.close()
    except SimulationError as error:
        for path in paths:
            path.unlink(missing_ok=True)
        print(f"no videos: {error}")
        return None
