"""Two devices of one machine train as one does: the same curves and weights but for the rounding of sums."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tlearn.train import checkpoint
from tlearn.train.run import Run

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def trained(folder: Path, *cases: str) -> Path:
    """The folder, filled by mirrored_runs.py: two devices have to be asked for before TensorFlow looks for any."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "train" / "plugin")])
    done = subprocess.run(
        [sys.executable, str(HERE / "mirrored_runs.py"), str(folder), *cases],
        env=os.environ | {"TLEARN_PLUGINS": "tiny_plugin", "PYTHONPATH": path},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("mirrored"), "streamed", "cached")


@pytest.fixture(scope="module")
def more_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("more"), "moving", "mixed_float16", "mixed_bfloat16", "overflow")


def weights(run: Run) -> dict[str, np.ndarray]:
    """The weights, the optimizer's state and the metrics at the end."""
    (path,) = run.checkpoints.glob("step-*.npz")
    return checkpoint.load(path)[0]


def furthest(runs: Path, case: str) -> tuple[float, float]:
    """The largest difference of any recorded number, and of any number of the state (relative where above 1)."""
    one, two = (Run(runs / f"{case}-{strategy}") for strategy in ("one", "mirrored"))
    assert len(one.metrics) == len(two.metrics) > 12
    numbers = 0.0
    for mine, theirs in zip(one.metrics, two.metrics, strict=True):
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {"seconds", "event", "stage"}:
            numbers = max(numbers, abs(mine[key] - theirs[key]))
    mine, theirs = weights(one), weights(two)
    assert mine.keys() == theirs.keys()
    differences = (np.abs(mine[key].astype(float) - theirs[key]) / (1 + np.abs(mine[key])) for key in mine)
    return numbers, max(float(values.max()) for values in differences)


@pytest.mark.parametrize("case", ["streamed", "cached"])
def test_two_devices_train_as_one(case: str, runs: Path) -> None:
    """Uneven shares; in ``streamed`` mixed pictures, all that an optimizer may do, and a run stopped and resumed.

    Measured: at most 3e-7 in what is recorded, 2e-7 in the state.
    """
    numbers, apart = furthest(runs, case)
    assert numbers < 2e-6, numbers
    assert apart < 2e-6, apart


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_near(precision: str, more_runs: Path) -> None:
    """Each share is rounded by itself. Measured: losses 2e-4 apart, weights 8e-4."""
    one, two = (Run(more_runs / f"{precision}-{strategy}") for strategy in ("one", "mirrored"))
    for name in ("loss", "val_loss"):
        mine, theirs = ([record[name] for record in run.metrics if name in record] for run in (one, two))
        np.testing.assert_allclose(mine, theirs, atol=2e-3)
    mine, theirs = (checkpoint.load(run.best_file)[0] for run in (one, two))
    assert all(np.allclose(mine[key], theirs[key], atol=5e-3) for key in mine)


@pytest.mark.slow
def test_steps_that_overflow_are_left_out_on_both_devices(more_runs: Path) -> None:
    """The loss is scaled by 2^24 to begin with: each step without an update halves that, until a gradient is finite."""
    run = Run(more_runs / "overflow-mirrored")
    numbers = [value for value in weights(run).values() if value.ndim == 0]
    scale = max(float(value) for value in numbers if value.dtype == np.float32)
    updates = max(int(value) for value in numbers if value.dtype != np.float32)
    left_out = int(np.log2(2**24 / scale))
    assert 0 < left_out < 10
    assert updates == 18 - left_out, "of 18 steps"
    losses = [record["loss"] for record in run.epochs()]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_batch_norms_move_by_the_statistics_of_the_shares(more_runs: Path) -> None:
    """Means and variances are those of shares, so such a run is another one; but not by much, and to finite ends."""
    one, two = (Run(more_runs / f"moving-{strategy}") for strategy in ("one", "mirrored"))
    mine, theirs = (checkpoint.load(run.best_file)[0] for run in (one, two))
    moved = [key for key in mine if "moving_mean" in key]
    assert moved
    assert all(np.abs(mine[key]).max() > 1e-3 for key in moved)
    assert all(np.allclose(mine[key], theirs[key], atol=0.3) for key in moved)


def test_the_plan_says_what_each_device_gets(runs: Path) -> None:
    run = Run(runs / "cached-mirrored")
    assert "devices     2 x CPU, mirrored: 4 or 5 images of a batch each" in run.log_file.read_text()
    assert (run.plan["devices"], run.plan["replicas"]) == ("2 x CPU, mirrored", 2)
    assert json.loads((runs / "cached-one" / "plan.json").read_text())["replicas"] == 1
