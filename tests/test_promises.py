"""What SECURITY.md and docs/reliability.md promise is held by tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("SECURITY.md", "docs/reliability.md")

FUNCTIONS = {
    path.relative_to(ROOT).as_posix(): {
        node.name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
}


def rows(page: str) -> list[list[str]]:
    """The cells of every line of every table, without headings."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if not set("".join(row)) <= {"-"} and row[0] not in ("promise", "fault")]


def named(text: str) -> list[tuple[str | None, str | None]]:
    """(file, function) of every test that a text names."""
    found = []
    for token in re.findall(r"`([^`\s]+)`", text):
        match = re.fullmatch(r"(?P<file>[\w/]*test_\w+\.py)?(?:::)?(?P<function>test_\w+)?", token)
        if match and token != "":
            found.append((match["file"], match["function"]))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_is_named_exists(page: str) -> None:
    tests = named((ROOT / page).read_text(encoding="utf-8"))
    assert len(tests) > 15, "this finds none of them"
    for file, function in tests:
        files = [path for path in FUNCTIONS if file is None or path == file or path == f"tests/hostile/{file}"]
        assert files, f"{page} names {file}"
        assert function is None or any(function in FUNCTIONS[path] for path in files), f"{page} names {function}"


@pytest.mark.parametrize("page", PAGES)
def test_every_promise_has_a_test(page: str) -> None:
    assert len(rows(page)) > 15
    for row in rows(page):
        held = named(row[-1]) + named(row[-2]) or re.search(r'the cases of|"folders"', row[-1])
        assert held, f"{page}: no test holds: {row[0]}"


def test_the_groups_of_cases_that_are_named_exist() -> None:
    """SECURITY.md names parts of the tables of hostile experiments by their headings."""
    source = (ROOT / "tests/hostile/test_hostile_yaml.py").read_text(encoding="utf-8")
    groups = re.findall(r'the cases of "([^"]+)" there', (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(groups) > 3
    for group in groups:
        assert f"    # {group}." in source, group


def test_the_corpus_is_as_large_as_the_page_says() -> None:
    from tests.hostile import images
    from tests.hostile.test_hostile_runs import CONFIGS, JSON, STATES, WRITING
    from tests.hostile.test_hostile_tables import OUTSIDE, TABLES
    from tests.hostile.test_hostile_weights import HDF5, NPZ, SPECIAL
    from tests.hostile.test_hostile_yaml import CASES

    counts = {
        "images": len(images.CASES),
        "experiments": len(CASES),
        "tables": len(TABLES) + len(OUTSIDE),
        "model files": len(HDF5) + len(NPZ) + len(SPECIAL),
        "run folders": len(CONFIGS) + len(JSON) + len(STATES) + len(WRITING),
    }
    said = re.search(r"\*\*(\d+) hostile files\*\*[^:]*: ([^.]+)\.", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert said
    assert int(said[1]) == sum(counts.values())
    words = " ".join(said[2].split())
    assert words == ", ".join(f"{count} {kind}" for kind, count in counts.items())
