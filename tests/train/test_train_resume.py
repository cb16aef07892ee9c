"""A run that was interrupted anywhere and resumed ends bit for bit as one that was not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlearn.errors import UserError
from tlearn.train import checkpoint
from tlearn.train.api import fit, open_run, resume
from tlearn.train.command import main
from tlearn.train.run import Run
from tlearn.train.trainer import Stopped

Make = Callable[..., Any]

# everything that has state: Adam, an average, carried slots, momentum, augmentation, dropout, batch norm that moves
STAGES = (
    "schedule.stages=["
    "{name: head, epochs: 2}, "
    "{name: top, unfreeze: {last_blocks: 1}, epochs: 1.5, carry_slots: true}, "
    "{name: all, unfreeze: all, epochs: 1, batch_norm: train, "
    "optimizer: {name: sgd, learning_rate: 0.01, momentum: 0.9, schedule: {name: cosine, warmup: {steps: 2}}}}]",
    "optimizer.ema=0.9",
    "head=mlp",
    "head.units=[8]",
    "head.dropout=0.3",
    "augment=light",
    "log.every=1",
    "checkpoint.keep=100",
)


@pytest.fixture(scope="module")
def whole(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run without interruption: 12 + 9 + 6 steps."""
    return fit(tiny_config(*STAGES, f"run_dir={tmp_path_factory.mktemp('whole') / 'run'}"))


def steps_done(folder: Path) -> int:
    """Steps recorded so far."""
    records = open_run(folder).metrics if (folder / "config.yaml").is_file() else []
    return max((record["global_step"] for record in records), default=0)


def stop_after(folder: Path, steps: int) -> Callable[[], bool]:
    return lambda: steps_done(folder) >= steps


def assert_same(run: Run, other: Run) -> None:
    """Every record but its seconds, and every bit of the best weights and of the last state."""

    def records(of: Run) -> list[dict[str, Any]]:
        return [{key: value for key, value in record.items() if key != "seconds"} for record in of.metrics]

    assert records(run) == records(other)
    for name in ("best.npz", sorted(path.name for path in other.checkpoints.glob("step-*"))[-1]):
        (mine, state), (theirs, other_state) = (checkpoint.load(r.checkpoints / name) for r in (run, other))
        assert mine.keys() == theirs.keys()
        for key in mine:
            assert mine[key].tobytes() == theirs[key].tobytes(), f"{name}: {key}"
        told = ("seconds", "features")  # one finds in the cache what the other has made
        assert {k: v for k, v in state.items() if k not in told} == {
            k: v for k, v in other_state.items() if k not in told
        }
    apart = ("run", "seconds")
    assert {k: v for k, v in run.summary.items() if k not in apart} == {
        k: v for k, v in other.summary.items() if k not in apart
    }


@pytest.mark.parametrize("steps", [6, 23], ids=["epoch end", "third stage"])
def test_stopped_and_resumed(steps: int, whole: Run, tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config(*STAGES, f"run_dir={tmp_path / 'run'}")
    with pytest.raises(Stopped):
        fit(config, should_stop=stop_after(tmp_path / "run", steps))
    assert steps_done(tmp_path / "run") == steps
    assert not (tmp_path / "run" / "summary.json").exists()
    assert_same(resume(tmp_path / "run"), whole)


@pytest.mark.parametrize("step", [12, 21, 27], ids=["first stage over", "second stage over", "all stages over"])
def test_resumed_between_stages(step: int, whole: Run, tmp_path: Path) -> None:
    """As if killed there: nothing that came later is left."""
    shutil.copytree(whole.path, tmp_path / "run")
    run = open_run(tmp_path / "run")
    for path in run.checkpoints.glob("step-*"):
        if path.name > f"step-{step:010d}.npz":
            path.unlink()
    for name in ("summary.json", "model.keras", "report.md"):
        (run.path / name).unlink()
    assert_same(resume(run.path), whole)


def test_stopped_again_and_again_within_epochs(whole: Run, tiny_config: Make, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        fit(tiny_config(*STAGES, f"run_dir={tmp_path / 'run'}"), should_stop=stop_after(tmp_path / "run", 2))
    for steps in (5, 13):
        with pytest.raises(Stopped):
            resume(tmp_path / "run", should_stop=stop_after(tmp_path / "run", steps))
        assert steps_done(tmp_path / "run") == steps
    assert_same(resume(tmp_path / "run"), whole)


def test_a_damaged_state_is_passed_over(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    run = open_run(tmp_path / "run")
    run.summary_file.unlink()
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    assert_same(resume(run.path), whole)


@pytest.fixture
def state_file(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    arrays = {"00000": random.normal(size=(50, 3)).astype(np.float32), "00001": np.array(7), "00002": np.zeros((0, 2))}
    checkpoint.save(tmp_path / "step-0000000001.npz", arrays, {"step": 1})
    return tmp_path / "step-0000000001.npz"


def test_every_bit_of_a_state_is_under_its_checksum(state_file: Path) -> None:
    """Changed in any byte it is damaged, or, where the zip holds nothing there, still the same."""
    content, (arrays, state) = state_file.read_bytes(), checkpoint.load(state_file)
    assert state == {"step": 1}
    found = 0
    for position in range(0, len(content), 7):
        state_file.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            read, read_state = checkpoint.load(state_file)
        except ValueError:
            found += 1
        else:
            assert read_state == state
            assert {key: array.tobytes() for key, array in read.items()} == {
                key: array.tobytes() for key, array in arrays.items()
            }
    assert found > len(content) / 14


def test_a_state_put_together_anew_is_not_that_of_its_checksum(state_file: Path) -> None:
    """A zip whose own checksums are right: another array under an old name, a name that is gone, none at all."""
    with np.load(state_file, allow_pickle=False) as file:
        members = {name: file[name] for name in file.files}
    changed = {**members, "00001": np.array(8)}
    less = {key: array for key, array in members.items() if key != "00002"}
    none = {key: array for key, array in members.items() if key != "state.sha256"}
    for wrong in (changed, less, none):
        np.savez(state_file, allow_pickle=False, **wrong)
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.load(state_file)
    np.savez_compressed(state_file, allow_pickle=False, **members)
    with pytest.raises(ValueError, match="compressed"):
        checkpoint.load(state_file)


def test_a_damaged_state_does_not_displace_later_ones(tiny_config: Make, tmp_path: Path) -> None:
    """Killed after the damaged state was passed over, the run goes on from what it saved since."""
    folder = tmp_path / "run"
    config = tiny_config("log.every=1", "checkpoint.keep=1", "schedule.stages.0.epochs=2", f"run_dir={folder}")
    with pytest.raises(Stopped):
        fit(config, should_stop=stop_after(folder, 8))
    (state,) = (folder / "checkpoints").glob("step-*")
    state.write_bytes(state.read_bytes()[:-200])
    with pytest.raises(Stopped):
        resume(folder, should_stop=stop_after(folder, 3))
    assert [path.name for path in (folder / "checkpoints").glob("step-*")] == ["step-0000000003.npz"]
    assert checkpoint.load(folder / "checkpoints" / "step-0000000003.npz")[1]["step"] == 3


def test_a_record_that_was_cut_off_is_dropped(tiny_config: Make, tmp_path: Path) -> None:
    """A power cut in the middle of a line."""
    folder = tmp_path / "run"
    config = tiny_config("log.every=1", "schedule.stages.0.epochs=1", f"run_dir={folder}")
    with pytest.raises(Stopped):
        fit(config, should_stop=stop_after(folder, 2))
    with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"event": "step", "stage": "head", "ep')
    run = resume(folder)
    assert [record["global_step"] for record in run.metrics] == [1, 2, 3, 4, 5, 6, 6]


def test_only_the_newest_states_are_kept(tiny_fit: Make) -> None:
    run = tiny_fit("checkpoint.keep=2", "checkpoint.every.epochs=1", "schedule.stages.0.epochs=4")
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == [
        "best.npz",
        "step-0000000018.npz",
        "step-0000000024.npz",
    ]


def test_states_are_saved_every_so_many_steps(tiny_fit: Make) -> None:
    run = tiny_fit("checkpoint.keep=9", "checkpoint.every={steps: 4, minutes: null}", "schedule.stages.0.epochs=2")
    assert [int(path.stem[5:]) for path in sorted(run.checkpoints.glob("step-*"))] == [0, 4, 8, 12]


def test_the_best_weights_of_before_are_not_forgotten(tiny_config: Make, tmp_path: Path) -> None:
    """A worse epoch after the resumption does not replace them."""
    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        fit(tiny_config("schedule.stages.0.epochs=3", f"run_dir={folder}"), should_stop=stop_after(folder, 6))
    (path,) = (folder / "checkpoints").glob("step-*")
    arrays, state = checkpoint.load(path)
    state["best"], state["best_epoch"] = 2.0, 1  # nothing can be better
    checkpoint.save(path, arrays, state)
    before = (folder / "checkpoints" / "best.npz").read_bytes()
    run = resume(folder)
    assert run.best_file.read_bytes() == before
    assert run.summary["best_epoch"] == 1


def test_a_state_of_another_model_is_refused(whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole.path, tmp_path / "run")
    run = open_run(tmp_path / "run")
    run.summary_file.unlink()
    newest = sorted(run.checkpoints.glob("step-*"))[-1]
    arrays, state = checkpoint.load(newest)
    arrays["00000"] = np.zeros((3, 3), np.float32)
    checkpoint.save(newest, arrays, state)
    assert main([f"resume={run.path}"]) == 2
    assert "another model" in capsys.readouterr().err


# --- processes -------------------------------------------------------------------------------------------------------


def start(arguments: list[str], folder: Path, environment: dict[str, str | None]) -> subprocess.Popen[str]:
    with open(folder / "stderr", "w", encoding="utf-8") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "tlearn.train", *arguments],
            cwd=folder,
            env=os.environ | {key: value for key, value in environment.items() if value is not None},
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )


def wait_for_steps(folder: Path, steps: int, process: subprocess.Popen[str], complain: Path) -> None:
    end = time.monotonic() + 300
    lines = 0
    while lines < steps:
        assert process.poll() is None, (complain / "stderr").read_text()
        assert time.monotonic() < end
        time.sleep(0.02)
        file = folder / "metrics.jsonl"
        lines = file.read_bytes().count(b"\n") if file.is_file() else 0


@pytest.mark.slow
def test_terminated_resumed_killed_and_resumed(
    tiny: tuple[str, ...], tiny_fit: Make, plugin_env: dict[str, str | None], tmp_path: Path
) -> None:
    overrides = [
        *tiny,
        "schedule=full",
        "schedule.stages.0.epochs=6",
        "schedule.stages.1.epochs=6",
        "augment=light",
        "log.every=1",
        "checkpoint.every.steps=1",
        "checkpoint.keep=2",
    ]
    folder = tmp_path / "run"
    process = start([*overrides, "run_dir=run"], tmp_path, plugin_env)
    try:
        wait_for_steps(folder, 5, process, tmp_path)
        with pytest.raises(UserError, match="another process"):
            resume(folder)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 3, (tmp_path / "stderr").read_text()
    assert json.loads(out) == {"run": str(folder), "status": "stopped"}
    assert f"go on with: python -m tlearn.train resume={folder}" in (tmp_path / "stderr").read_text().replace("\n", " ")
    stopped_at = steps_done(folder)
    assert 5 <= stopped_at < 72

    process = start([f"resume={folder}"], tmp_path, plugin_env)
    try:
        wait_for_steps(folder, stopped_at + stopped_at // 6 + 5, process, tmp_path)
        process.kill()
        process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert_same(resume(folder), tiny_fit(*overrides))


def test_a_run_on_a_relative_folder_is_resumed_from_elsewhere(
    pictures: Path, tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures.parent)
    config = tiny_config(
        "data.name=folder", f"data.path={pictures.name}", "data.options={}", f"run_dir={tmp_path / 'r'}"
    )
    with pytest.raises(Stopped):
        fit(config, should_stop=lambda: True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert resume(tmp_path / "r").summary["status"] == "finished"
