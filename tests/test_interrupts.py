"""Ctrl-C before there is a run: a line and an exit status, wherever the program is."""

from __future__ import annotations

import json
import os
import signal
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
