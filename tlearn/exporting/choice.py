"""What was asked for, checked before anything slow begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tlearn.config import Precision
from tlearn.errors import Problem, UserError, did_you_mean
from tlearn.exporting.formats import (
    EXPORTS,
    FLOAT32,
    FORMATS,
    OF_PRECISION,
    ONNX,
    QUANTIZE,
    TFLITE,
    Export,
    Tolerance,
    check_onnx_installed,
)


def chosen(formats: Sequence[str], quantize: Sequence[str] | None, *counts: int) -> list[Export]:
    """The exports that were asked for, in the order of ``EXPORTS``. Raises UserError with everything wrong."""
    problems = [
        Problem(f"--format {name}", "unknown", did_you_mean(name, (*FORMATS, "all")))
        for name in formats
        if name not in (*FORMATS, "all")
    ]
    problems += [
        Problem(f"--quantize {name}", "unknown", did_you_mean(name, QUANTIZE))
        for name in quantize or ()
        if name not in QUANTIZE
    ]
    wanted = FORMATS if "all" in formats else tuple(formats)
    if quantize and TFLITE not in wanted:
        problems.append(Problem("--quantize", "is for LiteRT files", "add --format tflite"))
    if not wanted:
        problems.append(Problem("--format", "names no format", f"one of: {', '.join(FORMATS)}, all"))
    if any(count < 1 for count in counts):
        problems.append(Problem("--check-images, --calibration-images", "must be 1 or more"))
    if ONNX in wanted:
        problems += check_onnx_installed()
    if problems:
        raise UserError(problems)
    kinds = quantize or (QUANTIZE if "all" in formats else (FLOAT32,))
    return [export for export in EXPORTS if export.format in wanted and (export.quantize or kinds[0]) in kinds]


def check_limits(exports: Sequence[Export], *limits: Mapping[str, float]) -> None:
    """Raises UserError for names that are not exported, and for what is no share."""
    names = [export.name for export in exports]
    given = [item for limit in limits for item in limit.items()]
    problems = [
        Problem(f"{name}={value:g}", "no such export is written", did_you_mean(name, names))
        for name, value in given
        if name not in names
    ]
    problems += [Problem(f"{name}={value:g}", "must be 0 to 1") for name, value in given if not 0 <= value <= 1]
    if problems:
        raise UserError(problems)


def limits_of(
    export: Export, precision: Precision, tolerance: Mapping[str, float], agreement: Mapping[str, float]
) -> dict[str, Tolerance]:
    """What is allowed of each signature: as the user says, else by the format and the run's own precision."""
    own = OF_PRECISION[precision]
    return {
        signature: Tolerance(
            tolerance.get(export.name, max(limit.difference, own.difference)),
            agreement.get(export.name, min(limit.agreement, own.agreement)),
        )
        for signature, limit in export.tolerances.items()
    }
