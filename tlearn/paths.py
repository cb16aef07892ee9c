"""Where the shipped configs and experiments are: inside the wheel, or beside the package in a source checkout."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str) -> Path:
    """The shipped folder ``configs`` or ``experiments``."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder
