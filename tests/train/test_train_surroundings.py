"""What goes on around a run: clocks that jump, others at work on the same folder, images that go away."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tlearn
from tests.train.test_train_faults import STAGES, same
from tlearn.backbones import build_backbone, save_weights_npz
from tlearn.data import UnreadableImage, named_rows
from tlearn.data.folder import index_folder
from tlearn.errors import UserError
from tlearn.labelled import run_data
from tlearn.train.api import fit, open_run, resume
from tlearn.train.command import main
from tlearn.train.run import Run
from tlearn.train.trainer import Stopped

Make = Callable[..., Any]
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def whole(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(tiny_config(*STAGES, f"run_dir={tmp_path_factory.mktemp('whole') / 'run'}"))


@pytest.fixture
def stopped(whole: Run, tmp_path: Path) -> Run:
    """The run as a kill between its stages leaves it."""
    run = open_run(shutil.copytree(whole.path, tmp_path / "run"))
    for path in (run.summary_file, run.model_file):
        path.unlink()
    return run


# --- the clock -------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing(
    whole: Run, tiny_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twenty years to and fro, also between the states that are there: the newest is that of the last step."""
    now, years = time.time(), itertools.cycle((0.0, -10.0, 10.0))
    monkeypatch.setattr(time, "time", lambda: now + next(years) * 31_557_600)
    folder = tmp_path / "run"
    config = tiny_config(*STAGES, "checkpoint.keep=9", f"run_dir={folder}")
    with pytest.raises(Stopped):
        fit(config, should_stop=lambda: len(list(folder.glob("checkpoints/step-*"))) > 1)
    for age, path in enumerate(sorted((folder / "checkpoints").glob("step-*"))):
        os.utime(path, (now - age * 31_557_600,) * 2)
    run = resume(folder)
    for path in run.checkpoints.glob("step-*"):
        if not (whole.checkpoints / path.name).is_file():
            path.unlink()  # more are kept here
    same(run, whole)
    assert run.summary["seconds"] < 600, "measured by a clock that does not jump"


# --- others ----------------------------------------------------------------------------------------------------------

_HOLDER = """
import sys
from pathlib import Path
from tlearn.train.run import Run
with Run(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_dies_with_its_holder(stopped: Run, capsys: pytest.CaptureFixture[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(stopped.path)],
        env=environment,
        stdin=subprocess.PIPE,  # kept open: it holds the lock for as long as that
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert main([f"resume={stopped.path}"]) == 2
        assert "another process is working on this run" in capsys.readouterr().err
        holder.send_signal(signal.SIGKILL)
        holder.wait(timeout=300)
    with stopped.locked():  # at once: no age is waited for, and no file to be removed by hand
        pass


def test_a_run_that_another_finishes_first_is_not_resumed(stopped: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the first look and the lock the other one ends."""
    locked = Run.locked

    def late(run: Run) -> Any:
        run.write_summary({"status": "finished"})
        return locked(run)

    monkeypatch.setattr(Run, "locked", late)
    with pytest.raises(UserError, match="has finished"):
        resume(stopped.path)
    assert open_run(stopped.path).summary == {"status": "finished"}


def test_what_a_killed_process_left_unfinished_is_swept_away(stopped: Run, whole: Run) -> None:
    left = [stopped.path / ".partial.4711.model.keras", stopped.checkpoints / ".partial.4711.step-0000000009.npz"]
    for path in left:
        path.write_bytes(b"half")
    same(resume(stopped.path), whole)
    assert not any(path.exists() for path in left)
    left[0].write_bytes(b"half")  # killed after its last file but one
    with pytest.raises(UserError, match="has finished"):
        resume(stopped.path)
    assert not left[0].exists()


# --- images ----------------------------------------------------------------------------------------------------------


def test_images_that_vanish_and_come_back(pictures: Path, tiny_config: Make, tmp_path: Path) -> None:
    """A network mount that goes away: the run says which image it missed, and goes on when it is back."""
    config = ("data.name=folder", f"data.path={pictures}", "data.batch_size=4", "schedule.stages.0.epochs=2")
    more = (*config, "cache.mode=off", "log.every=1", "checkpoint.every={steps: 1, minutes: null}", "xla=off")
    undisturbed = fit(tiny_config(*more, f"run_dir={tmp_path / 'whole'}"))
    run, away = tmp_path / "run", tmp_path / "away"

    def vanish() -> bool:
        if pictures.exists() and (run / "metrics.jsonl").is_file():
            pictures.rename(away)
        return False

    with pytest.raises(UnreadableImage, match="there is no such file") as caught:
        fit(tiny_config(*more, f"run_dir={run}"), should_stop=vanish)
    assert any(f"resume={run}" in note for note in caught.value.__notes__)
    with pytest.raises(UserError, match="pictures"):
        resume(run)
    away.rename(pictures)
    same(resume(run), undisturbed)


# --- links -----------------------------------------------------------------------------------------------------------


def test_links_into_a_store_of_blobs_are_followed_by_their_own_names(
    tiny_config: Make, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As DVC, git-annex and hubs keep files: what a link leads to is named by a hash, and lies elsewhere."""
    rows = [f"{path.relative_to(tmp_path)},{path.parent.name}\n" for path in sorted(pictures.rglob("*.png"))]
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "abc123").write_text("path,label\n" + "".join(rows))
    (tmp_path / "labels.csv").symlink_to(Path("blobs", "abc123"))
    save_weights_npz(tmp_path / "tiny.npz", build_backbone("tiny", image_size=16).layers)
    (tmp_path / "tiny.npz").rename(tmp_path / "blobs" / "w1")
    (tmp_path / "tiny.npz").symlink_to(Path("blobs", "w1"))
    data = ("data.name=table", "data.path=labels.csv", "data.batch_size=4", "schedule.stages.0.epochs=1")
    with pytest.raises(Stopped):
        fit(tiny_config(*data, "backbone.weights=tiny.npz", "run_dir=run"), should_stop=lambda: True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = resume("../run")
    assert len(tlearn.load(run).evaluate(resamples=100).outputs.images) == 3
    assert tlearn.reproduce(run.path).equal


@pytest.mark.parametrize("case", ["relative", "link", "an older manifest"])
def test_the_same_images_are_left_out_wherever_the_data_was_named_from(
    case: str, tiny_config: Make, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the others are divided in another way, and some of training are validated on."""
    (pictures / "ant" / "0.png").write_bytes(b"no image")
    path = "link" if case == "link" else "pictures"
    (tmp_path / "link").symlink_to(pictures)
    data = ("data.name=folder", f"data.path={path}", "data.on_error=skip", "data.batch_size=4", "run_dir=run")
    with pytest.raises(Stopped):
        fit(tiny_config(*data, "schedule.stages.0.epochs=1"), should_stop=lambda: True)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    ((name, reason),) = manifest["left_out"]
    assert name == "ant/0.png"
    if case == "an older manifest":
        manifest["left_out"] = [[f"pictures/{name}", reason]]
        (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    run = resume("../run")
    found, notices = run_data(run, 16, 10**6)
    assert notices == ()
    assert found.table.manifest_hash() == manifest["hash"]
    assert (len(found.train), len(found.val)) == (14, 3)
    if case == "relative":
        assert tlearn.reproduce(run.path).equal


def test_older_manifests_name_images_by_their_paths(tmp_path: Path) -> None:
    """Among names that end alike, the file with this path is meant, and else the longest."""
    for key in ("a/0.png", "b/0.png", "a/b/0.png"):
        (tmp_path / "a" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a" / key).write_bytes(key.encode())
    source = index_folder(tmp_path / "a", max_pixels=1)
    names = {"b/0.png": "b/0.png", str(tmp_path / "a/b/0.png"): "b/0.png", "x/a/b/0.png": "a/b/0.png"}
    found = named_rows(source, [*names, "c/1.png", "x/" * 5000 + "b/0.png"])
    assert {name: [source.table.key(row) for row in rows] for name, rows in found.items()} == {
        name: [key] for name, key in names.items()
    }


def test_a_damaged_list_of_what_was_left_out_is_said(stopped: Run) -> None:
    manifest = json.loads(stopped.manifest_file.read_text())
    stopped.manifest_file.write_text(json.dumps(manifest | {"left_out": [1]}))
    with pytest.raises(UserError, match=r"manifest\.json: is damaged: left_out"):
        resume(stopped.path)
