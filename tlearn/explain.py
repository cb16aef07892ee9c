"""``python -m tlearn.explain``: what in a photograph speaks for a class, as a picture beside the input (Grad-CAM)."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tlearn.arguments import check_writable, network_and_paths, network_parser, run_command
from tlearn.errors import Problem, UserError
from tlearn.train.checkpoint import write_atomic
from tlearn.train.command import OK

if TYPE_CHECKING:
    from tlearn.gradcam import Explanation
    from tlearn.layers import Layer
    from tlearn.network import Network

_HELP = """\
Show what in a photograph speaks for a class: Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391).

    python -m tlearn.explain runs/flowers photo.jpg                                  the likeliest class
    python -m tlearn.explain --backbone mobilenet --alpha 0.25 photo.jpg --class tabby -o tabby.png

Writes a picture, PNG, JPEG or WEBP by the end of its name: on the left what the network sees, on the right the same in
grey under a map that goes from dark over red to yellow where the class finds most support. The map has the resolution
of the last feature map, or of an earlier one with --layer.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = network_parser("explain", _HELP, "PHOTO")
    parser.add_argument("--class", dest="class_", metavar="NAME|INDEX", help="default: the likeliest")
    parser.add_argument("--layer", metavar="L", help="name, block or index of a feature map; default: the last")
    parser.add_argument(
        "--output", "-o", metavar="FILE", help=".png, .jpg or .webp to write; default: PHOTO-gradcam.png, here"
    )
    return run_command(_command, parser, argv)


def _command(arguments: argparse.Namespace) -> int:
    open_network, paths = network_and_paths(arguments, include_top=True)
    if len(paths) != 1:
        raise UserError(Problem("arguments", f"one photograph is explained at a time, got {len(paths)}"))
    output = arguments.output or f"{Path(paths[0]).stem}-gradcam.png"
    check_writable(output)
    made = explain_file(open_network, paths[0], output, class_=arguments.class_, layer=arguments.layer)
    print(json.dumps({"path": paths[0], "output": output, "layer": made.layer, **made.guess.as_dict()}))
    return OK


def explain_file(
    open_network: Callable[[], Network], path: str, output: str, *, class_: str | int | None, layer: Layer | None
) -> Explanation:
    """Explain a photograph and write the picture, in the format that the end of the output's name says.

    Raises:
        UserError: the photograph cannot be read, there is no such class or layer, or the output is the photograph or
            is called like no picture.
    """
    from tlearn.gradcam import PICTURES

    end = os.path.splitext(output)[1].lower()
    if end not in PICTURES:
        raise UserError(Problem("--output", f"{output} is called like no picture", f"one of: {', '.join(PICTURES)}"))
    if os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path):
        raise UserError(Problem("--output", f"{output} is the photograph itself", "choose another name"))
    if os.path.isdir(path):
        raise UserError(Problem(path, "is a folder", "name one photograph"))
    made = open_network().explain(path, class_, layer)
    try:
        write_atomic(Path(output), made.picture(PICTURES[end]))
    except OSError as error:
        raise UserError(Problem("--output", f"{output} cannot be written: {error.strerror or error}")) from error
    return made


if __name__ == "__main__":
    sys.exit(main())
