"""``python -m tlearn.export``: a finished run as files that serve without tlearn, checked before they appear."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from tlearn.arguments import run_command
from tlearn.config import Output, Precision
from tlearn.errors import Problem, UserError, did_you_mean
from tlearn.exporting.formats import (
    EXPORTS,
    FLOAT32,
    FORMATS,
    OF_PRECISION,
    ONNX,
    QUANTIZE,
    SAVED_MODEL,
    TFLITE,
    Export,
    Network32,
    Tolerance,
    check_onnx_installed,
    foreign_modules,
    labels_text,
)
from tlearn.exporting.parity import Parity, check_exports
from tlearn.exporting.samples import RunImages, Samples, found_samples, run_data
from tlearn.train.command import OK, OUR_FAULT
from tlearn.train.run import Run

if TYPE_CHECKING:
    from tlearn.network import Network

_HELP = """\
Write a finished run in formats that serve without tlearn, preprocessing inside.

    python -m tlearn.export runs/flowers                                  a SavedModel for TensorFlow Serving
    python -m tlearn.export runs/flowers --format all -o flowers-export   and .keras, LiteRT (TFLite), ONNX
    python -m tlearn.export runs/flowers --format tflite --quantize float32 int8

Each file is read back in a fresh process and asked about images of the run's validation split. When its
probabilities part from the run's beyond the tolerance, nothing is written and the exit status is 1.
The last line of standard output is JSON. Exit status: 0; 1 the export parts from the run; 2 a mistake in the
arguments, or a format that cannot hold the network.
"""
_METADATA, _LABELS = "metadata.json", "labels.txt"
_KIND = "tlearn export"


class ExportDiffers(Exception):
    """An export does not say what the run says; nothing was published.

    Attributes:
        report: what was measured, as ``export_network`` gives it.
    """

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self.report = report


# --- the command -----------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tlearn.export", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a finished run")
    parser.add_argument(
        "--format",
        nargs="+",
        default=[SAVED_MODEL],
        metavar="F",
        help=f"{' | '.join(FORMATS)} | all; default: the first",
    )
    parser.add_argument(
        "--quantize",
        nargs="+",
        metavar="Q",
        help=f"LiteRT's numbers: {' | '.join(QUANTIZE)}; default: float32, of all: all",
    )
    parser.add_argument("--output", "-o", metavar="FOLDER", help="folder to make; default: export, in the run's folder")
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="check with these; default: the validation split")
    parser.add_argument("--calibration", nargs="+", metavar="PATH", help="int8: ranges; default: the training split")
    parser.add_argument("--check-images", type=int, default=64, metavar="N", help="how many to check with; default: 64")
    parser.add_argument(
        "--calibration-images", type=int, default=200, metavar="N", help="how many for int8; default: 200"
    )
    parser.add_argument(
        "--tolerance",
        nargs="+",
        default=[],
        metavar="NAME=X",
        help="largest difference allowed, such as tflite-int8=0.2",
    )
    parser.add_argument(
        "--agreement", nargs="+", default=[], metavar="NAME=X", help="least share of equal classes, such as onnx=1"
    )
    return run_command(_command, parser, argv, stopped="stopped; nothing was published")


def _command(arguments: argparse.Namespace) -> int:
    from tlearn.train.console import Terminal

    terminal = Terminal()
    run = Run.open(arguments.run)
    options: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("output", "force", "images", "calibration", "quantize")
    }
    options |= {name: getattr(arguments, name) for name in ("check_images", "calibration_images")}
    options |= {name: _limits(name, getattr(arguments, name)) for name in ("tolerance", "agreement")}

    def opener() -> Network:
        from tlearn.network import load

        return load(run)

    try:
        report = export_network(opener, formats=arguments.format, say=terminal.print, run=run.path, **options)
    except ExportDiffers as error:
        terminal.print(_table(error.report))
        print(f"error: {error}", file=sys.stderr)
        print(json.dumps(error.report), flush=True)
        return OUR_FAULT
    terminal.print(_table(report))
    terminal.print(f"export {report['output']}")
    print(json.dumps(report), flush=True)
    return OK


def _limits(name: str, pairs: Sequence[str]) -> dict[str, float]:
    """``NAME=X`` of the command line. Raises UserError."""
    limits = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        try:
            limits[key] = float(value)
        except ValueError:
            raise UserError(Problem(f"--{name} {pair}", "is not NAME=NUMBER", "such as tflite-int8=0.2")) from None
    return limits


def _table(report: Mapping[str, Any]) -> Table:
    """For people; a row for each signature; fits 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, justify in (
        ("export", "left"),
        ("size", "right"),
        ("largest difference", "right"),
        ("same class", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("")
    for entry in report["exports"]:
        for row, (signature, parity) in enumerate(entry["signatures"].items()):
            name = "-".join(filter(None, (entry["format"], entry["quantize"])))
            difference, limit = parity["max_difference"], parity["tolerance"]["difference"]
            table.add_row(
                name if len(entry["signatures"]) == 1 else f"{name} {signature}",
                "" if row else _size(entry["bytes"]),
                f"{'none' if difference is None else format(difference, '.1e')} of {limit:g}",
                f"{parity['agreement']:.1%} of {parity['images']}",
                "" if parity["holds"] else "PARTS",
            )
    return table


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"


# --- the export ------------------------------------------------------------------------------------------------------


def export_network(
    open_network: Callable[[], Network],
    *,
    formats: Sequence[str] = (SAVED_MODEL,),
    quantize: Sequence[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    images: Sequence[str] | None = None,
    calibration: Sequence[str] | None = None,
    check_images: int = 64,
    calibration_images: int = 200,
    tolerance: Mapping[str, float] | None = None,
    agreement: Mapping[str, float] | None = None,
    run: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a finished run in other formats, check them, and publish them all at once.

    Args:
        open_network: gives the network; called when the arguments make sense.
        formats: ``saved_model``, ``keras``, ``tflite``, ``onnx``, or ``all``.
        quantize: of LiteRT: ``float32``, ``float16``, ``int8``; None: float32, of ``all`` all three.
        output: folder to make; None: ``export`` in the run's folder.
        force: replace an earlier export that is there; nothing else is ever replaced.
        images: files and folders to check with; None: the run's validation images.
        calibration: files and folders that int8 takes the ranges of activations from; None: the training images.
        check_images, calibration_images: how many of them, evenly chosen.
        tolerance: largest difference allowed, by name of the export, such as ``tflite-int8``.
        agreement: least share of equal classes, likewise.
        run: the run's folder, so that an output that is in the way is found before the network is opened.
        say: takes lines for a person.

    Returns:
        ``{"run", "output", "status", "exports": [{"format", "quantize", "path", "bytes", "max_difference",
        "agreement", "images", "signatures", ...}]}``; the figures are those of the pixels' signature.

    Raises:
        UserError: an argument makes no sense, the output is in the way, or a format cannot hold the network.
        ExportDiffers: an export parts from the run beyond the tolerance.
    """
    exports = _chosen(formats, quantize, check_images, calibration_images)
    _check_limits(exports, tolerance or {}, agreement or {})
    folder = (
        None if output is None and run is None else Path(output or Path(run or "") / "export").expanduser().absolute()
    )
    if folder is not None:
        _check_output(folder, force)
    network = open_network()
    if folder is None:
        folder = _run_folder(network) / "export"
        _check_output(folder, force)

    job = _job(network, images, calibration, check_images, calibration_images, say)
    with _temporary(folder) as temporary:
        limits = {export: _limits_of(export, job.precision, tolerance or {}, agreement or {}) for export in exports}
        report = _write_and_check(job, limits, temporary, folder, say)
        (temporary / _LABELS).write_bytes(labels_text(network.classes))
        (temporary / _METADATA).write_text(
            json.dumps(dict(job.written.metadata) | report, indent=1) + "\n", encoding="utf-8"
        )
        _publish(temporary, folder)
    return report


@dataclass(frozen=True)
class _Job:
    """What is written, and what it is held against."""

    network: Network
    written: Network32
    samples: Samples
    precision: Precision


def _job(
    network: Network,
    images: Sequence[str] | None,
    calibration: Sequence[str] | None,
    check_images: int,
    calibration_images: int,
    say: Callable[[str], None],
) -> _Job:
    run, reading = network.run, network.reading
    assert run is not None, "checked by _run_folder"
    config = run.config
    data = None
    if images is None or calibration is None:
        try:
            data, warnings = run_data(run, reading.image_size)
            for line in warnings:
                say(line)
        except UserError:
            if images is None:
                raise

    def training() -> Samples:
        if calibration is not None:
            return found_samples(calibration, calibration_images, reading)
        if data is None:
            raise UserError(Problem("int8", "the run's training images are not there", "--calibration FOLDER"))
        return RunImages(data).samples(data.train, calibration_images, reading, "training images")

    if images is not None:
        samples = found_samples(images, check_images, reading)
    else:
        assert data is not None
        samples = RunImages(data).samples(data.val, check_images, reading, "validation images")
    say(f"checking with {len(samples)} {samples.where}")
    if samples.reencoded and data is not None and data.source.file(0) is not None:
        say(f"{samples.reencoded} of them as PNG: graphs read neither their format nor their EXIF orientation")
    model = _float32_model(network, config.precision)
    facts = _metadata(network)
    written = Network32(model, network.classes, reading, facts, training, _float_operations(model))
    return _Job(network, written, samples, config.precision)


def _float_operations(model: Any) -> tuple[str, ...]:
    """GeM's: it divides by the largest value of a channel, which may be one millionth: as an integer that is 0."""
    from tlearn.heads.pooling import GeM

    return ("MAXIMUM", "REDUCE_MAX", "DIV", "POW") if any(isinstance(layer, GeM) for layer in model.layers) else ()


def _float32_model(network: Network, precision: Precision) -> Any:
    """The run's model, computing in float32 throughout: converters know no other, and its variables are float32."""
    if precision is Precision.float32 or network.run is None:
        return network.model
    from tlearn.train.classifier import build_classifier

    config = network.run.config
    twin = build_classifier(
        config.backbone, config.head, weights=None, classes=len(network.classes), multi_label=network.multi_label
    ).finished(Output.probabilities)
    twin.set_weights(network.model.get_weights())
    return twin


def _write_and_check(
    job: _Job,
    limits: Mapping[Export, Mapping[str, Tolerance]],
    temporary: Path,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the files, read them back, compare. Raises UserError, ExportDiffers."""
    paths: dict[Export, Path] = {}
    facts: dict[Export, dict[str, Any]] = {}
    for export in limits:
        say(f"writing {export.name}")
        paths[export] = temporary / export.file
        facts[export] = export.written(job.written, paths[export])
    say("reading back in fresh processes")
    found = check_exports(
        paths,
        job.samples,
        job.network(job.samples.pixels),
        classes=job.network.classes,
        multi_label=job.network.multi_label,
        tolerances=limits,
        modules=foreign_modules(job.written.model),
    )
    entries = [_entry(export, folder / export.file, paths[export], found[export], facts[export]) for export in limits]
    report = {"run": str(_run_folder(job.network)), "output": str(folder), "status": "finished", "exports": entries}
    parted = [export.name for export in limits if not all(parity.holds for parity in found[export].values())]
    if parted:
        message = f"{', '.join(parted)}: parts from the run beyond the tolerance; nothing was published"
        raise ExportDiffers(message, report | {"status": "failed"})
    return report


def _entry(
    export: Export, published: Path, written: Path, found: Mapping[str, Parity], facts: Mapping[str, Any]
) -> dict[str, Any]:
    files = [written] if written.is_file() else [file for file in written.rglob("*") if file.is_file()]
    pixels = found["images"].as_dict()
    return {
        "format": export.format,
        "quantize": export.quantize,
        "path": str(published),
        "bytes": sum(file.stat().st_size for file in files),
        "max_difference": pixels["max_difference"],
        "agreement": pixels["agreement"],
        "images": pixels["images"],
        "signatures": {name: parity.as_dict() | {"holds": parity.holds} for name, parity in found.items()},
        **facts,
    }


def _metadata(network: Network) -> dict[str, Any]:
    """What is known about a network, plain data."""
    run, reading = network.run, network.reading
    assert run is not None
    backbone = run.config.backbone
    return {
        "kind": _KIND,
        "kind_version": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {name: version(name) for name in ("tlearn", "tensorflow", "keras", "numpy")},
        "run": str(run.path),
        "backbone": backbone.name,
        "classes": list(network.classes),
        "multi_label": network.multi_label,
        "image_size": reading.image_size,
        "pixels": "RGB, 0..255; the network's own preprocessing is inside",
        "resize": reading.resize.value,
        "crop_fraction": reading.crop_fraction,
        "interpolation": reading.interpolation.value,
        "precision": "float32",
    }


# --- arguments -------------------------------------------------------------------------------------------------------


def _chosen(formats: Sequence[str], quantize: Sequence[str] | None, *counts: int) -> list[Export]:
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


def _check_limits(exports: Sequence[Export], *limits: Mapping[str, float]) -> None:
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


def _limits_of(
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


def _run_folder(network: Network) -> Path:
    """Raises UserError for a bare backbone."""
    if network.run is None:
        raise UserError(Problem(network.backbone.spec.name, "is no finished run", "tlearn.load(run).export(...)"))
    return network.run.path


# --- publishing ------------------------------------------------------------------------------------------------------


def _check_output(folder: Path, force: bool) -> None:
    """Raises UserError when something is in the way, or nothing can be written there."""
    where = "--output"
    if os.path.lexists(folder):
        if not _is_export(folder):
            raise UserError(Problem(where, f"{folder} exists and is no export", "choose another folder"))
        if not force:
            raise UserError(Problem(where, f"{folder} exists", "--force replaces it, or choose another folder"))
    parent = folder.parent
    if not parent.is_dir():
        raise UserError(Problem(where, f"there is no folder {parent}", "make it, or choose another"))
    if not os.access(parent, os.W_OK):
        raise UserError(Problem(where, f"{parent} may not be written to"))


def _is_export(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / _METADATA).read_text(encoding="utf-8"))["kind"] == _KIND)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A hidden folder beside the output; nothing of it stays."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    mask = os.umask(0)
    os.umask(mask)
    temporary.chmod(0o777 & ~mask)  # mkdtemp makes it private, a server runs as somebody else
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary: Path, folder: Path) -> None:
    """Give the finished folder its name; an earlier export goes away at the last moment."""
    if os.path.lexists(folder):
        with _temporary(folder) as grave:
            folder.rename(grave / folder.name)
            temporary.rename(folder)
    else:
        temporary.rename(folder)


if __name__ == "__main__":
    sys.exit(main())
