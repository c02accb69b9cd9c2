"""Pictures of what a model wrote: charts, web pages and SVG drawn in a sandbox, how alike two pictures are, and the
rewards of RRVF that rest on both."""

from rewards.render.alike import Alike, Baseline
from rewards.render.base import Limits, PooledRenderer, Rendered, Renderer
from rewards.render.charts import Charts
from rewards.render.differ import Differ, Differences
from rewards.render.elements import AllElements, ElementAccuracy, ValueAccuracy
from rewards.render.inside.frames import Failure
from rewards.render.markup import MarkupAccuracy
from rewards.render.pages import Pages
from rewards.render.sandbox import SandboxError
from rewards.render.svg import Svg
from rewards.render.teacher import Teacher
from rewards.render.terms import Drawn, Format, Tools, Vision
from rewards.render.within import Within

__all__ = [
    "Alike",
    "AllElements",
    "Baseline",
    "Charts",
    "Differ",
    "Differences",
    "Drawn",
    "ElementAccuracy",
    "Failure",
    "Format",
    "Limits",
    "MarkupAccuracy",
    "Pages",
    "PooledRenderer",
    "Rendered",
    "Renderer",
    "SandboxError",
    "Svg",
    "Teacher",
    "Tools",
    "ValueAccuracy",
    "Vision",
    "Within",
]
