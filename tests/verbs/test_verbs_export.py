"""``tlearn.export``: every format says what the run says, without tlearn; what parts from it never appears."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

import tlearn
from tests.verbs.conftest import draw_picture, train
from tlearn.export import main
from tlearn.exporting.formats import Tolerance
from tlearn.exporting.parity import compare
from tlearn.exporting.publish import publish, temporary_folder

DIGITS = list("0123456789")


# --- every format ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The digits in every format, by the command: the folder, its last line, its standard error."""
    folder = tmp_path_factory.mktemp("exported") / "digits"
    command = [sys.executable, "-m", "tlearn.export", str(digits_run), "--format", "all", "-o", str(folder)]
    root = Path(tlearn.__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "COLUMNS": "80"}
    done = subprocess.run(
        [*command, "--check-images", "32"], capture_output=True, text=True, env=environment, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, done.stdout
    return folder, json.loads(done.stdout), done.stderr


@pytest.mark.slow  # tflite, saved_model and onnx alone are tested below, a run's model.keras with training
def test_every_format_says_what_the_run_says(exported: tuple[Path, dict[str, Any], str], digits_run: Path) -> None:
    folder, report, errors = exported
    assert (report["run"], report["output"], report["status"]) == (str(digits_run), str(folder), "finished")
    entries = {(entry["format"], entry["quantize"]): entry for entry in report["exports"]}
    assert list(entries) == [
        ("saved_model", None),
        ("keras", None),
        *(("tflite", kind) for kind in ("float32", "float16", "int8")),
        ("onnx", None),
    ]
    for (_, quantize), entry in entries.items():
        assert Path(entry["path"]).exists()
        assert entry["images"] == 32
        assert entry["max_difference"] < {"float16": 0.01, "int8": 0.1}.get(quantize or "", 1e-5)
        assert entry["agreement"] >= 0.85
        assert entry["bytes"] > 100_000
    assert entries["saved_model", None]["signatures"]["image_bytes"]["agreement"] == 1
    assert entries["tflite", "int8"]["inputs"].startswith("uint8")
    assert entries["tflite", "int8"]["outputs"] == "uint8"
    assert entries["tflite", "int8"]["bytes"] < 0.5 * entries["tflite", "float32"]["bytes"]
    chatter = [
        line for line in errors.splitlines() if not line.startswith(("checking", "writing", "reading", "export"))
    ]
    assert len(chatter) == 8, errors  # the rows of the table
    assert all(len(line.rstrip()) <= 80 for line in errors.splitlines() if not line.startswith("export"))


@pytest.mark.slow
def test_labels_and_metadata_are_beside_and_inside(exported: tuple[Path, dict[str, Any], str]) -> None:
    import onnx

    folder, report, _ = exported
    assert (folder / "labels.txt").read_text().splitlines() == DIGITS
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["classes"] == DIGITS
    assert (metadata["image_size"], metadata["resize"], metadata["backbone"]) == (32, "crop", "mobilenet")
    assert (metadata["interpolation"], metadata["decode"]) == ("bilinear", "exact")
    assert metadata["exports"] == report["exports"]
    extra = folder / "saved_model" / "1" / "assets.extra"
    assert (extra / "labels.txt").read_text().splitlines() == DIGITS
    for name, inside in (("model.keras", "tlearn/"), ("model_float32.tflite", ""), ("model_int8.tflite", "")):
        with zipfile.ZipFile(folder / name) as archive:
            assert len(set(archive.namelist())) == len(archive.namelist()), "nothing hides another entry"
            assert archive.read(f"{inside}labels.txt").decode().splitlines() == DIGITS
            assert json.loads(archive.read(f"{inside}metadata.json"))["run"] == report["run"]
    with zipfile.ZipFile(folder / "model.keras") as archive:
        assert json.loads(archive.read("metadata.json"))["keras_version"] == keras.__version__
    properties = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(properties["classes"]) == DIGITS
    assert json.loads(properties["metadata"])["image_size"] == 32
    assert not list(folder.parent.glob(".*")), "something unfinished lies about"


SERVE = """
import json, sys
import tensorflow as tf

serve = tf.saved_model.load(sys.argv[1] + "/1").signatures["serving_default"]
answer = serve(image_bytes=tf.constant([open(path, "rb").read() for path in sys.argv[2:]]))
names = [[name.decode() for name in row] for row in answer["classes"].numpy()]
print(json.dumps([names, answer["probabilities"].numpy().tolist(), "tlearn" in sys.modules]))
"""


@pytest.mark.slow
def test_bytes_are_served_without_tlearn(
    exported: tuple[Path, dict[str, Any], str], digits_run: Path, tmp_path: Path
) -> None:
    """As TensorFlow Serving would: photographs of other shapes than the network's, several at once."""
    paths = [str(draw_picture(tmp_path / f"{index}.png", index, (50 + index, 70 - index))) for index in range(3)]
    paths.append(str(tmp_path / "3.jpg"))
    Image.open(paths[0]).save(paths[3], quality=95)
    command = [sys.executable, "-P", "-c", SERVE, str(exported[0] / "saved_model"), *paths]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    names, probabilities, has_tlearn = json.loads(done.stdout.splitlines()[-1])
    assert not has_tlearn
    assert names == [DIGITS] * 4
    np.testing.assert_allclose(probabilities, tlearn.load(digits_run)(paths), atol=0.01)


@pytest.mark.slow
def test_gem_several_labels_and_padding(labels_run: Path, tmp_path: Path) -> None:
    """GeM cannot compute in integers: int8 says which operations stay floats."""
    report = tlearn.load(labels_run).export(tmp_path / "out", formats=["saved_model", "tflite"], quantize=["int8"])
    saved, integer = report["exports"]
    assert saved["signatures"]["images"]["max_difference"] < 1e-5
    assert saved["signatures"]["image_bytes"]["max_difference"] < 0.03
    assert "DIV" in integer["float_operations"]
    assert integer["inputs"].startswith("float32")
    assert integer["max_difference"] < 0.2
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["multi_label"] is True


@pytest.mark.slow
def test_mixed_precision_and_avg_max(tmp_path: Path) -> None:
    """Exports compute in float32 with the run's weights."""
    run = train(tmp_path / "run", "data=digits", "data.per_class=5", "precision=mixed_float16", "head.pooling=avg_max")
    (entry,) = tlearn.load(run).export(formats=["onnx"])["exports"]
    assert entry["path"] == str(run / "export" / "model.onnx")
    assert 0 < entry["max_difference"] < 0.03


@pytest.mark.slow
def test_parity_on_photographs(assets: Path, keras_home: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    """Real ImageNet weights, real photographs, every format; the SavedModel's bytes are the files themselves."""
    run = train(
        tmp_path / "run",
        "data=folder",
        f"data.path={assets / 'flowers'}",
        f"backbone.weights={assets / 'keras' / 'models' / 'mobilenet_2_5_224_tf_no_top.h5'}",
        "backbone.image_size=160",
        "head=mlp",
        "data.crop_fraction=0.9",
        "schedule.stages.0.epochs=3",
    )
    done = run_cli("export", run, "--format", "all", "--check-images", "150", "--agreement", "onnx=1").assert_ok()
    entries = {(entry["format"], entry["quantize"]): entry for entry in json.loads(done.stdout)["exports"]}
    assert {entry["images"] for entry in entries.values()} == {150}
    limits = {
        ("saved_model", None): 1e-5,
        ("keras", None): 1e-5,
        ("tflite", "float32"): 1e-4,
        ("tflite", "float16"): 0.05,
        ("onnx", None): 1e-4,
    }
    for name, limit in limits.items():
        assert entries[name]["max_difference"] < limit, name
        assert entries[name]["agreement"] >= 0.98, name
    assert entries["tflite", "int8"]["agreement"] >= 0.96, "uncorrected roundings cost 8 in 100"
    served = entries["saved_model", None]["signatures"]["image_bytes"]
    assert 0 < served["max_difference"] < 0.03
    assert served["agreement"] >= 0.98


# --- what must not appear --------------------------------------------------------------------------------------------


def test_what_parts_from_the_run_is_not_published(digits_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--format", "tflite", "--quantize", "int8", "-o", "out", "--check-images", "8"]
    assert main([str(digits_run), *arguments, "--tolerance", "tflite-int8=0"]) == 1
    out, error = capfd.readouterr()
    assert "tflite-int8: parts from the run" in error
    assert "PARTS" in error
    report = json.loads(out)
    assert report["status"] == "failed"
    assert report["exports"][0]["max_difference"] > 0
    assert not list(Path().iterdir()), "something was left"


def test_other_answers_are_noticed() -> None:
    expected = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    limit = Tolerance(0.05, 0.9)

    def holds(actual: Any, multi_label: bool = False) -> bool:
        return compare(expected, np.array(actual, np.float32), multi_label=multi_label, tolerance=limit).holds

    assert holds(expected + 0.04)
    assert not holds(expected + 0.06)
    assert not holds(expected[:, ::-1])
    assert not holds([[0.9, np.nan], [0.2, 0.8]])
    assert not holds(expected[:1])
    loose = Tolerance(1.0, 0.9)
    swapped = compare(expected, expected[:, ::-1], multi_label=False, tolerance=loose)
    assert (swapped.agreement, swapped.holds) == (0.0, False)
    assert compare(expected, expected * [1, 0.1], multi_label=True, tolerance=loose).agreement == 0.75


def test_nothing_but_an_export_is_replaced(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for text in ("first", "second"):
        with temporary_folder(output) as temporary:
            (temporary / "file").write_text(text)
            publish(temporary, output)
        assert (output / "file").read_text() == text
    with pytest.raises(ZeroDivisionError), temporary_folder(output) as temporary:
        (temporary / "file").write_text(str(1 // 0))
    assert (output / "file").read_text() == "second"
    assert os.listdir(tmp_path) == ["out"]


@pytest.fixture
def odd_head() -> Iterator[str]:
    """A head with an operation that neither LiteRT nor ONNX has."""
    import keras
    import tensorflow as tf

    from tlearn.heads import HEADS

    class Largest(keras.layers.Layer):  # type: ignore[misc]
        def call(self, features: Any) -> Any:
            return tf.linalg.svd(features, compute_uv=False)[:, :1] * tf.ones((1, tf.shape(features)[-1]))

        def compute_output_shape(self, shape: Any) -> Any:
            return shape[0], shape[3]

    def odd(features: Any, classes: int) -> Any:
        x = keras.layers.GlobalAveragePooling2D(name="head_pool", dtype="float32")(features)
        x = Largest(name="head_odd", dtype="float32")(keras.layers.Reshape((1, 1, x.shape[-1]))(x))
        x = keras.layers.Reshape((features.shape[-1],), name="head_flat", dtype="float32")(x)
        return keras.layers.Dense(classes, name="head_logits", dtype="float32")(x)

    before = dict(HEADS._added)
    HEADS._added["odd"] = odd
    yield "odd"
    HEADS._added = before


@pytest.mark.slow
def test_what_a_format_cannot_hold(odd_head: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path / "run", "data=digits", "data.per_class=5", f"head.name={odd_head}")
    capfd.readouterr()
    for name in ("tflite", "onnx"):
        assert main([str(run), "--format", name]) == 2
        error = capfd.readouterr().err
        assert f"--format {name}: the format cannot hold this network" in error
        assert "Svd" in error
        assert len(error) < 1200, error
    assert not (run / "export").exists()


def test_mistakes(
    digits_run: Path, altered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str | Path, says: tuple[str, ...]) -> None:
        assert main([str(argument) for argument in arguments]) == 2, arguments
        error = capsys.readouterr().err
        missing = [text for text in says if text not in error]
        assert not missing, error

    run = digits_run
    refused(run, "--format", "savedmodel", says=("did you mean saved_model",))
    refused(run, "--format", "tflite", "--quantize", "int4", says=("did you mean int8",))
    refused(run, "--quantize", "int8", says=("add --format tflite",))
    refused(run, "--tolerance", "onnx=0.1", says=("no such export",))
    refused(run, "--tolerance", "saved_model", says=("is not NAME=NUMBER",))
    refused(run, "--agreement", "saved_model=2", says=("must be 0 to 1",))
    refused(run, "--check-images", "0", says=("must be 1 or more",))
    refused("nowhere", says=("is not a run folder",))
    refused(run, "-o", "no/such", says=("there is no folder",))
    Path("mine").mkdir()
    (Path("mine") / "thesis.txt").touch()
    refused(run, "-o", "mine", "--force", says=("exists and is no export",))
    assert (Path("mine") / "thesis.txt").exists()
    (Path("mine") / "metadata.json").write_text('{"kind": "tlearn export"}')
    refused(run, "-o", "mine", says=("--force replaces it",))
    refused(run, "-o", "out", "--images", "nothing.jpg", says=("not one image could be read",))
    refused(altered("summary.json", None), says=("has not finished",))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("tlearn.exporting.formats.find_spec", lambda name: None)
    refused(run, "--format", "all", says=("onnx, onnxruntime, tf2onnx are not installed", "pip install 'tlearn[onnx]'"))
    assert sorted(os.listdir()) == ["altered", "mine"]


def test_data_that_are_gone(labels_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other images will do; without them, the message says how to name some."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(labels_run, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(str(labels_run.parent / "table.csv"), str(tmp_path / "gone.csv")))
    assert main([str(copy)]) == 2
    assert "--images FOLDER" in capsys.readouterr().err
    pictures = tmp_path / "pictures"
    for index in range(4):
        draw_picture(pictures / f"{index}.png", index)
    (entry,) = tlearn.load(copy).export(formats=["saved_model"], images=[str(pictures)])["exports"]
    assert entry["images"] == 4
    assert entry["max_difference"] < 1e-5
    assert entry["signatures"]["image_bytes"]["max_difference"] < 0.03
    assert (copy / "export" / "labels.txt").read_text().splitlines() == ["green", "red"]


def test_a_bare_backbone(assets: Path, keras_home: Path, tmp_path: Path) -> None:
    """ImageNet's classes, checked with photographs that are named."""
    network = tlearn.backbone("mobilenet", alpha=0.25, include_top=True)
    photos = [str(assets / "open-photos" / name) for name in photo_names(assets)[:4]]
    (entry,) = network.export(tmp_path / "out", formats=["onnx"], images=photos)["exports"]
    assert entry["max_difference"] < 1e-4
    assert "Egyptian cat" in (tmp_path / "out" / "labels.txt").read_text()
    with pytest.raises(tlearn.UserError, match="no images of its own"):
        network.export(tmp_path / "other", formats=["onnx"])
    with pytest.raises(tlearn.UserError, match="has no classifier"):
        tlearn.backbone("mobilenet", alpha=0.25).export(tmp_path / "other", formats=["onnx"], images=photos)


def photo_names(assets: Path) -> list[str]:
    with (assets / "open-photos" / "labels.tsv").open(encoding="utf-8") as file:
        return [row["file"] for row in csv.DictReader(file, delimiter="\t")]
