"""What a run records: ``metrics.jsonl`` for machines, TensorBoard event files for people."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import numpy as np

from tlearn.config import Config
from tlearn.train.events import drop_events
from tlearn.train.run import Run
from tlearn.train.storage import naming

_AT_THE_END = ("final", "hparams")


class MetricsLog:
    """Appends records to ``metrics.jsonl``; each names its event, stage and global step."""

    def __init__(self, run: Run) -> None:
        self._path = run.metrics_file

    def write(self, event: str, stage: str, epoch: int, step: int, global_step: int, **values: float) -> None:
        """Append one record.

        Args:
            event: ``step`` or ``epoch``.
            stage: name of the stage.
            epoch: counted from 1 over the whole run.
            step: steps run in this stage.
            global_step: steps run in all.
            values: metrics, validation ones with ``val_`` before their names.
        """
        record = {"event": event, "stage": stage, "epoch": epoch, "step": step, "global_step": global_step}
        line = (json.dumps(record | values) + "\n").encode()
        # Unbuffered: a buffer whose writing was refused half-way is written once more, as a whole, when it is closed.
        with naming(self._path), open(self._path, "ab", buffering=0) as file:
            while line:
                line = line[file.write(line) :]

    def sync(self) -> None:
        """Make the records durable: a state that is saved must never outlive those of its steps."""
        if self._path.is_file():
            with naming(self._path), open(self._path, "rb") as file:
                os.fsync(file.fileno())


class TensorBoardLog:
    """TensorBoard event files: train and val as two curves of one chart, over one step axis for all stages.

    Next to them, ``final`` and ``hparams`` hold what is written when a run has ended.
    """

    def __init__(self, run: Run, enabled: bool) -> None:
        self._run = run
        self._enabled = enabled
        self._writers: dict[str, Any] = {}

    def scalars(self, split: str, values: Mapping[str, float], step: int) -> None:
        """Write scalars of ``train`` or ``val`` at a global step."""
        if not self._enabled:
            return
        import tensorflow as tf

        with self._writing(split, step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def images(self, name: str, images: np.ndarray, step: int, most: int) -> None:
        """Write images: (n, height, width, 3), values 0..255."""
        if not self._enabled or most == 0:
            return
        import tensorflow as tf
        from tensorboard.plugins.image import metadata

        # What tf.summary.image writes, but for the compression: its own takes five times as long to save a tenth.
        height, width = images.shape[1:3]
        encoded = [str(width), str(height), *map(_png, np.clip(images[:most], 0, 255).astype(np.uint8))]
        with self._writing("train", step):
            tf.summary.write(name, tf.constant(encoded), metadata=metadata.create_summary_metadata(None, None))

    def png(self, name: str, data: bytes, step: int) -> None:
        """Write one picture of the run's end, encoded already."""
        if not self._enabled:
            return
        import tensorflow as tf
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(data), formats=["PNG"]).convert("RGB"))
        with self._writing("final", step):
            tf.summary.image(name, pixels[np.newaxis])

    def hyperparameters(self, config: Config, metrics: Mapping[str, float], step: int) -> None:
        """Write the HParams row of the run: its config's settings beside its final metrics."""
        if not self._enabled:
            return
        import tensorflow as tf
        from tensorboard.plugins.hparams import api

        with self._writing("hparams", step):
            api.hparams(hyperparameters(config), trial_id=self._run.path.name)
            for name, value in metrics.items():
                tf.summary.scalar(name, value)

    def go_back(self, step: int) -> None:
        """Forget what was written from a global step on, or at the end of the run: it will be written again."""
        self.close()
        for split in _AT_THE_END:
            shutil.rmtree(self._run.tensorboard / split, ignore_errors=True)
        drop_events(self._run.tensorboard, step)

    def flush(self) -> None:
        """Make what was written visible to TensorBoard."""
        for split, writer in self._writers.items():
            with self._refusals(split):
                writer.flush()

    def close(self) -> None:
        """End the event files."""
        while self._writers:
            split, writer = self._writers.popitem()
            with self._refusals(split):
                writer.close()

    @contextlib.contextmanager
    def _writing(self, split: str, step: int) -> Iterator[None]:
        """Summaries of the block go to a split's file. Raises OSError when it cannot be written."""
        import tensorflow as tf

        with self._refusals(split):
            if split not in self._writers:
                self._writers[split] = tf.summary.create_file_writer(str(self._run.tensorboard / split))
            with self._writers[split].as_default(step=step):
                yield

    @contextlib.contextmanager
    def _refusals(self, split: str) -> Iterator[None]:
        """What the system refuses arrives as an exception of TensorFlow's: make it one of the system's again."""
        import tensorflow as tf

        numbers = {
            tf.errors.ResourceExhaustedError: errno.ENOSPC,
            tf.errors.PermissionDeniedError: errno.EACCES,
            tf.errors.NotFoundError: errno.ENOENT,
        }
        try:
            yield
        except tf.errors.OpError as error:
            said = error.message.splitlines()[0]
            raise OSError(numbers.get(type(error), errno.EIO), said, str(self._run.tensorboard / split)) from error


def _png(pixels: np.ndarray) -> bytes:
    """uint8 (height, width, 3) as a PNG, compressed in haste."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return file.getvalue()


def hyperparameters(config: Config) -> dict[str, float | int | str | bool]:
    """Settings that differ from a bare ``Config``, flat, as TensorBoard's HParams takes them."""
    plain = _flatten(dataclasses.asdict(config))
    bare = _flatten(dataclasses.asdict(Config()))
    always = ("seed", "backbone.name", "head.name", "data.name", "schedule.name", "optimizer.name")
    paths = {"run_dir", "resume", "name", "data.path", "data.root"}
    return {
        key: value
        for key, value in plain.items()
        if key not in paths and (key in always or value != bare.get(key)) and value is not None
    }


def _flatten(data: Any, where: str = "") -> dict[str, Any]:
    if isinstance(data, dict):
        items = list(data.items())
    elif isinstance(data, list):
        items = list(enumerate(data))
    else:
        return {where: data.value if isinstance(data, Enum) else data}
    return {k: v for key, value in items for k, v in _flatten(value, f"{where}.{key}" if where else str(key)).items()}
