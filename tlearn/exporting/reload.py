"""Run what was exported, as its users will: with TensorFlow, Keras or onnxruntime, and without tlearn.

A script for a process of its own, ``python reload.py JOB.json``; it imports nothing of tlearn, so neither a layer nor
a preprocessing of ours can be what makes an exported file work. A job holds the images and the files; probabilities go
to ``.npy`` files, and the last line of standard output says with what classes.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 8


def main(path: str) -> None:
    """Do a job: ``{"pixels", "encoded", "lengths", "modules", "targets": [{"kind", "path", "outputs"}]}``."""
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    pixels = np.load(job["pixels"], allow_pickle=False)
    encoded = list(_split(np.load(job["encoded"], allow_pickle=False).tobytes(), job["lengths"]))
    for module in job["modules"]:
        importlib.import_module(module)
    found = []
    for target in job["targets"]:
        classes, computed = RUNNERS[target["kind"]](target["path"], pixels, encoded)
        for name, probabilities in computed.items():
            np.save(target["outputs"][name], probabilities, allow_pickle=False)
        found.append(classes)
    print(json.dumps({"classes": found, "tlearn": "tlearn" in sys.modules}))


def _split(joined: bytes, lengths: list[int]) -> Iterator[bytes]:
    start = 0
    for length in lengths:
        yield joined[start : start + length]
        start += length


Computed = tuple[list[str] | None, dict[str, NDArray[Any]]]
"""Classes as the file itself names them, None where it does not; and probabilities, (n, classes), by signature."""


def run_saved_model(path: str, pixels: NDArray[np.uint8], encoded: list[bytes]) -> Computed:
    """Every signature of a SavedModel."""
    import tensorflow as tf

    signatures = tf.saved_model.load(os.path.join(path, "1")).signatures
    names: list[str] = []

    def run(signature: str, name: str, values: Any) -> NDArray[Any]:
        rows = []
        for first in range(0, len(values), BATCH):
            answer = signatures[signature](**{name: tf.constant(values[first : first + BATCH])})
            rows.append(answer["probabilities"].numpy())
            names[:] = [os.fsdecode(text) for text in answer["classes"].numpy()[0]]
        return np.concatenate(rows)

    return names, {
        "images": run("images", "images", pixels.astype(np.float32)),
        "images_uint8": run("images_uint8", "images", pixels),
        "image_bytes": run("serving_default", "image_bytes", encoded),
    }


def run_keras(path: str, pixels: NDArray[np.uint8], encoded: list[bytes]) -> Computed:
    """A Keras file, loaded with safe mode on."""
    import keras

    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    return None, {"images": np.asarray(model.predict(pixels.astype(np.float32), batch_size=BATCH, verbose=0))}


def run_tflite(path: str, pixels: NDArray[np.uint8], encoded: list[bytes]) -> Computed:
    """A LiteRT (TFLite) file, one image at a time as on a phone."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(model_path=path)
    run = interpreter.get_signature_runner("images")
    dtype = run.get_input_details()["images"]["dtype"]
    scale, zero = run.get_output_details()["probabilities"]["quantization"]
    rows = [run(images=image[None].astype(dtype))["probabilities"][0] for image in pixels]
    answer = np.stack(rows)
    return None, {"images": (answer.astype(np.float32) - zero) * scale if scale else answer}


def run_onnx(path: str, pixels: NDArray[np.uint8], encoded: list[bytes]) -> Computed:
    """An ONNX file, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [pixels[first : first + BATCH].astype(np.float32) for first in range(0, len(pixels), BATCH)]
    rows = [session.run(["probabilities"], {"images": part})[0] for part in parts]
    return json.loads(session.get_modelmeta().custom_metadata_map["classes"]), {"images": np.concatenate(rows)}


RUNNERS = {"saved_model": run_saved_model, "keras": run_keras, "tflite": run_tflite, "onnx": run_onnx}

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(sys.argv[1])
