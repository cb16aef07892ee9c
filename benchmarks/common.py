"""What benchmarks share: the machine, results as JSON, a run in a folder that is thrown away."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")
ASSETS = Path(os.environ.get("TLEARN_ASSETS") or Path(__file__).resolve().parents[2] / "shared" / "assets")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    processor = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    packages = {name: version(name) for name in ("tensorflow", "keras", "numpy", "pillow")}
    return {"processor": processor, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def write_results(name: str, rows: Any) -> None:
    """Print and keep the results of one benchmark."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {"benchmark": name, "date": time.strftime("%Y-%m-%d"), "machine": machine(), "results": rows}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["machine"]))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is deleted afterwards; feature caches inside it are cold."""
    folder = Path(tempfile.mkdtemp(prefix="tlearn-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def table(headers: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    print("| " + " | ".join(headers) + " |")
    print("|" + "---|" * len(headers))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()
