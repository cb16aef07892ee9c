"""A disk that fails at any write of a run: a message, a folder that is whole, and after a resume the same weights."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.faults import OnceEach, Point, faulty_disk
from tlearn.errors import UserError
from tlearn.train import checkpoint
from tlearn.train.api import fit, open_run, resume
from tlearn.train.command import main
from tlearn.train.run import Run
from tlearn.train.storage import StorageError
from tlearn.train.trainer import Stopped

Make = Callable[..., Any]

# features that are kept, then a stage that streams; a state after two steps and at each end
STAGES = (
    "schedule.stages=[{name: head, epochs: 1}, {name: all, unfreeze: all, epochs: 1}]",
    "data.options={count: 20}",
    "checkpoint.every={steps: 2, minutes: null, epochs: null}",
    "checkpoint.keep=1",
    "log.every=1",
    "xla=off",
)


@pytest.fixture(scope="module")
def whole(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run on a disk that works."""
    return fit(tiny_config(*STAGES, f"run_dir={tmp_path_factory.mktemp('whole') / 'run'}"))


def same(run: Run, other: Run) -> None:
    """The best weights, the last state and every record, to the bit; only time differs."""

    def timeless(record: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if key not in ("seconds", "run")}

    assert list(map(timeless, run.metrics)) == list(map(timeless, other.metrics))
    assert timeless(run.summary) == timeless(other.summary)
    states = [sorted(path.name for path in one.checkpoints.iterdir()) for one in (run, other)]
    assert states[0] == states[1]
    for name in states[0]:
        (mine, _), (theirs, _) = (checkpoint.load(one.checkpoints / name) for one in (run, other))
        assert mine.keys() == theirs.keys()
        assert all(mine[key].tobytes() == theirs[key].tobytes() for key in mine), name
    for mine, theirs in zip(run.model().weights, other.model().weights, strict=True):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


def assert_undamaged(run: Run) -> None:
    """Whatever is there can be read."""
    _ = run.config, run.overrides, run.plan, run.manifest, run.metrics
    for path in run.checkpoints.glob("[!.]*.npz"):
        checkpoint.load(path)
    for path in run.path.glob("[!.]*.json"):
        json.loads(path.read_text())


def go_on(folder: Path, config: Any) -> Run:
    """As a person would: a run that is there goes on, one that could not begin is started again."""
    if (folder / "summary.json").is_file():
        return open_run(folder)
    return resume(folder) if (folder / "config.yaml").is_file() else fit(config)


def does_without(point: Point) -> bool:
    """Whether a run goes on without it: its log for people, and tidying up of what is unfinished."""
    return point.path == "log.txt" or (".partial." in point.path and point.kind == "unlink")


def fail_at_every_point(config: Any, folder: Path, points: re.Pattern[str], *, every_line: bool) -> OnceEach:
    """Train, and go on again and again; in each round the disk refuses one thing that it never refused before."""
    disk, finished = OnceEach(points, does_without, every_line=every_line), False
    while not finished:
        disk.again()
        said = None
        try:
            with faulty_disk(folder, disk, (errno.ENOSPC, errno.EIO)[len(disk.refused) % 2]):
                go_on(folder, config)
            finished = True
        except UserError as error:
            said = error
        assert (said is None) == (disk.now is None), f"refused: {disk.now}, said: {said}"
        if said is not None and disk.now is not None:
            where, named = said.problems[0].where, Path(disk.now.path).name.removeprefix(".partial.PID.")
            assert where == "run_dir" or (named in where and said.__notes__), f"refused: {disk.now}, said: {said}"
        if (folder / "config.yaml").is_file():
            assert_undamaged(open_run(folder))
        else:
            assert not folder.exists(), f"{disk.now} was refused: no run came of it, and its folder was left"
    return disk


FEW = re.compile(
    r"open \.lock|write .*config\.yaml|write metrics\.jsonl|fsync .*step-.*|replace .*best\.npz"
    r"|unlink [^.]*/step-.*|write .*model\.keras|open .*report\.md|replace summary\.json"
)


def test_resumed_after_faults_of_every_kind(whole: Run, tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config(*STAGES, f"run_dir={tmp_path / 'run'}")
    disk = fail_at_every_point(config, tmp_path / "run", FEW, every_line=False)
    assert len(disk.refused) == 9, disk.refused
    same(open_run(tmp_path / "run"), whole)


@pytest.mark.slow
def test_resumed_after_a_fault_at_every_write(whole: Run, tiny_config: Make, tmp_path: Path) -> None:
    config = tiny_config(*STAGES, f"run_dir={tmp_path / 'run'}")
    disk = fail_at_every_point(config, tmp_path / "run", re.compile(".*"), every_line=True)
    print(f"{len(disk.refused)} points")
    assert len(disk.refused) > 200
    assert {point.kind for point in disk.refused} == {"open", "write", "fsync", "replace", "unlink", "mkdir"}
    same(open_run(tmp_path / "run"), whole)


# --- what real disks do ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tiny_config: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, stopped in the middle of its first stage."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(Stopped):
        fit(tiny_config(*STAGES, f"run_dir={folder}"), should_stop=(folder / "metrics.jsonl").is_file)
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own; skips where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a file system takes the rights of root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def remounted(place: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", place], check=True)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused("resume=RUN", says=...)`` runs the command and gives what it says, once it is as it should be."""

    def run(*overrides: str, says: tuple[str, ...]) -> str:
        capsys.readouterr()
        assert main(list(overrides)) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        for text in says:
            assert text in err
        return err

    return run


def test_a_full_disk(disk: Path, stopped: Path, whole: Run, refused: Callable[..., str]) -> None:
    run = open_run(shutil.copytree(stopped, disk / "run"))
    with pytest.raises(OSError, match="No space"):
        (disk / "filler").write_bytes(bytes(3 * 1024**2))
    go_on = f"go on with: python -m tlearn.train resume={run.path}"
    refused(f"resume={run.path}", says=(f"{run.path}/", "No space left on device", "make room there", go_on))
    assert_undamaged(run)
    (disk / "filler").unlink()
    same(resume(run.path), whole)


def test_a_disk_that_may_only_be_read(
    disk: Path, stopped: Path, whole: Run, refused: Callable[..., str], tiny: tuple[str, ...]
) -> None:
    run = open_run(shutil.copytree(stopped, disk / "run"))
    remounted(disk, "ro")
    refused(f"resume={run.path}", says=(f"{run.path}/.lock: Read-only file system", "make it writable", "go on with"))
    refused(*tiny, f"run_dir={disk / 'new'}", says=("run_dir: the run folder cannot be made", "Read-only"))
    remounted(disk, "rw")
    same(resume(run.path), whole)


def test_a_folder_that_vanishes_and_comes_back(stopped: Path, whole: Run, tmp_path: Path) -> None:
    run, away = open_run(shutil.copytree(stopped, tmp_path / "run")), tmp_path / "away"

    def vanish() -> bool:
        if run.path.exists() and any(record["stage"] == "all" for record in run.metrics):
            run.path.rename(away)
        return False

    with pytest.raises(StorageError, match="No such file or directory") as caught:
        resume(run.path, should_stop=vanish)
    assert "bring the folder back" in str(caught.value)
    assert not run.path.exists(), "nothing was made in its place"
    assert_undamaged(open_run(away))
    away.rename(run.path)
    same(resume(run.path), whole)


def test_a_state_that_the_disk_refuses_is_not_passed_over(
    stopped: Path, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if it were damaged: the run would begin anew, and delete what it could not read."""
    run = open_run(shutil.copytree(stopped, tmp_path / "run"))
    before = sorted(path.name for path in run.checkpoints.iterdir())
    real = np.load

    def failing(path: Any, **options: Any) -> Any:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(np, "load", failing)
    with pytest.raises(StorageError, match=r"step-.*\.npz: Input/output error"):
        resume(run.path)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == before
    monkeypatch.setattr(np, "load", real)
    same(resume(run.path), whole)


def test_event_files_that_cannot_be_written(stopped: Path, whole: Run, tmp_path: Path) -> None:
    run = open_run(shutil.copytree(stopped, tmp_path / "run"))
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("tensorboard: false", "tensorboard: true"))
    run.tensorboard.write_text("in the way")
    with pytest.raises(StorageError, match=r"tensorboard/train: "):
        resume(run.path)
    assert_undamaged(run)
    run.tensorboard.unlink()
    same(resume(run.path), whole)


def test_a_log_that_cannot_be_written_is_given_up(
    stopped: Path, whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(shutil.copytree(stopped, tmp_path / "run"))
    run.log_file.unlink()
    run.log_file.mkdir()
    same(resume(run.path), whole)
    assert capsys.readouterr().err.count("log.txt: Is a directory; the log ends here") == 1


@pytest.mark.parametrize("fault", ["full", "ro"])
def test_a_cache_that_takes_nothing_is_done_without(
    fault: str,
    disk: Path,
    stopped: Path,
    whole: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The frozen part is computed in batches of another size then: the same run to rounding, not to the bit."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
    if fault == "ro":
        remounted(disk, "ro")
    else:
        with pytest.raises(OSError, match="No space"):
            (disk / "filler").write_bytes(bytes(3 * 1024**2))
    run = resume(shutil.copytree(stopped, tmp_path / "run"))
    said = "".join(capsys.readouterr().err.split())  # lines are wrapped, also within a path
    reason = {"full": "No space left on device", "ro": "Read-only file system"}[fault]
    assert "".join(f"features cannot be kept in {disk}/tlearn/features: {reason}".split()) in said
    (mine, _), (theirs, _) = (checkpoint.load(one.best_file) for one in (run, whole))
    assert all(np.allclose(mine[key], theirs[key], rtol=1e-3, atol=1e-5) for key in theirs)
