"""The interpreter that plays PyTorch's side; torch is no dependency of tlearn."""

from __future__ import annotations

import json
import os
from typing import Any

from benchmarks.common import in_own_process

HOW = """\
TORCH_PYTHON must name an interpreter that has PyTorch. To make one beside tlearn's own:
    python3 -m venv torch-venv && torch-venv/bin/python -m pip install torch numpy pillow
    make bench ARGS=peers TORCH_PYTHON=torch-venv/bin/python"""


def torch_python() -> str | None:
    """The interpreter; says how to make one where none is named."""
    python = os.environ.get("TORCH_PYTHON")
    if not python:
        print(HOW)
    return python


def torch_recipe(name: str, python: str, **options: object) -> dict[str, Any]:
    """What a recipe of ``torch_recipes`` measures, in a process of its own."""
    measured: dict[str, Any] = in_own_process("benchmarks.torch_recipes", name, json.dumps(options), python=python)
    return measured
