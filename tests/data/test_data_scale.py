"""A table of a million images takes no more memory than its flat arrays do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Bytes a row above what was there before a step: half as much again as was measured, and room for what the allocator
# keeps. One Python string a row would be 73, a list of them 81. Hashing copies a part at a time, which takes up to 7 MB
# however many rows there are; a copy of the rows of train was up to 46 bytes a row.
BOUNDS = {"index": 190, "hash": 16, "split": 72, "shuffle": 40, "hash of train rows": 16}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures as Linux counts")
def test_a_million_rows_stay_small(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "1000000", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["kept bytes a row"] <= 53
    for step, bound in BOUNDS.items():
        assert measured["steps"][step]["bytes a row"] <= bound, (step, measured["steps"][step])
