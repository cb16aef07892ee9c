"""Where weights come from: ImageNet, the embedded file, and files in every format Keras writes.

A file is only ever read as arrays, never as a model: no config in it is deserialised, nothing in it is unpickled, and
HDF5 files that point to other files are refused. Arrays are matched to the network, every shape is compared, and only
when all of them fit is the first variable changed.

Formats, told apart by what is inside:

- ``.npz`` of tlearn: keys ``<stable layer name>/<variable name>``, see ``naming.variable_keys``;
- ``.weights.h5`` of Keras 3: ``layers/<type>_<count>/vars/<n>``;
- ``.keras``: a zip that holds a ``model.weights.h5``;
- ``.h5`` of Keras 2 (also the official ImageNet files): layers with weights, matched in order as Keras does.

A file may hold more than the network needs (a head): the rest is ignored.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tlearn.backbones.naming import class_counters, stable_names, variable_keys
from tlearn.backbones.specs import BackboneSpec
from tlearn.errors import Problem, UserError, WeightsError

IMAGENET = "imagenet"
GLYPHS = "glyphs"
KEY = "backbone.weights"
SUFFIXES = (".npz", ".h5", ".keras")  # .weights.h5 is an .h5

EMBEDDED = Path(__file__).parent / "embedded" / "mobilenet_0.25_glyphs.npz"
_EMBEDDED_ALPHA = 0.25
_LARGEST_FILE = 8 * 1024**3  # bytes, unpacked: twenty times NASNet-A large


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
        fixes = [f"with a network: put {file.name} into {file.parent} (Keras names its address: {_first_line(error)})"]
        near = [path for path in sorted(file.parent.glob("*.h5")) if _same_network(path.name, file.name)]
        if near:
            fixes.append(f"weights for another image size fit as well: backbone.weights={near[-1]}")
        fixes.append("without: backbone.weights=FILE, backbone.weights=null (random), or")
        fixes.append("the embedded ones: backbone.name=mobilenet backbone.alpha=0.25 backbone.weights=glyphs")
        what = f"ImageNet weights of {spec.title} are not in Keras' cache ({file}) and could not be downloaded"
        raise WeightsError(Problem(KEY, what, "\n    ".join(fixes))) from error


# --- reading ----------------------------------------------------------------------------------------------------------


class _Saved(NamedTuple):
    """One array in a file, not read yet."""

    name: str
    shape: tuple[int, ...]
    read: Callable[[], Any]


class _Target(NamedTuple):
    """One layer of the network that has weights."""

    name: str
    counter: str  # what Keras 3 calls it in a file
    variables: dict[str, Any]  # by key, in Keras' order


def load_weights(path: Path | str, layers: Sequence[Any], *, network: str = "this network", where: str = KEY) -> None:
    """Load a file of any format into the layers of a network.

    Args:
        path: ``.npz``, ``.weights.h5``, ``.keras`` or ``.h5``.
        layers: all layers, in the order of ``model.layers``; what else the file holds is ignored.
        network: what the layers are, for messages.
        where: config key for messages.

    Raises:
        WeightsError: the file cannot be read, or was made for another network. No variable has changed then.
    """
    path = Path(path)
    if path.suffix == ".npz":
        load_weights_npz(path, layers, network=network, where=where)
        return
    with _readable(path, where), _open_hdf5(path) as file:
        targets = _targets(layers)
        pairs, differences = _match_counted(file, targets) if "layers" in file else _match_in_order(file, targets)
        _assign(pairs, differences, path, network, where)


def load_weights_npz(
    path: Path | str, layers: Sequence[Any], *, network: str = "this network", where: str = KEY
) -> None:
    """Load a tlearn ``.npz`` into layers, by key. Raises WeightsError as ``load_weights`` does."""
    import numpy as np

    path = Path(path)
    with _readable(path, where), np.load(path, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an .npz of several")
        held = set(arrays.files)
        pairs, differences = [], []
        for key, variable in variable_keys(layers).items():
            if key in held:
                pairs.append((key, variable, _in_memory(key, arrays[key])))
            else:
                differences.append(f"{key}: not in the file, the network has {tuple(variable.shape)}")
        _assign(pairs, differences, path, network, where)


def save_weights_npz(path: Path | str, layers: Sequence[Any]) -> None:
    """Write all weights of the layers as a tlearn ``.npz``: complete under its name, or not there at all."""
    import numpy as np

    path = Path(path)
    arrays: dict[str, Any] = {key: np.asarray(variable) for key, variable in variable_keys(layers).items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _in_memory(name: str, array: Any) -> _Saved:
    return _Saved(name, tuple(array.shape), lambda: array)


def _targets(layers: Sequence[Any]) -> list[_Target]:
    rows = zip(stable_names(layers), class_counters(layers), layers, strict=True)
    return [_Target(name, counter, variable_keys([layer], [name])) for name, counter, layer in rows if layer.weights]


def _assign(pairs: list[tuple[str, Any, _Saved]], differences: list[str], path: Path, network: str, where: str) -> None:
    """Compare every shape, then set every variable."""
    for key, variable, saved in pairs:
        if tuple(saved.shape) != tuple(variable.shape):
            differences.append(f"{key}: {tuple(saved.shape)} in the file, the network has {tuple(variable.shape)}")
    if differences:
        shown = differences[:3] + ([f"and {len(differences) - 3} more"] if len(differences) > 3 else [])
        what = f"{path} does not fit {network}; it was made for another architecture, width or image size"
        fix = "\n    ".join([*shown, "give the backbone the options its weights were made with, or other weights"])
        raise WeightsError(Problem(where, what, fix))
    for _, variable, saved in pairs:
        variable.assign(saved.read())


# --- HDF5 -------------------------------------------------------------------------------------------------------------


@contextmanager
def _open_hdf5(path: Path) -> Iterator[Any]:
    """The HDF5 file itself, or the one inside a ``.keras`` zip."""
    import h5py

    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo("model.weights.h5")
            if entry.file_size > _LARGEST_FILE:
                raise ValueError(f"holds {entry.file_size} bytes of weights")
            with h5py.File(io.BytesIO(archive.read(entry)), "r") as file:
                yield file
    else:
        with h5py.File(path, "r") as file:
            yield file


def _child(group: Any, name: str) -> Any:
    """What is inside a group under a path, refusing every way HDF5 has to point into another file."""
    import h5py

    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"{group.name}/{part} is missing or a link")
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise ValueError(f"{group.name} is stored in another file")
    return group


def _saved(group: Any, name: str) -> _Saved:
    dataset = _child(group, name)
    return _Saved(dataset.name, tuple(dataset.shape), lambda: dataset[()])


def _match_counted(file: Any, targets: list[_Target]) -> tuple[list[tuple[str, Any, _Saved]], list[str]]:
    """Keras 3: by type and count. The network may be a model inside the saved one: take the place that fits best."""
    attempts = [_match_container(container, targets) for container in _containers(file)]
    return max(attempts, key=lambda attempt: len(attempt[0]) - len(attempt[1]))


def _containers(group: Any, depth: int = 0) -> Iterator[Any]:
    """Every group of layers: that of the saved model, and those of models inside it."""
    if depth > 4 or "layers" not in group:
        return
    layers = _child(group, "layers")
    yield layers
    for name in layers:
        yield from _containers(_child(layers, name), depth + 1)


def _match_container(container: Any, targets: list[_Target]) -> tuple[list[tuple[str, Any, _Saved]], list[str]]:
    pairs, differences = [], []
    for target in targets:
        stored = _child(container, f"{target.counter}/vars") if target.counter in container else {}
        for number, (key, variable) in enumerate(target.variables.items()):
            if str(number) in stored:
                pairs.append((key, variable, _saved(stored, str(number))))
            else:
                differences.append(f"{key}: not in the file, the network has {tuple(variable.shape)}")
    return pairs, differences


def _match_in_order(file: Any, targets: list[_Target]) -> tuple[list[tuple[str, Any, _Saved]], list[str]]:
    """Keras 2: layers with weights in the order of the model, which is also how Keras reads its ImageNet files."""
    root = _child(file, "model_weights") if "model_weights" in file else file
    stored = []
    for layer_name in _attribute_list(root, "layer_names"):
        group = _child(root, layer_name)
        if weight_names := _attribute_list(group, "weight_names"):
            stored.append((layer_name, [_saved(group, name) for name in weight_names]))

    pairs, differences = [], []
    for number, target in enumerate(targets):
        layer_name, arrays = stored[number] if number < len(stored) else ("nothing", [])
        if len(arrays) != len(target.variables):
            expected = f"{len(target.variables)} arrays of layer {target.name}"
            differences.append(f"{expected}: the file has {len(arrays)} ({layer_name}) in their place")
            continue
        pairs += [
            (key, variable, saved) for (key, variable), saved in zip(target.variables.items(), arrays, strict=True)
        ]
    return pairs, differences


def _attribute_list(group: Any, name: str) -> list[str]:
    """A list of names that Keras 2 kept as an attribute, in several parts where it was long."""
    if name in group.attrs:
        parts = [group.attrs[name]]
    else:
        parts = []
        while f"{name}{len(parts)}" in group.attrs:
            parts.append(group.attrs[f"{name}{len(parts)}"])
        if not parts:
            raise ValueError(f"holds no {name}: not a weights file of Keras")
    return [item.decode() if isinstance(item, bytes) else str(item) for part in parts for item in part]


# --- small helpers ----------------------------------------------------------------------------------------------------


@contextmanager
def _readable(path: Path, where: str) -> Iterator[None]:
    """Whatever a damaged or foreign file makes a reader say becomes one WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        what = f"{path} cannot be read as weights: {_first_line(error)}"
        raise WeightsError(Problem(where, what, "it is damaged, or of another kind than its name says")) from error


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
