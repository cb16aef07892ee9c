"""``tlearn.extract``: right numbers in every format, layers by any name, and nothing lost when it is killed."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

import tlearn
from tlearn.extract import extract_features, main
from tlearn.feature_file import Partial
from tlearn.images import find_images

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_format_holds_the_features_with_paths_and_labels(network: tlearn.Network, pictures: Path) -> None:
    images = find_images([pictures])
    expected = network.features(pictures, ["pooled", "conv_pw_1"], batch_size=3)
    paths = [str(pictures / ("ant" if index < 5 else "bee") / f"{index}.png") for index in range(10)]

    def extract(output: str, layers: tuple[str, ...]) -> None:
        said = extract_features(network, images, output, layers=layers, batch_size=4, progress=False)
        assert said["images"] == 10
        assert said["layers"] == {name: list(expected[name].shape[1:]) for name in layers}

    both = ("pooled", "conv_pw_1")
    extract("f.npz", both)
    with np.load("f.npz", allow_pickle=False) as file:
        assert sorted(file.files) == ["classes", "conv_pw_1", "labels", "paths", "pooled"]
        for name in both:
            np.testing.assert_allclose(file[name], expected[name], rtol=1e-5, atol=1e-6)
        assert file["paths"].tolist() == paths
        assert file["labels"].tolist() == [0] * 5 + [1] * 5
        assert file["classes"].tolist() == ["ant", "bee"]

    extract("f.npy", ("conv_pw_1",))
    np.testing.assert_allclose(np.load("f.npy"), expected["conv_pw_1"], rtol=1e-5, atol=1e-6)
    rows = list(csv.DictReader(Path("f.paths.csv").read_text(encoding="utf-8").splitlines()))
    assert [(row["path"], row["label"]) for row in rows] == list(zip(paths, ["ant"] * 5 + ["bee"] * 5, strict=True))

    extract("f.parquet", both)
    table = pq.read_table("f.parquet")
    assert table["path"].to_pylist() == paths
    assert table["label"].to_pylist() == ["ant"] * 5 + ["bee"] * 5
    maps = np.array(table["conv_pw_1"].to_pylist(), np.float32)
    shape = json.loads(table.schema.field("conv_pw_1").metadata[b"shape"])
    np.testing.assert_allclose(maps.reshape(10, *shape), expected["conv_pw_1"], rtol=1e-5, atol=1e-6)
    assert json.loads(table.schema.metadata[b"tlearn"])["run"] == str(network.run.path)  # type: ignore[union-attr]

    extract("f.h5", both)
    with h5py.File("f.h5") as file:
        np.testing.assert_allclose(file["pooled"][()], expected["pooled"], rtol=1e-5, atol=1e-6)
        assert file["paths"].asstr()[()].tolist() == paths
        assert file["labels"][()].tolist() == [0] * 5 + [1] * 5
        assert file["classes"].asstr()[()].tolist() == ["ant", "bee"]
    assert not list(Path().glob("*.partial"))
    assert not list(Path().glob(".*"))


@pytest.mark.parametrize("format", ["npz", "npy", "parquet", "h5"])
def test_class_folders_need_not_be_utf8(format: str, network: tlearn.Network, pictures: Path) -> None:
    odd = os.fsdecode(b"\xff-class")
    try:
        (pictures / "ant").rename(pictures / odd)
    except OSError:
        pytest.skip("this file system takes no such names")
    extract_features(network, find_images([pictures]), f"f.{format}", batch_size=8, progress=False)
    name = r"\xff-class" if format in ("parquet", "h5") else odd
    expected = ["bee"] * 5 + [name] * 5
    if format == "npz":
        with np.load("f.npz") as file:
            assert file["classes"][file["labels"]].tolist() == expected
    elif format == "npy":
        with open("f.paths.csv", encoding="utf-8", errors="surrogateescape") as text:
            assert [row["label"] for row in csv.DictReader(text)] == expected
    elif format == "parquet":
        table = pq.read_table("f.parquet")
        assert table["label"].to_pylist() == expected
        assert json.loads(table.schema.metadata[b"tlearn"])["classes"] == ["bee", name]
    else:
        with h5py.File("f.h5") as file:
            assert file["classes"].asstr()[()][file["labels"][()]].tolist() == expected


def test_a_table_with_several_labels_in_half_precision(labels_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = labels_run.parent / "table.csv"
    arguments = [str(labels_run), str(table), "--label-separator", "|", "--dtype", "float16", "-o", "f.npz"]
    assert main(arguments) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["unreadable"], said["layers"]) == (12, 0, {"pooled": [256]})
    with np.load("f.npz") as file:
        assert file["pooled"].dtype == np.float16
        assert file["classes"].tolist() == ["green", "red"]
        assert file["labels"].tolist() == [[1, 1], [1, 0], [0, 0]] * 4


def test_a_split_of_a_run_comes_from_the_cache_of_its_training(
    digits_run: Path, capsys: pytest.CaptureFixture[str], altered: Callable[..., Path]
) -> None:
    assert main([str(digits_run), "--split", "train", "-o", "out.npz"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["cached"]) == (200, True)
    config = (digits_run / "config.yaml").read_text(encoding="utf-8")
    elsewhere = altered("config.yaml", re.sub("  dir: .*", "  dir: nowhere", config).encode())
    assert main([str(elsewhere), "--split", "train", "-o", "computed.npz"]) == 0
    assert not json.loads(capsys.readouterr().out)["cached"]
    with np.load("out.npz") as kept, np.load("computed.npz") as computed:
        assert kept["labels"].tolist() == computed["labels"].tolist()
        assert kept["paths"].tolist() == computed["paths"].tolist()
        np.testing.assert_allclose(kept["pooled"], computed["pooled"], rtol=1e-4, atol=1e-5)
    assert main([str(digits_run), "--split", "train", "x.png", "-o", "more.npz"]) == 2
    assert "x.png is given" in capsys.readouterr().err


def test_a_table_without_labels(digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pictures / "table.csv").write_text("path\nant/0.png\nbee/5.png\n")
    assert main([str(digits_run), str(pictures / "table.csv"), "-o", "out.npz"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2
    assert main([str(digits_run), str(pictures / "table.csv"), "-o", "more.npz", "--label-column", "kind"]) == 2
    assert "--label-column" in capsys.readouterr().err


def test_labels_of_a_table_are_those_of_the_run(labels_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(labels_run), str(labels_run.parent / "table.csv"), "-o", "f.npz"]) == 0
    with np.load("f.npz") as file:
        assert file["classes"].tolist() == ["green", "red"]
        assert file["labels"].tolist() == [[1, 1], [1, 0], [0, 0]] * 4
    assert "note" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["ant", "", ""], "column 'label', row 2: an empty label (2 such rows)"),
        ([str(row) for row in range(100)], "all 100 labels are different"),
    ],
)
def test_bad_labels_that_nobody_asked_for_are_left_out(
    labels: list[str], says: str, digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"ant/{index % 5}.png,{label}" for index, label in enumerate(labels)]
    (pictures / "table.csv").write_text("\n".join(["path,label", *rows]))
    arguments = [str(digits_run), str(pictures / "table.csv"), "-o", "f.npz"]
    assert main([*arguments, "--label-column", "label"]) == 2
    assert says in capsys.readouterr().err
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == len(rows)
    assert "note: no labels are written: " in captured.err
    assert says in captured.err
    with np.load("f.npz") as file:
        assert file["classes"].tolist() == []
    (pictures / "table.csv").write_text("path,label\n,ant\n")
    assert main([*arguments, "--overwrite"]) == 2
    assert "an empty path" in capsys.readouterr().err


@pytest.mark.parametrize("images", ["--split=train", "{pictures}"])
def test_columns_are_for_tables(
    images: str, digits_run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(digits_run), images.format(pictures=pictures), "--root", "/nope", "--label-column", "zzz"]
    assert main([*arguments, "-o", "f.npz"]) == 2
    assert "--root, --label-column: said of a table of images, and no table is given" in capsys.readouterr().err


def test_unreadable_images_are_left_out(digits_run: Path, unreadable: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(digits_run), str(unreadable), "-o", "f.npz", "--batch-size", "2"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["unreadable"] == 4
    assert "text.jpg: is not an image" in captured.err
    with np.load("f.npz") as file:
        assert file["paths"].tolist() == [str(unreadable / "good.png")]
        assert file["labels"].tolist() == [-1]
        assert len(file["pooled"]) == 1


def test_layers_by_name_block_and_index(network: tlearn.Network) -> None:
    """A name goes before the block of the same name, as in Keras; ``block:`` asks for the block."""
    image = np.random.default_rng(2).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    found = network.features(image, ["conv1", "block:conv1", "3", 3, "conv1_relu", "block_13", "head_logits"])
    assert found["conv1"].min() < 0, "the convolution itself"
    for name in ("block:conv1", "3", "conv1_relu"):
        np.testing.assert_array_equal(found[name], network.features(image, 3))
    np.testing.assert_array_equal(found["block_13"].mean((1, 2)), network.features(image, "block_13", pooling="avg"))
    np.testing.assert_allclose(network.features(image), found["block_13"].mean((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(network.features(image, "block_13", pooling="max"), found["block_13"].max((1, 2)))
    exponents = np.exp(found["head_logits"])
    np.testing.assert_allclose(network(image), exponents / exponents.sum(), rtol=1e-5)


# --- stopped and gone on with ----------------------------------------------------------------------------------------


DIES = """
import os, signal, sys
from tlearn.extract import main
from tlearn.feature_file import Partial

append = Partial.append


def and_die(self, stop, *args, **keywords):
    append(self, stop, *args, **keywords)
    if stop == 12:
        os.kill(os.getpid(), signal.SIGKILL)


Partial.append = and_die
main(sys.argv[1:])
"""


def test_a_killed_extraction_goes_on_where_it_was(
    digits_run: Path, tmp_path: Path, draw: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(60):
        draw(tmp_path / "many" / f"{index:04}.png", index)
    (tmp_path / "many" / "0003.png").write_text("not an image")
    arguments = [str(digits_run), "many", "-o", "f.npz", "--batch-size", "4", "--layer", "pooled", "--layer", "conv1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", DIES, *arguments], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not Path("f.npz").exists()
    with Path("f.npz.partial/0.bin").open("ab") as file:
        file.write(b"half a batch")

    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["resumed"] >= 12
    assert "going on after" in captured.err
    assert "0003.png: is not an image" in captured.err, "found before it was killed, listed all the same"
    arguments[3] = "whole.npz"
    assert main(arguments) == 0
    with np.load("f.npz") as gone_on, np.load("whole.npz") as whole:
        assert len(whole["paths"]) == 59
        for name in whole.files:
            np.testing.assert_array_equal(gone_on[name], whole[name])
    assert not Path("f.npz.partial").exists()


SHAPES = {"a": (2,), "b": (3, 1)}


def gather(stops: list[int], discard: bool = False, signature: int = 1) -> Partial:
    """Batches up to these stops, of two images each; the numbers tell which image they are of."""
    partial = Partial(Path("out.npz"), SHAPES, "float32", {"layers": signature})
    with partial.opened(discard=discard):
        for stop in stops:
            rows = np.arange(stop - 2, stop)
            features = {name: np.broadcast_to(rows.reshape(-1, *[1] * len(s)), (2, *s)) for name, s in SHAPES.items()}
            partial.append(stop, rows, features, [("x", "bad")] if stop == 2 else [])
    return partial


def test_whatever_was_half_written_is_cut_off() -> None:
    gather([2, 4, 6])
    folder = Path("out.npz.partial")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def left(name: str, content: bytes) -> tuple[int, int, list[Any]]:
        for known, before in whole.items():
            (folder / known).write_bytes(before)
        (folder / name).write_bytes(content)
        partial = gather([])
        assert [chunk.tolist() for chunk in partial.rows()] == ([list(range(partial.count))] if partial.count else [])
        for layer, shape in SHAPES.items():
            for chunk in partial.chunks(layer):
                assert chunk.shape == (partial.count, *shape)
                assert (chunk.reshape(partial.count, -1) == np.arange(partial.count)[:, None]).all()
        return partial.stop, partial.count, partial.unreadable

    bad = [("x", "bad")]
    assert left("1.bin", whole["1.bin"]) == (6, 6, bad)
    assert left("1.bin", whole["1.bin"] + b"more") == (6, 6, bad)
    assert left("1.bin", whole["1.bin"][:-1]) == (4, 4, bad)
    assert left("0.bin", whole["0.bin"][:20] + b"\xff" + whole["0.bin"][21:]) == (2, 2, bad)
    assert left("rows.bin", b"") == (0, 0, [])
    journal = whole["journal.jsonl"]
    assert left("journal.jsonl", journal[:-1]) == (4, 4, bad)
    assert left("journal.jsonl", b"\0" * 50 + journal) == (0, 0, [])
    assert left("journal.jsonl", journal.replace(b'"stop": 4', b'"stop": "')) == (2, 2, bad)
    assert gather([2, 4]).count == 4 if left("journal.jsonl", b"")[0] == 0 else False


def test_features_of_another_extraction_are_not_gone_on_with() -> None:
    gather([2])
    with pytest.raises(tlearn.UserError, match="layers differ"):
        gather([], signature=2)
    assert gather([], signature=1, discard=True).stop == 2, "it is the same extraction: nothing to discard"
    assert gather([], signature=2, discard=True).stop == 0
    Path("out.npz.partial/signature.json").write_text("{")
    with pytest.raises(tlearn.UserError, match="another extraction"):
        gather([], signature=2)


def test_two_processes_do_not_write_one_output() -> None:
    with (
        Partial(Path("out.npz"), SHAPES, "float32", {}).opened(discard=False),
        pytest.raises(tlearn.UserError, match="another process"),
        Partial(Path("out.npz"), SHAPES, "float32", {}).opened(discard=False),
    ):
        pass


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_mistakes(
    digits_run: Path, labels_run: Path, pictures: Path, unreadable: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str | Path, says: tuple[str, ...]) -> None:
        assert main([str(argument) for argument in arguments]) == 2, arguments
        error = capsys.readouterr().err
        missing = [text for text in says if text not in error]
        assert not missing, error

    run = digits_run
    refused(run, pictures, "-o", "f.txt", says=(".txt", ".npz"))
    refused(run, pictures, "-o", "f.npy", "--layer", "3", "--layer", "4", says=("one array", ".npz"))
    refused(run, pictures, "-o", "no/f.npz", says=("there is no folder",))
    refused(run, pictures, "-o", "f.npz", "--batch-size", "0", says=("--batch-size",))
    refused(
        *(run, pictures, "-o", "f.npz", "--layer", "conv_pw_13_rel", "--layer", "999", "--layer", "blok_13"),
        says=("did you mean conv_pw_13_relu", "layers 0 to 85, got 999", "block_13", "tlearn.backbones mobilenet"),
    )
    refused(run, unreadable / "text.jpg", "-o", "f.npz", says=("is not an image", "not one could be read"))
    refused(run, unreadable / "huge.png", "-o", "f.npz", says=("--max-pixels N lets larger images in",))
    refused(run, pictures, labels_run.parent / "table.csv", "-o", "f.npz", says=("table alone",))
    refused(run, labels_run.parent / "table.csv", "--label-column", "kind", "-o", "f.npz", says=("no column 'kind'",))
    refused(run, pictures, "-o", "f.npz", "--include-top", says=("--include-top",))
    assert not list(Path().glob("f.*")), "a refusal left something behind"

    Path("f.paths.csv").write_text("mine")
    refused(run, pictures, "-o", "f.npy", says=("f.paths.csv exists", "--overwrite"))
    Path("f.npz").write_text("mine")
    refused(run, pictures, "-o", "f.npz", says=("f.npz exists", "--overwrite"))
    assert Path("f.npz").read_text() == "mine"
    assert main([str(run), str(pictures), "-o", "f.npz", "--overwrite"]) == 0
    with np.load("f.npz") as file:
        assert file["pooled"].shape == (10, 256)


def test_a_number_too_large_for_half_precision() -> None:
    partial = Partial(Path("out.npz"), {"a": (1,)}, "float16", {})
    with partial.opened(discard=False), pytest.raises(tlearn.UserError, match="use float32"):
        partial.append(1, np.array([0]), {"a": np.array([[1e6]], np.float32)}, [])
