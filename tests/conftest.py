"""What all tests share: a quiet CPU, the shared assets, a private Keras cache, the command line as a user runs it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before anything imports TensorFlow, and inherited by every subprocess.
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["MPLBACKEND"] = "agg"
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core: threads inside an operation would only queue
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from hypothesis import settings

# The same examples every time: a red build can be looked into, and a slow machine is not a failure.
settings.register_profile("tlearn", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("tlearn")

# What a person may have set for themselves: the tests compare what is printed, and name the plugins they need.
os.environ["COLUMNS"] = "80"
for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TLEARN_PLUGINS"):
    os.environ.pop(name, None)

ROOT = Path(__file__).resolve().parent.parent
ASSETS = Path(os.environ.get("TLEARN_ASSETS") or ROOT.parent / "shared" / "assets").resolve()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Features are kept in the user's cache folder: a private one, here and in subprocesses."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


# --- real weights and photographs ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of real weights and photographs, read only. Skips where it is absent."""
    if not ASSETS.is_dir():
        pytest.skip(f"assets: no folder {ASSETS}; TLEARN_ASSETS names another one")
    return ASSETS


@pytest.fixture
def keras_home(assets: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keras's cache, here and in subprocesses, as a private writable folder that links to the files of the assets."""
    source = assets / "keras" / "models"
    if not source.is_dir():
        pytest.skip(f"assets: no folder {source}")
    home = tmp_path_factory.mktemp("keras_home")
    (home / "models").mkdir()
    for file in source.iterdir():
        (home / "models" / file.name).symlink_to(file)
    from keras.src.backend import config  # imported first: Keras reads KERAS_HOME once, when imported

    monkeypatch.setattr(config, "_KERAS_DIR", str(home))
    monkeypatch.setenv("KERAS_HOME", str(home))
    return home


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI nothing skips for want of assets that are there."""
    report = yield
    reason = report.longrepr[2] if report.skipped and isinstance(report.longrepr, tuple) else ""
    if os.environ.get("CI") and ASSETS.is_dir() and "assets" in reason:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} skipped although {ASSETS} exists ({reason})"
    return report


# --- the command line ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit status and what it printed."""

    status: int
    stdout: str
    stderr: str

    def assert_ok(self) -> Finished:
        """Exit status 0."""
        assert self.status == 0, f"exit status {self.status}\n{self.stdout}\n{self.stderr}"
        return self

    def assert_user_error(self, *says: str) -> Finished:
        """Exit status 2, a message with all of these fragments on standard error, no traceback."""
        assert self.status == 2, f"exit status {self.status}\n{self.stdout}\n{self.stderr}"
        assert "Traceback (most recent call last)" not in self.stdout + self.stderr, self.stderr
        assert self.stderr.strip(), "nothing on standard error"
        missing = [text for text in says if text not in self.stderr]
        assert not missing, f"{missing} not in:\n{self.stderr}"
        return self


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., Finished]:
    """``run_cli("train", "seed=2")`` runs ``python -m tlearn.train seed=2`` in ``tmp_path`` as a user would.

    Keywords: ``cwd``; ``env``, variables to add (None removes one); ``timeout`` in seconds.
    """

    def run(
        verb: str,
        *arguments: object,
        cwd: Path = tmp_path,
        env: dict[str, str | None] | None = None,
        timeout: float = 300,
    ) -> Finished:
        changed = os.environ | {"PYTHONPATH": str(ROOT)} | (env or {})
        done = subprocess.run(
            [sys.executable, "-m", f"tlearn.{verb}", *map(str, arguments)],
            cwd=cwd,
            env={name: value for name, value in changed.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


# --- one test file does not leak into the next -----------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def fresh_keras() -> Iterator[None]:
    """Forget Keras's models, names and dtype policy after each file; costs nothing where Keras was not imported."""
    yield
    if "keras" in sys.modules:
        keras = sys.modules["keras"]
        keras.backend.clear_session()
        keras.config.set_dtype_policy("float32")
        gc.collect()
