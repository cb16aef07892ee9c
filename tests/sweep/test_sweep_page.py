"""The report, as a browser shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tlearn.sweep.load import load_sweep
from tlearn.sweep.page import page, write_page

FakeSweep = Callable[..., Any]


@pytest.fixture
def browser(tmp_path: Path) -> Callable[[Path], str]:
    """``browser(path)`` gives the document as it is after a headless browser has built it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs chromium: apt-get install chromium")

    def open_page(path: Path) -> str:
        profile = tmp_path / "profile"
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
        done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return open_page


def study_of(fake_sweep: FakeSweep, rates: tuple[str, ...], *overrides: str) -> tuple[Any, Any]:
    return load_sweep([*rates, *overrides]), fake_sweep(*overrides)


def test_a_browser_shows_trials_and_pictures(
    fake_sweep: FakeSweep, rates: tuple[str, ...], browser: Callable[[Path], str]
) -> None:
    sweep, study = study_of(fake_sweep, rates, "sweep.trials=9", "sweep.pruner.startup=5")
    path = write_page(sweep, study)
    (study.run_folder(0) / "report.md").write_text("a run")
    shown = browser(write_page(sweep, study))
    for heading in ("History", "Learning curves", "Parameter importance", "Parallel coordinates", "Trials"):
        assert f"<h2>{heading}</h2>" in shown
    for picture in ("history", "curves", "importance", "parallel"):
        assert re.search(rf'<svg[^>]*aria-label="{picture}"', shown), picture
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", shown)
    assert {"learning_rate", "best so far", "val_accuracy", "0.0001"} <= {text.strip() for text in texts}
    rows = re.search(r'<table id="trials">(.*)</table>', shown, re.DOTALL)[1].count("<tr")
    assert rows == 1 + 9
    counts = study.counted()
    assert f"9 trials: {counts.complete} complete, {counts.pruned} pruned, 0 failed" in shown
    best = study.front()[0]
    assert f'<tr class="best"><td><a href="trials/{best.number:04d}">trial {best.number}</a></td>' in shown
    assert '<a href="trials/0000/report.md">trial 0</a>' in shown
    assert (path.parent / "trials" / "0000" / "report.md").is_file()


def test_it_needs_nothing_but_itself(fake_sweep: FakeSweep, rates: tuple[str, ...]) -> None:
    text = page(*study_of(fake_sweep, rates, "sweep.trials=5"))
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!trials/|#)[^"]*"', text)
    assert not re.findall(r"@import|url\((?!#)", text)


def test_values_are_no_formulas(fake_sweep: FakeSweep, rates: tuple[str, ...]) -> None:
    choices = "sweep.space.schedule.stages.0.name={type: categorical, choices: ['$5_$', plain]}"
    assert re.search(r"<text[^>]*>\$5_\$</text>", page(*study_of(fake_sweep, rates, choices, "sweep.trials=1")))


def test_two_objectives_have_a_front(fake_sweep: FakeSweep, rates: tuple[str, ...]) -> None:
    objectives = "sweep.objectives=[{metric: val_accuracy},{metric: seconds, direction: maximize}]"
    sweep, study = study_of(fake_sweep, rates, objectives, "sweep.pruner.name=none", "sweep.trials=5")
    text = page(sweep, study)
    assert "<h2>Pareto front</h2>" in text
    assert len(study.front()) == 1
    assert "1 trial is on the Pareto front" in text
    assert "importance for seconds" in text


def test_what_failed_is_written_safely(fake_sweep: FakeSweep, rates: tuple[str, ...], fake: dict[str, Any]) -> None:
    from tlearn.sweep.process import Ended

    runs = iter([True, False, True])
    run = lambda *given: fake["fake_run"]()(*given) if next(runs) else Ended(1, "<script>alert(1)</script>")  # noqa: E731
    fake_sweep("sweep.trials=3", run=run)
    text = page(*study_of(fake_sweep, rates, "sweep.trials=3"))
    assert "&lt;script&gt;alert(1)" in text
    assert "<script" not in text
    assert "Is not told from less than 4 complete trials" in text
