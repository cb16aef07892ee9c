"""Hostile tables and folders: refused with a message, or read as what they are; nothing outside the root is touched."""

from __future__ import annotations

import os
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

from tlearn.config import DataConfig, OnError
from tlearn.data import Data, check_data_config, load_data, peek_classes
from tlearn.data import tabular as tabular_module
from tlearn.errors import DataError
from tlearn.images import Columns, find_images, read_table

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with twelve pictures, 0.png to 11.png, and one above it: ../secret.png."""
    top = tmp_path / "data"
    top.mkdir()
    for index in range(12):
        Image.new("RGB", (8, 8), (index, 9, 9)).save(top / f"{index}.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    return top


ROWS = [f"{index}.png,{'ab'[index % 2]}" for index in range(12)]


def load(file: Path, **options: Any) -> Data:
    return load_data(DataConfig(name="table", path=str(file), **options), image_size=8, seed=0)


def csv(root: Path, *rows: str, header: str = "path,label") -> Path:
    (root / "t.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return root / "t.csv"


def refused(file: Path, *says: str, **options: Any) -> None:
    with pytest.raises(DataError) as caught:
        load(file, **options)
    for text in says:
        assert text in str(caught.value)
    config = DataConfig(name="table", path=str(file), **options)
    check_data_config(config), peek_classes(config)  # the glance before a run survives it as well


# --- paths -----------------------------------------------------------------------------------------------------------


def link_file(root: Path) -> str:
    (root / "link.png").symlink_to(root.parent / "secret.png")
    return "link.png"


def link_folder(root: Path) -> str:
    (root / "up").symlink_to(root.parent)
    return "up/secret.png"


OUTSIDE: dict[str, Callable[[Path], str]] = {
    "dots": lambda root: "../secret.png",
    "dots inside": lambda root: "../data/../secret.png",
    "absolute": lambda root: str(root.parent / "secret.png"),
    "double slash": lambda root: "//" + str(root.parent / "secret.png"),
    "link": link_file,
    "link of a folder": link_folder,
}


@pytest.mark.parametrize("way", OUTSIDE)
def test_a_table_names_nothing_outside_its_root_unless_allowed(way: str, root: Path) -> None:
    file = csv(root, *ROWS, f"{OUTSIDE[way](root)},a")
    refused(file, "row 13", "(1 such rows)", "data.allow_outside_root=true")
    data = load(file, allow_outside_root=True)
    assert len(data.table) == 13
    assert data.source.read(12)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("way", OUTSIDE)
def test_a_table_to_predict_names_nothing_outside_either(way: str, labels: bool, root: Path) -> None:
    file = csv(root, *ROWS, f"{OUTSIDE[way](root)},a")
    with pytest.raises(DataError, match=r"row 13") as caught:
        read_table(file, Columns(), labels=labels)
    assert "--root" in str(caught.value)
    assert "data." not in str(caught.value)


def test_links_that_stay_inside_are_fine(root: Path) -> None:
    (root / "alias.png").symlink_to("3.png")
    (root / "again").symlink_to(root)
    assert len(load(csv(root, *ROWS, "alias.png,a", "again/4.png,a")).table) == 14


@pytest.mark.parametrize("path", ["x\0.png", "\x1b[2J.png", "~/secret.png", "$HOME/x.png", "a" * 5000, "-rf", "."])
def test_paths_are_taken_as_they_are(path: str, root: Path) -> None:
    file = csv(root, *ROWS, f'"{path}",a')
    refused(file, "1 of 13 images cannot be used")
    assert len(load(file, on_error=OnError.skip).report.unreadable) == 1


def test_a_pipe_in_a_table_is_not_opened(root: Path) -> None:
    os.mkfifo(root / "pipe.png")
    refused(csv(root, *ROWS, "pipe.png,a"), "pipe.png", "1 of 13 images")


# --- files -----------------------------------------------------------------------------------------------------------


NO_UTF8 = pa.array([b"caf\xe9.png"]).view(pa.string())


def parquet(**columns: Any) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def twice(path: Path) -> None:
    column = pa.array(["0.png"])
    pq.write_table(pa.Table.from_arrays([column, column, pa.array(["a"])], names=["path", "path", "label"]), path)


def many_rows(path: Path) -> None:
    """Two hundred million rows in some kilobytes: one value, repeated."""
    schema = pa.schema([("path", pa.string()), ("label", pa.string())])
    group = pa.table({"path": pa.array(["0.png"] * 1_000_000), "label": pa.array(["a"] * 1_000_000)}, schema)
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for _ in range(3):
            writer.write_table(group)


def long_text(path: Path) -> None:
    """Ten gigabytes of text in some kilobytes: one long value, repeated."""
    value = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int32)), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"path": value, "label": value}), path, compression="zstd")


GOOD = pa.table({"path": [f"{index}.png" for index in range(12)], "label": ["a", "b"] * 6})


def broken(at: int, *, length: int = 30) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pq.write_table(GOOD, path)
        content = bytearray(path.read_bytes())
        content[at : at + length] = b"\xff" * length
        path.write_bytes(bytes(content))

    return write


TABLES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "pipe.csv": (os.mkfifo, ("is not a regular file",)),
    "pipe.parquet": (os.mkfifo, ("is not a regular file",)),
    "folder.csv": (Path.mkdir, ("is not a regular file",)),
    "device.csv": (lambda path: path.symlink_to("/dev/zero"), ("is not a regular file",)),
    "latin1.csv": (lambda path: path.write_bytes("path,label\ncaf\xe9.png,a\n".encode("latin-1")), ("cannot be read",)),
    "utf16.csv": (lambda path: path.write_bytes("path,label\n0.png,a\n".encode("utf-16")), ("utf16.csv",)),
    "binary.csv": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(9000)), ("binary.csv",)),
    "field.csv": (lambda path: path.write_text('path,label\n"' + "x" * 20_000_000 + '",a\n'), ("field.csv",)),
    "quote.csv": (lambda path: path.write_text('path,label\n"0.png,a\n' * 2), ("too few images",)),
    "ragged.csv": (lambda path: path.write_text("path,label\n0.png\n1.png,b,c\n"), ("cannot be read",)),
    "columns.csv": (lambda path: path.write_text(",".join("c" * 10_000) + "\n1\n"), ("columns.csv",)),
    "twice.csv": (lambda path: path.write_text("path,path,label\n0.png,1.png,a\n"), ("two columns called 'path'",)),
    "twice.parquet": (twice, ("two columns called 'path'",)),
    "lists.parquet": (parquet(path=[["0.png"]], label=["a"]), ("cannot be read",)),
    "bytes.parquet": (parquet(path=[b"caf\xe9.png"], label=["a"]), ("cannot be read",)),
    "latin.parquet": (parquet(path=NO_UTF8, label=["a"]), ("cannot be read", "UTF8")),
    "numbers.parquet": (parquet(path=[1.5], label=[2]), ("too few images",)),
    "nothing.parquet": (lambda path: path.write_bytes(b""), ("cannot be read",)),
    "ends.parquet": (lambda path: path.write_bytes(b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1"), ("cannot be read",)),
    "head.parquet": (broken(4), ("head.parquet",)),
    "foot.parquet": (broken(-60), ("foot.parquet",)),
    "length.parquet": (broken(-8, length=4), ("length.parquet",)),
    "rows.parquet": (many_rows, ("has 3,000,000 rows, more than 1,000,000",)),
    "text.parquet": (long_text, ("10,000,000,000 bytes of text",)),
    "html.parquet": (lambda path: path.write_text("<html>"), ("cannot be read",)),
    "zip.csv.gz": (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(100)), ("is no table",)),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_refused_with_a_reason(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tabular_module, "_MOST_ROWS", 1_000_000)  # writing a larger one would take the test's minute
    make, says = TABLES[name]
    make(root / name)
    with pytest.raises(DataError) as caught:
        load(root / name)
    assert any(text in str(caught.value) for text in says), str(caught.value)
    config = DataConfig(name="table", path=str(root / name))
    check_data_config(config), peek_classes(config)  # the glance before a run survives it as well


def test_cells_are_text_and_nothing_else(root: Path) -> None:
    """A formula is a class called like one; nothing here computes it."""
    formula = '=HYPERLINK(""http://x"";1)'
    rows = [f'{index}.png,"{formula if index % 2 else "@SUM(1)"}"' for index in range(12)]
    assert load(csv(root, *rows)).classes == ('=HYPERLINK("http://x";1)', "@SUM(1)")


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Two class folders of five pictures each."""
    top = tmp_path / "photos"
    for index in range(10):
        path = top / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 9, 9)).save(path)
    return top


def listed(folder: Path, **options: Any) -> Data:
    return load_data(DataConfig(name="folder", path=str(folder), **options), image_size=8, seed=0)


def test_other_formats_are_counted_and_named(classes: Path) -> None:
    for name in ("1.heic", "2.heic", "3.TIFF", "4.avif", "notes.txt", "README"):
        (classes / "a" / name).write_bytes(b"x")
    (note,) = listed(classes).warnings()
    assert note.startswith("files passed over: 6 (2 .heic, 1 ")
    assert all(kind in note for kind in (".tiff", ".avif", ".txt", "no extension", "images are .bmp"))


def test_links_out_of_the_folder_are_followed_and_told(classes: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "elsewhere.png")
    (classes / "a" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    data = listed(classes)
    assert len(data.table) == 11
    assert data.warnings() == [f"links to images outside {classes}: 1"]


def test_a_folder_named_like_an_image_holds_images_as_any_other(classes: Path) -> None:
    (classes / "a" / "x.jpg").mkdir()
    Image.new("RGB", (8, 8), "red").save(classes / "a" / "x.jpg" / "1.png")
    assert len(listed(classes).table) == 11


def test_links_cannot_multiply_folders(classes: Path) -> None:
    """Thirty folders, each with two links to the next: a billion ways to the last."""
    top = classes / "a" / "maze"
    for level in range(30):
        (top / str(level)).mkdir(parents=True)
        for way in "lr":
            (top / str(level) / way).symlink_to(top / str(level + 1))
    Image.new("RGB", (8, 8), "red").save(top / "29" / "end.png")
    assert len(listed(classes).table) == 11
    assert len(find_images([classes])) == 11


def test_links_in_circles_end(classes: Path) -> None:
    (classes / "a" / "b").symlink_to(classes / "b")
    (classes / "b" / "a").symlink_to(classes / "a")
    (classes / "self").symlink_to("self")
    assert listed(classes).classes == ("a", "b")


def test_folders_without_bottom(classes: Path) -> None:
    here, fd = os.open(classes / "a", os.O_RDONLY), -1
    for _ in range(1100):  # below the longest path that the system takes at once
        os.mkdir("d", dir_fd=here)
        fd = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = fd
    os.close(here)
    with pytest.raises(DataError, match="folders deep"):
        listed(classes)
    assert len(find_images([classes])) == 11
    subprocess.run(["rm", "-rf", classes / "a"], check=True)


def test_class_folders_with_names_that_are_no_text(classes: Path) -> None:
    os.rename(classes / "a", os.fsencode(classes) + b"/\x1b[31m\xe9\n")
    data = listed(classes)
    assert len(data.classes) == 2
    assert "\x1b" not in "\n".join(data.warnings())


# --- size ------------------------------------------------------------------------------------------------------------

_MANY = """
import re, sys, time
from pathlib import Path
from tlearn.config import DataConfig
from tlearn.data import load
start = time.monotonic()
config = DataConfig(name="table", path=sys.argv[1], check="none")
load.index_data(config, image_size=8, seed=0)
peak = re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]  # not the parent's
print(int(peak) * 1024, time.monotonic() - start)
"""


@pytest.mark.slow
def test_ten_million_rows_take_little_memory(root: Path) -> None:
    with (root / "many.csv").open("w") as file:
        file.write("path,label\n")
        for start in range(0, 10_000_000, 100_000):
            file.write("".join(f"images/{row:08}.jpg,{row % 1000}\n" for row in range(start, start + 100_000)))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _MANY, str(root / "many.csv")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=True)
    peak, seconds = map(float, done.stdout.split())
    print(f"{peak / 1e9:.2f} GB, {seconds:.0f} s")
    assert peak < 4e9
