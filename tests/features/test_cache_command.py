"""``python -m tlearn.cache``: what is there, whether it is sound, and away with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlearn.cache import main
from tlearn.train.feature_arrays import Layout
from tlearn.train.feature_cache import FeatureCache

KEYS = [f"{index:02x}" * 16 for index in (0xA1, 0xB2, 0xC3)]
LAYOUT = Layout(1234, ((7, 7, 3),), "float32")


@pytest.fixture
def filled(tmp_path: Path) -> FeatureCache:
    """Three entries, used now, two hours and ten days ago."""
    cache = FeatureCache(tmp_path / "cache" / "tlearn" / "features")  # see conftest.py
    for key, age in zip(KEYS, (0, 7200, 864_000), strict=True):
        about = "inception_resnet_v2 299 px, folder train: block8_10_mixed 8x8x1536, activation_161 8x8x192"
        with cache.writing(key, LAYOUT, about, where="/photos/of mine" if age else "") as writer:
            assert writer is not None
            writer.append([np.zeros((1234, 7, 7, 3), np.float32)])
        when = time.time() - age
        os.utime(cache.folder / key / "meta.json", (when, when))
    return cache


def test_list(filled: FeatureCache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["list"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in table), "fits a terminal"
    assert table[0].split() == ["key", "features", "images", "size", "used"]
    rows = [line for line in table[1:] if line[:8] in [key[:8] for key in KEYS]]
    ages = ("just now", "2 hours ago", "10 days ago")
    assert all(row.rstrip().endswith(age) for row, age in zip(rows, ages, strict=True))
    assert all("1,234" in row and "725.6 kB" in row for row in rows)
    assert sum("/photos/of mine" in line for line in table) == 2, "where that is known"
    assert last == f"{filled.folder}: 3 entries, 2.2 MB"


def test_list_as_data(filled: FeatureCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["folder"] == str(filled.folder)
    assert [entry["key"] for entry in listed["entries"]] == KEYS
    assert listed["entries"][0]["bytes"] == LAYOUT.bytes
    assert [entry["where"] for entry in listed["entries"]] == ["", *["/photos/of mine"] * 2]


def test_an_empty_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("list", "verify", "clear"):
        assert main([command]) == 0
        assert "0 entries" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists(), "looking makes nothing"


def test_verify(filled: FeatureCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--dir", str(filled.folder)]) == 0
    assert capsys.readouterr().out == f"{filled.folder}: 3 entries, 0 damaged\n"
    with (filled.folder / KEYS[1] / "0.bin").open("r+b") as file:
        file.seek(1000)
        file.write(b"\1")
    assert main(["verify", "--json"]) == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out)["damaged"] == [KEYS[1]]
    (listed,) = (line for line in shown.err.splitlines() if line.startswith("damaged: "))
    assert listed.startswith(f"damaged: {KEYS[1][:8]} inception_resnet_v2 299 px, folder train"), "as list names it"
    assert "    0.bin has another checksum than when it was written; the next run" in shown.err
    (filled.folder / KEYS[2] / "0.bin").unlink()
    assert main(["verify"]) == 2
    shown = capsys.readouterr()
    assert shown.out == f"{filled.folder}: 3 entries, 2 damaged\n"
    assert f"damaged: {KEYS[2][:8]} " in shown.err
    assert "    0.bin: No such file or directory; the next run" in shown.err
    assert filled.has(KEYS[1]), "it is only looked at"


@pytest.mark.parametrize("left", [b'{"x": broken', b"\xff\xfe", b"{}", None])
def test_features_that_nothing_describes(
    filled: FeatureCache, capsys: pytest.CaptureFixture[str], left: bytes | None
) -> None:
    meta = filled.folder / KEYS[1] / "meta.json"
    meta.unlink()
    if left is not None:
        meta.write_bytes(left)
    assert main(["verify"]) == 2
    shown = capsys.readouterr()
    assert shown.out == f"{filled.folder}: 3 entries, 1 damaged\n"
    assert f"damaged: {KEYS[1][:8]} \n    meta.json does not describe it" in shown.err
    assert main(["list"]) == 0
    assert "2 entries, 1.5 MB; 725.6 kB are being written, or are left unfinished or damaged" in capsys.readouterr().out
    assert filled.unfinished_bytes() == LAYOUT.bytes, "they count for cache.max_gb"
    assert main(["clear", "--older-than", "1000"]) == 0
    assert "0 entries deleted, 0 bytes; also 1 unfinished or damaged one" in capsys.readouterr().out
    assert sorted(os.listdir(filled.folder)) == sorted([KEYS[0], KEYS[2]])


def test_clear(filled: FeatureCache, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clear", "--older-than", "1"]) == 0
    assert capsys.readouterr().out == f"{filled.folder}: 1 entry deleted, 725.6 kB\n"
    features = filled.open(KEYS[0], LAYOUT)
    assert features is not None
    assert main(["clear"]) == 0
    shown = capsys.readouterr()
    assert "1 entry deleted" in shown.out
    assert f"kept: {KEYS[0][:8]} inception_resnet_v2" in shown.err
    assert "    it is in use" in shown.err
    features.close()
    assert main(["clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["deleted"] == [KEYS[0]]
    assert os.listdir(filled.folder) == []


def test_clear_takes_what_killed_runs_left(filled: FeatureCache, capsys: pytest.CaptureFixture[str]) -> None:
    partial = filled.folder / f"{'d' * 32}.partial"
    partial.mkdir()
    (partial / "lock").touch()
    (partial / "0.bin").write_bytes(b"half")
    assert main(["list"]) == 0
    listed = capsys.readouterr().out.splitlines()[-1]
    assert listed.endswith("3 entries, 2.2 MB; 4 bytes are being written, or are left unfinished or damaged")
    assert main(["clear"]) == 0
    assert capsys.readouterr().out.endswith("3 entries deleted, 2.2 MB; also 1 unfinished or damaged one\n")
    assert os.listdir(filled.folder) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["list", "--dir", "nowhere"], "there is no folder"),
        (["clear", "--older-than", "soon"], "must be a number of days, 0 or more, got 'soon'"),
        (["clear", "--older-than", "-1"], "0 or more"),
        (["clear", "--older-than", "nan"], "0 or more"),
        (["burn"], "burn"),
        ([], "COMMAND"),
    ],
)
def test_wrong_arguments(run_cli: Callable[..., Any], arguments: list[str], says: str) -> None:
    run_cli("cache", *arguments).assert_user_error(says)


def test_it_is_a_verb_and_needs_no_tensorflow() -> None:
    code = "import sys; sys.argv = ['tlearn', 'cache', 'list']; from tlearn.cli import main; assert main() == 0; "
    code += "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_clock_that_was_set_back(filled: FeatureCache, capsys: pytest.CaptureFixture[str]) -> None:
    """What was used in ten years is in order: listed, taken for new, and cleared with all others."""
    later = time.time() + 315_576_000
    os.utime(filled.folder / KEYS[0] / "meta.json", (later, later))
    assert main(["list"]) == 0
    assert "just now" in capsys.readouterr().out
    assert main(["clear", "--older-than", "1"]) == 0
    assert filled.has(KEYS[0])
    assert main(["clear"]) == 0
    assert filled.entries() == []
