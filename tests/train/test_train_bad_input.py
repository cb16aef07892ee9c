"""What a user can get wrong: one clear message, exit status 2, no traceback, nothing written."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tlearn.errors import ConfigError
from tlearn.train.api import fit, make_plan
from tlearn.train.command import main

FOLDER = ("data=folder", "data.path=pictures")
MOBILENET = ("backbone=mobilenet", "backbone.alpha=0.25", "backbone.image_size=32", "backbone.weights=null")
ONE_STEP = ("schedule.stages.0.epochs=null", "schedule.stages.0.steps=1")


# (what is wrong, overrides beside those of the tiny run, what the message says)
CONFIG = [
    ("unknown key", ["learning_rat=1"], ["learning_rat: unknown key", "did you mean"]),
    ("wrong value", ["data.batch_size=many"], ["data.batch_size", "many"]),
    ("negative seed", ["seed=-1"], ["seed: must be 0 or more"]),
    ("unknown backbone", ["backbone=resnet"], ["backbone=resnet", "resnet50"]),
    ("backbone family", ["backbone.name=densenet"], ["densenet121", "densenet201"]),
    ("unknown backbone name", ["backbone.name=resnet51"], ["backbone.name", "did you mean resnet50"]),
    ("unknown head", ["head=liner"], ["head=liner", "did you mean linear"]),
    ("unknown head name", ["head.name=zebra"], ["head.name", "linear", "mlp"]),
    ("option of no backbone", ["backbone.options={depth: 3}"], ["backbone.options.depth", "filters"]),
    ("unknown block", ["schedule.stages.0.unfreeze={from_block: tip}"], ["from_block", "tip", "did you mean top"]),
    ("too many blocks", ["schedule.stages.0.unfreeze={last_blocks: 9}"], ["last_blocks", "1 to 3", "unfreeze: all"]),
    ("no block", ["schedule.stages.0.unfreeze={last_blocks: 0}"], ["last_blocks", "unfreeze: none"]),
    ("unknown layer", ["schedule.stages.0.unfreeze={from_layer: mid_con}"], ["mid_con", "did you mean mid_conv"]),
    ("layer index", ["schedule.stages.0.unfreeze={from_layer: 99}"], ["from_layer", "layers 0 to 9", "99"]),
    ("regex of nothing", ["schedule.stages.0.unfreeze={layers: zebra}"], ["stages.0.unfreeze.layers", "zebra"]),
    ("no weights there", ["schedule.stages.0.unfreeze={layers: relu}"], ["layers", "without weights"]),
    ("no regex", ["schedule.stages.0.unfreeze={layers: '('}"], ["layers", "not a regular expression"]),
    ("slow regex", ["schedule.stages.0.unfreeze={layers: '(a+)+b'}"], ["layers", "for ever"]),
    ("unknown selector", ["schedule.stages.0.unfreeze={top: 2}"], ["unfreeze.top", "last_blocks"]),
    ("selector in words", ["schedule.stages.0.unfreeze=some"], ["unfreeze", "none, all"]),
    ("image too small", ["backbone.image_size=4"], ["backbone.image_size", "at least 8"]),
    ("image size zero", ["backbone.image_size=0"], ["backbone.image_size"]),
    ("option not taken", ["backbone.alpha=0.5"], ["backbone.alpha", "mobilenet"]),
    ("alpha", [*MOBILENET, "backbone.alpha=0"], ["backbone.alpha", "out of range"]),
    ("backbone least size", ["backbone=xception", "backbone.image_size=64"], ["backbone.image_size", "71"]),
    ("no hidden layers", ["head=mlp", "head.units=[]"], ["head.units"]),
    ("width zero", ["head=mlp", "head.units=[0]"], ["head.units"]),
    ("units of linear", ["head.units=[8]"], ["head.units", "mlp"]),
    ("dropout", ["head.dropout=1"], ["head.dropout"]),
    ("no class", ["head.classes=0"], ["head.classes"]),
    ("fewer outputs", ["data=digits", "data.batch_size=8", "head.classes=4"], ["head.classes", "4 outputs for 10"]),
    ("fewer outputs, late", ["head.classes=2"], ["head.classes", "2 outputs for 3", "null"]),
    ("option of no optimizer", ["optimizer.rho=0.9"], ["optimizer.rho", "beta_1"]),
    ("unknown optimizer", ["optimizer=adamx"], ["optimizer=adamx", "did you mean adam"]),
    ("unknown stage optimizer", ["schedule.stages.0.optimizer.name=sdg"], ["stages.0.optimizer.name", "sgd"]),
    ("momentum", ["optimizer=sgd", "optimizer.momentum=9"], ["optimizer.momentum", "below 1"]),
    ("rate", ["optimizer.learning_rate=-1"], ["optimizer.learning_rate", "above 0"]),
    ("unused optimizer", ["schedule=two_stage", "optimizer=sgd"], ["optimizer", "used by no stage"]),
    ("unused rate", ["schedule=two_stage", "optimizer.learning_rate=0.1"], ["learning_rate: is used by no stage"]),
    (
        "unused momentum",
        ["optimizer=sgd", "schedule.stages.0.optimizer.name=rmsprop"],
        ["optimizer: name, momentum: is used by no stage"],
    ),
    ("two clips", ["optimizer.clip_norm=1", "optimizer.clip_value=1"], ["only one of clip_norm, clip_value"]),
    ("two units", ["schedule.stages.0.steps=3"], ["schedule.stages.0", "exactly one of", "epochs", "steps"]),
    ("no unit", ["schedule.stages.0.epochs=null"], ["schedule.stages.0", "exactly one of", "none"]),
    ("negative epochs", ["schedule.stages.0.epochs=-1"], ["schedule.stages.0.epochs", "above 0"]),
    ("zero examples", ["schedule.stages.0.epochs=null", "schedule.stages.0.examples=0"], ["stages.0.examples"]),
    ("warm-up units", ["optimizer.schedule.warmup={steps: 2, epochs: 1}"], ["optimizer.schedule.warmup", "exactly"]),
    (
        "warm-up beyond the stage",
        ["optimizer.schedule.warmup.percent=300"],
        ["optimizer.schedule.warmup.percent: must be at most 100, received 300"],
    ),
    (
        "period of a constant rate",
        ["optimizer.schedule.every.epochs=2"],
        ["optimizer.schedule.every: a constant learning rate has no", "optimizer.schedule.name=exponential or step"],
    ),
    (
        "end of a rate that falls in steps",
        ["schedule.stages.0.optimizer.schedule={name: step, final: 0.1}"],
        ["schedule.stages.0.optimizer.schedule.final: a step", "schedule.stages.0.optimizer.schedule.name=cosine"],
    ),
    ("no stage", ["schedule.stages=[]"], ["schedule.stages", "schedule=two_stage"]),
    ("stage names", ["schedule.stages=[{name: a, epochs: 1}, {name: a, epochs: 1}]"], ["two stages", "'a'"]),
    ("label smoothing", ["loss.label_smoothing=1.5"], ["loss.label_smoothing", "between 0 and 1"]),
    ("stage smoothing", ["schedule.stages.0.label_smoothing=-1"], ["stages.0.label_smoothing"]),
    ("monitor", ["checkpoint.monitor=val_acuracy"], ["checkpoint.monitor", "did you mean val_accuracy"]),
    ("monitor of others", ["checkpoint.monitor=val_auc"], ["checkpoint.monitor", "val_auc"]),
    ("early stopping", ["schedule.stages.0.early_stopping.patience=0"], ["early_stopping.patience"]),
    ("least change", ["schedule.stages.0.early_stopping.min_delta=-1"], ["early_stopping.min_delta: must be 0 or"]),
    ("xla", ["xla=maybe"], ["xla: must be auto, on or off"]),
    ("xla is no number", ["xla=1"], ["xla: must be auto, on or off"]),
    ("stage xla", ["schedule.stages.0.xla=fast"], ["schedule.stages.0.xla"]),
    ("deterministic", ["deterministic=perhaps"], ["deterministic"]),
    ("deterministic is no number", ["deterministic=1"], ["deterministic"]),
    ("name", ["name='a b'"], ["name: may hold"]),
    ("keep", ["checkpoint.keep=0"], ["checkpoint.keep"]),
    ("every", ["checkpoint.every.minutes=0"], ["checkpoint.every.minutes", "null"]),
    ("log every", ["log.every=0"], ["log.every"]),
    ("log images", ["log.images=-1"], ["log.images"]),
    ("batch size", ["data.batch_size=0"], ["data.batch_size", "1 or more"]),
    ("fractions", ["data.val_fraction=0.6", "data.test_fraction=0.5"], ["data.val_fraction"]),
    ("no validation", ["data.val_fraction=0"], ["data.val_fraction"]),
    ("probability", ["augment.horizontal_flip.p=2"], ["augment.horizontal_flip.p"]),
    ("mixup", ["augment.mixup=-1"], ["augment.mixup"]),
    ("crop", ["augment.random_resized_crop.scale_min=0"], ["augment.random_resized_crop"]),
    ("unknown source", ["data.name=flowers"], ["data.name", "folder"]),
    ("option of no source", ["data=digits", "data.path=x"], ["data.path", "folder"]),
    ("no run to resume", ["resume=nowhere"], ["nowhere", "not a run"]),
]


@pytest.mark.parametrize(("overrides", "says"), [case[1:] for case in CONFIG], ids=[case[0] for case in CONFIG])
def test_config(overrides: list[str], says: list[str], refused: Callable[..., str], tiny: tuple[str, ...]) -> None:
    kept = tiny if not overrides[0].startswith("resume") else ()
    choices = {text.split("=")[0] for text in overrides}
    given = [text for text in kept if not (text.startswith("backbone.") and "backbone" in choices)]
    given = [text for text in given if not (text.startswith("data.") and "data" in choices)]
    refused(*given, *overrides, says=tuple(says))


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_config_made_in_python_is_checked_like_one_that_was_read(
    tiny_config: Callable[..., Any], tmp_path: Path
) -> None:
    """Words stand for choices there too, and what is none is refused: nothing is passed over in silence."""
    config = tiny_config(f"run_dir={tmp_path / 'run'}")
    for call in (fit, make_plan):
        with pytest.raises(ConfigError, match="mirrored needs two devices"):
            call(dataclasses.replace(config, strategy="mirrored"))
        stage = dataclasses.replace(config.schedule.stages[0], batch_norm="trian", epochs="many")
        wrong = dataclasses.replace(config.schedule, stages=[stage])
        with pytest.raises(ConfigError) as caught:
            call(dataclasses.replace(config, strategy="mirored", schedule=wrong, seed=-1))
        where = {problem.where for problem in caught.value.problems}
        assert where == {"seed", "strategy", "schedule.stages.0.batch_norm", "schedule.stages.0.epochs"}
    assert not (tmp_path / "run").exists()


def table(folder: Path, text: str) -> str:
    (folder / "table.csv").write_text(text, encoding="utf-8")
    return f"data.path={folder / 'table.csv'}"


@pytest.fixture
def small(tiny: tuple[str, ...]) -> list[str]:
    """The tiny network, for data of one's own."""
    return [text for text in tiny if not text.startswith("data.name")]


def test_no_folder(refused: Callable[..., str], small: list[str]) -> None:
    refused(*small, "data=folder", "data.path=nowhere", says=("nowhere",))


def test_a_file_for_a_folder(refused: Callable[..., str], small: list[str], pictures: Path) -> None:
    refused(*small, "data=folder", f"data.path={pictures / 'ant' / '0.png'}", says=("0.png",))


def test_an_empty_folder(refused: Callable[..., str], small: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(*small, "data=folder", "data.path=empty", says=("empty",))


def test_class_folders_without_images(refused: Callable[..., str], small: list[str], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "folder" / name / "notes.txt").write_text("x")
    refused(*small, "data=folder", "data.path=folder", says=("folder",))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_folder(refused: Callable[..., str], small: list[str], pictures: Path) -> None:
    (pictures / "ant").chmod(0)
    try:
        refused(*small, *FOLDER, says=("ant",))
    finally:
        (pictures / "ant").chmod(0o755)


def test_one_class(refused: Callable[..., str], small: list[str], pictures: Path) -> None:
    for name in ("ant", "bee"):
        for file in (pictures / name).iterdir():
            file.unlink()
        (pictures / name).rmdir()
    refused(*small, *FOLDER, says=("cat",))


def test_a_class_with_one_image(refused: Callable[..., str], small: list[str], pictures: Path) -> None:
    for file in sorted((pictures / "bee").iterdir())[1:]:
        file.unlink()
    refused(*small, *FOLDER, says=("bee",))


def test_fewer_outputs_than_folders(refused: Callable[..., str], small: list[str], pictures: Path) -> None:
    refused(*small, *FOLDER, "head.classes=2", says=("head.classes: 2 outputs for 3", "ant, bee, cat"))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def test_truncated_images_stop_a_run_with_their_list(
    refused: Callable[..., str], small: list[str], pictures: Path
) -> None:
    truncate(pictures / "ant" / "2.png")
    (pictures / "cat" / "1.png").write_bytes(b"")
    said = refused(*small, *FOLDER, says=("ant/2.png", "cat/1.png", "data.on_error=skip"))
    assert "2 of 18 images" in said


def test_truncated_images_are_skipped_and_listed(
    small: list[str], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(pictures / "ant" / "2.png")
    assert main([*small, *FOLDER, *ONE_STEP, "data.on_error=skip"]) == 0
    out, err = capsys.readouterr()
    run = Path(json.loads(out.splitlines()[-1])["run"])
    assert "ant/2.png" in err
    assert "ant/2.png" in (run / "log.txt").read_text()
    ((path, reason),) = json.loads((run / "manifest.json").read_text())["left_out"]
    assert path.endswith("ant/2.png")
    assert reason
    assert f"1 image was left out:\n\n- `{path}`: {reason}" in (run / "report.md").read_text()
    assert json.loads((run / "plan.json").read_text())["train_images"] == 17 - 3


def test_an_image_that_breaks_while_training_is_a_message_too(
    small: list[str], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("ant", "bee", "cat"):
        truncate(pictures / name / "1.png")
    assert main([*small, *FOLDER, "data.check=none", "schedule.stages.0.epochs=1"]) == 2
    err = capsys.readouterr().err
    assert "1.png" in err
    assert "with the image as it was; with a mended one, or without it, begin anew" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", ("table.csv",)),
        ("file,label\na.png,x\n", ("data.image_column", "path", "file")),
        ("path,class\na.png,x\n", ("data.label_column", "label", "class")),
        ("path,label\n", ("table.csv",)),
        ("path,label\nant/0.png,a\nant/9.png,a\nbee/0.png,b\nbee/1.png,b\nant/1.png,a\n", ("ant/9.png", "no such")),
        ("path,label\nant/0.png,a\nant/1.png,\nbee/0.png,b\nbee/1.png,b\n", ("label",)),
    ],
    ids=["empty", "no image column", "no label column", "no rows", "missing file", "missing label"],
)
def test_tables(
    text: str, says: tuple[str, ...], refused: Callable[..., str], small: list[str], pictures: Path
) -> None:
    refused(*small, "data=table", table(pictures, text), says=says)


def test_no_table(refused: Callable[..., str], small: list[str]) -> None:
    refused(*small, "data=table", "data.path=nothing.csv", says=("nothing.csv",))


def test_a_split_column_that_is_not_there(refused: Callable[..., str], small: list[str], pictures: Path) -> None:
    path = table(pictures, "path,label\nant/0.png,a\nbee/0.png,b\n")
    refused(*small, "data=table", path, "data.split_column=part", says=("data.split_column", "part"))


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a MobileNet, alpha 0.25."""
    from tlearn.backbones import build_backbone, save_weights_npz

    path = tmp_path_factory.mktemp("weights") / "mobilenet.npz"
    save_weights_npz(path, build_backbone("mobilenet", alpha=0.25, image_size=32).layers)
    return path


STRIPES = ("data.name=stripes", "data.batch_size=8")


def test_weights_of_another_architecture(refused: Callable[..., str], weights: Path) -> None:
    refused(
        *STRIPES,
        "backbone=mobilenet_v2",
        "backbone.image_size=32",
        f"backbone.weights={weights}",
        says=("backbone.weights", str(weights), "another architecture"),
    )


def test_weights_of_another_width(refused: Callable[..., str], weights: Path) -> None:
    refused(*STRIPES, *MOBILENET, "backbone.alpha=0.5", f"backbone.weights={weights}", says=("backbone.weights", "0.5"))


@pytest.mark.parametrize("suffix", [".npz", ".weights.h5", ".keras", ".h5"])
def test_damaged_weights(suffix: str, refused: Callable[..., str], weights: Path, tmp_path: Path) -> None:
    damaged = tmp_path / f"damaged{suffix}"
    damaged.write_bytes(weights.read_bytes()[:5000])
    refused(*STRIPES, *MOBILENET, f"backbone.weights={damaged}", says=("backbone.weights", damaged.name))


@pytest.mark.parametrize("name", ["nowhere.h5", "nowhere.npz", "imagenett", "weights.txt"])
def test_no_such_weights(name: str, refused: Callable[..., str]) -> None:
    refused(*STRIPES, *MOBILENET, f"backbone.weights={name}", says=("backbone.weights", name))


def test_a_folder_that_is_no_run_as_weights(refused: Callable[..., str], pictures: Path) -> None:
    refused(*STRIPES, *MOBILENET, f"backbone.weights={pictures}", says=("backbone.weights", "best.npz"))


def test_embedded_weights_for_another_network(refused: Callable[..., str]) -> None:
    refused(*STRIPES, "backbone=vgg16", "backbone.weights=glyphs", says=("backbone.weights", "embedded weights"))


def test_imagenet_weights_offline(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = run_cli(
        "train",
        "data=digits",
        "backbone=mobilenet",
        "backbone.alpha=0.25",
        "backbone.image_size=128",
        env={"KERAS_HOME": str(home), "HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"},
    )
    file = "mobilenet_2_5_128_tf_no_top.h5"
    done.assert_user_error("backbone.weights", file, str(home / "models"), "weights=null", "glyphs")
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()
    assert not list(home.rglob("*.h5"))


# --- run folders -----------------------------------------------------------------------------------------------------


def test_a_run_folder_that_exists(refused: Callable[..., str], tiny: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    refused(*tiny, "run_dir=mine", says=("run_dir", "mine exists", "resume="))


def test_a_run_folder_that_cannot_be_made(refused: Callable[..., str], tiny: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(*tiny, "run_dir=file/run", says=("run_dir", "file"))


def test_a_plugin_that_cannot_be_imported(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "wrong_plugin.py").write_text("import no_such_module\n")
    env = {"TLEARN_PLUGINS": "wrong_plugin", "PYTHONPATH": f"{Path(__file__).parent.parent.parent}:{tmp_path}"}
    done = run_cli("train", "head.name=mine", "backbone.weights=null", env=env)
    done.assert_user_error("TLEARN_PLUGINS: wrong_plugin", "no_such_module")
    assert done.stderr.count("no_such_module") == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["wrong_plugin.py"]


def test_a_plugin_that_imports_keras_first_is_quiet(run_cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "own_head.py").write_text("""
import sys
import keras
import tlearn
print("said by the plugin", file=sys.stderr)

@tlearn.register_head("own")
def own(features, classes):
    return keras.layers.Dense(classes, dtype="float32")(keras.layers.GlobalAveragePooling2D()(features))
""")
    env = {"TLEARN_PLUGINS": "own_head", "PYTHONPATH": f"{Path(__file__).parent.parent.parent}:{tmp_path}"}
    done = run_cli("plan", "head.name=own", "data.per_class=5", env=env)
    assert done.status == 0
    assert done.stderr.splitlines() == ["said by the plugin"]


def test_the_command_is_quiet_about_python(run_cli: Callable[..., Any]) -> None:
    done = run_cli("train", "seed=x", "head.pooling=y").assert_user_error("error: seed", "error: head.pooling")
    assert done.stdout == ""
    assert sys.prefix not in done.stderr
