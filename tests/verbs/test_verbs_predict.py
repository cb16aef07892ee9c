"""``tlearn.predict``: right classes, three formats, and what goes wrong."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.cells import cell_len

import tlearn
from tlearn.errors import DataError, UserError
from tlearn.predict import main
from tlearn.train.run import FORMAT, Run


def accepted(text: str) -> set[int]:
    first, _, last = text.partition("-")
    return set(range(int(first), int(last) + 1)) if last else {int(part) for part in text.split(",")}


@pytest.mark.parametrize(
    ("backbone", "top1", "top5"), [(("mobilenet", "--alpha", "0.25"), 14, 16), (("mobilenet_v2",), 15, 16)]
)
def test_imagenet_networks_know_the_labelled_photographs(
    backbone: tuple[str, ...], top1: int, top5: int, assets: Path, keras_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures of the assets' README, measured there with plain Keras."""
    assert main(["--backbone", *backbone, "--format", "json", str(assets / "open-photos")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert all(entry.keys() == {"path", "top"} for entry in found)
    assert all(guess.keys() == {"index", "wordnet", "label", "probability"} for guess in found[0]["top"])
    by_name = {Path(entry["path"]).name: entry["top"] for entry in found}
    with (assets / "open-photos" / "labels.tsv").open(encoding="utf-8") as file:
        wanted = {
            row["file"]: accepted(row["accepted_imagenet_indices"]) for row in csv.DictReader(file, delimiter="\t")
        }
    assert len(wanted) == 16
    assert sum(by_name[name][0]["index"] in right for name, right in wanted.items()) == top1
    assert sum(any(guess["index"] in right for guess in by_name[name]) for name, right in wanted.items()) == top5
    best = by_name["skimage_chelsea.png"][0]
    assert (best["index"], best["wordnet"], best["label"]) == (285, "n02124075", "Egyptian cat")


def test_a_run_predicts_what_its_saved_model_does(digits_run: Path) -> None:
    """The network is built anew with the arrays of model.keras: it must be the model Keras itself loads."""
    network = tlearn.load(digits_run)
    images = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    expected = Run.open(digits_run).model().predict(images, verbose=0)
    np.testing.assert_allclose(network(images), expected, rtol=1e-5, atol=1e-6)
    assert network.classes == tuple("0123456789")
    assert network.run is not None
    for prediction, row in zip(network.predict(images, top=3), expected, strict=True):
        assert [guess.index for guess in prediction.top] == list(np.argsort(-row, kind="stable")[:3])
        assert prediction.top[0].probability == pytest.approx(row.max(), abs=1e-5)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full((32, 32, 3), 65535, np.uint16), "values from 65535 to 65535"),
        (np.full((32, 32, 3), 1e6), "values from 1e+06"),
        (np.where(np.arange(3) == 1, np.nan, np.ones((32, 32, 3))), "NaN or infinite"),
        (np.full((32, 32, 3), -np.inf), "NaN or infinite"),
        (np.full((32, 32, 3), "7"), "not numbers"),
        (7, "neither paths nor arrays"),
    ],
)
def test_arrays_of_other_values_are_refused(array: Any, says: str, digits_run: Path) -> None:
    network = tlearn.load(digits_run)
    for ask in (network.predict, network.features, network.explain):
        with pytest.raises(DataError, match=re.escape(says)):
            ask(array)


def test_what_python_may_give(digits_run: Path) -> None:
    """A Pillow image by itself; numbers of NumPy; and no traceback of ours for what makes no sense."""
    network = tlearn.load(digits_run)
    image = np.random.default_rng(1).integers(0, 256, (40, 32, 3), dtype=np.uint8)
    assert network.predict(Image.fromarray(image))[0].top == network.predict([image])[0].top
    np.testing.assert_array_equal(network.features(image, np.int64(3)), network.features(image, 3))  # type: ignore[call-overload]
    assert network.features(image, np.array([3, 4])).keys() == {"3", "4"}  # type: ignore[call-overload]
    side = network.backbone.image_size
    assert network.predict(np.full((side, side, 3), 255.0001, np.float32)), "as resizing gives it"
    wrong: list[tuple[Callable[[], Any], str]] = [
        (lambda: network.predict(image, top=-1), "top: must be 1 or more, got -1"),
        (lambda: network.predict(image, batch_size=0), "batch_size: must be 1 or more, got 0"),
        (lambda: network.features(image, batch_size=0), "batch_size: must be 1 or more, got 0"),
        (lambda: network.features(image, 3.5), "layer: is 3.5"),  # type: ignore[call-overload]
        (lambda: network.predict(image, on_error="skp"), "on_error: is 'skp'\n    did you mean skip"),
        (lambda: tlearn.backbone("mobilenet", resize="foo"), "resize: is 'foo'\n    one of: crop, pad, stretch"),
        (lambda: tlearn.backbone("mobilenet", interpolation="cubic"), "did you mean bicubic"),
        (lambda: network.export(formats="karas"), "--format karas: unknown\n    did you mean keras"),
    ]
    for ask, says in wrong:
        with pytest.raises(UserError, match=re.escape(says)):
            ask()


def test_a_run_with_several_labels(labels_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Probabilities of each label by itself, though the run saves logits; read as its config says; a GeM head."""
    network = tlearn.load(labels_run)
    assert network.multi_label
    assert network.reading.resize is tlearn.config.Resize.pad
    table = labels_run.parent / "0.png"
    logits = (
        Run.open(labels_run)
        .model()
        .predict(network.reading.square(np.asarray(Image.open(table).convert("RGB")))[None], verbose=0)
    )
    (prediction,) = network.predict(table)
    expected = 1 / (1 + np.exp(-logits[0]))
    assert {guess.label: guess.probability for guess in prediction.top} == pytest.approx(
        {"green": expected[0], "red": expected[1]}, abs=1e-5
    )
    assert main([str(labels_run), str(table), "--format", "json", "--threshold", "0.999999"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"path": str(table), "top": []}]


def test_formats_say_the_same(digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(digits_run), str(pictures), "--top", "2"]
    assert main([*arguments, "--format", "json", "--batch-size", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [entry["path"] for entry in found] == [
        str(pictures / ("ant" if index < 5 else "bee") / f"{index}.png") for index in range(10)
    ]
    assert all(list(guess) == ["index", "label", "probability"] for entry in found for guess in entry["top"])

    assert main([*arguments, "--format", "csv", "--output", "out.csv"]) == 0
    assert capsys.readouterr().out == ""
    rows = list(csv.DictReader(Path("out.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["label"] for row in rows] == [guess["label"] for entry in found for guess in entry["top"]]
    assert [row["rank"] for row in rows] == ["1", "2"] * 10

    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["probability", "class", "image"]
    assert lines[1].split() == [f"{float(rows[0]['probability']):.4f}", rows[0]["label"], rows[0]["path"]]
    assert lines[2].split() == [f"{float(rows[1]['probability']):.4f}", rows[1]["label"]]


def test_long_paths_are_shortened_where_a_terminal_shows_them(
    digits_run: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = next(path for path in sorted(pictures.rglob("*.png")))
    folder = tmp_path / ("a folder with a long name " * 4).strip()
    folder.mkdir()
    (folder / "写真.png").write_bytes(source.read_bytes())
    (folder / "1.png").write_bytes(source.read_bytes())
    paths = [str(folder / "1.png"), str(folder / "写真.png")]
    arguments = [str(digits_run), *paths, "--top", "1"]
    monkeypatch.setenv("COLUMNS", "80")
    assert main(arguments) == 0
    piped = capsys.readouterr().out
    assert all(path in piped for path in paths), "whole where no terminal is"

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(arguments) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    for row, path in zip(rows, paths, strict=True):
        kept = row.partition("...")[2]
        assert path.endswith(kept)
        assert kept.endswith(Path(path).name)
        assert 78 <= cell_len(row) <= 80, row
    for chosen in ("json", "csv"):
        assert main([*arguments, "--format", chosen]) == 0
        assert paths[0] in capsys.readouterr().out, "for programs"
    monkeypatch.setenv("COLUMNS", "20")
    assert main([*arguments[:-1], "2"]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert ["..." in row for row in rows] == [True, False, True, False], "only where there is a path"
    monkeypatch.setenv("COLUMNS", "400")
    assert main(arguments) == 0
    assert capsys.readouterr().out == piped


def test_a_table_names_the_images(digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any column of paths, below any root; it needs no labels."""
    assert main([str(digits_run), str(pictures), "--format", "json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    files = [
        f"{name}/{index}.png" for name, index in [("ant", i) for i in range(5)] + [("bee", i) for i in range(5, 10)]
    ]
    pq.write_table(pa.table({"file": files}), "table.parquet")
    (pictures / "table.csv").write_text("\n".join(["path", *files]))
    asked = ["table.parquet", "--root", str(pictures), "--image-column", "file"]
    for arguments in (asked, [str(pictures / "table.csv")]):
        assert main([str(digits_run), *arguments, "--format", "json"]) == 0
        assert json.loads(capsys.readouterr().out) == expected

    def refused(*arguments: str | Path, says: str) -> None:
        assert main([str(digits_run), *map(str, arguments)]) == 2
        assert says in capsys.readouterr().err

    refused("table.parquet", says="--image-column: table.parquet has no column 'path'")
    refused("table.parquet", pictures, says="give the table alone")
    refused("gone.csv", says="there is no file gone.csv")
    refused(pictures / "table.csv", "--root", "nowhere", says="--root: there is no folder nowhere")
    (pictures / "table.csv").write_text("path\n/etc/hostname\n")
    refused(pictures / "table.csv", says="a path outside")


def test_unreadable_images_are_listed_and_the_others_predicted(
    digits_run: Path, unreadable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(digits_run), str(unreadable), "gone.jpg", "--format", "json", "--batch-size", "2"]) == 0
    captured = capsys.readouterr()
    assert [Path(entry["path"]).name for entry in json.loads(captured.out)] == ["good.png"]
    assert "5 images could not be read" in captured.err
    for name, reason in {
        "text.jpg": "is not an image",
        "empty.png": "is empty",
        "cut.png": "damaged or truncated",
        "huge.png": "1024000000 pixels",
        "gone.jpg": "no such file",
    }.items():
        assert any(name in line and reason in line for line in captured.err.splitlines()), (name, captured.err)
    assert "--max-pixels N lets larger images in" in captured.err


def test_names_that_are_no_text(digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = os.path.join(os.fsencode(pictures), b"\xff\x1b[2J.png")
    os.link(pictures / "ant" / "0.png", odd)
    assert main([str(digits_run), str(pictures), "--format", "json"]) == 0
    assert os.fsencode(json.loads(capsys.readouterr().out)[-1]["path"]) == odd
    assert main([str(digits_run), str(pictures), "--top", "1"]) == 0
    assert "\\udcff\\x1b[2J.png" in capsys.readouterr().out
    assert main([str(digits_run), str(pictures), "--format", "csv", "-o", "out.csv"]) == 0
    assert odd in Path("out.csv").read_bytes()


def test_the_limit_of_pixels_can_be_set(
    digits_run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # Pillow refuses what is more than twice that: 48 x 40 is
    arguments = [str(digits_run), str(pictures / "ant" / "0.png")]
    assert main([*arguments, "--max-pixels", "1000"]) == 2
    assert "more than --max-pixels 1000\n    --max-pixels N lets" in capsys.readouterr().err
    assert main([*arguments, "--max-pixels", "1920"]) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ("neither a run nor --backbone",)),
        (["{run}"], ("no images are given",)),
        (["nowhere", "x.png"], ("nowhere", "is not a run folder")),
        (["{run}", "x.png"], ("x.png", "there is no such file", "not one could be read")),
        (["{run}", "{empty}"], ("is a folder without images",)),
        (["{run}", "{huge}"], ("pixels", "--max-pixels N")),
        (["{run}", "x.png", "--alpha", "0.5"], ("--alpha", "without --backbone")),
        (["{run}", "x.png", "--top", "0", "--threshold", "2"], ("--top", "--threshold")),
        (["{run}", "x.png", "--output", "{empty}"], ("is a folder",)),
        (["{run}", "{huge}", "--output", "{huge}"], ("is one of the images",)),
        (["{run}", "x.png", "--output", "no/where.csv"], ("there is no folder",)),
        (["--backbone", "mobilnet", "x.png"], ("error: --backbone: unknown", "did you mean mobilenet")),
        (["--backbone", "vgg16", "--weights", "no.h5", "x.png"], ("error: --weights: no such file",)),
        (["--backbone", "mobilenet", "--image-size", "100", "x.png"], ("wants 128, 160, 192, 224 pixels",)),
        (["--backbone", "mobilenet", "--weights", "glyphs", "--alpha", "0.25", "x.png"], ("without top",)),
        (["--backbone", "vgg16", "--crop-fraction", "0", "x.png"], ("crop_fraction",)),
    ],
)
def test_mistakes(
    arguments: list[str],
    says: tuple[str, ...],
    digits_run: Path,
    huge: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    places = {"run": digits_run, "empty": tmp_path / "empty", "huge": huge}
    assert main([argument.format(**places) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    missing = [text for text in says if text not in captured.err]
    assert not missing, captured.err
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("summary.json", None, ("has not finished", "resume=")),
        ("config.yaml", None, ("is not a run folder",)),
        ("config.yaml", b"warp: 9\nbackbone:\n  spin: 2\n", ("warp: unknown key", "backbone.spin", "use that version")),
        ("config.yaml", b"backbone:\n  name: tiny_of_a_plugin\n", ("tiny_of_a_plugin", "TLEARN_PLUGINS")),
        ("config.yaml", b"{", ("config.yaml", "cannot be read")),
        ("config.yaml", b"\xff\xfe", ("config.yaml", "cannot be read")),
        (
            "environment.json",
            {"run_format": FORMAT + 1, "packages": {"tlearn": "9.1"}},
            ("made by tlearn 9.1, which is newer", "pip install --upgrade"),
        ),
        ("manifest.json", None, ("damaged", "manifest.json")),
        ("manifest.json", b"[]", ("damaged",)),
        ("manifest.json", {"classes": []}, ("classes make no sense",)),
        ("manifest.json", {"classes": ["a", "b"]}, ("does not fit",)),
        ("model.keras", None, ("model.keras", "cannot be read as weights")),
        ("model.keras", b"PK\x03\x04 cut off", ("model.keras", "cannot be read as weights")),
    ],
)
def test_folders_that_are_no_finished_run_of_this_version(
    name: str,
    content: Any,
    says: tuple[str, ...],
    digits_run: Path,
    altered: Callable[[str, Any], Path],
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert json.loads((digits_run / "environment.json").read_text())["run_format"] == FORMAT
    assert main([str(altered(name, content)), str(pictures)]) == 2
    error = capsys.readouterr().err
    missing = [text for text in says if text not in error]
    assert not missing, error


def test_no_traceback_reaches_the_user(
    altered: Callable[[str, Any], Path], pictures: Path, run_cli: Callable[..., Any]
) -> None:
    run_cli("predict", altered("summary.json", None), pictures).assert_user_error("has not finished")


SESSION = """
import sys
import numpy as np
import tlearn

network = tlearn.load(sys.argv[1])
for layer in range(3, 12):
    network.features(np.zeros((1, 32, 32, 3), np.uint8), layer)
import tensorflow as tf
tf.get_logger().warning("seen")
"""


def test_a_session_hears_what_tensorflow_has_to_say(digits_run: Path, tmp_path: Path) -> None:
    """No complaint about asking for many layers; and its loggers, made while standard error was hidden, can write."""
    environment = os.environ | {"PYTHONPATH": str(Path(tlearn.__file__).parent.parent)}
    command = [sys.executable, "-c", SESSION, str(digits_run)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["WARNING:tensorflow:seen"]
