"""Physics without a picture: lets ManiSkill build its scenes on a machine that has no Vulkan at all.

SAPIEN asks for a Vulkan device as soon as a material is made, even with `render_backend="none"`. What is seen moves
nothing, so in a process that only simulates, materials become empty stand-ins and visual shapes are left out.
"""

from __future__ import annotations

import sys

import sapien.render
import sapien.wrapper.actor_builder
import sapien.wrapper.articulation_builder
from mani_skill.utils.building import _mjcf_loader, actor_builder  # noqa: F401  the loader takes materials by name


class Unseen:
    """Takes whatever a material or a texture takes and keeps it, to no effect."""

    def __init__(self, *arguments: object, **fields: object) -> None:
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> object:
        if name.startswith("set_"):
            return lambda *_: None
        raise AttributeError(name)


def _nothing(builder: object, *_: object, **__: object) -> object:
    return builder


def leave_out_visuals() -> None:
    """From here on this process builds scenes without anything to see, and needs no Vulkan. For good: a process that
    is to draw pictures must not call it."""
    for name in ("RenderMaterial", "RenderTexture2D"):
        seen = vars(sapien.render)[name]
        for module in list(sys.modules.values()):
            if vars(module).get(name) is seen:
                setattr(module, name, Unseen)
    builders = (
        sapien.wrapper.actor_builder.ActorBuilder,
        sapien.wrapper.articulation_builder.LinkBuilder,
        actor_builder.ActorBuilder,
    )
    for builder in builders:
        for name in dir(builder):
            if name.startswith("add_") and "visual" in name:
                setattr(builder, name, _nothing)
