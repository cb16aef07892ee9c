"""The console script: ``tlearn train ...`` is ``python -m tlearn.train ...``, and so for every verb."""

from __future__ import annotations

import sys

from tlearn.errors import did_you_mean
from tlearn.interrupts import enter

# verb: (module with a ``main``, what it does)
VERBS = {
    "train": ("tlearn.train.command", "train a classifier, or go on with a run"),
    "sweep": ("tlearn.sweep.command", "search config keys with many runs"),
    "reproduce": ("tlearn.reproduce", "repeat a run, and compare every number and the weights"),
    "plan": ("tlearn.plan", "show what a run or a sweep would do"),
    "predict": ("tlearn.predict", "classify images, by a run or by ImageNet's classes"),
    "extract": ("tlearn.extract", "features of images from any layer, to a file"),
    "explain": ("tlearn.explain", "show what in a photograph speaks for a class (Grad-CAM)"),
    "evaluate": ("tlearn.evaluate.command", "how good a run is, class by class; or a backbone's features"),
    "export": ("tlearn.export", "a run as SavedModel, Keras, LiteRT (TFLite) or ONNX, checked"),
    "cache": ("tlearn.cache", "list, verify or clear the features kept of frozen layers"),
    "backbones": ("tlearn.backbones.__main__", "list architectures, or the layers of one"),
}


def main() -> int:
    """Dispatch to a verb; returns its exit status."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        print("usage: tlearn VERB [arguments]\n")
        for name, (_, what) in VERBS.items():
            print(f"  {name:<12}{what}")
        print("\ntlearn VERB --help says more.")
        return 0
    if verb in ("-sc", "--shell-completion"):  # a shell asks: it knows the command, not the verb
        verb, arguments = "train", [verb, *arguments]
    if verb not in VERBS:
        print(f"error: unknown verb {verb!r}\n    {did_you_mean(verb, VERBS)}", file=sys.stderr)
        return 2
    return enter(VERBS[verb][0], arguments)
