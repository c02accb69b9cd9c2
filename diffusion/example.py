"""Data that the config of `mmrl init diffusion` reads: prompts that the small pipelines know, in the layout of one's
own."""

from __future__ import annotations

from pathlib import Path

from mmrl.recipes import find_asset

FILES = {"train": "train", "held_out": "held_out", "captions": "all"}
"""File to write -> of the shipped prompts."""


def write(folder: Path) -> None:
    """`folder`/train.txt, held_out.txt, which share no prompt, and captions.txt, both together: what an accuracy
    chooses from."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, shipped in FILES.items():
        text = Path(find_asset(f"assets/diffusion/prompts/{shipped}.txt")).read_text(encoding="utf-8")
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
