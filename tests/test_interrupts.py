"""Ctrl-C before there is a run: a line and an exit status, wherever the program is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tlearn import cli, compose
from tlearn.backbones import __main__ as backbones
from tlearn.cache import main as cache
from tlearn.interrupts import interrupts_wait
from tlearn.plan import main as plan
from tlearn.sweep.command import main as sweep
from tlearn.train.command import main as train

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Python's own handler for Ctrl-C; whatever a command leaves is undone."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def ctrl_c(*args: Any, **keywords: Any) -> Any:
    os.kill(os.getpid(), signal.SIGINT)
    raise AssertionError("went on")


def breaking_on_ctrl_c(original: Any) -> Any:
    """As parts of OmegaConf do: an exception between two of its instructions comes out as another one."""

    def entered(*args: Any, **keywords: Any) -> Any:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise UnboundLocalError("cannot access local variable 'prev_state'") from None
        return original(*args, **keywords)

    return entered


@pytest.mark.parametrize("owner", [(compose, "hydra_compose"), (OmegaConf, "to_object")], ids=["Hydra", "OmegaConf"])
def test_while_a_config_is_composed(
    owner: tuple[Any, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(*owner, breaking_on_ctrl_c(getattr(*owner)))
    assert train(["seed=2"]) == 3
    out, err = capsys.readouterr()
    assert json.loads(out) == {"run": None, "status": "stopped"}
    assert err == "\nstopped before training: nothing was written\n"
    assert plan(["seed=2"]) == 3
    assert capsys.readouterr() == ("", "\nstopped\n")
    assert sweep(["sweep=learning_rates"]) == 3
    assert capsys.readouterr() == ("", "\nstopped; start the same command again to go on\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert list(tmp_path.iterdir()) == []


AT_A_MOMENT = """
import importlib.abc, os, runpy, signal, sys

moment, *sys.argv[1:] = sys.argv[1:]


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)
    print("it waits")


class AsItBegins(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == moment:
            sys.meta_path.remove(self)
            ctrl_c()


def in_the_midst_of_hydra():
    from omegaconf import Node

    def first(node):
        if "hydra" in sys.modules:
            Node._key = key
            ctrl_c()
        return key(node)

    key, Node._key = Node._key, first


signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
if moment == "omegaconf.Node._key":
    in_the_midst_of_hydra()
else:
    sys.meta_path.insert(0, AsItBegins())
runpy.run_module("tlearn.train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("moment", "waits"),
    [
        ("omegaconf", False),
        ("hydra", True),
        ("hydra.core.config_store", True),
        ("omegaconf.Node._key", True),  # Hydra's own config is made; an exception here becomes an UnboundLocalError
        ("hydra._internal.core_plugins", True),  # Hydra looks for its plugins, and composes
    ],
)
def test_while_hydra_is_imported_and_at_work(moment: str, waits: bool, tmp_path: Path) -> None:
    """In a process of its own: here Hydra is imported already. TensorFlow never is."""
    done = subprocess.run(
        [sys.executable, "-c", AT_A_MOMENT, moment, "no_such_key=2"],  # that never trains
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    *before, last = done.stdout.splitlines() or [""]
    assert done.returncode == 3, done.stderr
    assert done.stderr == "\nstopped before training: nothing was written\n"
    assert before == ["it waits"] * waits
    assert json.loads(last) == {"run": None, "status": "stopped"}
    assert list(tmp_path.iterdir()) == []


def test_while_a_command_works(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from tlearn.train import api
    from tlearn.train.feature_cache import FeatureCache

    monkeypatch.setattr(api, "prepare", ctrl_c)
    monkeypatch.setattr(FeatureCache, "entries", ctrl_c)
    monkeypatch.setattr(backbones, "print_all", ctrl_c)
    for command, arguments in ((plan, ["seed=2"]), (cache, ["list"]), (backbones.main, [])):
        assert command(arguments) == 3
        assert capsys.readouterr() == ("", "\nstopped\n")


def test_while_a_command_is_imported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "interrupted.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.VERBS, "train", ("interrupted", ""))
    monkeypatch.setattr(sys, "argv", ["tlearn", "train"])
    assert cli.main() == 3
    assert capsys.readouterr() == ("", "\nstopped\n")


def test_signals_that_somebody_ignores_or_takes_stay_theirs() -> None:
    came: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_wait(), interrupts_wait():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert came == []
    assert came == [signal.SIGTERM], "once"


def test_other_threads_compose_as_well() -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.append(compose.load_config(["seed=5"])))
    thread.start()
    thread.join()
    assert made[0].seed == 5
