"""From what a run records to the values of the objectives."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tlearn.errors import UserError
from tlearn.sweep.config import Objective
from tlearn.train.run import Run


def recorded(path: Path) -> dict[str, Any]:
    """What a run that ended says of itself: its summary, and the last epoch's metrics of the training images.

    Empty where it did not come to its end.
    """
    run = Run(path)
    with contextlib.suppress(UserError, OSError, ValueError):
        summary = run.summary
        size = {"model_mb": run.model_file.stat().st_size / 1e6} if run.model_file.is_file() else {}
        return {**(run.epochs() or [{}])[-1], **summary, **size}
    return {}


def objective_values(objectives: Sequence[Objective], found: Mapping[str, Any]) -> list[float] | str | None:
    """The values of a finished run.

    Args:
        objectives: what is wanted.
        found: ``recorded`` of the run.

    Returns:
        The values; a message where one was not recorded; None where the run did not finish.
    """
    if found.get("status") != "finished":
        return None
    values = []
    for objective in objectives:
        value = found.get(objective.metric)
        if not isinstance(value, int | float) or not math.isfinite(value):
            known = sorted(key for key, value in found.items() if isinstance(value, float))
            return f"{objective.metric} was not recorded; there are {', '.join(known)}"
        values.append(float(value))
    return values
