"""Where weights come from: ImageNet, the embedded file, a run, and files of the user's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tlearn.backbones.specs import BackboneSpec
from tlearn.backbones.weight_files import KEY, SUFFIXES, first_line
from tlearn.errors import Problem, UserError, WeightsError

IMAGENET = "imagenet"
GLYPHS = "glyphs"

EMBEDDED = Path(__file__).parent / "embedded" / "mobilenet_0.25_glyphs.npz"
_EMBEDDED_ALPHA = 0.25


# --- before TensorFlow ------------------------------------------------------------------------------------------------


def check_weights(
    weights: str | None,
    spec: BackboneSpec,
    *,
    image_size: int | None = None,
    alpha: float | None = None,
    depth_multiplier: int | None = None,
    include_top: bool = False,
    where: str = KEY,
) -> list[Problem]:
    """What can be said about weights without opening them. Returns problems, empty when there is none."""
    if weights is None:
        return []
    if weights == IMAGENET:
        return _check_imagenet(spec, {"alpha": alpha, "depth_multiplier": depth_multiplier}, where)
    if weights == GLYPHS:
        fits = spec.name == "mobilenet" and alpha == _EMBEDDED_ALPHA and depth_multiplier in (None, 1)
        if fits and not include_top:
            return []
        asked = describe(spec, image_size, alpha, depth_multiplier, include_top)
        fix = f"backbone.name=mobilenet backbone.alpha={_EMBEDDED_ALPHA}, or other weights"
        return [
            Problem(where, f"the embedded weights are MobileNet alpha {_EMBEDDED_ALPHA} without top, not {asked}", fix)
        ]

    path = Path(weights).expanduser()
    fix = f"one of: {IMAGENET}, {GLYPHS}, null (random), or a file ({', '.join(SUFFIXES)})"
    if not path.exists():
        return [Problem(where, f"no such file: {path}", fix)]
    if path.is_dir():
        return [Problem(where, f"{path} is a folder without tlearn weights", fix)]
    if not path.is_file():  # opening a pipe would wait for ever
        return [Problem(where, f"{path} is not a regular file", fix)]
    if path.suffix not in SUFFIXES:
        return [Problem(where, f"{path}: unknown kind of weights file {path.suffix!r}", fix)]
    return []


def describe(
    spec: BackboneSpec,
    image_size: int | None = None,
    alpha: float | None = None,
    depth_multiplier: int | None = None,
    include_top: bool = False,
) -> str:
    """A network in a few words, for messages: ``MobileNet, alpha 0.25, 224 pixels``."""
    words = [spec.title]
    if spec.option("alpha"):
        words.append(f"alpha {1.0 if alpha is None else alpha:g}")
    if depth_multiplier not in (None, 1):
        words.append(f"depth multiplier {depth_multiplier}")
    words.append(f"{image_size or spec.image_size} pixels")
    return ", ".join(words) + (" with top" if include_top else "")


def locate_weights(
    weights: str | None,
    spec: BackboneSpec,
    *,
    image_size: int | None = None,
    alpha: float | None = None,
    depth_multiplier: int | None = None,
    include_top: bool = False,
) -> Path | None:
    """The file that weights are in; None for random ones. A file of ImageNet weights may not be there yet.

    Raises:
        WeightsError: the embedded file is missing or not the one it should be.
    """
    if weights is None:
        return None
    if weights == IMAGENET:
        return keras_cache() / imagenet_file(spec, image_size=image_size, alpha=alpha, include_top=include_top)
    if weights == GLYPHS:
        return _checked_embedded()
    return Path(weights).expanduser()


def keras_cache() -> Path:
    """Folder of Keras' own cache of weights: ``$KERAS_HOME/models``, by default ``~/.keras/models``."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"


def imagenet_file(
    spec: BackboneSpec, *, image_size: int | None = None, alpha: float | None = None, include_top: bool = False
) -> str:
    """Name that Keras gives the ImageNet weights. MobileNets have one for each of a few sizes; others use the 224."""
    assert spec.weights_file is not None
    size = image_size if image_size in spec.weights_sizes else spec.image_size
    width = 1.0 if alpha is None else float(alpha)
    # MobileNet writes 0.25 as "2_5" and 1.0 as "1_0", its successor as they are.
    shown = str(width) if spec.name != "mobilenet" else {0.25: "2_5", 0.5: "5_0", 0.75: "7_5", 1.0: "1_0"}.get(width)
    return spec.weights_file[include_top].format(alpha=shown, size=size)


@contextmanager
def download_problems(file: Path, spec: BackboneSpec) -> Iterator[None]:
    """Run Keras' download; whatever goes wrong becomes one clear error that names the file and the ways out."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        fixes = [f"with a network: put {file.name} into {file.parent} (Keras names its address: {first_line(error)})"]
        near = [path for path in sorted(file.parent.glob("*.h5")) if _same_network(path.name, file.name)]
        if near:
            fixes.append(f"weights for another image size fit as well: backbone.weights={near[-1]}")
        fixes.append("without: backbone.weights=FILE, backbone.weights=null (random), or")
        fixes.append("the embedded ones: backbone.name=mobilenet backbone.alpha=0.25 backbone.weights=glyphs")
        what = f"ImageNet weights of {spec.title} are not in Keras' cache ({file}) and could not be downloaded"
        raise WeightsError(Problem(KEY, what, "\n    ".join(fixes))) from error


# --- small helpers ----------------------------------------------------------------------------------------------------


def _check_imagenet(spec: BackboneSpec, given: dict[str, float | None], where: str) -> list[Problem]:
    if spec.weights_file is None:
        return [Problem(where, f"there are no ImageNet weights of {spec.name}", "set it to null (random) or a file")]
    problems = []
    for option in spec.options:
        value = given.get(option.name)
        if option.imagenet and value is not None and value not in option.imagenet:
            key = f"{where.rpartition('.')[0]}.{option.name}".removeprefix(".")
            known = ", ".join(f"{choice:g}" for choice in option.imagenet)
            fix = f"choose one of {known}, or {where}=null (random)"
            problems.append(Problem(key, f"there are no ImageNet weights of {spec.name} for {value:g}", fix))
    return problems


def _checked_embedded() -> Path:
    """The embedded file, compared with the sha256 written beside it when it was made."""
    facts = EMBEDDED.with_suffix(".json")
    for file in (EMBEDDED, facts):
        if not file.is_file():
            what = f"the embedded weights are missing from this installation ({file})"
            raise WeightsError(Problem(KEY, what, "install tlearn again, or choose other weights"))
    expected = json.loads(facts.read_text(encoding="utf-8"))["sha256"]
    if hashlib.sha256(EMBEDDED.read_bytes()).hexdigest() != expected:
        what = f"{EMBEDDED} is not the file it should be (sha256 differs)"
        raise WeightsError(Problem(KEY, what, "install tlearn again, or choose other weights"))
    return EMBEDDED


def _same_network(name: str, wanted: str) -> bool:
    """Whether two file names of Keras differ in the image size only."""
    sizes = ("96", "128", "160", "192", "224")
    return any(name.replace(f"_{size}", "_") == wanted.replace(f"_{other}", "_") for size in sizes for other in sizes)
