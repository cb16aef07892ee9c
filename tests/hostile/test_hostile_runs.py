"""A run folder from a stranger: what is read of it is data, what is written stays in it."""

from __future__ import annotations

import io
import os
import pickle
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tlearn.errors import UserError
from tlearn.train import checkpoint
from tlearn.train.api import open_run, resume
from tlearn.train.foreign import refuse_links

CONFIG = "seed: 1\nhead: {classes: 10}\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run folder has when it was stopped, as far as it matters here."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("")
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "notes.txt").write_text("precious")
    (tmp_path / "victim" / "step-0000000001.npz").write_bytes(b"precious")
    return folder


def linked(name: str, target: str) -> Callable[[Path], None]:
    def make(run: Path) -> None:
        path = run / name
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        path.symlink_to(run.parent / target)

    return make


def pipe(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")


def left_socket(run: Path) -> None:
    here = os.getcwd()
    os.chdir(run)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("log.txt")
    finally:
        os.chdir(here)


WRITING: dict[str, Callable[[Path], object]] = {
    "metrics elsewhere": linked("metrics.jsonl", "victim/notes.txt"),
    "log elsewhere": linked("log.txt", "victim/notes.txt"),
    "log to nowhere yet": linked("log.txt", "victim/new.txt"),
    "lock elsewhere": linked(".lock", "victim/new.txt"),
    "states elsewhere": linked("checkpoints", "victim"),
    "a state elsewhere": linked("checkpoints/step-0000000001.npz", "victim/notes.txt"),
    "events elsewhere": linked("tensorboard", "victim"),
    "a pipe": pipe,
    "a socket": left_socket,
}


@pytest.mark.parametrize("case", WRITING)
def test_a_run_that_leads_elsewhere_is_not_written(case: str, run: Path) -> None:
    WRITING[case](run)
    victim = run.parent / "victim"
    with pytest.raises(UserError, match=r"link out of the run folder|no regular file"):
        resume(run)
    assert sorted(os.listdir(victim)) == ["notes.txt", "step-0000000001.npz"]
    assert (victim / "notes.txt").read_text() == "precious"


def test_links_inside_a_run_are_fine(run: Path) -> None:
    (run / "latest").symlink_to("checkpoints")
    refuse_links(run)


CONFIGS = {
    "unknown key": "_target_: os.system",
    "environment": "name: ${oc.env:HOME}",
    "object": "seed: !!python/object/apply:os.mkdir [made]",
    "bomb": "a: &a [1]\n" + "\n".join(f"{k}: &{k} [{', '.join(['*' + chr(ord(k) - 1)] * 20)}]" for k in "bcdefg"),
    "huge": "name: " + "x" * 300_000,
    "list": "- 1",
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_is_none(case: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    (run / "config.yaml").write_text(CONFIGS[case])
    with pytest.raises(UserError):
        _ = open_run(run).config
    assert not (run.parent / "made").exists()


JSON: dict[str, Callable[[Path], object]] = {
    "deep": lambda path: path.write_text("[" * 200_000),
    "deep objects": lambda path: path.write_text('{"a":' * 200_000),
    "huge": lambda path: path.open("wb").truncate(2**40),
    "long number": lambda path: path.write_text('{"a": ' + "9" * 10_000 + "}"),
    "list": lambda path: path.write_text("[]"),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "empty": lambda path: path.write_bytes(b""),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("case", JSON)
def test_facts_that_are_none(case: str, run: Path) -> None:
    JSON[case](run / "plan.json")
    with pytest.raises(UserError, match=r"plan\.json"):
        _ = open_run(run).plan


class Payload:
    """What runs when a pickle is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("unpickled",))


def test_states_are_never_unpickled(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    states = run / "checkpoints"
    np.savez(states / "step-0000000002.npz", **{"state.json": np.array([Payload()], dtype=object)})  # type: ignore[arg-type]
    (states / "step-0000000003.npz").write_bytes(pickle.dumps(Payload()))
    np.save(states / "array.npy", np.array([Payload()], dtype=object))
    (states / "array.npy").rename(states / "step-0000000004.npz")
    assert checkpoint.latest(states) is None
    assert not (run.parent / "unpickled").exists()


# --- states that are too large ---------------------------------------------------------------------------------------

MOST = checkpoint.largest([np.zeros(1000, np.float32)])


def npy(shape: tuple[int, ...], content: bytes = b"") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": "|u1"})
    return file.getvalue() + content


def zipped(compression: int, *members: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compression) as archive:
            for index, content in enumerate(members):
                archive.writestr(f"{index}.npy", content)

    return make


def sparse(path: Path) -> None:
    """A terabyte that takes no room: the directory of the zip lies behind the hole."""
    zipped(zipfile.ZIP_STORED, npy((4,), bytes(4)))(path)
    content = path.read_bytes()
    with path.open("wb") as file:
        file.seek(2**40)
        file.write(content)


def overlapping(path: Path) -> None:
    """Forty members that are the same ten megabytes."""
    zipped(zipfile.ZIP_STORED, npy((10_000_000,), bytes(10_000_000)))(path)
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    entry, end = content[at : content.index(b"PK\x05\x06")], bytearray(content[content.index(b"PK\x05\x06") :])
    names = [entry.replace(b"0.npy", f"{index}.npy"[-5:].encode()) for index in range(40)]
    end[8:12] = (40).to_bytes(2, "little") * 2
    end[12:16] = sum(map(len, names)).to_bytes(4, "little")
    path.write_bytes(content[:at] + b"".join(names) + bytes(end))


STATES: dict[str, tuple[Callable[[Path], object], str]] = {
    "sparse": (sparse, "states of this network have"),
    "compressed": (zipped(zipfile.ZIP_DEFLATED, npy((2**30,), bytes(2**24))), "compressed"),
    "overlapping": (overlapping, "declares more bytes than it has"),
    "a declared terabyte": (zipped(zipfile.ZIP_STORED, npy((2**40,), bytes(100))), "damaged"),
    "declared past any number": (zipped(zipfile.ZIP_STORED, npy((2**62, 2**62), bytes(100))), "damaged"),
    "empty": (lambda path: path.write_bytes(b""), "damaged"),
}


@pytest.mark.parametrize("case", STATES)
def test_states_that_are_too_large_are_not_read(case: str, tmp_path: Path) -> None:
    make, says = STATES[case]
    make(tmp_path / "step-0000000001.npz")
    with pytest.raises(ValueError, match=says):
        checkpoint.load(tmp_path / "step-0000000001.npz", most=MOST)
    told: list[str] = []
    assert checkpoint.latest(tmp_path, told.append, most=MOST) is None
    assert len(told) == 1


_PEAK = """
import re, sys
from pathlib import Path
from tlearn.train import checkpoint
assert checkpoint.latest(Path(sys.argv[1]), most=int(sys.argv[2])) is None
print(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def test_states_that_are_too_large_take_no_memory(tmp_path: Path) -> None:
    for number, (make, _) in enumerate(STATES.values()):
        make(tmp_path / f"step-{number:010d}.npz")
    command = [sys.executable, "-c", _PEAK, str(tmp_path), str(MOST)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert int(re.findall(r"\d+", done.stdout)[0]) < 400_000, f"{done.stdout.strip()} kB"
