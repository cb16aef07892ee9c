"""The export of a run: open it, write the files, check them, publish them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlearn.config import Output, Precision
from tlearn.data import Data
from tlearn.errors import Problem, UserError
from tlearn.exporting.choice import check_limits, chosen, limits_of
from tlearn.exporting.formats import SAVED_MODEL, Export, Network32, Tolerance, foreign_modules, labels_text
from tlearn.exporting.parity import Parity, check_exports
from tlearn.exporting.publish import KIND, LABELS, METADATA, check_output, publish, temporary_folder
from tlearn.exporting.samples import Samples, found_samples, split_samples
from tlearn.labelled import run_data, split_of
from tlearn.quiet import hidden_output

if TYPE_CHECKING:
    from tlearn.network import Network


class ExportDiffers(Exception):
    """An export does not say what the run says; nothing was published.

    Attributes:
        report: what was measured, as ``export_network`` gives it.
    """

    def __init__(self, message: str, report: dict[str, Any]) -> None:
        super().__init__(message)
        self.report = report


def export_network(
    open_network: Callable[[], Network],
    *,
    formats: str | Sequence[str] = (SAVED_MODEL,),
    quantize: str | Sequence[str] | None = None,
    output: str | os.PathLike[str] | None = None,
    force: bool = False,
    images: str | Sequence[str] | None = None,
    calibration: str | Sequence[str] | None = None,
    check_images: int = 64,
    calibration_images: int = 200,
    tolerance: Mapping[str, float] | None = None,
    agreement: Mapping[str, float] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Write a network with a classifier in other formats, check them, and publish them all at once.

    Args:
        open_network: gives the network; called when the arguments make sense.
        formats: ``saved_model``, ``keras``, ``tflite``, ``onnx``, or ``all``; one or several.
        quantize: of LiteRT: ``float32``, ``float16``, ``int8``; None: float32, of ``all`` all three.
        output: folder to make; None: ``export`` in the run's folder, which is known when the network is open.
        force: replace an earlier export that is there; nothing else is ever replaced.
        images: files and folders to check with; None: the run's validation images. A bare backbone needs them.
        calibration: files and folders that int8 takes the ranges of activations from; None: the training images.
        check_images, calibration_images: how many of them, evenly chosen.
        tolerance: largest difference allowed, by name of the export, such as ``tflite-int8``.
        agreement: least share of equal classes, likewise.
        say: takes lines for a person.

    Returns:
        ``{"run", "output", "status", "exports": [{"format", "quantize", "path", "bytes", "max_difference",
        "agreement", "images", "signatures", ...}]}``; the figures are those of the pixels' signature.

    Raises:
        UserError: an argument makes no sense, the output is in the way, or a format cannot hold the network.
        ExportDiffers: an export parts from the run beyond the tolerance.
    """
    exports = chosen(_several(formats) or (), _several(quantize), check_images, calibration_images)
    images, calibration = _several(images), _several(calibration)
    check_limits(exports, tolerance or {}, agreement or {})
    if output is not None:
        check_output(_absolute(output), force)  # before the network is opened
    network = open_network()
    if not network.classes:
        raise UserError(Problem(network.backbone.spec.name, "has no classifier", "include_top=True, or a finished run"))
    folder = _absolute(output or _run_folder(network) / "export")
    check_output(folder, force)

    job = _job(network, images, calibration, check_images, calibration_images, say)
    with temporary_folder(folder) as temporary:
        limits = {export: limits_of(export, job.precision, tolerance or {}, agreement or {}) for export in exports}
        report = _write_and_check(job, limits, temporary, folder, say)
        (temporary / LABELS).write_bytes(labels_text(network.classes))
        (temporary / METADATA).write_text(
            json.dumps(dict(job.written.metadata) | report, indent=1) + "\n", encoding="utf-8"
        )
        publish(temporary, folder)
    return report


def _several(given: str | Sequence[str] | None) -> Sequence[str] | None:
    """One name stands for a list of it: a text is a sequence too, of letters."""
    return (given,) if isinstance(given, str) else given


def _absolute(path: str | os.PathLike[str]) -> Path:
    return Path(path).expanduser().absolute()


_OTHERS = Problem(
    "--images FOLDER", "names others to check with", "int8 also needs --calibration FOLDER, images to train on"
)


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
    reading = network.reading
    data = _data(network, say, needed=images is None) if images is None or calibration is None else None

    def training() -> Samples:
        if data is not None and calibration is None:
            return split_samples(split_of(data, "train"), calibration_images, reading)
        if not (calibration or images):
            raise UserError(Problem("int8", "there are no images to take ranges from", "--calibration FOLDER"))
        return found_samples(calibration or images or (), calibration_images, reading)

    if images is not None:
        samples = found_samples(images, check_images, reading)
    else:
        assert data is not None, "they were needed"
        samples = split_samples(split_of(data, "val"), check_images, reading)
    say(f"checking with {len(samples)} {samples.where}")
    if samples.reencoded:
        say(f"{samples.reencoded} of them as PNG: graphs do not read their format, or an orientation outside EXIF")
    precision = network.run.config.precision if network.run is not None else Precision.float32
    model = _float32_model(network, precision)
    facts = _metadata(network)
    written = Network32(model, network.classes, reading, facts, training, _float_operations(model))
    return _Job(network, written, samples, precision)


def _data(network: Network, say: Callable[[str], None], *, needed: bool) -> Data | None:
    """The data of a run; None where they are gone and not needed. Raises UserError where they are."""
    if network.run is None:
        if not needed:
            return None
        what = "has no images of its own"
        raise UserError(Problem(network.backbone.spec.name, what, "name some to check with: images=[...]"))
    try:
        data, notices = run_data(network.run, network.reading.image_size, network.reading.max_pixels, hint=_OTHERS)
    except UserError:
        if needed:
            raise
        return None
    for line in notices:
        say(line)
    return data


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
    with hidden_output(2):  # what TensorFlow thinks of the run's precision
        expected = job.network(job.samples.pixels)
    found = check_exports(
        paths,
        job.samples,
        expected,
        classes=job.network.classes,
        multi_label=job.network.multi_label,
        tolerances=limits,
        modules=foreign_modules(job.written.model),
    )
    entries = [_entry(export, folder / export.file, paths[export], found[export], facts[export]) for export in limits]
    report = {"run": _run_name(job.network), "output": str(folder), "status": "finished", "exports": entries}
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
    reading = network.reading
    ids = {} if network.wordnet is None else {"wordnet": list(network.wordnet)}
    return {
        "kind": KIND,
        "kind_version": 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {name: version(name) for name in ("tlearn", "tensorflow", "keras", "numpy")},
        "run": _run_name(network),
        "backbone": network.backbone.spec.name,
        "classes": list(network.classes),
        **ids,
        "multi_label": network.multi_label,
        "image_size": reading.image_size,
        "pixels": "RGB, 0..255; the network's own preprocessing is inside",
        "resize": reading.resize.value,
        "crop_fraction": reading.crop_fraction,
        "interpolation": reading.interpolation.value,
        "decode": reading.decode.value,
        "precision": "float32",
    }


def _run_folder(network: Network) -> Path:
    """Raises UserError for a bare backbone."""
    if network.run is None:
        raise UserError(Problem("output", "a bare backbone has no folder of its own", "name one to make"))
    return network.run.path


def _run_name(network: Network) -> str | None:
    return None if network.run is None else str(network.run.path)
