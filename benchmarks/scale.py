"""How the data room grows: a table of ten million images read, hashed, divided and shuffled; no image is opened.

Each size is a process of its own. Of each step it tells the seconds of processor time, which other work on the machine
does not lengthen as it does the time on the clock (``wall s``), and the most memory it took above what was there
before, per row: its result and whatever it needed on the way. The files of the table do not exist, so asking the
system for each of them is quicker than for files that do: on a disk it is the disk that counts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.common import QUICK, in_own_process, scratch, write_results

SIZES = (20_000, 40_000) if QUICK else (1_000_000, 10_000_000)
CLASSES = 1000
BATCH = 256

T = TypeVar("T")


def main() -> None:
    """Measure, print a table, write the results."""
    results = []
    with scratch() as folder:
        for rows in SIZES:
            results.append(in_own_process("benchmarks.scale", rows, folder))
            print(f"  {results[-1]}", flush=True)
    write_results("scale", results, classes=CLASSES)


def summary(results: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the table in docs/scale.md."""
    rows = []
    for step in results[0]["steps"]:
        row = [step]
        for size in results:
            figures = size["steps"][step]
            per_second = size["rows"] / max(figures["s"], 1e-9) / 1e6
            row += [f"{figures['s']:.3g} s", f"{per_second:.3g} million", f"{figures['bytes a row']:.0f}"]
        rows.append(row)
    heads = [f"{size['rows'] / 1e6:g} million rows, {name}" for size in results for name in ("time", "rows/s", "bytes")]
    return ["step", *heads], rows


# --- in a process of its own -----------------------------------------------------------------------------------------


def write_table(file: Path, rows: int, classes: int = CLASSES) -> None:
    """A Parquet file of ``rows`` paths such as ``n0123/n0123_00004567.jpg``, in groups, with classes of all sizes."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random, each = np.random.default_rng(1), 1_000_000
    schema = pa.schema([("path", pa.string()), ("label", pa.string())])
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(0, rows, each):
            labels = (classes * random.random(min(each, rows - start)) ** 1.5).astype(int)  # the first have most
            names = [f"n{label:04d}" for label in labels.tolist()]
            paths = [f"{name}/{name}_{start + index:08d}.jpg" for index, name in enumerate(names)]
            writer.write_table(pa.table({"path": paths, "label": names}, schema))


def measure(rows: int, folder: Path) -> dict[str, Any]:
    """Read a table of so many rows, and do with it what a run does before its first step."""
    from tlearn.data.pipeline import EpochOrder
    from tlearn.data.split import divide
    from tlearn.data.table import Split
    from tlearn.data.tabular import index_table

    file = folder / f"{rows}.parquet"
    write_table(file, rows)
    steps: dict[str, dict[str, float]] = {}

    def step(name: str, call: Callable[[], T]) -> T:
        before, begin, work = _reset_peak(), time.perf_counter(), time.process_time()
        result = call()
        steps[name] = {
            "s": round(time.process_time() - work, 3),
            "wall s": round(time.perf_counter() - begin, 3),
            "bytes a row": round((_memory("VmHWM") - before) / rows, 1),
        }
        return result

    table = step("index", lambda: index_table(file, max_pixels=1)).table
    step("hash", table.manifest_hash)
    splits = step(
        "split",
        lambda: divide(table.labels, table.splits, table.classes, val_fraction=0.1, test_fraction=0.1, seed=1),
    )
    train = step("rows of train", lambda: (splits == Split.train).nonzero()[0])
    order = EpochOrder(train, BATCH, 1)
    step("shuffle", lambda: order.batch(0))
    step("first batch of the next epoch", lambda: order.batch(-(-len(train) // BATCH)))
    step("hash of train rows", lambda: table.rows_hash(train))
    kept = table.keys.nbytes + table.labels.nbytes + table.splits.nbytes + table.stamps.nbytes
    return {"rows": rows, "steps": steps, "kept bytes a row": round(kept / rows, 1)}


def _reset_peak() -> int:
    """Forget the peak of memory; what is in use now, bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    """Bytes of memory of this process, as Linux counts them: ``VmRSS`` now, ``VmHWM`` at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise OSError(f"the system does not tell {name}")


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), Path(sys.argv[2]))))
