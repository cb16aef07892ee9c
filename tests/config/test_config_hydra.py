"""Hydra composes and shows; a config file cannot make it run anything."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir, version
from hydra.core.config_store import ConfigStore
from packaging.version import Version

from tlearn.compose import load_config
from tlearn.errors import ConfigError
from tlearn.train.checks import check_config
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


def test_a_run_has_a_name_whatever_its_experiment_is_called(tmp_path: Path) -> None:
    (tmp_path / "experiments" / "of mine").mkdir(parents=True)
    (tmp_path / "experiments" / "of mine" / "my exp (2).yaml").write_text("seed: 7\n")
    config = load_config(["experiment='of mine/my exp (2)'", "data=digits"])
    assert (config.name, config.seed) == ("of-mine/my-exp--2-", 7)
    check_config(config)


@pytest.mark.parametrize("given", [[], ["experiment=digits_ten_a_class"], ["seed=x"], ["experiment=none"]])
def test_the_callers_hydra_stays_as_it_was(given: list[str], tmp_path: Path) -> None:
    (tmp_path / "theirs.yaml").write_text("defaults:\n  - schema\n  - experiment: mine\n  - _self_\nanswer: 42\n")
    store = ConfigStore.instance()
    store.store(name="schema", node={"question": "?"})
    store.store(name="mine", group="experiment", node={"tried": True})
    theirs = {"question": "?", "experiment": {"tried": True}, "answer": 42}
    try:
        with initialize_config_dir(str(tmp_path), version_base="1.2"):
            with contextlib.suppress(ConfigError):
                load_config(given)
            assert compose("theirs") == theirs
            assert version.getbase() == Version("1.2")
        assert copy.deepcopy(store) is not store
        assert "digits_ten_a_class.yaml" not in store.repo["experiment"]
    finally:
        del store.repo["schema.yaml"], store.repo["experiment"]


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
