"""Whether exported files say what the run says: each is read back in a fresh process and asked the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tlearn.errors import Problem, UserError
from tlearn.exporting import reload
from tlearn.exporting.formats import KERAS, ONNX, Export, Tolerance
from tlearn.exporting.samples import Samples

UNDECIDED = 0.01
"""Between probabilities as near as this a run has no opinion: rounding alone would decide."""


@dataclass(frozen=True)
class Parity:
    """How far one signature of an export parts from the run.

    Attributes:
        max_difference: largest of any probability of any image; NaN where a probability is none.
        mean_difference: mean over the images of the largest of each.
        agreement: share of images with the same likeliest class, or of labels on the same side of 0.5; where the run
            itself is undecided, by ``UNDECIDED`` or less, either answer is the same.
        images: how many were compared.
        tolerance: what is allowed.
    """

    max_difference: float
    mean_difference: float
    agreement: float
    images: int
    tolerance: Tolerance

    @property
    def holds(self) -> bool:
        """Whether it is within the tolerance."""
        return self.max_difference <= self.tolerance.difference and self.agreement >= self.tolerance.agreement

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        finite = np.isfinite(self.max_difference)  # JSON has no NaN
        return {
            "max_difference": self.max_difference if finite else None,
            "mean_difference": self.mean_difference if finite else None,
            "agreement": self.agreement,
            "images": self.images,
            "tolerance": {"difference": self.tolerance.difference, "agreement": self.tolerance.agreement},
        }


def compare(
    expected: NDArray[np.float32], actual: NDArray[np.float32], *, multi_label: bool, tolerance: Tolerance
) -> Parity:
    """Compare probabilities, both (n, classes). Another shape parts as far as can be."""
    if expected.shape != actual.shape:
        return Parity(float("nan"), float("nan"), 0.0, len(expected), tolerance)
    if multi_label:
        same = ((expected >= 0.5) == (actual >= 0.5)) | (np.abs(expected - 0.5) <= UNDECIDED)
    else:
        chosen = np.take_along_axis(expected, actual.argmax(axis=1)[:, None], axis=1)[:, 0]
        same = expected.max(axis=1) - chosen <= UNDECIDED
    difference = np.abs(expected.astype(np.float64) - actual).max(axis=1)
    return Parity(float(difference.max()), float(difference.mean()), float(same.mean()), len(expected), tolerance)


def check_exports(
    written: Mapping[Export, Path],
    samples: Samples,
    expected: NDArray[np.float32],
    *,
    classes: Sequence[str],
    multi_label: bool,
    tolerances: Mapping[Export, Mapping[str, Tolerance]],
    modules: Sequence[str] = (),
) -> dict[Export, dict[str, Parity]]:
    """Read back what was written, in fresh processes, and compare it with the run.

    Args:
        written: where each export lies.
        samples: images.
        expected: the run's own probabilities of them, (n, classes).
        classes: their names, which an export that holds names must repeat.
        multi_label: whether an image may have several labels.
        tolerances: of each signature of each export.
        modules: to import before a Keras file can be loaded.

    Raises:
        UserError: a file cannot be read back.
    """
    found: dict[Export, dict[str, Parity]] = {}
    for runtime, exports in groupby(sorted(written, key=_runtime), key=_runtime):
        group = list(exports)
        answers = _reload(
            {export: written[export] for export in group}, samples, modules if runtime == KERAS else (), classes
        )
        for export in group:
            found[export] = {
                signature: compare(expected, actual, multi_label=multi_label, tolerance=tolerances[export][signature])
                for signature, actual in answers[export].items()
            }
    return found


def _runtime(export: Export) -> str:
    """Exports that share a process; a Keras file may need modules of tlearn's, which the others must do without."""
    return export.format if export.format in (KERAS, ONNX) else "tensorflow"


def _reload(
    written: Mapping[Export, Path], samples: Samples, modules: Sequence[str], classes: Sequence[str]
) -> dict[Export, dict[str, NDArray[np.float32]]]:
    """Probabilities of each signature, by one process for all of these exports."""
    with TemporaryDirectory(prefix="tlearn-export-") as name:
        folder = Path(name)
        targets = [
            {
                "kind": export.format,
                "path": str(path),
                "outputs": {signature: str(folder / f"{number}-{signature}.npy") for signature in export.tolerances},
            }
            for number, (export, path) in enumerate(written.items())
        ]
        report = _run(folder, _job(folder, samples, modules, targets), ", ".join(export.name for export in written))
        if report["tlearn"] and not modules:
            raise AssertionError("tlearn was imported by what must do without it")
        for export, names in zip(written, report["classes"], strict=True):
            if names is not None and list(names) != list(classes):
                raise AssertionError(f"{export.name} names other classes: {names[:5]}")
        return {
            export: {signature: np.load(file, allow_pickle=False) for signature, file in target["outputs"].items()}  # type: ignore[attr-defined]
            for export, target in zip(written, targets, strict=True)
        }


def _job(folder: Path, samples: Samples, modules: Sequence[str], targets: Iterable[Any]) -> Path:
    """Write down what the process is to do."""
    pixels, encoded, job = folder / "pixels.npy", folder / "encoded.npy", folder / "job.json"
    np.save(pixels, samples.pixels, allow_pickle=False)
    np.save(encoded, np.frombuffer(b"".join(samples.files), np.uint8), allow_pickle=False)
    what = {
        "pixels": str(pixels),
        "encoded": str(encoded),
        "lengths": [len(file) for file in samples.files],
        "modules": list(modules),
        "targets": list(targets),
    }
    job.write_text(json.dumps(what), encoding="utf-8")
    return job


def _run(folder: Path, job: Path, names: str) -> dict[str, Any]:
    """Do a job in a process of its own; gives its last line."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # where a plugin's layers come from
    done = subprocess.run(
        [sys.executable, "-P", reload.__file__, str(job)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "2"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        words = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]
        what = f"was written, but cannot be read back: {words}"
        raise UserError(Problem(names, what, "leave the format out, or choose another"))
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
