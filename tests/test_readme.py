"""The README does what it says: its Python runs, its commands compose."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tlearn.backbones.__main__ import main as backbones
from tlearn.compose import load_config
from tlearn.errors import ConfigError
from tlearn.train.checks import check_config

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """Commands of the shell blocks; continued lines joined."""
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_every_python_block_runs(tmp_path: Path) -> None:
    assert blocks("python")
    for code in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=None,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith("python -m tlearn.")])
def test_every_command_is_possible(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for label in ("daisy", "rose"):  # the folder of photographs that the README speaks of
        (tmp_path / "flowers" / label).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    _, _, module, *arguments = shlex.split(command, comments=True)
    if module == "tlearn.backbones":
        if not arguments:
            assert backbones([]) == 0
        return
    if module not in ("tlearn.train", "tlearn.plan") or "-m" in arguments or "resume" in command:
        return
    overrides = [argument for argument in arguments if "=" in argument]
    if command.endswith("# wrong on purpose"):
        with pytest.raises(ConfigError, match="did you mean"):
            load_config(overrides)
        return
    config = load_config(overrides)
    if config.backbone.weights == "imagenet":
        config.backbone.weights = None  # whether they are in Keras' cache is not the README's business
    check_config(config)


def test_the_config_reference_is_up_to_date() -> None:
    sys.path.insert(0, str(ROOT))
    from tools.config_reference import TARGET, page

    assert TARGET.read_text(encoding="utf-8") == page(), "run python tools/config_reference.py"


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_every_link_leads_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
