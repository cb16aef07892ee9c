"""A hostile file may make a reader wait for ever: each test here has three minutes, then it fails."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

_SECONDS = 180


@pytest.fixture(autouse=True)
def time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    """Raise in the test when its time is up; what blocks outside Python is tried in a subprocess with its own limit."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"{request.node.name} took more than its time")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(600 if request.node.get_closest_marker("slow") else _SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
