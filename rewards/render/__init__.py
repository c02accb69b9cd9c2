"""Pictures of what a model wrote: charts, web pages and SVG drawn in a sandbox, and how alike two pictures are."""

from rewards.render.alike import Alike, Baseline
from rewards.render.base import Limits, PooledRenderer, Rendered, Renderer
from rewards.render.charts import Charts
from rewards.render.inside.frames import Failure
from rewards.render.pages import Pages
from rewards.render.sandbox import SandboxError
from rewards.render.svg import Svg

__all__ = [
    "Alike",
    "Baseline",
    "Charts",
    "Failure",
    "Limits",
    "Pages",
    "PooledRenderer",
    "Rendered",
    "Renderer",
    "SandboxError",
    "Svg",
]
