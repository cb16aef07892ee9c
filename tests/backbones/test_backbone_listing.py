"""``python -m tlearn.backbones``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tlearn.backbones import SPECS, register_backbone
from tlearn.backbones.__main__ import main


def test_table_of_all(run_cli: Callable[..., Any]) -> None:
    done = run_cli("backbones", env={"COLUMNS": "80"}).assert_ok()
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if line.split()[-1] in ("MIT", "Apache-2.0", "4.0")]) == 13
    (row,) = [line.split() for line in lines if line.startswith("inception_v3")]
    assert row == ["inception_v3", "23.9M", "92", "0.788", "0.944", "159", "299", "75", "MIT"]


def test_table_does_not_import_tensorflow(run_cli: Callable[..., Any]) -> None:
    done = run_cli("backbones", env={"PYTHONPROFILEIMPORTTIME": "1"}).assert_ok()
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "tlearn.backbones.specs" in imported
    assert not {"tensorflow", "keras", "numpy"} & imported


def test_all_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 13
    assert {"name", "parameters", "top1", "licence", "arxiv", "blocks"} <= rows[0].keys()


def test_one_layer_by_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mobilenet", "--layers", "--alpha", "0.25", "--image-size", "96"]) == 0
    out = capsys.readouterr().out
    for part in ("1704.04861", "Apache-2.0", "218,544", "4,253,864", "96 x 96 x 3", "3 x 3 x 256"):
        assert part in out
    rows = [line.split() for line in out.splitlines() if line.strip()[:1].isdigit()]
    assert [int(row[0]) for row in rows] == list(range(86))
    assert rows[1] == ["1", "conv1", "conv1", "48", "x", "48", "x", "8", "216"]
    assert rows[85][:3] == ["85", "conv_pw_13_relu", "block_13"]


def test_the_options_of_a_registered_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import keras

    monkeypatch.setattr(SPECS, "_added", dict(SPECS._added))

    @register_backbone("listed", image_size=32, blocks={"all": 1})
    def listed(images: Any, filters: int = 16, *, strides: int = 2) -> Any:
        return keras.layers.Conv2D(filters, 3, strides=strides, activation="relu")(images)

    assert main(["listed"]) == 0
    assert re.search("options +options.filters=16, options.strides=2\n", capsys.readouterr().out)


def test_one_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inception_v3", "--json", "--image-size", "75"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["blocks"][-2:] == [
        {"name": "mixed9", "first": 249, "last": 279},
        {"name": "mixed10", "first": 280, "last": 310},
    ]
    assert shown["layers"][248]["name"] == "mixed8"
    assert shown["layers"][249] == {
        "index": 249,
        "name": "conv2d_80",
        "type": "Conv2D",
        "block": "mixed9",
        "shape": [1, 1, 448],
        "parameters": 573440,
    }
    assert sum(layer["parameters"] for layer in shown["layers"]) == 21_802_784


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["inceptionv3"], "did you mean inception_v3"),
        (["densenet"], "densenet121 or densenet169 or densenet201"),
        (["nasnet"], "nasnet_mobile or nasnet_large"),
        (["resnet50", "--alpha", "0.5"], "resnet50 has no alpha"),
        (["resnet50", "--image-size", "8"], "at least 32"),
        (["mobilenet", "--alpha", "0"], "out of range"),
    ],
)
def test_mistakes(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert not captured.out


def test_unknown_option_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--image_size", "3"])
    assert caught.value.code == 2
    assert "--image_size" in capsys.readouterr().err


def test_wrong_name_answers_at_once() -> None:
    code = (
        "import sys; from tlearn.backbones.__main__ import main; main(['mobilenetv2']); "
        "print([name for name in ('tensorflow', 'keras') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert "did you mean mobilenet_v2" in done.stderr
    assert done.stdout == "[]\n", "they take seconds"
