"""The same config gives the same run: whatever the number of workers, and when it is repeated from its folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import tlearn
from tlearn.reproduce import main
from tlearn.train.api import fit
from tlearn.train.run import Run

Make = Callable[..., Any]


def test_the_number_of_workers_changes_nothing(tiny_config: Make, pictures: Path) -> None:
    """Decoding and augmentation in parallel, in whatever order the threads come to it."""
    config = ("data.name=folder", f"data.path={pictures}", "data.batch_size=4", "augment=heavy", "augment.mixup=0.2")
    stages = "schedule.stages=[{name: all, unfreeze: all, epochs: 1, batch_norm: train}]"
    found = {
        fit(tiny_config(*config, stages, f"data.workers={workers}")).summary["weights_sha256"]
        for workers in (1, 5, "null")
    }
    assert len(found) == 1


@pytest.fixture(scope="module")
def first(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run on files, with features, dropout and an average."""
    where = tmp_path_factory.mktemp("first")
    for index in range(24):
        path = where / "pictures" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 10 + 7 * index).convert("RGB").save(path)
    options = ("head=mlp", "head.units=[4]", "head.dropout=0.2", "optimizer.ema=0.9", "schedule.stages.0.epochs=2")
    data = ("data.name=folder", f"data.path={where / 'pictures'}", "data.batch_size=4", "log.every=2")
    return fit(tiny_config(*data, *options, f"run_dir={where / 'run'}"))


@pytest.fixture
def copy(first: Run, tmp_path: Path) -> Run:
    shutil.copytree(first.path, tmp_path / "run")
    return Run(tmp_path / "run")


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_run_is_repeated_to_the_bit(copy: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Also with other versions on record, which are named, and with files that only were written anew."""
    rewrite(copy.environment_file, lambda facts: facts["packages"].update(numpy="1.0"))
    file = next(Path(copy.config.data.path or "").rglob("*.png"))
    before = file.stat()
    os.utime(file)
    try:
        assert main([str(copy.path)]) == 0
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    out, err = capsys.readouterr()
    last = json.loads(out.splitlines()[-1])
    assert last["equal"]
    assert last["records"] == len(copy.metrics) > 4
    assert last["environment"] == ["packages.numpy"]
    assert last["inputs"][0].startswith("written anew: ")
    assert "packages.numpy" in err
    again = Run(tmp_path / "run-repeated")
    assert last["repeated"] == str(again.path)
    assert again.summary["weights_sha256"] == copy.summary["weights_sha256"]
    assert not (again.path / "features").exists()
    assert "features of" in again.log_file.read_text(), "they came from the cache: nothing was repeated"


def test_what_differs_is_named(copy: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines = copy.metrics_file.read_text().splitlines(keepends=True)
    record = json.loads(lines[2])
    lines[2] = json.dumps(record | {"loss": record["loss"] + 0.25}) + "\n"
    copy.metrics_file.write_text("".join(lines))
    rewrite(copy.summary_file, lambda facts: facts.update(weights_sha256="0" * 64))
    assert main([str(copy.path), "--run-dir", str(tmp_path / "again")]) == 1
    out, err = capsys.readouterr()
    last = json.loads(out.splitlines()[-1])
    assert not last["equal"]
    assert last["differences"] == 2
    assert f"{record['event']} {record['global_step']} ({record['stage']}).loss" in err
    assert "0.25" in err
    assert "weights_sha256" in err


def test_other_images_are_not_trained_on(copy: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = Path(copy.config.data.path or "")
    file = folder / "a" / "0.png"
    file.rename(folder / "a" / "other.png")
    try:
        assert main([str(copy.path)]) == 1
    finally:
        (folder / "a" / "other.png").rename(file)
    out, err = capsys.readouterr()
    last = json.loads(out.splitlines()[-1])
    assert last["inputs"] == ["gone: a/0.png", "added: a/other.png"]
    assert last["repeated"] is None
    assert "not repeated" in err
    assert not (tmp_path / "run-repeated").exists()


def test_other_weights_are_named(copy: Run) -> None:
    rewrite(copy.environment_file, lambda facts: facts.update(weights={"sha256": "1" * 64}))
    found = tlearn.reproduce(copy.path)
    assert [where for where, *_ in found.inputs] == ["weights"]
    assert not found.equal


@pytest.mark.parametrize("case", ["unfinished", "pruned", "exists", "none"])
def test_what_cannot_be_repeated(case: str, copy: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments, says = [str(copy.path)], "has not ended"
    match case:
        case "unfinished":
            copy.summary_file.unlink()
        case "pruned":
            rewrite(copy.summary_file, lambda facts: (facts.pop("weights_sha256"), facts.update(status="pruned")))
            says = "was pruned: it has no final weights to compare"
        case "exists":
            arguments, says = [*arguments, "--run-dir", str(tmp_path)], f"{tmp_path} exists"
        case "none":
            arguments, says = [str(tmp_path / "nothing")], "is not a run folder"
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
