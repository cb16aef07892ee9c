"""Before a run goes on: what changed under it, by name; and what may change."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tlearn.data import ImageTable, Split
from tlearn.data.table import key_array
from tlearn.errors import UserError
from tlearn.train.api import fit, open_run, resume
from tlearn.train.fingerprint import compare, write_fingerprint
from tlearn.train.stopping import Stopped
from tlearn.train.unchanged import differences_of_plans, differing

Make = Callable[..., Any]


def table(names: list[str], *, sizes: dict[str, int] | None = None, **changes: Any) -> ImageTable:
    """A table of files of 100 bytes, all of one class and in one split, but for the changes."""
    stamps = np.array([[(sizes or {}).get(name, 100), 5_000_000_000] for name in names], np.int64).reshape(-1, 2)
    count = len(names)
    made = ImageTable(key_array(names), np.zeros(count, np.int32), np.zeros(count, np.int8), ("a", "b"), stamps=stamps)
    return dataclasses.replace(made, **changes)


NAMES = ["a.png", "b.png", "c.png", "d\udce9.png"]  # the last is no UTF-8


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_fingerprint(tmp_path / "files.parquet", table(NAMES))
    return tmp_path / "files.parquet"


def test_nothing_changed(written: Path) -> None:
    changes = compare(written, table(NAMES[::-1]), 4)
    assert all(rows.count == 0 for rows in vars(changes).values())


def test_one_of_many_files_changed(tmp_path: Path) -> None:
    names = [f"{index:05d}.png" for index in range(40_000)]  # are written in parts
    write_fingerprint(tmp_path / "files.parquet", table(names), np.ones((40_000, 2), np.uint64))
    changes = compare(tmp_path / "files.parquet", table(names, sizes={"39999.png": 7}), 40_000)
    assert changes.altered.lines == ["39999.png had 100 bytes, has 7"]
    assert sum(rows.count for rows in vars(changes).values()) == 1


def test_every_kind_of_change(written: Path) -> None:
    stamps = table(NAMES).stamps
    assert stamps is not None
    stamps[2, 1] += 1
    changed = table(
        ["a.png", "b.png", "c.png", "new.png"],
        stamps=np.array([[100, 5_000_000_000], [7, 0], [100, 9_000_000_000], [1, 1]]),
        labels=np.array([1, 0, 0, 0], np.int32),
        splits=np.array([0, Split.val, 0, 0], np.int8),
    )
    changes = compare(written, changed, 4)
    assert changes.gone.lines == ["d\udce9.png"]
    assert changes.added.lines == ["new.png"]
    assert changes.altered.lines == ["b.png had 100 bytes, has 7"]
    assert changes.touched.lines[0].startswith("c.png was written at ")
    assert changes.relabelled.lines == ["a.png has another label"]
    assert changes.moved.lines == ["b.png was train, is val"]


def test_bytes_decide_about_another_time(tmp_path: Path) -> None:
    stamps = table(NAMES).stamps
    assert stamps is not None
    later, known = table(NAMES, stamps=stamps + np.array([0, 1])), np.arange(1, 9, dtype=np.uint64).reshape(4, 2)
    now = known.copy()
    now[1, 1] += 1  # other bytes
    now[2] = 0  # not read now
    write_fingerprint(tmp_path / "f", table(NAMES), known)
    changes = compare(tmp_path / "f", later, 4, now)
    assert changes.touched.count == 4
    assert [line.split()[0] for line in changes.doubtful.lines] == ["b.png", "c.png"]
    assert compare(tmp_path / "f", later, 4).doubtful.count == 4, "nothing is known now"
    write_fingerprint(tmp_path / "f", table(NAMES))
    assert compare(tmp_path / "f", later, 4, known).doubtful.count == 4, "nothing was known then"
    write_fingerprint(tmp_path / "f", table(NAMES), np.zeros((4, 2), np.uint64))
    assert compare(tmp_path / "f", later, 4, np.zeros((4, 2), np.uint64)).doubtful.count == 4, "neither was"


def test_only_the_first_of_many_are_listed(tmp_path: Path) -> None:
    names = [f"{index}.png" for index in range(5000)]
    write_fingerprint(tmp_path / "f", table(names))
    changes = compare(tmp_path / "f", table(names[:10], sizes=dict.fromkeys(names, 3)), 5000)
    assert (changes.gone.count, len(changes.gone.lines)) == (4990, 20)
    assert changes.altered.count == 10


def test_several_labels_and_names_that_are_not_unique(tmp_path: Path) -> None:
    labels = np.array([[0, 1], [1, 1]], np.uint8)
    two = table(["a.png", "b.png"], labels=labels, multi_label=True)
    write_fingerprint(tmp_path / "f", two)
    assert compare(tmp_path / "f", two, 2).relabelled.count == 0
    assert compare(tmp_path / "f", dataclasses.replace(two, labels=1 - labels), 2).relabelled.count == 2
    write_fingerprint(tmp_path / "f", table(["a.png", "a.png"]))
    assert compare(tmp_path / "f", table(["a.png", "b.png"]), 2).added.lines == ["b.png"]


@pytest.mark.parametrize("damage", ["cut", "other rows", "other columns", "dictionary", "gone"])
def test_a_fingerprint_that_is_none(damage: str, written: Path) -> None:
    match damage:
        case "cut":
            written.write_bytes(written.read_bytes()[:-9])
        case "other rows":
            write_fingerprint(written, table(NAMES[:2]))
        case "other columns":
            pq.write_table(pa.table({"x": [1, 2, 3, 4]}), written, use_dictionary=False)
        case "dictionary":  # a long name, said a million times in a few bytes
            pq.write_table(pq.read_table(written), written, use_dictionary=True)
        case "gone":
            written.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        compare(written, table(NAMES), 4)


# --- plans and configs -----------------------------------------------------------------------------------------------


def test_plans_are_compared_by_what_decides() -> None:
    before = {"backbone": "x", "stages": [{"name": "a", "steps": 8, "optimizer": "sgd 1"}], "notes": ["old"]}
    now = {"backbone": "x", "stages": [{"name": "a", "steps": 9, "optimizer": "SGD"}, {"name": "b"}], "notes": []}
    differences = differences_of_plans(before, now)
    assert [where for where, *_ in differences] == ["stages.0.steps", "stages.1"]
    assert list(differing({"a": [1, 2]}, {"a": [1, 2]})) == []
    assert [where for where, *_ in differing({"a": 1}, {"a": True})] == ["a"]


def test_what_decides_nothing_may_be_edited(
    tiny_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """How often states are saved, and what is logged, yes; a learning rate, which no step count shows, no."""
    with pytest.raises(Stopped):
        fit(tiny_config("schedule.stages.0.epochs=1", "run_dir=run"), should_stop=lambda: True)
    config, plan = Path("run/config.yaml"), Path("run/plan.json")
    kept = config.read_text()
    facts = json.loads(plan.read_text())
    facts["stages"][0]["optimizer"] = "in other words"
    del facts["file_bytes"]  # which older plans do not have
    plan.write_text(json.dumps(facts))
    config.write_text(kept.replace("learning_rate: 0.001", "learning_rate: 0.5"))
    with pytest.raises(UserError, match=r"config\.optimizer\.learning_rate: was 0\.001, is 0\.5"):
        resume("run")
    edited = kept.replace("every: 50", "every: 3").replace("minutes: 5.0", "minutes: 1.0")
    assert edited != kept
    config.write_text(edited)
    assert len(resume("run").metrics) == 3


def test_files_that_come_and_go_are_named(tiny_config: Make, pictures: Path, tmp_path: Path) -> None:
    data = ("data.name=folder", f"data.path={pictures}", "data.batch_size=4", "schedule.stages.0.epochs=1")
    with pytest.raises(Stopped):
        fit(tiny_config(*data, "run_dir=run"), should_stop=lambda: True)
    gone, twin = pictures / "ant" / "0.png", pictures / "bee" / "1.png"
    content = gone.read_bytes()
    gone.rename(pictures / "ant" / "new.png")
    os.utime(twin, ns=(1, 1))
    with pytest.raises(UserError) as caught:
        resume("run")
    said = str(caught.value)
    assert "ant/0.png: gone" in said
    assert "ant/new.png: added" in said
    assert "bee/1.png" not in said
    assert "another split" not in said
    assert open_run("run").status["status"] == "stopped"
    assert content == (pictures / "ant" / "new.png").read_bytes()


def test_images_that_only_were_written_anew_are_told_and_used(
    tiny_config: Make, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a copy is, or an archive that was unpacked again."""
    data = ("data.name=folder", f"data.path={pictures}", "data.batch_size=4", "schedule.stages.0.epochs=2")
    whole = fit(tiny_config(*data, "run_dir=whole"))
    with pytest.raises(Stopped):
        fit(tiny_config(*data, "run_dir=run"), should_stop=lambda: True)
    twins = pictures / "ant" / "0.png", pictures / "bee" / "1.png"
    for path in twins:
        os.utime(path, ns=(1, 1))
    content = twins[0].read_bytes()
    twins[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # of the last checksum, which no decoder reads
    with pytest.raises(UserError, match=r"ant/0\.png was written at"):
        resume("run")
    twins[0].write_bytes(content)
    run = resume("run")
    assert run.summary["weights_sha256"] == whole.summary["weights_sha256"]
    said = " ".join(capsys.readouterr().err.split())
    assert "data: 2 images were written anew, with the same bytes: ant/0.png was written at" in said
    assert "and others" in said
