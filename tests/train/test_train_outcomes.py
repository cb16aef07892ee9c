"""How runs go: faults, early ends, lengths in any unit, several labels, mixed pictures, half precision, plugins."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlearn.train import checkpoint
from tlearn.train.api import fit, open_run, resume
from tlearn.train.command import main
from tlearn.train.stopping import NumericalFault

Make = Callable[..., Any]
ALL = ("schedule.stages.0.unfreeze=all", "optimizer=sgd", "optimizer.momentum=0.9")


# --- numerical faults ------------------------------------------------------------------------------------------------


def is_finite(path: Path) -> bool:
    arrays, _ = checkpoint.load(path)
    return all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")


def test_a_loss_that_is_no_number_ends_the_run_with_its_last_good_state(
    tiny: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*tiny, *ALL, "optimizer.learning_rate=900", "run_dir=run", "log.every=1", "checkpoint.every.steps=1"]
    assert main([*overrides, "checkpoint.keep=3"]) == 4
    out, err = capsys.readouterr()
    last = json.loads(out)
    assert last["run"] == str(tmp_path / "run")
    assert last["status"] == "failed"
    assert "not finite" in last["reason"]
    assert "smaller learning rate" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "summary.json").exists()
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        assert is_finite(path), f"{path.name} would be resumed from"


@pytest.fixture
def root_head(monkeypatch: pytest.MonkeyPatch) -> str:
    """A head whose loss is finite and whose gradient is not: the square root of nothing."""
    import keras

    from tlearn.heads import HEADS, register_head

    monkeypatch.setattr(HEADS, "_added", dict(HEADS._added))

    @register_head("root")
    def root(features: Any, classes: int) -> Any:
        x = keras.layers.GlobalAveragePooling2D(name="head_pool")(features)
        return keras.layers.Dense(classes, name="head_logits")(keras.ops.sqrt(0.0 * x))

    return "head.name=root"


@pytest.mark.parametrize("steps", [1, 6, 9], ids=["last step", "end of epoch", "later"])
def test_weights_that_are_no_numbers_are_never_saved(
    steps: int, root_head: str, tiny: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    length = ["schedule.stages.0.epochs=null", f"schedule.stages.0.steps={steps}"]
    assert main([*tiny, *ALL, root_head, *length, "run_dir=run", "log.every=1", "checkpoint.every.steps=1"]) == 4
    last = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert last["status"] == "failed"
    assert not (tmp_path / "run" / "summary.json").exists()
    assert all(is_finite(path) for path in (tmp_path / "run" / "checkpoints").iterdir())
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_fault_names_step_and_rate(tiny_config: Make) -> None:
    config = tiny_config(*ALL, "optimizer.learning_rate=900", "log.every=1")
    with pytest.raises(NumericalFault) as caught:
        fit(config)
    assert caught.value.learning_rate == 900
    assert 1 < caught.value.step <= 120
    assert open_run(caught.value.run).metrics


# --- lengths ---------------------------------------------------------------------------------------------------------


def test_a_stage_ends_when_nothing_improves(tiny_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """The rate is too small to change anything: the first epoch is the best, and others are waited for."""
    still = "optimizer: {name: sgd, learning_rate: 1.0e-9}"
    stages = (
        f"schedule.stages=[{{name: still, epochs: 9, early_stopping: {{patience: 2}}, {still}}}, "
        f"{{name: again, epochs: 9, early_stopping: {{patience: 1}}, {still}}}, {{name: after, epochs: 1}}]",
    )
    run = fit(tiny_config(*stages, "log.every=3"))
    assert [(r["stage"], r["epoch"], r["step"], r["global_step"]) for r in run.epochs()] == [
        ("still", 1, 6, 6),
        ("still", 2, 12, 12),
        ("still", 3, 18, 18),
        ("again", 10, 6, 24),
        ("again", 11, 12, 30),
        ("after", 19, 6, 36),
    ]
    assert (run.summary["epochs"], run.summary["steps"]) == (6, 36)
    assert run.summary["best_epoch"] == 1
    said = capsys.readouterr().err
    assert "stage still ends early" in said
    assert "stage again ends early" in said
    score = f"the best by val_accuracy {run.epochs()[0]['val_accuracy']:.4g}"
    assert f"model: weights of epoch 1 (still 1/9), {score}\n" in said
    assert f"\nThe model has weights of epoch 1 (still 1/9), {score}.\n" in run.report_file.read_text()


def test_a_run_that_ended_early_resumes_in_the_next_stage(tiny_config: Make, tmp_path: Path) -> None:
    from tlearn.train.trainer import Stopped

    stages = (
        "schedule.stages=[{name: still, epochs: 9, early_stopping: {patience: 2}, "
        "optimizer: {name: sgd, learning_rate: 1.0e-9}}, {name: after, epochs: 1}]",
        "log.every=1",
    )
    folder = tmp_path / "run"

    def in_the_second_stage() -> bool:  # asked before the run is written, too
        return (folder / "config.yaml").is_file() and any(r["stage"] == "after" for r in open_run(folder).metrics)

    with pytest.raises(Stopped):
        fit(tiny_config(*stages, f"run_dir={folder}"), should_stop=in_the_second_stage)
    run = resume(folder)
    assert [r["global_step"] for r in run.epochs()] == [6, 12, 18, 24]
    assert run.summary["steps"] == 24


@pytest.mark.parametrize(
    ("length", "steps", "epochs"),
    [("steps: 8", 8, 2), ("examples: 60", 8, 2), ("epochs: 1.5", 9, 2), ("steps: 3", 3, 1), ("epochs: 2", 12, 2)],
)
def test_lengths(length: str, steps: int, epochs: int, tiny_config: Make) -> None:
    from tlearn.train.api import make_plan

    plan = make_plan(tiny_config(f"schedule.stages=[{{name: a, {length}}}, {{name: b, epochs: 1}}]"))
    assert (plan.stages[0].steps, plan.stages[0].epochs, plan.stages[1].first_epoch) == (steps, epochs, epochs)


def test_a_part_of_an_epoch_is_validated_and_counted(tiny_fit: Make) -> None:
    run = tiny_fit("schedule.stages=[{name: a, steps: 8}, {name: b, examples: 20}]")
    assert [(r["stage"], r["epoch"], r["step"], r["global_step"]) for r in run.epochs()] == [
        ("a", 1, 6, 6),
        ("a", 2, 8, 8),
        ("b", 3, 3, 11),
    ]
    assert run.summary["epochs"] == 3


def test_the_monitor_decides_what_is_best(tiny_fit: Make) -> None:
    run = tiny_fit(*ALL, "optimizer.learning_rate=0.3", "checkpoint.monitor=val_loss", "schedule.stages.0.epochs=5")
    best = min(run.epochs(), key=lambda record: record["val_loss"])
    assert run.summary["best_epoch"] == best["epoch"]
    assert run.summary["val_loss"] == pytest.approx(best["val_loss"], abs=1e-5)


def test_which_weights_the_model_has_is_told(tiny_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    stages = "schedule.stages=[{name: a, epochs: 2}, {name: b, epochs: 9, early_stopping: {patience: 1}}]"
    still = ("optimizer=sgd", "optimizer.learning_rate=1e-9")
    run = fit(tiny_config(stages, *still, "checkpoint.final=last"))
    assert [record["epoch"] for record in run.epochs()] == [1, 2, 3, 4]
    score = f"the best by val_accuracy {run.epochs()[0]['val_accuracy']:.4g} were those of epoch 1 (a 1/2)"
    assert f"model: weights of epoch 4 (b 2/9), the last; {score}\n" in capsys.readouterr().err
    assert f"\nThe model has weights of epoch 4 (b 2/9), the last; {score}.\n" in run.report_file.read_text()


def test_the_report_tells_what_came_of_keeping_features(tiny_fit: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    stages = ["schedule=two_stage", "schedule.stages.1.unfreeze={last_blocks: 1}"]
    stages += ["schedule.stages.0.epochs=1", "schedule.stages.1.epochs=1"]
    streamed = "could not be kept (Not a directory): all images were computed in each epoch"
    for folder, came in (("kept", "made in this run"), ("kept", "found in the cache"), ("file", streamed)):
        page = tiny_fit(*stages, f"cache.dir={tmp_path / folder}").report_file.read_text()
        for stage in ("head", "top"):
            (line,) = (line for line in page.splitlines() if line.startswith(f"- `{stage}` computes"))
            assert line.endswith(f"; {came}"), line


def test_learning_is_learning(tiny_fit: Make) -> None:
    """Striped across, striped down, plain: easy for a network that trains as a whole."""
    run = tiny_fit(
        "schedule.stages=[{name: all, unfreeze: all, epochs: 12, batch_norm: train}]",
        "optimizer=adam",
        "optimizer.learning_rate=0.01",
        "+data.options.noise=40",
    )
    losses = [record["loss"] for record in run.epochs()]
    assert losses[-1] < 0.5 * losses[0]
    assert run.epochs()[-1]["accuracy"] > 0.9


# --- kinds of data and of precision ----------------------------------------------------------------------------------


def test_several_labels_to_an_image(tiny: tuple[str, ...], pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"ant": "small|black", "bee": "small", "cat": "black|soft"}
    rows = [(f"{name}/{index}.png", labels[name]) for name in labels for index in range(6)]
    rows[0] = (rows[0][0], "")
    with open(pictures / "table.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    data = ["data=table", f"data.path={pictures / 'table.csv'}", "data.label_separator='|'", "data.batch_size=8"]
    base = [text for text in tiny if not text.startswith("data.")]
    assert main([*base, *data, "schedule.stages.0.epochs=2", "run_dir=run", "augment.mixup=0.2"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert 0 <= summary["val_auc"] <= 1
    assert 0 <= summary["val_accuracy"] <= 1
    assert summary["classes"] == 3
    run = open_run("run")
    assert run.plan["multi_label"]
    best = max(run.epochs(), key=lambda record: record["val_auc"])
    assert summary["best_epoch"] == best["epoch"]
    scores = np.asarray(run.model()(np.random.default_rng(1).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)))
    assert ((scores > 0) & (scores < 1)).all()
    assert not np.allclose(scores.sum(axis=1), 1), "each class by itself"
    assert not run.confusion_file.exists()
    assert "val_auc" in err


@pytest.mark.parametrize("mixing", [["augment.mixup=0.4", "augment.rand_augment.p=0.5"], ["augment.cutmix=1.0"]])
def test_mixed_batches(mixing: list[str], tiny_fit: Make) -> None:
    run = tiny_fit(*mixing, "schedule.stages.0.epochs=1")
    assert np.isfinite([record["loss"] for record in run.epochs()]).all()
    assert run.summary["status"] == "finished"


def test_bfloat16(tiny_fit: Make, tmp_path: Path) -> None:
    run = tiny_fit(*ALL, "precision=mixed_bfloat16", "schedule.stages.0.epochs=2", f"run_dir={tmp_path / 'run'}")
    scores = run.model()(np.zeros((2, 16, 16, 3), np.uint8))
    assert scores.dtype == "float32"
    assert np.asarray(scores).sum(axis=1) == pytest.approx(1, abs=1e-6)


def test_more_outputs_than_classes(tiny_fit: Make) -> None:
    run = tiny_fit("head.classes=7", "schedule.stages.0.epochs=1", "loss.class_weights=balanced")
    assert run.model().output_shape == (None, 7)
    assert run.plan["outputs"] == 7
    assert any("the rest never occur" in note for note in run.plan["notes"])
    assert 0 <= run.summary["val_top5"] <= 1


def test_a_fraction_without_effect_is_told(tiny_config: Make, pictures: Path, tmp_path: Path) -> None:
    from tlearn.train.api import make_plan

    for split in ("train", "val"):
        shutil.copytree(pictures, tmp_path / "divided" / split)
    note = "data.test_fraction=0.2 has no effect: the data has splits of its own"
    for path, told in ((tmp_path / "divided", True), (pictures, False)):
        plan = make_plan(tiny_config("data.name=folder", f"data.path={path}", "data.test_fraction=0.2"))
        assert (note in plan.notes) is told


def test_weights_of_a_run_start_another(tiny_fit: Make, tiny_config: Make) -> None:
    from tlearn.train.api import prepare

    before = tiny_fit(*ALL, "optimizer.learning_rate=0.1", "schedule.stages.0.epochs=1", "checkpoint.final=last")
    started = prepare(tiny_config(f"backbone.weights={before.path}", "head=mlp", "head.units=[4]", "seed=3"))
    with np.load(before.best_file) as saved:
        for key, variable in started.classifier.variables().items():
            if not key.startswith("head_"):
                np.testing.assert_array_equal(variable.numpy(), saved[key])


# --- a user's own ----------------------------------------------------------------------------------------------------


def test_plugins_work_from_a_yaml_file(
    run_cli: Callable[..., Any], plugin_env: dict[str, str | None], tmp_path: Path
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(
        "backbone: {name: tiny, weights: null, alpha: null, image_size: null, options: {filters: 2}}\n"
        "head: {name: cosine, options: {scale: 4.0}}\n"
        "data: {name: stripes, batch_size: 8, options: {count: 30}}\n"
        "schedule: {stages: [{name: top, unfreeze: {from_block: mid}, epochs: 1}]}\n"
    )
    done = run_cli("train", "experiment=mine", "head.options.scale=5", "log.tensorboard=false", env=plugin_env)
    done.assert_ok()
    summary = json.loads(done.stdout)
    run = open_run(summary["run"])
    assert run.path.name.startswith("mine-")
    assert run.plan["backbone"] == "tiny"
    assert run.plan["train_images"] == 24
    assert run.plan["stages"][0]["lowest"] == "mid_conv (4)"
    assert run.config.head.options == {"scale": 5}
    assert set(run.plan["stages"][0]["variables"]) >= {"head_logits/kernel", "top_conv/kernel", "mid_conv/kernel"}


# --- the real thing --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_imagenet_weights_beat_random_ones_on_flowers(
    assets: Path, keras_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        "data=folder",
        f"data.path={assets / 'flowers'}",
        "backbone=mobilenet",
        "backbone.alpha=0.25",
        "backbone.image_size=128",
        "schedule.stages.0.epochs=8",
        "optimizer.learning_rate=0.005",
        "data.check=header",
        "log.tensorboard=false",
    ]
    file = keras_home / "models" / "mobilenet_2_5_224_tf_no_top.h5"
    accuracy = []
    for weights in (str(file), "null"):
        assert main([*overrides, f"backbone.weights={weights}"]) == 0
        out, _ = capsys.readouterr()
        accuracy.append(json.loads(out)["val_accuracy"])
    assert accuracy[0] > 0.6
    assert accuracy[1] < 0.4
