"""What a run does to the machine, seen by Python's audit hook: files written, programs started, sockets opened.

An experiment, images and a table from a stranger: everything written lies in the folders that the command names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.hostile import images

_HOOK = """
import json, os, sys, threading

_log = os.open(os.environ["AUDIT_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_KINDS = {
    "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.truncate": 0,
    "os.chmod": 0, "os.chown": 0, "shutil.rmtree": 0, "shutil.move": 1, "sqlite3.connect": 0,
}
_ALWAYS = {
    "socket.connect", "socket.getaddrinfo", "socket.bind", "urllib.Request", "http.client.connect", "os.system",
    "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "subprocess.Popen", "marshal.loads", "pickle.find_class",
    "ftplib.connect", "smtplib.connect",
}


def _hook(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, int) or not (isinstance(flags, int) and flags & _WRITES):
            return
        what = ["write", path]
    elif event in ("os.remove", "os.rmdir") and arguments[-1] != -1:
        return  # relative to a folder that shutil.rmtree has been seen to take
    elif event in _KINDS:
        what = ["write", arguments[_KINDS[event]]]
    elif event in _ALWAYS:
        what = [event, repr(arguments)[:300]]
    else:
        return
    if isinstance(what[1], bytes):
        what[1] = os.fsdecode(what[1])
    elif isinstance(what[1], int):
        return
    what[1] = str(what[1])
    if what[0] == "write":
        what[1] = os.path.abspath(what[1])
    os.write(_log, (json.dumps(what) + "\\n").encode())


sys.addaudithook(_hook)
"""


@dataclass
class Seen:
    """What the hook saw."""

    written: set[str]
    others: list[tuple[str, str]]

    def outside(self, *folders: Path) -> set[str]:
        tops = [os.path.realpath(folder) for folder in folders]
        allowed = (os.devnull, "/dev/tty")
        return {
            path
            for path in self.written
            if path not in allowed and not any(f"{os.path.realpath(path)}/".startswith(f"{top}/") for top in tops)
        }


@pytest.fixture
def watched(run_cli: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Any, Seen]]:
    """``run_cli`` with a private home, in which everything that would be written is recorded."""
    for name in ("hook", "home", "cache", "work", "temporary"):
        (tmp_path / name).mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(_HOOK)
    root = Path(__file__).resolve().parent.parent.parent

    def run(*arguments: str) -> tuple[Any, Seen]:
        log = tmp_path / "audit.jsonl"
        log.unlink(missing_ok=True)
        environment = {
            "PYTHONPATH": f"{tmp_path / 'hook'}{os.pathsep}{root}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "AUDIT_LOG": str(log),
            "HOME": str(tmp_path / "home"),
            "KERAS_HOME": str(tmp_path / "home" / ".keras"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "TMPDIR": str(tmp_path / "temporary"),
            "SECRET": "the-token-of-somebody",
        }
        done = run_cli(*arguments, cwd=tmp_path / "work", env=environment, timeout=150)
        events = [json.loads(line) for line in log.read_text().splitlines()]
        written = {what for kind, what in events if kind == "write"}
        return done, Seen(written, [(kind, what) for kind, what in events if kind != "write"])

    return run


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_run_of_a_stranger_stays_in_its_folders(watched: Callable[..., tuple[Any, Seen]], tmp_path: Path) -> None:
    """It leaves out what of the corpus of images is hostile, says so without commanding the terminal, and finishes."""
    work = tmp_path / "work"
    images.make(work / "photos" / "odd")
    for index in range(8):
        for name in ("odd", "../../good"):
            path = work / "photos" / Path(name).name / f"{index}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (20, 20), (index * 20, len(name) * 9, 0)).save(path)
    write(
        work / "experiments" / "stranger.yaml",
        "defaults:\n  - override /backbone: embedded\n  - override /data: folder\n"
        f"name: ../../../stranger\ndata: {{path: photos, on_error: skip, max_pixels: {images.MAX_PIXELS}}}\n"
        "schedule: {stages: [{name: ../../x, unfreeze: none, epochs: 1}]}\n",
    )
    done, seen = watched("train", "experiment=stranger")
    done.assert_ok()
    assert seen.outside(work / "runs", tmp_path / "cache", tmp_path / "temporary", tmp_path / "home") == set()
    home = {path for path in seen.written if path.startswith(str(tmp_path / "home"))}
    assert all("/home/." in path for path in home), f"only what libraries keep there: {home}"
    kinds = {kind for kind, _ in seen.others}
    assert not kinds & {"socket.connect", "socket.getaddrinfo", "http.client.connect", "urllib.Request", "os.system"}
    programs = [what for kind, what in seen.others if kind in ("subprocess.Popen", "os.posix_spawn", "os.exec")]
    # The state of the repository; the machine's name and fonts, asked for by platform and Matplotlib.
    assert all(what.startswith(("('git'", "('uname'", "('fc-list'")) for what in programs), programs
    assert "pickle.find_class" not in kinds
    (run,) = (work / "runs").iterdir()
    leaked = [path for path in run.rglob("*") if path.is_file() and b"the-token-of-somebody" in path.read_bytes()]
    assert not leaked
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "finished"
    assert "left out, unreadable" in done.stderr
    assert "\x1b]0;" not in done.stderr
    assert "\x1b]0;" not in (run / "log.txt").read_text(encoding="utf-8", errors="surrogateescape")


def test_a_refused_experiment_leaves_no_trace(watched: Callable[..., tuple[Any, Seen]], tmp_path: Path) -> None:
    text = "name: ${oc.env:SECRET}\nhydra: {run: {dir: made}}\nhead: {_target_: os.system, command: touch made}\n"
    write(tmp_path / "work" / "experiments" / "stranger.yaml", text)
    done, seen = watched("train", "experiment=stranger")
    done.assert_user_error("cannot set Hydra", "asks for more than the config")
    assert "the-token-of-somebody" not in done.stdout + done.stderr
    assert seen.written == set()
    assert not [event for event in seen.others if event[0] != "marshal.loads"]
