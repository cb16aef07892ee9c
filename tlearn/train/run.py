"""A run folder, and the only code that knows its file names."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf

from tlearn.config import Config
from tlearn.errors import ConfigError, Problem, UserError
from tlearn.quiet import import_tensorflow
from tlearn.train.checkpoint import TEMPORARY, write_atomic
from tlearn.train.foreign import read_json, refuse_links
from tlearn.train.storage import explained, naming
from tlearn.typed import typed
from tlearn.yaml_file import read_yaml

if TYPE_CHECKING:
    import keras

_PACKAGES = (
    "tlearn",
    "tensorflow",
    "keras",
    "numpy",
    "pillow",
    "albumentations",
    "opencv-python-headless",
    "hydra-core",
)

FORMAT = 1
"""Of run folders, in ``environment.json``. It counts up when an older version would misread what a folder holds."""


class Run:
    """A run on disk.

    Attributes:
        path: the folder.
        told: the summary, where the folder is that of another worker, and may lie on another machine.
    """

    def __init__(self, path: Path) -> None:
        self.told: dict[str, Any] | None = None
        self.path = path
        self.config_file = path / "config.yaml"
        self.overrides_file = path / "overrides.yaml"
        self.plan_file = path / "plan.json"
        self.environment_file = path / "environment.json"
        self.manifest_file = path / "manifest.json"
        self.files_file = path / "files.parquet"
        self.metrics_file = path / "metrics.jsonl"
        self.log_file = path / "log.txt"
        self.summary_file = path / "summary.json"
        self.status_file = path / "status.json"
        self.report_file = path / "report.md"
        self.curves_file = path / "curves.png"
        self.confusion_file = path / "confusion_matrix.png"
        self.model_file = path / "model.keras"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.best_file = self.checkpoints / "best.npz"

    @classmethod
    def create(cls, config: Config) -> Run:
        """Make a new folder, never one that exists.

        Raises:
            ConfigError: ``run_dir`` exists, or the folder cannot be made.
            StorageError: nothing can be made in it.
        """
        try:
            if config.run_dir is not None:
                path = Path(config.run_dir).expanduser()
                path.mkdir(parents=True)
            else:
                path = _make_named(Path("runs"), config.name or config.backbone.name)
        except FileExistsError:
            fix = "a run never overwrites another: choose another run_dir, or resume=... to go on with this one"
            raise ConfigError(Problem("run_dir", f"{config.run_dir} exists", fix)) from None
        except OSError as error:
            raise ConfigError(Problem("run_dir", f"the run folder cannot be made: {error}")) from None
        run = cls(path.resolve())
        with run.beginning():
            run.checkpoints.mkdir()
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """An existing run. Raises UserError when the folder is not one, or is from a version too new to be read."""
        run = cls(Path(path).expanduser().resolve())
        if not run.config_file.is_file():
            fix = "a run that was killed before it began is started anew"
            raise UserError(Problem(str(path), "is not a run folder: it has no config.yaml", fix))
        run.check_format()
        return run

    def check_format(self) -> None:
        """Raise UserError when a newer version made the folder in another format.

        Nothing is asked of a folder that does not say its format.
        """
        try:
            made_by = read_json(self.environment_file)
        except UserError:  # only what is needed later must be there
            return
        found = made_by.get("run_format")
        if isinstance(found, int) and found > FORMAT:
            what = f"was made by tlearn {self.made_by}, which is newer: format {found}, and this version reads {FORMAT}"
            raise UserError(Problem(str(self.path), what, "pip install --upgrade tlearn"))

    @property
    def made_by(self) -> str:
        """The version of tlearn that made the run, as far as its folder says."""
        try:
            return str(read_json(self.environment_file)["packages"]["tlearn"])
        except (UserError, KeyError, TypeError):
            return "of an unknown version"

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """Around all that comes before the first step: where it fails, the new folder goes away again.

        Raises:
            StorageError: the system refuses a file of the run.
        """
        with explained(self.path, "nothing was trained yet: start the run anew"):
            try:
                yield
            except BaseException:
                shutil.rmtree(self.path, ignore_errors=True)
                raise

    def write_inputs(
        self,
        config: Config,
        overrides: list[str] | None,
        *,
        manifest: Mapping[str, Any],
        weights: Mapping[str, Any],
        plan: Mapping[str, Any],
        files: Callable[[Path], None],
    ) -> None:
        """Write what the run is made from, everything needed to repeat it, and what it will do."""
        write_atomic(self.overrides_file, yaml.safe_dump(overrides).encode())
        self._write_json(self.environment_file, {"run_format": FORMAT} | environment() | {"weights": weights})
        self._write_json(self.manifest_file, manifest)
        files(self.files_file)
        self._write_json(self.plan_file, plan)
        # Last: a folder with a config has all the others too.
        # Its types are known by now: as plain data it becomes the same text in a fifth of the time.
        write_atomic(self.config_file, OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))).encode())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, the same that the command prints as its last line."""
        self._write_json(self.summary_file, summary)

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Write what the run is doing."""
        self._write_json(self.status_file, status)

    def _write_json(self, path: Path, data: Mapping[str, Any]) -> None:
        write_atomic(path, (json.dumps(data, indent=1) + "\n").encode())

    @property
    def config(self) -> Config:
        """The resolved config the run was made with. Raises UserError when the file is damaged."""
        try:
            data = read_yaml(self.config_file)
        except ConfigError as error:  # the file itself, not what it says
            raise UserError(error.problems) from None
        if not isinstance(data, dict):
            raise UserError(Problem(str(self.config_file), "is damaged: it is not a mapping of config keys"))
        return typed(data)

    @property
    def overrides(self) -> list[str] | None:
        """What was given on the command line; None for a run made from Python."""
        overrides: list[str] | None = read_yaml(self.overrides_file)
        return overrides

    @property
    def plan(self) -> dict[str, Any]:
        """The plan as plain data."""
        return read_json(self.plan_file)

    @property
    def manifest(self) -> dict[str, Any]:
        """Hash, classes and counts of the data."""
        return read_json(self.manifest_file)

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """Images that could not be read, and why; see ``tlearn.data.named_rows`` for what they are called."""
        entries = self.manifest.get("left_out", [])
        try:
            return [(str(name), str(reason)) for name, reason in entries]
        except (TypeError, ValueError):
            what = "is damaged: left_out is no list of images and reasons"
            raise UserError(Problem(str(self.manifest_file), what)) from None

    @property
    def summary(self) -> dict[str, Any]:
        """What came of it. Raises UserError while the run has not ended."""
        if self.told is not None:
            return self.told
        if not self.summary_file.is_file():
            raise UserError(Problem(str(self.path), "has no summary.json: the run has not ended"))
        return read_json(self.summary_file)

    @property
    def status(self) -> dict[str, Any]:
        """What the run is doing: ``status`` is running, stopped, failed, finished, pruned, or killed.

        The last is what no run can say of itself.
        """
        status = read_json(self.status_file)
        if status.get("status") == "running" and not self._is_held():
            status["status"] = "killed"
            if self.summary_file.is_file():  # killed after it was written, which nothing but the status comes after
                status["status"] = self.summary.get("status", "finished")
                status.pop("resume", None)
        return status

    def _is_held(self) -> bool:
        """Whether a process is working on the run."""
        try:
            with open(self.path / ".lock", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Every record of ``metrics.jsonl``, in order."""
        if not self.metrics_file.is_file():
            return []
        lines = self.metrics_file.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]  # a crash may have cut off the last one

    def epochs(self) -> list[dict[str, Any]]:
        """The records of finished epochs."""
        return [record for record in self.metrics if record["event"] == "epoch"]

    def truncate_metrics(self, global_step: int, *, validation_due: bool) -> None:
        """Drop the records after a step, and that of an epoch it ends where it is validated again: all come again."""
        kept = [
            json.dumps(record) + "\n"
            for record in self.metrics
            if record["global_step"] <= global_step - (validation_due and record["event"] == "epoch")
        ]
        write_atomic(self.metrics_file, "".join(kept).encode())

    def model(self) -> keras.Model:
        """The final model: (batch, side, side, 3) RGB in 0..255 to scores per class."""
        import keras

        import tlearn.heads.pooling  # noqa: F401  registers the pooling layers a saved model may hold

        if not self.model_file.is_file():
            raise UserError(Problem(str(self.path), "has no model.keras: the run has not ended"))
        return keras.saving.load_model(self.model_file, compile=False, safe_mode=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run while writing to it; the lock dies with its holder.

        Raises:
            UserError: another process holds it, or something in it leads elsewhere.
        """
        refuse_links(self.path)
        lock = self.path / ".lock"
        with naming(lock):
            file = open(lock, "a")  # noqa: SIM115  held as long as the block lasts
        with file:
            try:
                with naming(lock):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(Problem(str(self.path), "another process is working on this run")) from None
            yield

    def sweep(self) -> None:
        """Delete what killed processes left unfinished. The lock is held."""
        for folder in (self.path, self.checkpoints):
            for path in folder.glob(f"{TEMPORARY}*"):
                with naming(path):
                    path.unlink()


def resolve_weights(weights: str | None) -> str | None:
    """Where ``backbone.weights`` names a run folder, its best weights file; anything else as it is."""
    if weights is None or weights in ("imagenet", "glyphs"):
        return weights
    path = Path(weights).expanduser()
    if not path.is_dir():
        return str(path)
    run = Run(path)
    run.check_format()
    if run.model_file.is_file():
        return str(run.model_file)  # the best weights or the last, as the run's checkpoint.final chose
    if not run.best_file.is_file():
        fix = "wait for its first epoch to end, or name a weights file"
        raise ConfigError(Problem("backbone.weights", f"{weights} is a folder without checkpoints/best.npz", fix))
    return str(run.best_file)


def _make_named(parent: Path, name: str) -> Path:
    """``runs/<name>-<time>``, with a number behind where two start in the same second."""
    stem = f"{name.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, 1000):
        path = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise OSError(f"{parent}/{stem} and 999 more exist")


def environment() -> dict[str, Any]:
    """Versions, machine and git state: what may explain a difference between two runs."""
    packages = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": sys.version.split()[0],
        "packages": packages,
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "devices": _devices(),
        "git": _git_state(),
    }


def _processor() -> str:
    """Model of the processor, as the system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _devices() -> list[str]:
    """What TensorFlow may run on, such as ``CPU`` or ``GPU: NVIDIA A100``."""
    import_tensorflow()
    import tensorflow as tf

    found = []
    for device in tf.config.list_physical_devices():
        name = tf.config.experimental.get_device_details(device).get("device_name")
        found.append(f"{device.device_type}: {name}" if name else device.device_type)
    return found


def _git_state() -> dict[str, Any] | None:
    """Commit of the working directory and whether it has changes; None outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            # A repository may name a program that git is to start when it looks for changes.
            ("git", "-c", "core.fsmonitor=false", *arguments),
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changes": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
