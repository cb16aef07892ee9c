"""The command line as a process: quick answers, Hydra's flags, nothing left behind."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlearn.backbones import SPECS

RunCli = Callable[..., Any]
PLUGIN = Path(__file__).resolve().parent.parent / "train" / "plugin"
ROOT = PLUGIN.parent.parent.parent
PLUGIN_ENV = {"TLEARN_PLUGINS": "tiny_plugin", "PYTHONPATH": f"{ROOT}:{PLUGIN}"}
HEAVY = ("tensorflow", "keras", "sklearn", "albumentations", "h5py")

# runs the command, then says which heavy modules it imported
PROBE = f"""
import sys
from tlearn.cli import main
sys.argv = ["tlearn", *sys.argv[1:]]
try:
    status = main()
except SystemExit as end:
    status = end.code
print("heavy:", [name for name in {HEAVY!r} if name in sys.modules], "status:", status or 0)
"""


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--help"], 0, "tlearn VERB"),
        (["train", "--help"], 0, "backbone: densenet121"),
        (["train", "--cfg", "job"], 0, "image_size: 64"),
        (["plan", "--help"], 0, "--json"),
        (["backbones", "--help"], 0, "backbones"),
        (["train", "sede=3"], 2, "did you mean seed"),
        (["plan", "sede=3"], 2, "did you mean seed"),
        (["train", "--cfg", "job", "sede=3"], 2, "did you mean seed"),
        (["train", "backbone=inception_v3", "backbone.image_size=32"], 2, "75"),
        (["train", "schedule=two_stage", "schedule.stages.1.unfreeze={from_block: mixed}"], 2, "has no block"),
        (["train", "data=folder", "data.path=nowhere"], 2, "nowhere"),
        (["train", "head.classes=3", "backbone.weights=null"], 2, "3 outputs for 10 classes"),
        (["train", "head.classes=ten", "head.dropout=1.5"], 2, "head.dropout"),
        (["train", "-m", "seed=1,x", "backbone.weights=null"], 2, "seed"),
        (["trian"], 2, "did you mean train"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_needs_no_tensorflow_does_not_wait_for_it(
    arguments: list[str], status: int, says: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout.splitlines()[-1] == f"heavy: [] status: {status}", done.stdout + done.stderr
    assert says in (done.stderr if status else done.stdout)
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_cfg_job_prints_the_whole_config(run_cli: RunCli, tmp_path: Path) -> None:
    import yaml

    from tlearn.typed import typed

    done = run_cli("train", "--cfg", "job", "schedule=two_stage", "schedule.stages.1.optimizer.nesterov=true", "seed=5")
    printed = yaml.safe_load(done.assert_ok().stdout)
    config = typed(printed)
    assert (config.seed, config.schedule.stages[1].optimizer.nesterov) == (5, True)
    assert {"backbone", "head", "data", "augment", "schedule", "checkpoint", "run_dir", "deterministic"} <= set(printed)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tlearn train backbone=", {f"backbone={name}" for name in SPECS._builtin}),
        ("tlearn train seed=2 schedule=t", {"schedule=two_stage"}),
        ("tlearn plan head.po", {"head.pooling="}),
    ],
)
def test_bash_completes_words(line: str, offered: set[str], run_cli: RunCli, tmp_path: Path) -> None:
    """In a real bash, with the script that the command prints."""
    script = run_cli("train", "--shell-completion", "install=bash").assert_ok().stdout
    (tmp_path / "completion.sh").write_text(script, encoding="utf-8")
    (tmp_path / "tlearn").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys; from tlearn.cli import main; sys.exit(main())' \"$@\"\n"
    )
    (tmp_path / "tlearn").chmod(0o755)
    ask = f"""
        export PATH={tmp_path}:$PATH PYTHONPATH={ROOT}
        source {tmp_path}/completion.sh
        complete -p tlearn >&2
        COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_WORDS=({line}) COMP_CWORD={len(line.split()) - 1}
        hydra_bash_completion
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    words = set(done.stdout.split())
    values = {word.rpartition("=")[2] for word in offered}
    assert offered <= words or values <= words, done.stdout + done.stderr
    assert "hydra_bash_completion tlearn" in done.stderr


def test_a_multirun_gives_every_run_its_process_and_returns_the_worst_status(run_cli: RunCli, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    for folder in ("good", "bad"):
        for label in ("a", "b"):
            (tmp_path / folder / label).mkdir(parents=True)
            for index in range(4):
                picture = Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8))
                picture.save(tmp_path / folder / label / f"{index}.png")
    broken = tmp_path / "bad" / "b" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    log = tmp_path / "pids"
    done = run_cli(
        "train",
        "-m",
        "data=folder",
        "data.path=bad,good",
        "backbone.name=tiny",
        "backbone.weights=null",
        "backbone.alpha=null",
        "backbone.image_size=16",
        "schedule.stages.0.epochs=null",
        "schedule.stages.0.steps=1",
        "log.tensorboard=false",
        env=PLUGIN_ENV | {"TINY_PLUGIN_LOG": str(log)},
    )
    assert done.status == 2, done.stderr
    assert "3.png" in done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    summary = json.loads(line)
    assert (summary["status"], summary["steps"]) == ("finished", 1)
    assert len(set(log.read_text().split())) == 3, "the sweep itself, and each of its runs"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [Path(summary["run"]).name]
    assert {path.name for path in tmp_path.iterdir()} == {"good", "bad", "runs", "pids"}
