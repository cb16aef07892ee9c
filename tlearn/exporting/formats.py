"""The formats: how each is written, and how far its probabilities may part from the run's."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tlearn.config import Precision
from tlearn.data import Reading
from tlearn.errors import Problem, UserError
from tlearn.exporting.graph_reading import graph_reader
from tlearn.exporting.samples import Calibration
from tlearn.quiet import hidden_output


@dataclass(frozen=True)
class Tolerance:
    """How far an export may part from the run.

    Attributes:
        difference: largest, of any probability of any image.
        agreement: least share of images with the same likeliest class; where an image may have several labels, of
            labels on the same side of 0.5.
    """

    difference: float
    agreement: float


EXACT = Tolerance(1e-4, 0.95)  # the same arithmetic, in another order
DECODED = Tolerance(0.03, 0.95)  # a few pixels off by one level, see graph_reading
HALF = Tolerance(0.05, 0.95)
INTEGER = Tolerance(0.7, 0.9)  # 256 levels for each activation: a doubtful image may change its class

OF_PRECISION = {
    Precision.float32: EXACT,
    Precision.mixed_float16: Tolerance(0.03, 0.95),
    Precision.mixed_bfloat16: Tolerance(0.2, 0.9),
}
"""Exports compute in float32 whatever a run does, so the run's own rounding comes between them."""

FLOAT32, FLOAT16, INT8 = "float32", "float16", "int8"


@dataclass(frozen=True)
class Network32:
    """A network ready to be written: float32, probabilities out, preprocessing inside.

    Attributes:
        model: ``keras.Model``, (batch, S, S, 3) RGB 0..255 to (batch, classes).
        classes: names in the order of the outputs.
        reading: how a file becomes the square.
        metadata: what is known about it, plain data; goes inside every format that can hold it.
        calibration: images of the training split.
        float_operations: LiteRT operations that int8 must leave in float32.
    """

    model: Any
    classes: tuple[str, ...]
    reading: Reading
    metadata: Mapping[str, Any]
    calibration: Calibration
    float_operations: tuple[str, ...] = field(default=())

    @property
    def pixels_shape(self) -> tuple[int | None, int, int, int]:
        """Of the tensors that it takes."""
        return None, self.reading.image_size, self.reading.image_size, 3

    @cached_property
    def frozen(self) -> Any:
        """The network as a function of pixels with its weights as constants."""
        return self.freeze()

    def freeze(self) -> Any:
        """Likewise, with the weights as they are now."""
        import tensorflow as tf
        from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

        pixels = [tf.TensorSpec(self.pixels_shape, tf.float32, name="images")]
        function = tf.function(lambda images: self.model(images, training=False), pixels, autograph=False)
        return convert_variables_to_constants_v2(function.get_concrete_function())


# --- SavedModel ------------------------------------------------------------------------------------------------------


def write_saved_model(network: Network32, path: Path) -> dict[str, Any]:
    """A folder ``1`` for TensorFlow Serving, with signatures for bytes (the default) and for pixels."""
    import tensorflow as tf

    names = tf.constant([os.fsencode(name) for name in network.classes])  # a folder's name may be no UTF-8
    read = graph_reader(network.reading)

    def answer(pixels: Any) -> dict[str, Any]:
        probabilities = network.model(pixels, training=False)
        return {"classes": tf.tile(names[None], [tf.shape(pixels)[0], 1]), "probabilities": probabilities}

    def of_files(image_bytes: Any) -> dict[str, Any]:
        square = tf.TensorSpec(network.pixels_shape[1:], tf.float32)
        return answer(tf.map_fn(read, image_bytes, fn_output_signature=square))

    def signature(function: Any, name: str, shape: Sequence[int | None], dtype: Any) -> Any:
        return tf.function(function, [tf.TensorSpec(shape, dtype, name=name)], autograph=False)

    module = tf.Module()
    module.weights = [variable.value for variable in network.model.variables]
    signatures = {
        "serving_default": signature(of_files, "image_bytes", [None], tf.string),
        "images": signature(answer, "images", network.pixels_shape, tf.float32),
        "images_uint8": signature(
            lambda images: answer(tf.cast(images, tf.float32)), "images", network.pixels_shape, tf.uint8
        ),
    }
    version = path / "1"  # TensorFlow Serving takes the highest number
    tf.saved_model.save(module, str(version), signatures=signatures)
    extra = version / "assets.extra"
    extra.mkdir()
    for name, text in _texts(network).items():
        (extra / name).write_bytes(text)
    pixels_in = {"images": "float32 (batch, S, S, 3)", "images_uint8": "uint8 (batch, S, S, 3)"}
    return {"inputs": {"serving_default": "string (batch), JPEG, PNG, BMP or GIF", **pixels_in}, "outputs": "float32"}


# --- Keras -----------------------------------------------------------------------------------------------------------


KERAS_FOLDER = "tlearn"


def write_keras(network: Network32, path: Path) -> dict[str, Any]:
    """A Keras file, with labels and metadata in a folder of their own of the zip: it has a ``metadata.json`` itself."""
    network.model.save(path)
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in _texts(network).items():
            archive.writestr(f"{KERAS_FOLDER}/{name}", text)
    return {"inputs": "float32 (batch, S, S, 3)", "outputs": "float32", "import_first": foreign_modules(network.model)}


def foreign_modules(model: Any) -> list[str]:
    """Modules that must be imported before Keras can load a model: those of layers that are not its own."""
    return sorted({type(layer).__module__ for layer in model.layers if not type(layer).__module__.startswith("keras.")})


# --- LiteRT ----------------------------------------------------------------------------------------------------------


def write_tflite(network: Network32, path: Path, kind: str) -> dict[str, Any]:
    """A LiteRT file, with labels and metadata as a zip behind it, which interpreters pass over."""
    with TemporaryDirectory() as folder:
        path.write_bytes(_integer(network, folder) if kind == INT8 else _floating(network, folder, kind))
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in _texts(network).items():
            archive.writestr(name, text)
    floats = list(network.float_operations) if kind == INT8 else []
    dtype = "uint8" if kind == INT8 and not floats else "float32"
    facts = {"inputs": f"{dtype} (batch, S, S, 3)", "outputs": dtype}
    return (
        facts
        | ({"scale": 1 / 256, "zero_point": 0} if dtype == "uint8" else {})
        | ({"float_operations": floats} if floats else {})
    )


def _converter(network: Network32, frozen: Any, folder: str) -> Any:
    """From constants: converting variables leaves some of them without values (TensorFlow 2.21)."""
    import tensorflow as tf

    classes = len(network.classes)

    def answer(images: Any) -> dict[str, Any]:
        return {"probabilities": tf.ensure_shape(frozen(images)[0], (None, classes))}

    pixels = [tf.TensorSpec(network.pixels_shape, tf.float32, name="images")]
    module = tf.Module()
    module.answer = tf.function(answer, pixels, autograph=False)
    tf.saved_model.save(module, folder, signatures={"images": module.answer})
    return tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=["images"])


def _floating(network: Network32, folder: str, kind: str) -> bytes:
    """Floats throughout; with ``float16`` the weights are kept in half precision."""
    import tensorflow as tf

    converter = _converter(network, network.frozen, folder)
    if kind == FLOAT16:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    return bytes(converter.convert())


def _integer(network: Network32, folder: str) -> bytes:
    """Integers throughout; where some operation cannot be, floats there and at both ends.

    Jacob et al. 2017, arXiv 1712.05877.
    """
    import tensorflow as tf

    from tlearn.exporting.rounding import mean_errors_corrected

    pixels = network.calibration().pixels
    with mean_errors_corrected(network.model, pixels):
        converter = _converter(network, network.freeze(), folder)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None].astype(np.float32)] for image in pixels)
    operations = tf.lite.OpsSet
    converter.target_spec.supported_ops = [operations.TFLITE_BUILTINS_INT8]
    if not network.float_operations:
        converter.inference_input_type = converter.inference_output_type = tf.uint8
        return bytes(converter.convert())
    converter.target_spec.supported_ops.append(operations.TFLITE_BUILTINS)
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(network.float_operations))
    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter, debug_dataset=converter.representative_dataset, debug_options=options
    )
    return bytes(debugger.get_nondebug_quantized_model())


# --- ONNX ------------------------------------------------------------------------------------------------------------


def write_onnx(network: Network32, path: Path) -> dict[str, Any]:
    """An ONNX file, with labels and metadata among its properties."""
    import onnx

    _, *square = network.pixels_shape
    network.model(np.zeros((1, *square), np.float32), training=False)  # Keras exports only what was called before
    network.model.export(path, format="onnx", verbose=False)
    model = onnx.load(path)
    _rename(model.graph, {model.graph.input[0].name: "images", model.graph.output[0].name: "probabilities"})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    texts = {"classes": json.dumps(network.classes), "metadata": json.dumps(network.metadata)}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return {"inputs": "float32 (batch, S, S, 3)", "outputs": "float32", "opset": model.opset_import[0].version}


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Give tensors other names, wherever they are mentioned."""
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def check_onnx_installed() -> list[Problem]:
    """What ONNX lacks here."""
    missing = [name for name in ("onnx", "onnxruntime", "tf2onnx") if find_spec(name) is None]
    if not missing:
        return []
    verb = "is" if len(missing) == 1 else "are"
    return [Problem("--format onnx", f"{', '.join(missing)} {verb} not installed", "pip install 'tlearn[onnx]'")]


# --- all of them -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Export:
    """One file, or folder, to write.

    Attributes:
        format: as on the command line.
        quantize: numbers of a LiteRT file.
        file: its name.
        write: writes it to a path, and gives what is to be known about its ends.
        tolerances: by signature.
    """

    format: str
    file: str
    write: Callable[[Network32, Path], dict[str, Any]]
    tolerances: Mapping[str, Tolerance]
    quantize: str | None = None

    @property
    def name(self) -> str:
        """For people, and in ``--tolerance NAME=X``."""
        return f"{self.format}-{self.quantize}" if self.quantize else self.format

    def written(self, network: Network32, path: Path) -> dict[str, Any]:
        """Write, in silence. Raises UserError when the format cannot hold the network."""
        with hidden_output(1, 2):
            try:
                return self.write(network, path)
            except UserError:
                raise
            except Exception as error:
                words = " ".join(str(error).split())[:300]
                what = f"the format cannot hold this network: {type(error).__name__}: {words}"
                raise UserError(Problem(f"--format {self.format}", what, "leave it out, or choose another")) from error


def _tflite(kind: str, tolerance: Tolerance) -> Export:
    def write(network: Network32, path: Path) -> dict[str, Any]:
        return write_tflite(network, path, kind)

    return Export("tflite", f"model_{kind}.tflite", write, {"images": tolerance}, kind)


SAVED_MODEL, KERAS, TFLITE, ONNX = "saved_model", "keras", "tflite", "onnx"
FORMATS = (SAVED_MODEL, KERAS, TFLITE, ONNX)
QUANTIZE = (FLOAT32, FLOAT16, INT8)

EXPORTS = (
    Export(
        SAVED_MODEL,
        "saved_model",
        write_saved_model,
        {"images": EXACT, "images_uint8": EXACT, "image_bytes": DECODED},
    ),
    Export(KERAS, "model.keras", write_keras, {"images": EXACT}),
    _tflite(FLOAT32, EXACT),
    _tflite(FLOAT16, HALF),
    _tflite(INT8, INTEGER),
    Export(ONNX, "model.onnx", write_onnx, {"images": EXACT}),
)


def _texts(network: Network32) -> dict[str, bytes]:
    """Labels and metadata, as files."""
    return {
        "labels.txt": labels_text(network.classes),
        "metadata.json": json.dumps(network.metadata, indent=1).encode(),
    }


def labels_text(classes: Sequence[str]) -> bytes:
    """A class a line, in the order of the outputs; a name of several lines is written in one."""
    return b"".join(os.fsencode(" ".join(name.splitlines())) + b"\n" for name in classes)
