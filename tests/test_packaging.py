"""The wheel is complete and runs from anywhere; the pins are exact, and name no place to fetch from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SHIPPED = {
    file.relative_to(ROOT).as_posix(): file
    for folder in ("configs", "experiments")
    for file in sorted((ROOT / folder).rglob("*.yaml"))
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("tlearn-*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as an installer lays it out."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run(unpacked: Path, cwd: Path, *arguments: str) -> str:
    """Standard output of python with the unpacked wheel before the checkout, in a folder that holds nothing."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_has_everything_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert {name.partition("/")[0] for name in files} == {"tlearn", f"tlearn-{PROJECT['version']}.dist-info"}
    assert "tlearn/py.typed" in files
    assert "configs/train.yaml" in SHIPPED
    for name, source in SHIPPED.items():
        assert files[f"tlearn/{name}"] == source.read_bytes(), name
    tracked = [file for file in (ROOT / "tlearn").rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    for source in tracked:
        assert files[source.relative_to(ROOT).as_posix()] == source.read_bytes(), source
    assert any(name.endswith(".npz") for name in files), "no embedded weights"
    assert wheel.stat().st_size < 5_000_000


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"tlearn-{PROJECT['version']}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        assert b"Apache License" in archive.read(f"{info}/licenses/LICENSE")
    assert "License-Expression: Apache-2.0" in metadata
    assert "tlearn = tlearn.cli:main" in scripts


def test_source_archive_builds_the_same(built: Path) -> None:
    with tarfile.open(next(built.glob("tlearn-*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for expected in (*SHIPPED, "tlearn/py.typed", "tests/conftest.py", "Makefile", "constraints.txt", "LICENSE"):
        assert expected in names
    assert not [name for name in names if name.startswith((".venv", "runs", ".git/"))]


def test_installed_wheel_runs_from_an_empty_directory(unpacked: Path, tmp_path: Path) -> None:
    where = run(unpacked, tmp_path, "-c", "import tlearn; print(tlearn.__file__)")
    assert Path(where.strip()).is_relative_to(unpacked), "another copy of tlearn was tested"
    assert "tlearn.train" in run(unpacked, tmp_path, "-m", "tlearn.train", "--help")
    job = yaml.safe_load(run(unpacked, tmp_path, "-m", "tlearn.train", "--cfg", "job"))
    assert job["backbone"]["name"]
    assert job["schedule"]["stages"]
    assert not list(tmp_path.iterdir()), "a question left something behind"


def test_installed_wheel_finds_every_experiment(unpacked: Path, tmp_path: Path) -> None:
    names = [
        name.removeprefix("experiments/").removesuffix(".yaml") for name in SHIPPED if name.startswith("experiments")
    ]
    assert names
    code = """
import sys
from tlearn.compose import load_config

for name in sys.argv[1:]:
    print(load_config([f"experiment={name}"]).name)
"""
    assert len(run(unpacked, tmp_path, "-c", code, *names).splitlines()) == len(names)


def test_console_script(unpacked: Path, tmp_path: Path) -> None:
    code = "import sys; from tlearn.cli import main; sys.argv = ['tlearn', '--help']; sys.exit(main())"
    assert "train" in run(unpacked, tmp_path, "-c", code)


def test_constraints_are_exact_and_satisfy_the_project() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    odd = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)]
    assert not odd, f"neither a comment nor name==version: {odd}"
    versions = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in pins}
    assert len(versions) == len(pins), "a name stands twice"
    for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]:
        requirement = Requirement(line)
        pin = versions.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} has no pin"
        assert requirement.specifier.contains(pin), f"{line} does not allow the pinned {pin}"


def test_constraints_hold_no_place_to_fetch_from() -> None:
    for file in ("constraints.txt", "pyproject.toml", "Makefile"):
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not re.search(r"https?:|file:|index-url|find-links|--hash|\.whl", text), file
