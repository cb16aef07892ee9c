"""The table of trials on a terminal."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from tlearn.sweep.display import Display, short_names
from tlearn.sweep.load import load_sweep
from tlearn.sweep.study import SharedStudy

SPACE = """{
optimizer.learning_rate: {type: float, low: 0.0001, high: 1.0, log: true},
head.dropout: {type: float, low: 0, high: 0.5},
head.pooling: {type: categorical, choices: [avg, avg_max]}, head.units: {type: categorical, choices: [[512, 256, 128]]},
head.normalization: {type: categorical, choices: [batch]}}"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> SharedStudy:
    """Six trials over five keys: complete but for one that failed, one that was pruned and one that runs."""
    folder = tmp_path_factory.mktemp("sweep")
    sweep = load_sweep(
        [
            *(f"sweep.space={SPACE}".replace("\n", " "), f"sweep.dir={folder}", "sweep.sampler.name=random"),
            *("backbone.name=tiny", "backbone.weights=null", "backbone.alpha=null", "backbone.image_size=16"),
            *("data.name=stripes", "head=mlp"),
        ]
    )
    study = SharedStudy(sweep)
    for number in range(6):
        claim = study.claim()
        assert claim is not None
        claim.trial.report(0.5 + 0.01 * number, 1)
        if number < 5:
            study.end(claim, [0.5 + 0.01 * number] if number > 1 else None, error="no memory" if number == 0 else None)
    return study


def lines_of(study: SharedStudy, width: int) -> list[str]:
    """What a terminal of this width shows below the first two lines."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=width, legacy_windows=False)
    with Display(study._sweep, study, console):
        pass
    drawn = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", console.file.getvalue()).replace("\r", "\n").splitlines()
    table = [line.rstrip() for line in drawn[2:] if line.strip()]
    return table[max(index for index, line in enumerate(table) if line.split()[:1] == ["trial"]) :]


@pytest.mark.parametrize("width", [200, 80, 60])
def test_the_table_is_as_wide_as_the_terminal_allows(width: int, study: SharedStudy) -> None:
    header, *below = lines_of(study, width)
    rows, counts = below[:6], " ".join(below[6:])
    assert all(len(line) <= width for line in [header, *rows])
    assert [row.split()[:2] for row in rows] == [
        *(["0", "failed"], ["1", "pruned"], ["2", "complete"], ["3", "complete"], ["4", "complete"], ["5", "running"])
    ]
    assert [row.split()[3] for row in rows] == ["0.5", "0.51", "0.52", "0.53", "0.54", "0.55"]
    assert "…" not in "".join([header, *rows])
    assert counts.startswith("3 complete, 1 pruned, 1 failed, 1 running")
    left_out = {200: "", 80: "; no room for units, normalization", 60: "; no room for pooling, units, normalization"}
    assert counts.endswith(f"1 running{left_out[width]}")
    assert ("[512, 256, 128]" in rows[0]) == (width == 200)


def test_keys_are_shown_by_their_last_parts() -> None:
    stages = ["schedule.stages.0.optimizer.learning_rate", "schedule.stages.1.optimizer.learning_rate"]
    assert short_names([*stages, "head.units"]) == ["0.optimizer.learning_rate", "1.optimizer.learning_rate", "units"]
