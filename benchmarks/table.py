"""The tables of the README, made from ``benchmarks/results/*.json``.

    python -m benchmarks table                 print all tables
    python -m benchmarks table classic peers   print some

In a page, what stands between ``<!-- benchmark NAME -->`` and ``<!-- end -->`` is such a table.
``python tools/benchmark_tables.py`` writes them anew, and a test compares them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib import import_module

from benchmarks.common import KEPT, comparison_table, markdown

MARKED = re.compile(r"(<!-- benchmark (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def main(names: Sequence[str]) -> int:
    """Print tables; with no names, of all results there are."""
    for name in names or sorted(file.stem for file in KEPT.glob("*.json")):
        if not (KEPT / f"{name}.json").is_file():
            print(f"{name}: not measured yet")
            return 1
        print(f"{name}:\n\n{rendered(name)}\n")
    return 0


def rendered(name: str) -> str:
    """The table of one benchmark as Markdown. Raises FileNotFoundError where it was never run."""
    record = json.loads((KEPT / f"{name}.json").read_text(encoding="utf-8"))
    if record.get("comparisons"):
        return markdown(*comparison_table(record["comparisons"]))
    return markdown(*import_module(f"benchmarks.{name}").summary(record["results"]))


def filled(page: str) -> str:
    """A page with the tables it marks, as far as they were measured."""

    def table(name: str) -> str:
        return rendered(name) if (KEPT / f"{name}.json").is_file() else "Not measured yet."

    return MARKED.sub(lambda match: f"{match[1]}{table(match[2])}\n{match[3]}", page)
