"""Every benchmark runs, compares what it says, and what pages show is what was measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import compare, compare_accuracy, comparison_table, markdown
from benchmarks.table import MARKED, filled, rendered

ROOT = Path(__file__).resolve().parent.parent
NEEDS_TORCH = {"peers"}
COMPARING = ["startup", "overhead", "memory", "full", "sweep", "classic", "peers"]


# --- they run --------------------------------------------------------------------------------------------------------


def quick(name: str, folder: Path) -> dict:
    """The record that a benchmark writes in quick mode."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", name],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TLEARN_BENCH_RESULTS": str(folder / "results")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    record: dict = json.loads((folder / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert record["benchmark"] == name
    assert record["quick"] is True
    assert {"processor", "cores", "python", "tensorflow", "keras"} <= record["machine"].keys()
    assert record["results"]
    return record


def check_comparisons(record: dict) -> None:
    assert record["comparisons"]
    for line in record["comparisons"]:
        assert line["what"]
        assert line["against"]
        assert line["met"] in ((True, False) if line["goal"] is not None else (None,))
        if "ratio" in line:
            assert min(line["tlearn"], line["other"], line["ratio"], *line["ratios"]) > 0
    assert markdown(*comparison_table(record["comparisons"])).count("\n") == len(record["comparisons"]) + 1


@pytest.mark.slow
def test_pipeline_runs(tmp_path: Path) -> None:
    check_comparisons(quick("pipeline", tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARING)
def test_the_others_run(name: str, tmp_path: Path) -> None:
    if name in NEEDS_TORCH and not os.environ.get("TORCH_PYTHON"):
        pytest.skip("TORCH_PYTHON names no interpreter with PyTorch")
    record = quick(name, tmp_path)
    check_comparisons(record)
    if name == "sweep":
        assert record["trials_with_other_results"] == 0, "a shared cache changes what is trained"
        assert record["trials_pruned"] == 1
        assert {"one cache", "pruning, one cache", "both"} <= record["seconds_saved"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scale", "flowers", "embedded"])
def test_what_compares_nothing_runs(name: str, tmp_path: Path) -> None:
    quick(name, tmp_path)


def test_an_unknown_benchmark_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "fast"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "unknown benchmark 'fast'; one of: startup, pipeline" in done.stderr


def test_peers_says_how_to_get_pytorch() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TORCH_PYTHON"}
    command = [sys.executable, "-m", "benchmarks", "--quick", "peers"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "pip install torch numpy pillow" in done.stdout


def test_torch_is_imported_by_its_own_side_only() -> None:
    users = {file.name for file in (ROOT / "benchmarks").glob("*.py") if "\nimport torch\n" in file.read_text()}
    assert users == {"torch_networks.py", "torch_recipes.py"}


# --- what they say ---------------------------------------------------------------------------------------------------


def test_the_ratio_is_the_median_over_pairs_and_above_one_where_tlearn_is_better() -> None:
    seconds = compare("x", "s", [1.0, 2.0, 4.0], [4.0, 4.0, 4.0], "others", goal=2.0)
    assert (seconds["tlearn"], seconds["other"], seconds["ratio"], seconds["met"]) == (2.0, 4.0, 2.0, True)
    rates = compare("x", "images/s", [90.0], [100.0], "others", goal=0.95)
    assert (rates["ratio"], rates["met"]) == (0.9, False)
    assert compare("x", "images/s", [90.0], [100.0], "others")["met"] is None


def test_accuracies_are_compared_by_their_difference() -> None:
    assert compare_accuracy("x", [0.77, 0.75], [0.78, 0.76], "others")["met"]
    assert not compare_accuracy("x", [0.70], [0.76], "others")["met"]


# --- what pages show -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_pages_show_what_was_measured(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run python tools/benchmark_tables.py"


def test_a_marked_table_is_filled_in() -> None:
    page = "before\n<!-- benchmark flowers -->\nstale\n<!-- end -->\nafter\n"
    assert filled(page) == f"before\n<!-- benchmark flowers -->\n{rendered('flowers')}\n<!-- end -->\nafter\n"
    assert MARKED.search(filled(page))
    assert "| ImageNet |" in filled(page)


def test_kept_results_are_not_those_of_the_quick_mode() -> None:
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert not json.loads(file.read_text(encoding="utf-8")).get("quick"), file


def test_every_benchmark_is_described() -> None:
    described = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name in ["pipeline", *COMPARING, "scale", "flowers", "embedded"]:
        assert f"`{name}`" in described
