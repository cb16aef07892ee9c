"""Hydra composes and shows; a config file cannot make it run anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tlearn.compose import load_config
from tlearn.errors import ConfigError
from tlearn.train.command import main


@pytest.mark.parametrize("flags", [[], ["-m"], ["--cfg", "job"]])
def test_an_experiment_cannot_reach_hydra(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "evil.yaml").write_text(
        "hydra: {callbacks: {x: {_target_: builtins.open, file: made, mode: w}}}\n"
    )
    assert main([*flags, "experiment=evil"]) == 2
    assert "cannot set Hydra itself" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_defaults_list_cannot_choose_hydra_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "evil.yaml").write_text("defaults:\n  - override /hydra/launcher: basic\n")
    with pytest.raises(ConfigError, match="cannot set Hydra itself"):
        load_config(["experiment=evil"])


def test_run_flags_of_hydra_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", "seed=2"]) == 2
    assert "unknown flag" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.path=~/photos", "data.path='~/photos'"),
        ("schedule.stages.7.epochs=3", "no such stage"),
        ("hydra.run.dir=x", "run_dir="),
    ],
)
def test_what_to_do_is_said(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace(".", r"\.")):
        load_config([override])
