"""What a run is not gone on with: one clear message, exit status 2, nothing written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.train.conftest import everything
from tlearn.train.api import fit, resume
from tlearn.train.stopping import Stopped

ONE_STEP = ("schedule.stages.0.epochs=null", "schedule.stages.0.steps=1")


@pytest.fixture(scope="module")
def finished_and_stopped(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., Any]
) -> tuple[Path, Path]:
    """A run that has ended, and one that was stopped after its first step; both on a folder of pictures."""
    where = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(5)
    for name in ("a", "b"):
        (where / "pictures" / name).mkdir(parents=True)
        for index in range(10):
            Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(
                where / "pictures" / name / f"{index}.png"
            )
    finished = fit(tiny_config(*ONE_STEP, f"run_dir={where / 'finished'}"))
    data = (f"data.path={where / 'pictures'}", "data.name=folder", "data.batch_size=4")
    config = tiny_config(*data, "schedule.stages.0.epochs=2", f"run_dir={where / 'stopped'}")
    with pytest.raises(Stopped):
        fit(config, should_stop=lambda: True)
    return finished.path, where / "stopped"


def test_resuming_a_finished_run(refused: Callable[..., str], finished_and_stopped: tuple[Path, Path]) -> None:
    refused(f"resume={finished_and_stopped[0]}", says=("finished", "has finished"))


def test_resuming_with_other_overrides(refused: Callable[..., str], finished_and_stopped: tuple[Path, Path]) -> None:
    refused(f"resume={finished_and_stopped[1]}", "seed=2", says=("resume", "no other override", "backbone.weights="))


def test_resuming_with_changed_data(refused: Callable[..., str], finished_and_stopped: tuple[Path, Path]) -> None:
    stopped = finished_and_stopped[1]
    file = stopped.parent / "pictures" / "a" / "0.png"
    content, files = file.read_bytes(), everything(stopped)
    Image.new("RGB", (16, 16)).save(file)
    try:
        refused(f"resume={stopped}", says=("a/0.png", "altered", "is not what the run began with", "backbone.weights="))
    finally:
        file.write_bytes(content)
    assert everything(stopped) == files


def test_resuming_with_a_changed_plan(refused: Callable[..., str], finished_and_stopped: tuple[Path, Path]) -> None:
    config = finished_and_stopped[1] / "config.yaml"
    kept = config.read_text()
    config.write_text(kept.replace("epochs: 2.0", "epochs: 3.0"))
    assert config.read_text() != kept
    try:
        says = ("stages.0.steps: was 8, is 12", "config.schedule.stages.0.epochs: was 2.0, is 3.0", "undo the change")
        refused(f"resume={finished_and_stopped[1]}", says=says)
    finally:
        config.write_text(kept)


def test_resuming_without_the_weights_it_began_with(
    finished_and_stopped: tuple[Path, Path],
    tiny_config: Callable[..., Any],
    refused: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It says that the file is wanted, though the state has other weights; and what else there is to do."""
    weights = tmp_path / "weights.npz"
    shutil.copy(finished_and_stopped[0] / "checkpoints" / "best.npz", weights)
    config = tiny_config("schedule.stages.0.epochs=2", f"backbone.weights={weights}", "run_dir=run")
    with pytest.raises(Stopped):
        fit(config, should_stop=Path("run/checkpoints/best.npz").is_file)
    weights.rename(tmp_path / "moved.npz")
    capsys.readouterr()
    instead = f"a new run with the best weights of this one: backbone.weights={tmp_path / 'run'}"
    refused("resume=run", says=("no such file", str(weights), "bring it back to where it was", instead))
    (tmp_path / "moved.npz").rename(weights)
    assert resume("run").status["status"] == "finished"


def test_resuming_with_a_damaged_config(refused: Callable[..., str], finished_and_stopped: tuple[Path, Path]) -> None:
    config = finished_and_stopped[1] / "config.yaml"
    kept = config.read_text()
    for damaged in (kept[: len(kept) // 2] + "\n: [", "", "- 1\n"):
        config.write_text(damaged)
        try:
            refused(f"resume={finished_and_stopped[1]}", says=("config.yaml",))
        finally:
            config.write_text(kept)
