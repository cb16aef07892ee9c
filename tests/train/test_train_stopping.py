"""Runs that are stopped: by signals, at any place; by a loss that is no number; by want of memory."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlearn.config import Check, DataConfig
from tlearn.data import load_data
from tlearn.errors import UserError
from tlearn.train import checkpoint, report
from tlearn.train.api import fit, open_run, resume
from tlearn.train.command import main
from tlearn.train.memory import OutOfMemory, memory_guard
from tlearn.train.recorder import Recorder
from tlearn.train.run import Run
from tlearn.train.stopping import NumericalFault, Pruned, Stopped, resume_command

Make = Callable[..., Any]

# averages and momentum; two epochs of six steps, then one and a half
SMALL = (
    "schedule.stages=[{name: head, epochs: 2}, {name: all, unfreeze: all, epochs: 1.5, batch_norm: train}]",
    "optimizer.ema=0.9",
    "log.every=5",
    "log.tensorboard=true",
    "log.images=2",
)


@pytest.fixture(scope="module")
def whole(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(tiny_config(*SMALL, f"run_dir={tmp_path_factory.mktemp('whole') / 'run'}"))


def facts(run: Run) -> tuple[Any, Any]:
    """Metrics and summary without times, and without where."""
    records = [{key: value for key, value in record.items() if key != "seconds"} for record in run.metrics]
    return records, {key: value for key, value in run.summary.items() if key not in ("run", "seconds")}


def points(run: Run) -> list[tuple[str, str, int]]:
    """Every point in the event files: split, tag, step."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return sorted(
        (path.parent.name, value.tag, event.step)
        for path in run.tensorboard.rglob("*tfevents*")
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    )


# --- where a run can be stopped --------------------------------------------------------------------------------------


def stop_inside(
    monkeypatch: pytest.MonkeyPatch, target: str, call: int, then: Callable[[], None] = lambda: None
) -> Callable[[], bool]:
    """Asks to stop from the moment that a function is entered for the ``call``-th time, and does ``then``."""
    import importlib

    module, _, name = target.rpartition(".")
    owner = importlib.import_module(module)
    original, calls, wanted = getattr(owner, name), 0, False

    def entered(*args: Any, **keywords: Any) -> Any:
        nonlocal calls, wanted
        calls += 1
        if calls == call:
            wanted = True
            then()
        return original(*args, **keywords)

    monkeypatch.setattr(owner, name, entered)
    return lambda: wanted


@pytest.mark.parametrize(
    ("target", "call", "saved"),
    [
        ("tlearn.train.features.find_frontier", 1, None),
        ("tlearn.train.validation.stoppable", 2, 12),
        ("tlearn.train.trainer.stoppable", 2, 21),
        ("tlearn.train.trainer.finish", 1, 21),
    ],
    ids=["features", "validation", "validation at the end of the last stage", "final evaluation"],
)
def test_stopped_where_no_steps_are_run(
    target: str,
    call: int,
    saved: int | None,
    whole: Run,
    tiny_config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is computed to its end first, and nothing is lost: validation is done when the run goes on."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop = stop_inside(patch, target, call)
        with pytest.raises(Stopped):
            fit(tiny_config(*SMALL, f"run_dir={folder}", "cache.dir=cache"), should_stop=stop)
    states = [int(path.stem[5:]) for path in (folder / "checkpoints").glob("step-*")]
    assert states == ([] if saved is None else [saved])
    status = open_run(folder).status
    assert (status["status"], status["step"], status["steps"]) == ("stopped", saved or 0, 21)
    assert status["resume"] == f"python -m tlearn.train resume={folder}"
    run = resume(folder)
    assert facts(run) == facts(whole)
    assert points(run) == points(whole)
    assert run.status["status"] == "finished"


class Killed(BaseException):
    """Ends a run at once: nothing of it is caught, saved or tidied up."""


@pytest.mark.parametrize("every", [5, 6], ids=["without a step record of the same step", "with one"])
def test_killed_after_a_validation_that_was_due(
    every: int, whole: Run, tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in a validation, and killed when it was done and recorded: it is done again, and recorded once."""
    config = tiny_config(*SMALL, f"log.every={every}", f"run_dir={tmp_path / 'run'}")
    with monkeypatch.context() as patch:
        stop = stop_inside(patch, "tlearn.train.validation.stoppable", 2)
        with pytest.raises(Stopped):
            fit(config, should_stop=stop)
    with monkeypatch.context() as patch:
        recorded = Recorder.epoch

        def dies(*arguments: Any) -> None:
            recorded(*arguments)
            raise Killed

        patch.setattr(Recorder, "epoch", dies)
        with pytest.raises(Killed):
            resume(tmp_path / "run")
    run = resume(tmp_path / "run")
    recorded_steps = [record["step"] for record in run.metrics if record["event"] == "step"]
    assert recorded_steps == {5: [5, 10, 5], 6: [6, 12, 6]}[every]
    assert [record["global_step"] for record in run.epochs()] == [6, 12, 18, 21]
    assert len(set(points(run))) == len(points(run))
    if every == 5:  # as the run that was left alone
        assert facts(run) == facts(whole)
        assert points(run) == points(whole)


def test_event_files_hold_every_point_once(whole: Run, tmp_path: Path) -> None:
    """As if killed in the second stage, with points in the files that will be written again."""
    import shutil

    shutil.copytree(whole.path, tmp_path / "run")
    assert len(set(points(whole))) == len(points(whole)), "an undisturbed run says nothing twice"
    run = open_run(tmp_path / "run")
    with pytest.raises(UserError, match="has finished; there is nothing to resume"):
        resume(run.path)
    assert main([f"resume={run.path}"]) == 2
    run.summary_file.unlink()
    (newest,) = run.checkpoints.glob("step-*")
    arrays, state = checkpoint.load(newest)
    checkpoint.save(newest, arrays, state)
    with open(next((run.tensorboard / "train").iterdir()), "ab") as file:
        file.write(b"cut off in the middle of")
    run = resume(run.path)
    assert points(run) == points(whole)


def test_a_state_is_saved_by_the_clock(tiny_config: Make, tmp_path: Path) -> None:
    """Every so many minutes is whenever they are over, also within an epoch."""
    every = "checkpoint.every={minutes: 1.0e-9}"
    config = tiny_config(every, "checkpoint.keep=99", "schedule.stages.0.epochs=2", "log.every=2", "run_dir=run")
    run = fit(config)
    assert {0, 2, 4, 6, 8, 10, 12} <= {int(path.stem[5:]) for path in run.checkpoints.glob("step-*")}


# --- signals ---------------------------------------------------------------------------------------------------------


def test_a_signal_before_training_stops_at_once(
    tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tlearn.data.load as load

    def ctrl_c(*args: Any, should_stop: Any, **keywords: Any) -> Any:
        """Comes while images are looked at, in a thread; the run does not wait for the rest of them."""
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(600):
            if should_stop():
                return None
            time.sleep(0.1)
        pytest.fail("went on")

    assert main([*tiny, "schedule.stages.0.epochs=1", "run_dir=run"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(load, "check_data", ctrl_c)
    assert main([*tiny, "run_dir=other"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {"run": None, "status": "stopped"}
    assert "stopped before training: nothing was written" in err
    assert "Traceback" not in err
    assert not (tmp_path / "other").exists()
    (tmp_path / "run" / "summary.json").unlink()
    assert main(["resume=run"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {"run": "run", "status": "stopped"}
    assert "go on with: python -m tlearn.train resume=run" in err


@pytest.mark.parametrize("inside", ["tlearn.train.features.find_frontier", "tlearn.train.trainer.metrics_line"])
def test_what_a_signal_is_answered_with_is_true_in_a_step_and_in_a_feature_pass(
    inside: str, tiny: tuple[str, ...], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_inside(patch, inside, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main([*tiny, "run_dir=run"]) == 3
    out, err = capfd.readouterr()
    assert "stopping where the run can be resumed; once more stops at once" in err
    assert json.loads(out.splitlines()[-1])["status"] == "stopped"
    assert resume("run").status["status"] == "finished"


def test_leaving_the_check_of_images_does_not_wait_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 400 images would take a tenth of a second; no more are looked at than the threads had begun with."""
    from PIL import Image

    import tlearn.data.check as check

    for index in range(400):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index % 256, index // 256, 0)).save(path)
    looked_at: list[int] = []

    def slow(*args: Any, **keywords: Any) -> None:
        looked_at.append(1)
        time.sleep(0.1)

    monkeypatch.setattr(check, "decode", slow)
    config = DataConfig(name="folder", path=str(tmp_path / "images"), check=Check.decode)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            load_data(config, image_size=8, seed=1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert 0 < len(looked_at) < 200


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("/runs/one-2.x", "resume=/runs/one-2.x"),
        ("/my runs/a", "\"resume='/my runs/a'\""),
        ("/it's", None),
    ],
)
def test_the_command_to_go_on_can_be_pasted(path: str, command: str | None) -> None:
    import shlex

    from tlearn.compose import load_config

    words = shlex.split(resume_command(Path(path)))
    assert words[:3] == ["python", "-m", "tlearn.train"]
    assert load_config(words[3:]).resume == path
    if command is not None:
        assert shlex.split(command) == words[3:]


def test_status_of_a_killed_run(tiny_config: Make, tmp_path: Path) -> None:
    """A run cannot write that it was killed: whoever asks is told so when nobody holds the lock."""
    with pytest.raises(Stopped):
        fit(tiny_config("run_dir=run"), should_stop=lambda: True)
    run = open_run("run")
    status = run.status
    assert status["pid"] == os.getpid()
    run.write_status(status | {"status": "running"})
    assert run.status["status"] == "killed"
    with run.locked():
        assert run.status["status"] == "running"


# --- numerical faults ------------------------------------------------------------------------------------------------

WILD = ("schedule.stages.0.unfreeze=all", "optimizer=sgd", "optimizer.learning_rate=900", "optimizer.momentum=0.9")
# It learns for two epochs, fails in the third, and does not move when it is run again.
LATE = (
    "optimizer.learning_rate=0.01",
    "optimizer.schedule={name: step, rate: 1.0e+6, every: {epochs: 2}}",
    "on_nan=rollback",
    "on_nan.factor=1.0e-15",
    "schedule.stages.0.epochs=4",
    "checkpoint.monitor=val_loss",
)
CACHED = ("schedule.stages.0.unfreeze=none", "head=mlp", "head.units=[64,64]", "optimizer.momentum=0.0")
BACK = ("on_nan=rollback", "on_nan.factor=1.0e-4", "schedule.stages.0.epochs=3", "log.every=1")


def test_a_run_rolls_back_and_remembers_it(
    tiny_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped after the rollback and resumed, it ends as one that was not."""
    every = "checkpoint.every={steps: 4, minutes: null}"
    whole = fit(tiny_config(*WILD, *BACK, every, "run_dir=whole", "log.tensorboard=true"))
    said = capsys.readouterr().err
    assert "back to step" in said
    assert "(1 of at most 3)" in said
    assert whole.summary["rollbacks"] >= 1
    assert len(set(points(whole))) == len(points(whole))
    rates = [record["learning_rate"] for record in whole.metrics if record["event"] == "step"]
    assert rates[-1] == pytest.approx(900 * 1e-4 ** whole.summary["rollbacks"])
    assert [record["global_step"] for record in whole.metrics if record["event"] == "step"] == list(range(1, 19))

    def after_it() -> bool:
        records = open_run("run").metrics if Path("run/config.yaml").is_file() else []
        return any(record["learning_rate"] < 900 for record in records)

    with pytest.raises(Stopped):
        fit(tiny_config(*WILD, *BACK, every, "run_dir=run", "log.tensorboard=true"), should_stop=after_it)
    run = open_run("run")
    (state,) = run.checkpoints.glob("step-*")
    assert checkpoint.load(state)[1]["rollbacks"] >= 1
    run = resume("run")
    assert facts(run) == facts(whole)
    assert points(run) == points(whole)


def test_the_samples_are_shown_after_a_rollback_to_the_start(tiny_config: Make, tmp_path: Path) -> None:
    """The first epoch fails; nothing was saved but the state before it."""
    run = fit(tiny_config(*WILD, *BACK, "run_dir=run", "log.tensorboard=true", "log.images=2"))
    assert run.summary["rollbacks"] >= 1
    assert points(run).count(("train", "training images", 0)) == 1
    assert len(set(points(run))) == len(points(run))


def test_best_weights_of_before_a_rollback_are_named_so(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model has them, and nothing says that they are of the epoch that has their number now."""
    marks: list[int | None] = []
    draw = report.draw_curves
    monkeypatch.setattr(report, "draw_curves", lambda epochs, mark=None: marks.append(mark) or draw(epochs, mark))
    run = fit(tiny_config(*WILD, *LATE, "run_dir=run"))
    summary, said = run.summary, "weights of epoch 2 before rollback 1 (head 2/4), the best by val_loss"
    assert (summary["best_epoch"], summary["best_before_rollback"], summary["rollbacks"]) == (2, 1, 1)
    assert summary["val_loss"] < min(record["val_loss"] for record in run.epochs()) - 1e-3
    assert f"The model has {said}" in run.report_file.read_text()
    assert f"model: {said}" in capsys.readouterr().err
    assert marks == [None]


def test_rolled_back_to_a_validation_that_was_due(
    tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done again, and recorded once; as good as before, it is the best again, and has a record."""
    with monkeypatch.context() as patch:
        stop = stop_inside(patch, "tlearn.train.validation.stoppable", 2)
        with pytest.raises(Stopped):
            fit(tiny_config(*WILD, *LATE, *CACHED, "run_dir=run"), should_stop=stop)
    run = resume("run")
    summary, epochs = run.summary, run.epochs()
    assert [(record["epoch"], record["global_step"]) for record in epochs] == [(1, 6), (2, 12), (3, 18), (4, 24)]
    assert (summary["rollbacks"], summary["best_epoch"]) == (1, 2)
    assert "best_before_rollback" not in summary
    assert summary["val_loss"] == pytest.approx(epochs[1]["val_loss"], abs=1e-5)


def test_rollbacks_end(tiny_config: Make, tmp_path: Path) -> None:
    """With hardly smaller rates it fails for good, and leaves a state that is finite."""
    with pytest.raises(NumericalFault):
        fit(tiny_config(*WILD, *BACK, "on_nan.factor=0.99", "on_nan.most=2", "run_dir=run"))
    run = open_run("run")
    assert run.status["status"] == "failed"
    assert "not finite" in run.status["reason"]
    (path,) = run.checkpoints.glob("step-*")
    arrays, state = checkpoint.load(path)
    assert state["rollbacks"] == 2
    assert all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")


@pytest.mark.parametrize("wrong", ["on_nan.factor=1.0", "on_nan.factor=0", "on_nan.most=0", "on_nan=roll_back"])
def test_wrong_rollbacks(wrong: str, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*tiny, wrong]) == 2
    assert wrong.partition("=")[0] in capsys.readouterr().err


# --- runs that somebody has seen enough of ---------------------------------------------------------------------------


def test_a_pruned_run_is_told_as_pruned(tiny_config: Make, tmp_path: Path) -> None:
    def seen_enough(epoch: int, metrics: Any) -> None:
        raise Pruned

    run = fit(tiny_config("schedule.stages.0.epochs=3", "run_dir=run"), on_epoch=seen_enough)
    assert (run.summary["status"], run.status["status"]) == ("pruned", "pruned")
    assert not {"reason", "resume"} & set(run.status)
    with pytest.raises(UserError, match="nothing to resume"):
        resume("run")

    status = json.loads(run.status_file.read_text())
    run.write_status(status | {"status": "running", "resume": resume_command(run.path)})
    assert open_run("run").status == status, "killed between its summary and its status"


# --- memory ----------------------------------------------------------------------------------------------------------


def test_want_of_memory_says_what_to_try(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head wants a petabyte."""
    import keras

    from tlearn.heads import HEADS, register_head

    monkeypatch.setattr(HEADS, "_added", dict(HEADS._added))

    class Greedy(keras.layers.Layer):
        def call(self, features: Any, training: bool = False) -> Any:
            count = keras.ops.cast(keras.ops.shape(features)[0], "int64")
            return features + keras.ops.sum(keras.ops.ones((count * 10**7, 10**7))) if training else features

    @register_head("greedy")
    def greedy(features: Any, classes: int) -> Any:
        x = Greedy(name="head_greedy")(keras.layers.GlobalAveragePooling2D(name="head_pool")(features))
        return keras.layers.Dense(classes, name="head_logits")(x)

    assert main([*tiny, "head.name=greedy", "run_dir=run", "schedule.stages.0.unfreeze=all"]) == 2
    out, err = capsys.readouterr()
    assert "out of memory with data.batch_size=8; try a new run with data.batch_size=4" in err
    assert "Traceback" not in err
    assert json.loads(out)["status"] == "failed"
    run = open_run("run")
    assert run.status["status"] == "failed"
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-0000000000.npz"]


@pytest.mark.parametrize(
    ("batch_size", "of_features", "says"),
    [(8, False, "data.batch_size=4"), (8, True, "cache.mode=off data.batch_size=4"), (1, False, "image_size")],
)
def test_advice(batch_size: int, of_features: bool, says: str) -> None:
    with pytest.raises(OutOfMemory) as caught, memory_guard(batch_size, of_features=of_features):
        raise MemoryError
    assert says in caught.value.advice


def test_a_full_disk_is_not_want_of_memory() -> None:
    import tensorflow as tf

    with pytest.raises(tf.errors.ResourceExhaustedError), memory_guard(8):
        raise tf.errors.ResourceExhaustedError(None, None, "/run/events; No space left on device")
