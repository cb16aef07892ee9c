"""What tlearn/train/distribution.py works around is still there. One of these fails: that part of it can go."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("keras_alone.py")

pytestmark = pytest.mark.slow


def start(**environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT)], env=os.environ | environment, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def said() -> dict[str, Any]:
    out, _ = start().communicate(timeout=120)
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    return answer


def test_keras_takes_the_mean_of_uneven_shares_for_that_of_the_batch(said: dict[str, Any]) -> None:
    one, two = said["plain"]
    assert np.abs(np.subtract(one, two)).max() > 0.1


def test_keras_clips_before_it_sums(said: dict[str, Any]) -> None:
    one, two = said["clipped"]
    assert np.abs(np.subtract(one, two)).max() > 1e-3


def test_keras_cannot_accumulate_under_a_strategy(said: dict[str, Any]) -> None:
    assert "merge_call" in str(said["accumulated"]), said["accumulated"]


def test_fit_fails_with_several_workers() -> None:
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as two:
        cluster = {"worker": [f"127.0.0.1:{server.getsockname()[1]}" for server in (one, two)]}
    workers = [
        start(TF_CONFIG=json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}))
        for index in range(2)
    ]
    try:
        answers = [json.loads(worker.communicate(timeout=120)[0].splitlines()[-1])["fit"] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert "trained" not in answers, answers
