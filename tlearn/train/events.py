"""TensorBoard's event files of a run that goes on: rewritten without what will be written again.

TensorBoard itself only hides orphaned points, and only when it reads files in the order of a restart it was told of;
other readers of the files would see every repeated step twice.
"""

from __future__ import annotations

import io
from pathlib import Path

from tlearn.train.checkpoint import write_atomic


def drop_events(folder: Path, first: int) -> None:
    """Drop the events from a step on, each file replaced as a whole.

    Args:
        folder: searched at any depth.
        first: global step that is dropped, with all later ones.
    """
    for path in sorted(folder.rglob("*tfevents*")):
        _rewrite(path, first)


def _rewrite(path: Path, first: int) -> None:
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    kept, dropped, buffer = 0, 0, io.BytesIO()
    writer = RecordWriter(buffer)
    for record in RawEventFileLoader(str(path)).Load():  # ends before a record that a crash cut off
        event = Event.FromString(record)
        if event.HasField("file_version"):
            writer.write(record)
        elif event.step < first:
            writer.write(record)
            kept += 1
        else:
            dropped += 1
    if not kept:
        path.unlink()
    elif dropped or buffer.tell() != path.stat().st_size:
        write_atomic(path, buffer.getvalue())
