"""What benchmarks share: the machine, photographs, processes of their own, comparisons, results as JSON.

A comparison sets figures of tlearn beside figures of something else that were taken in the same run, in turn (A B A B),
so that a slow moment of the machine meets both. The ratio is the median of the ratios of the pairs, and above 1 where
tlearn is better.

``python -m benchmarks --quick`` goes through the same code in seconds, on pictures that are drawn on the spot. Its
figures mean nothing and are written elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
QUICK = os.environ.get("TLEARN_BENCH_QUICK") == "1"
KEPT = ROOT / "benchmarks" / "results"
RESULTS = Path(os.environ.get("TLEARN_BENCH_RESULTS") or (ROOT / "build" / "benchmarks-quick" if QUICK else KEPT))
ASSETS = Path(os.environ.get("TLEARN_ASSETS") or ROOT.parent / "shared" / "assets")
FLOWERS = ASSETS / "flowers"
CORES = os.cpu_count() or 1

# Of these smaller figures are better.
_COSTS = {"s", "MB"}
# Mean accuracies on 150 photographs that are no further apart than this are equal: it is the standard error of one.
ACCURACY_NOISE = 0.035

Comparison = dict[str, Any]


# --- the machine and its state ---------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures were measured on, and with."""
    processor = next(
        (line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    packages = {name: version(name) for name in ("tensorflow", "keras", "numpy", "pillow", "albumentations")}
    return {"processor": processor, "cores": CORES, "python": platform.python_version(), **packages}


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


_busy_before: float | None = None


def look_around(seconds: float = 1.0) -> None:
    """Measure how busy others keep the processors before a benchmark begins, as a share of all of them.

    The load average would tell of the benchmark before as well, for minutes.
    """
    global _busy_before
    before = _processor_ticks()
    time.sleep(seconds)
    idle, total = (after - earlier for after, earlier in zip(_processor_ticks(), before, strict=True))
    _busy_before = round(1 - idle / total, 2) if total else None


def _processor_ticks() -> tuple[int, int]:
    """(idle, all) of every processor since the machine started; zeros where the system does not tell."""
    try:
        ticks = [int(count) for count in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0, 0
    return ticks[3] + ticks[4], sum(ticks)


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is deleted afterwards; feature caches inside it are cold."""
    folder = Path(tempfile.mkdtemp(prefix="tlearn-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- photographs -----------------------------------------------------------------------------------------------------


def has_photographs() -> bool:
    """Whether there is something to measure on; says so when there is not."""
    if not QUICK and not FLOWERS.is_dir():
        print(f"skipped: no photographs in {FLOWERS}; TLEARN_ASSETS names another folder of assets")
        return False
    return True


def linked_photographs(folder: Path, per_class: int, val_per_class: int) -> Path:
    """A folder ``train/CLASS``, ``val/CLASS`` of links to so many photographs of each flower.

    Where more are wanted than there are, some are linked several times: for what is measured in steps, an epoch may
    then be as long as it takes. In quick mode the pictures are drawn.
    """
    photographs, linked = flowers(folder), folder / "flowers"
    for split, count in (("train", per_class), ("val", val_per_class)):
        for source in sorted((photographs / split).iterdir()):
            target = linked / split / source.name
            target.mkdir(parents=True)
            for index, file in enumerate(islice(cycle(sorted(source.iterdir())), count)):
                (target / f"{index:05d}.jpg").symlink_to(file)
    return linked


def flowers(folder: Path) -> Path:
    """The photographs themselves; in quick mode a few drawn ones in ``folder``."""
    return _drawn(folder / "drawn") if QUICK else FLOWERS


def _drawn(folder: Path) -> Path:
    """Five classes of noise, told apart by colour."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(1)
    for split, count in (("train", 8), ("val", 2)):
        for label in range(5):
            target = folder / split / f"class{label}"
            target.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 128, (48, 64, 3), np.uint8)
                pixels[..., label % 3] += np.uint8(25 * label)
                Image.fromarray(pixels).save(target / f"{index}.jpg")
    return folder


# --- running ---------------------------------------------------------------------------------------------------------


def in_own_process(module: str, *arguments: object, python: str = sys.executable) -> Any:
    """What ``python -m module arguments`` prints as its last line, read as JSON."""
    command = [python, "-m", module, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def alternated(sides: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, list[Any]]:
    """Call each side in turn, so many times; what they returned, by side."""
    returned: dict[str, list[Any]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, call in sides.items():
            returned[name].append(call())
            print(f"  {name}: {returned[name][-1]}", flush=True)
    return returned


# --- comparing -------------------------------------------------------------------------------------------------------


def compare(
    what: str, unit: str, tlearn: Sequence[float], other: Sequence[float], against: str, goal: float | None = None
) -> Comparison:
    """Figures of tlearn beside others, pair by pair.

    Args:
        what: was measured.
        unit: ``s`` and ``MB`` are costs, of all others more is better.
        tlearn, other: of each repetition.
        against: what the others are of.
        goal: least ratio that was set out to be reached; None: there was none.
    """
    pairs = list(zip(tlearn, other, strict=True))
    ratios = [b / a if unit in _COSTS else a / b for a, b in pairs]
    ratio = statistics.median(ratios)
    return {
        "what": what,
        "unit": unit,
        "tlearn": _rounded(statistics.median(tlearn)),
        "against": against,
        "other": _rounded(statistics.median(other)),
        "ratio": _rounded(ratio),
        "ratios": [_rounded(value) for value in ratios],
        "goal": goal,
        "met": None if goal is None else ratio >= goal,
    }


def compare_accuracy(what: str, tlearn: Sequence[float], other: Sequence[float], against: str) -> Comparison:
    """Mean accuracies; the goal is to be no worse by more than noise."""
    difference = statistics.mean(tlearn) - statistics.mean(other)
    return {
        "what": what,
        "unit": "accuracy",
        "tlearn": _rounded(statistics.mean(tlearn)),
        "against": against,
        "other": _rounded(statistics.mean(other)),
        "difference": round(difference, 4),
        "goal": -ACCURACY_NOISE,
        "met": difference >= -ACCURACY_NOISE,
    }


def _rounded(value: float) -> float:
    """Four significant digits."""
    return round(value, 3 - math.floor(math.log10(abs(value)))) if value else 0.0


def comparison_table(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of what ``compare`` and ``compare_accuracy`` give."""
    rows = []
    for line in comparisons:
        if "difference" in line:
            ratio, goal = f"{line['difference']:+.3f}", f"no worse than {line['goal']:+.3f}"
        else:
            ratio, goal = f"{line['ratio']:.3g}", "" if line["goal"] is None else f"{line['goal']:g}"
        met = {True: ", met", False: ", **missed**", None: ""}[line["met"]]
        figures = [f"{line[side]:.4g} {line['unit']}" for side in ("tlearn", "other")]
        rows.append([line["what"], figures[0], f"{line['against']}: {figures[1]}", ratio, goal + met])
    return ["", "tlearn", "against", "ratio", "goal"], rows


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(headers) + " |", "|" + "---|" * len(headers)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(markdown(headers, rows), end="\n\n")


def write_results(name: str, results: Any, comparisons: Sequence[Comparison] = (), **about: Any) -> None:
    """Print and keep the results of one benchmark.

    Args:
        name: of the benchmark, and of the file.
        results: every figure that was measured.
        comparisons: what they come to.
        about: what else a reader must know: versions of others, what was left out and why.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    record = {
        "benchmark": name,
        "date": time.strftime("%Y-%m-%d"),
        "quick": QUICK,
        "busy_before": _busy_before,
        "machine": machine(),
        **about,
        "comparisons": list(comparisons),
        "results": results,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    if comparisons:
        table(*comparison_table(comparisons))
    print(json.dumps({"machine": record["machine"], "busy_before": record["busy_before"], **about}), flush=True)
