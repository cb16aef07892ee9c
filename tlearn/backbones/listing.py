"""Tables of the architectures and their layers, for people and for programs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from tlearn.backbones.build import Backbone
from tlearn.backbones.check import own_options
from tlearn.backbones.specs import SPECS, BackboneSpec


def all_rows() -> list[dict[str, Any]]:
    """The facts of every architecture, as plain data."""
    return [facts(SPECS[name]) for name in SPECS]


def facts(spec: BackboneSpec) -> dict[str, Any]:
    """One architecture's row, as plain data. Sizes in megabytes and pixels, accuracies 0..1; None: not stated."""
    return {
        "name": spec.name,
        "title": spec.title,
        "parameters": spec.parameters,
        "size_mb": spec.size_mb,
        "depth": spec.depth,
        "layers": spec.layers,
        "top1": spec.top1,
        "top5": spec.top5,
        "image_size": spec.image_size,
        "least_size": spec.least_size,
        "features": spec.width,
        "preprocess": spec.preprocess.value,
        "blocks": list(spec.block_names()),
        "options": _options(spec),
        "paper": spec.paper,
        "arxiv": spec.arxiv,
        "licence": spec.licence,
    }


def layer_rows(backbone: Backbone) -> list[dict[str, Any]]:
    """One row a layer: index, name, type, block, output shape without the batch, parameters."""
    rows = []
    for index, (layer, name) in enumerate(zip(backbone.layers, backbone.names, strict=True)):
        block = next((b.name for b in backbone.blocks if b.first <= index <= b.last), "")
        rows.append(
            {
                "index": index,
                "name": name,
                "type": type(layer).__name__,
                "block": block,
                "shape": list(layer.output.shape[1:]),
                "parameters": layer.count_params(),
            }
        )
    return rows


def print_all(console: Console) -> None:
    """Every architecture in 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    for heading in ("params", "MB", "top-1", "top-5", "depth", "px", "least"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    for name in SPECS:
        spec = SPECS[name]
        table.add_row(
            name,
            _known(spec.parameters and f"{spec.parameters / 1e6:.1f}M"),
            _known(spec.size_mb),
            _known(spec.top1 and f"{spec.top1:.3f}"),
            _known(spec.top5 and f"{spec.top5:.3f}"),
            _known(spec.depth),
            str(spec.image_size),
            str(spec.least_size),
            _known(spec.licence.split(" (")[0]),
        )
    console.print(table)
    console.print(
        "params and MB with the ImageNet top; top-1, top-5 on ImageNet; px: usual size;\n"
        "least: smallest; licence: of the ImageNet weights ('-': not stated)\n"
        "One of them layer by layer: python -m tlearn.backbones NAME",
        style="dim",
        highlight=False,
    )


def print_one(console: Console, backbone: Backbone) -> None:
    """An architecture's facts, then its layers."""
    spec = backbone.spec
    height, width, channels = backbone.output.shape[1:]
    side = backbone.image_size
    parameters = sum(layer.count_params() for layer in backbone.layers)
    top = f"; {spec.parameters:,} with the ImageNet top" if spec.parameters else ""
    lines = [
        f"{spec.name}: {spec.title}",
        f"input       {side} x {side} x 3, RGB 0..255 (usual {spec.image_size}, least {spec.least_size})",
        f"features    {height} x {width} x {channels}",
        f"parameters  {parameters:,}{top}",
        f"ImageNet    top-1 {_known(spec.top1)}, top-5 {_known(spec.top5)}, depth {_known(spec.depth)}, "
        f"{_known(spec.size_mb)} MB",
        f"pixels      preprocess={spec.preprocess.value}, the first layer of the network",
        f"options     {', '.join(_options(spec)) or 'none'}",
        f"paper       {spec.paper}" + (f" (arXiv {spec.arxiv})" if spec.arxiv else ""),
        f"licence     {_known(spec.licence)} (ImageNet weights)",
        f"blocks      {len(backbone.blocks)}: {', '.join(block.name for block in backbone.blocks)}",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    console.print()

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    table.add_column("layer", overflow="fold")
    table.add_column("block", no_wrap=True)
    table.add_column("output", no_wrap=True)
    table.add_column("params", justify="right", no_wrap=True)
    for row in layer_rows(backbone):
        shape = " x ".join(map(str, row["shape"]))
        count = f"{row['parameters']:,}" if row["parameters"] else ""
        table.add_row(str(row["index"]), row["name"], row["block"], shape, count)
    console.print(table)


def _options(spec: BackboneSpec) -> list[str]:
    """Such as ``alpha``; of a registered builder with their defaults, such as ``options.filters=16``."""
    own = [str(parameter.replace(annotation=parameter.empty)) for parameter in own_options(spec)]
    return [option.name for option in spec.options] + [f"options.{parameter}" for parameter in own]


def _known(value: Any) -> str:
    return str(value) if value else "-"
