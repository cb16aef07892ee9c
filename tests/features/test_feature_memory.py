"""Features of any number of images are made in the memory of a few batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

STATUS = Path("/proc/self/status")
LARGE = ("backbone.options={filters: 32}", "schedule.stages.0.unfreeze={last_blocks: 2}")  # 16x16x32: 32 KB an image
WARM = 8  # batches until buffers are full and threads have started


def own_memory() -> int:
    """Bytes of this process that are not pages of files."""
    return next(int(line.split()[1]) * 1024 for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Own memory after each batch of the last pass over training images."""
    from tlearn.train.console import Terminal

    seen: list[int] = []
    passes = False

    def start_epoch(self: Any, label: str, steps: int, done: int) -> None:
        nonlocal passes
        passes = label == "features of train images"
        if passes:
            seen.clear()

    def step(self: Any, done: int, note: str) -> None:
        if passes:
            seen.append(own_memory())

    monkeypatch.setattr(Terminal, "start_epoch", start_epoch)
    monkeypatch.setattr(Terminal, "step", step)
    return seen


@pytest.mark.skipif(not STATUS.exists(), reason="measures as Linux counts")
def test_a_pass_takes_no_more_memory_for_more_images(train: Callable[..., Any], watched: list[int]) -> None:
    """Kept until the end of the pass, features would be all of its growth, and pixels alone a tenth."""

    def growth(images: int) -> tuple[int, int]:
        """Of the pass, above what it took to begin; and the bytes of what it wrote."""
        options = (f"data.options={{count: {images}}}", "schedule.stages.0.epochs=null", "schedule.stages.0.steps=1")
        made = train(*LARGE, *options, eagerly=False).plan.stages[0].features.bytes
        return max(watched[WARM:]) - watched[WARM], made

    few, many = growth(400), growth(3200)
    assert many[1] - few[1] > 90e6
    assert many[0] - few[0] < (many[1] - few[1]) / 20, (few, many)
