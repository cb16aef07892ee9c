"""The folder of a run, what the command prints, and that the same config gives the same run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlearn.errors import UserError
from tlearn.train import report
from tlearn.train import run as run_module
from tlearn.train.api import fit, make_plan, open_run
from tlearn.train.command import main
from tlearn.train.run import Run
from tlearn.words import size_text

Make = Callable[..., Any]

# two stages with all that has state: momentum, augmentation, dropout, smoothing
STAGES = (
    "schedule.stages=[{name: head, epochs: 2}, "
    "{name: top, unfreeze: {last_blocks: 2}, epochs: 1.5, optimizer: {name: sgd, learning_rate: 0.01, momentum: 0.9}}]",
    "head=mlp",
    "head.units=[8]",
    "head.dropout=0.3",
    "augment=light",
    "loss.label_smoothing=0.1",
)
FILES = {
    "config.yaml",
    "overrides.yaml",
    "plan.json",
    "environment.json",
    "manifest.json",
    "files.parquet",
    "metrics.jsonl",
    "log.txt",
    "summary.json",
    "status.json",
    "report.md",
    "curves.png",
    "confusion_matrix.png",
    "model.keras",
    "tensorboard",
    "checkpoints",
}


DRAWN = report._png


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: tuple[str, ...]) -> tuple[int, str, str, Run]:
    """One run by the command, with real pictures: its status, standard output, standard error, and folder."""
    import contextlib
    import io

    where = tmp_path_factory.mktemp("finished") / "mine"
    overrides = [*tiny, *STAGES, f"run_dir={where}", "log.every=4", "log.tensorboard=true", "log.images=5"]
    overrides += ["data.test_fraction=0.1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_png", DRAWN)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            status = main(overrides)
    return status, out.getvalue(), err.getvalue(), open_run(where)


def test_the_last_line_is_the_summary(finished: tuple[int, str, str, Run]) -> None:
    status, out, err, run = finished
    assert status == 0, err
    assert out.count("\n") == 1, "standard output holds the line for scripts and nothing else"
    summary = json.loads(out)
    assert summary == run.summary == json.loads((run.path / "summary.json").read_text())
    assert summary["run"] == str(run.path)
    assert summary["status"] == "finished"
    assert summary["epochs"] == 4
    assert summary["steps"] == 21
    assert 0 <= summary["val_accuracy"] <= 1
    assert summary["val_loss"] > 0
    assert 0 <= summary["test_accuracy"] <= 1
    assert 0 < summary["seconds"] < 300


def test_the_folder_is_named_first_and_last(finished: tuple[int, str, str, Run]) -> None:
    _, _, err, run = finished
    lines = err.strip().splitlines()
    assert lines[0] == f"run {run.path}"
    assert lines[-1] == f"run {run.path}"
    assert any(line.split()[:2] == ["stage", "trains"] for line in lines)
    assert "\x1b" not in err, "no colours or bars where nobody sees them"
    assert [line.split("  ")[0] for line in lines if "val_loss" in line] == [
        "head 1/2",
        "head 2/2",
        "top 1/2",
        "top 2/2",
    ]


def test_the_folder_is_complete(finished: tuple[int, str, str, Run]) -> None:
    *_, run = finished
    assert {path.name for path in run.path.iterdir()} - {".lock"} == FILES
    assert {path.name for path in run.checkpoints.iterdir()} == {"best.npz", "step-0000000021.npz"}
    log = run.log_file.read_text()
    assert "val_accuracy" in log
    assert str(run.path) in log.replace("\n", "")


def test_the_config_of_a_run_is_complete_and_can_be_run_again(finished: tuple[int, str, str, Run]) -> None:
    import yaml

    *_, run = finished
    config = run.config
    assert [stage.name for stage in config.schedule.stages] == ["head", "top"]
    assert config.schedule.stages[1].optimizer.momentum == 0.9
    assert config.data.test_fraction == 0.1
    overrides = yaml.safe_load(run.overrides_file.read_text())
    assert overrides[-1] == "data.test_fraction=0.1"
    assert set(yaml.safe_load(run.config_file.read_text())) == set(vars(config))


def test_what_a_run_was_made_of_is_recorded(finished: tuple[int, str, str, Run]) -> None:
    *_, run = finished
    environment = json.loads(run.environment_file.read_text())
    assert {"python", "packages", "platform", "git", "cpus"} <= set(environment)
    assert {"tensorflow", "keras", "numpy"} <= set(environment["packages"])
    assert run.manifest["classes"] == ["across", "down", "plain"]
    assert sum(map(sum, run.manifest["counts"].values())) == run.manifest["images"] == 60
    assert run.plan["steps_per_epoch"] == 6
    assert [stage["steps"] for stage in run.plan["stages"]] == [12, 9]
    report = run.report_file.read_text()
    assert "| down |" in report
    assert "python -m tlearn.train backbone.name=tiny" in report
    for name in ("curves.png", "confusion_matrix.png"):
        assert len((run.path / name).read_bytes()) > 5000
        assert (run.path / name).read_bytes().startswith(b"\x89PNG")


def test_the_report_says_what_was_computed_in_each_epoch_and_why(finished: tuple[int, str, str, Run]) -> None:
    *_, run = finished
    page = run.report_file.read_text()
    why = "computes all training images in each epoch: fresh augmentation (cache.views=null)"
    for name, stage in zip(("head", "top"), run.plan["stages"], strict=True):
        kept = f"{', '.join(stage['features']['tensors'])} of the validation images once"
        assert f"- `{name}` {why}; 2 passes over 32.3 kB of pixels; {kept}: " in page
    assert "in float32; made in this run\n- planned passes over the training images: 4\n" in page


def test_the_report_says_what_was_computed_once(
    finished: tuple[int, str, str, Run], tiny_config: Make, tmp_path: Path
) -> None:
    *_, run = finished
    shutil.copytree(run.path, tmp_path / "run")
    plan = make_plan(tiny_config(*STAGES, "augment=none"))
    report.write_report(Run(tmp_path / "run"), plan, report.Outcome({}, None, "some weights", None, {}), print)
    page = (tmp_path / "run" / "report.md").read_text()
    for stage, more in zip(plan.stages, ("", ", together with head"), strict=True):
        kept = stage.features
        size = f"{size_text(kept.bytes)}, {kept.bytes_per_image:,} bytes an image in float32"
        assert f"- `{stage.name}` computes {', '.join(kept.tensors)} once{more}: {size}\n" in page
    assert "- planned passes over the training images: 1 instead of 4, prefix engine" in page


def test_curves_mark_the_epoch_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(report, "_png", lambda figure: drawn.append(figure) or b"")
    epochs = [{"stage": "head", "epoch": epoch, "loss": 1 / epoch, "accuracy": 0.5} for epoch in (1, 2, 3)]
    for model_epoch in (2, None):
        report.draw_curves(epochs, model_epoch)
    for panels, labels in zip(drawn, (["model: epoch 2"], []), strict=True):
        for panel in panels.axes:
            marks = [text.get_text() for text in panel.get_legend().get_texts()]
            assert [text for text in marks if text.startswith("model")] == labels


@pytest.mark.parametrize("count", [1, 2, 3, 5, 40])
def test_curves_are_marked_at_whole_epochs(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(report, "_png", lambda figure: drawn.append(figure) or b"")
    epochs = [{"stage": "head", "epoch": epoch, "loss": 1 / epoch, "accuracy": 0.5} for epoch in range(1, count + 1)]
    report.draw_curves(epochs)
    for panel in drawn[0].axes:
        low, high = panel.get_xlim()
        ticks = [float(tick) for tick in panel.get_xticks() if low <= tick <= high]
        assert ticks, "marked at all"
        assert all(tick.is_integer() for tick in ticks), ticks
        assert len(ticks) < 12


def test_metrics_are_records_of_one_axis(finished: tuple[int, str, str, Run]) -> None:
    *_, run = finished
    records = run.metrics
    assert [(r["event"], r["stage"], r["epoch"], r["step"], r["global_step"]) for r in records] == [
        ("step", "head", 1, 4, 4),
        ("epoch", "head", 1, 6, 6),
        ("step", "head", 2, 8, 8),
        ("step", "head", 2, 12, 12),
        ("epoch", "head", 2, 12, 12),
        ("step", "top", 3, 4, 16),
        ("epoch", "top", 3, 6, 18),
        ("step", "top", 4, 8, 20),
        ("epoch", "top", 4, 9, 21),
    ]
    for record in records:
        assert {"loss", "accuracy", "learning_rate"} <= set(record)
        assert ({"val_loss", "val_accuracy", "seconds"} <= set(record)) == (record["event"] == "epoch")
    assert records == [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    rates = {record["stage"]: record["learning_rate"] for record in records}
    assert rates == pytest.approx({"head": 1e-3, "top": 1e-2})
    best = max(run.epochs(), key=lambda record: record["val_accuracy"])
    assert run.summary["best_epoch"] == best["epoch"]
    assert run.summary["val_accuracy"] == pytest.approx(best["val_accuracy"], abs=1e-6)


def test_tensorboard_can_be_looked_at(finished: tuple[int, str, str, Run]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    *_, run = finished

    def read(split: str) -> Any:
        return EventAccumulator(str(run.tensorboard / split), size_guidance={"tensors": 0, "images": 0}).Reload()

    train, val, hparams = read("train"), read("val"), read("hparams")
    for split, name, steps in (
        (train, "loss", [4, 6, 8, 12, 16, 18, 20, 21]),
        (train, "learning_rate", [4, 6, 8, 12, 16, 18, 20, 21]),
        (val, "loss", [6, 12, 18, 21]),
        (val, "accuracy", [6, 12, 18, 21]),
    ):
        assert [event.step for event in split.Tensors(name)] == steps, name
    images = train.Tensors("training images")[0].tensor_proto.string_val
    assert len(images) == 2 + 5, "width, height, and the pictures"
    assert {"confusion matrix", "curves"} == set(read("final").Tags()["tensors"])
    assert "_hparams_/session_start_info" in hparams.summary_metadata
    assert any("val_accuracy" in tag for tag in hparams.Tags()["tensors"])


def test_the_model_needs_neither_tlearn_nor_trust(finished: tuple[int, str, str, Run], tmp_path: Path) -> None:
    """Loaded by plain Keras in safe mode in a fresh process, it gives the same scores for raw pixels."""
    *_, run = finished
    images = np.random.default_rng(3).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    code = f"""
import sys, numpy, keras
model = keras.saving.load_model({str(run.model_file)!r}, safe_mode=True)
assert not [name for name in sys.modules if name.startswith("tlearn")]
numpy.save("scores.npy", model(numpy.load("images.npy")))
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120, env=without_tlearn())
    scores = np.load(tmp_path / "scores.npy")
    np.testing.assert_allclose(scores, np.asarray(run.model()(images)), atol=1e-6)
    assert scores.shape == (4, 3)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)


def without_tlearn() -> dict[str, str]:
    import os

    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "TLEARN_PLUGINS")}


def test_the_summary_is_that_of_the_saved_model(finished: tuple[int, str, str, Run]) -> None:
    from tlearn.data import Reading, evaluation_batches, load_data

    *_, run = finished
    config = run.config
    data = load_data(config.data, image_size=16, seed=config.seed)
    model, right, total = run.model(), 0, 0
    batches = evaluation_batches(data.source, data.val, Reading(16), batch_size=7)
    for images, labels in batches.as_numpy_iterator():
        right += (np.asarray(model(images)).argmax(axis=1) == labels).sum()
        total += len(labels)
    assert right / total == pytest.approx(run.summary["val_accuracy"], abs=1e-6)


def test_two_runs_of_the_same_second_have_folders_of_their_own(
    tiny_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module.time, "strftime", lambda *_: "20260101-000000")
    paths = [Run.create(tiny_config("name=a/b")).path for _ in range(3)]
    assert [path.name for path in paths] == ["a-b-20260101-000000", "a-b-20260101-000000-2", "a-b-20260101-000000-3"]
    assert all(path.parent == Path.cwd() / "runs" for path in paths)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run"):
        open_run(tmp_path)


def test_logits_are_what_the_model_returns_when_asked(tiny_fit: Make) -> None:
    runs = [tiny_fit("schedule.stages.0.epochs=1", f"head.output={output}") for output in ("logits", "probabilities")]
    images = np.random.default_rng(3).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    logits, scores = (np.asarray(run.model()(images)) for run in runs)
    exponents = np.exp(logits)
    np.testing.assert_allclose(exponents / exponents.sum(axis=1, keepdims=True), scores, atol=1e-6)
    assert not np.allclose(logits.sum(axis=1), 1)
    assert {k: v for k, v in runs[0].summary.items() if k.startswith("val")} == {
        k: v for k, v in runs[1].summary.items() if k.startswith("val")
    }


# --- the same again --------------------------------------------------------------------------------------------------


def outcome(run: Run) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The metrics of every epoch, and every bit of the best weights."""
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in run.epochs()]
    with np.load(run.best_file) as file:
        weights = {name: file[name].tobytes() for name in file.files if name != "state.json"}
    return records, weights


@pytest.fixture(scope="module")
def first(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Run:
    where = tmp_path_factory.mktemp("same") / "first"
    return fit(tiny_config(*STAGES, f"run_dir={where}", "checkpoint.final=last"))


@pytest.mark.parametrize(
    "other",
    [
        [],
        ["data.workers=3", "log.every=1", "checkpoint.every.steps=5"],
        ["data.workers=1", "log.every=1000", "log.tensorboard=true", "cache.mode=off", "data.cache=memory"],
    ],
    ids=["nothing", "workers", "no caches"],
)
def test_the_same_config_gives_the_same_run_whatever_has_no_influence(
    first: Run, other: list[str], tiny_fit: Make
) -> None:
    records, weights = outcome(first)
    again_records, again_weights = outcome(tiny_fit(*STAGES, "checkpoint.final=last", *other))
    assert again_records == records
    assert again_weights == weights


def test_another_seed_gives_another_run(first: Run, tiny_fit: Make) -> None:
    other = tiny_fit(*STAGES, "seed=2", "checkpoint.final=last")
    assert outcome(other)[0] != outcome(first)[0]
    assert other.manifest == first.manifest, "the split has a seed of its own"


def test_the_final_model_is_the_last_or_the_best_as_asked(first: Run) -> None:
    last = first.epochs()[-1]
    assert first.summary["val_loss"] == pytest.approx(last["val_loss"], abs=1e-5)
