"""Weights files in every format Keras writes, read as arrays and never as models.

No config in a file is deserialised, nothing in it is unpickled, and HDF5 files that point to other files are refused.
Arrays are matched to the network, every shape is compared before an array is read, every value must be a number, and
only when all of them fit is the first variable changed.

Formats, told apart by what is inside:

- ``.npz`` of tlearn: keys ``<stable layer name>/<variable name>``, see ``naming.variable_keys``;
- ``.weights.h5`` of Keras 3: ``layers/<type>_<count>/vars/<n>``;
- ``.keras``: a zip that holds a ``model.weights.h5``;
- ``.h5`` of Keras 2 (also the official ImageNet files): layers with weights, matched in order as Keras does.

A file may hold more than the network needs (a head): the rest is ignored.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tlearn.backbones.naming import class_counters, stable_names, variable_keys
from tlearn.errors import Problem, WeightsError

KEY = "backbone.weights"
SUFFIXES = (".npz", ".h5", ".keras")  # .weights.h5 is an .h5

_MOST_TIMES, _SPARE = 16, 64 * 1024**2  # a compressed model file unpacks to at most so many networks, and bytes
_LARGEST_FILE = 8 * 1024**3  # bytes, unpacked: twenty times NASNet-A large


class _Saved(NamedTuple):
    """One array in a file, not read yet."""

    name: str
    shape: tuple[int, ...]
    dtype: Any  # of NumPy
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
    targets = _targets(layers)
    needed = sum(math.prod(variable.shape) * 4 for target in targets for variable in target.variables.values())
    with _readable(path, where), _open_hdf5(path, needed) as file:
        pairs, differences = _match_counted(file, targets) if _holds(file, "layers") else _match_in_order(file, targets)
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
                pairs.append((key, variable, _zipped(arrays, key)))
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


def _zipped(arrays: Any, key: str) -> _Saved:
    """An array of an ``.npz`` by its header: a few bytes of a zip may unpack to terabytes."""
    import numpy as np

    member = f"{key}.npy" if f"{key}.npy" in arrays.zip.namelist() else key
    with arrays.zip.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if header is None:
            raise ValueError(f"{key} has a header of version {version}")
        shape, _, dtype = header(file)
    return _Saved(key, shape, dtype, lambda: arrays[key])


def _targets(layers: Sequence[Any]) -> list[_Target]:
    rows = zip(stable_names(layers), class_counters(layers), layers, strict=True)
    return [_Target(name, counter, variable_keys([layer], [name])) for name, counter, layer in rows if layer.weights]


def _assign(pairs: list[tuple[str, Any, _Saved]], differences: list[str], path: Path, network: str, where: str) -> None:
    """Compare every shape, then set every variable."""
    for key, variable, saved in pairs:
        if saved.dtype.kind not in "fiu":  # texts and objects have sizes of their own
            raise ValueError(f"{saved.name} holds no numbers, but {saved.dtype}")
        if tuple(saved.shape) != tuple(variable.shape):
            differences.append(f"{key}: {tuple(saved.shape)} in the file, the network has {tuple(variable.shape)}")
    if differences:
        shown = differences[:3] + ([f"and {len(differences) - 3} more"] if len(differences) > 3 else [])
        what = f"{path} does not fit {network}; it was made for another architecture, width or image size"
        fix = "\n    ".join([*shown, "give the backbone the options its weights were made with, or other weights"])
        raise WeightsError(Problem(where, what, fix))
    arrays = [(variable, _finite_array(saved)) for _, variable, saved in pairs]  # all, before the first one changes
    for variable, array in arrays:
        variable.assign(array)


def _finite_array(saved: _Saved) -> Any:
    """The array. Raises ValueError when a value is infinite or NaN: it would spread at the first step."""
    import numpy as np

    array = np.asarray(saved.read())
    if not np.isfinite(array).all():
        raise ValueError(f"{saved.name} holds NaN or infinite values")
    return array


# --- HDF5 -------------------------------------------------------------------------------------------------------------


@contextmanager
def _open_hdf5(path: Path, needed: int) -> Iterator[Any]:
    """The HDF5 file itself, or the one inside a ``.keras`` zip; ``needed`` is the size of the network in bytes."""
    import h5py

    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            entry = archive.getinfo("model.weights.h5")
            # Beside the network a file may hold its optimizer and a larger head. Keras does not compress; a bomb does.
            largest = max(entry.compress_size, _MOST_TIMES * needed + _SPARE)
            if entry.file_size > min(largest, _LARGEST_FILE):
                raise ValueError(f"holds {entry.file_size:,} bytes of weights where the network has {needed:,}")
            with h5py.File(io.BytesIO(archive.read(entry)), "r") as file:
                yield file
    else:
        with h5py.File(path, "r") as file:
            yield file


def _holds(group: Any, name: str) -> bool:
    """Whether something is in a group. ``name in group`` would follow a link, and open the file it leads to.

    Raises:
        ValueError: a link is, whether or not it leads anywhere.
    """
    import h5py

    if not isinstance(group, h5py.Group):
        raise ValueError(f"{group.name} is no group")
    links, key = group.id.links, name.encode()
    if not links.exists(key):
        return False
    if links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise ValueError(f"{group.name}/{name} is a link")
    return True


def _child(group: Any, name: str) -> Any:
    """What is inside a group under a path, refusing every way HDF5 has to point into another file."""
    import h5py

    for part in name.split("/"):
        if not _holds(group, part):
            raise ValueError(f"{group.name}/{part} is missing")
        group = group[part]
    if isinstance(group, h5py.Dataset) and (group.external or group.is_virtual):
        raise ValueError(f"{group.name} is stored in another file")
    return group


def _saved(group: Any, name: str) -> _Saved:
    import h5py

    dataset = _child(group, name)
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
        raise ValueError(f"{group.name}/{name} is no array")
    return _Saved(dataset.name, tuple(dataset.shape), dataset.dtype, lambda: dataset[()])


_MOST_CONTAINERS = 100  # hard links can make a few groups into millions


def _match_counted(file: Any, targets: list[_Target]) -> tuple[list[tuple[str, Any, _Saved]], list[str]]:
    """Keras 3: by type and count. The network may be a model inside the saved one: take the place that fits best."""
    containers = list(itertools.islice(_containers(file), _MOST_CONTAINERS))
    attempts = [_match_container(container, targets) for container in containers]
    return max(attempts, key=lambda attempt: len(attempt[0]) - len(attempt[1]))


def _containers(group: Any, depth: int = 0) -> Iterator[Any]:
    """Every group of layers: that of the saved model, and those of models inside it."""
    import h5py

    if depth > 4 or not isinstance(group, h5py.Group) or not _holds(group, "layers"):
        return
    layers = _child(group, "layers")
    yield layers
    for name in layers:
        yield from _containers(_child(layers, name), depth + 1)


def _match_container(container: Any, targets: list[_Target]) -> tuple[list[tuple[str, Any, _Saved]], list[str]]:
    pairs, differences = [], []
    for target in targets:
        stored = _child(container, f"{target.counter}/vars") if _holds(container, target.counter) else None
        for number, (key, variable) in enumerate(target.variables.items()):
            if stored is not None and _holds(stored, str(number)):
                pairs.append((key, variable, _saved(stored, str(number))))
            else:
                differences.append(f"{key}: not in the file, the network has {tuple(variable.shape)}")
    return pairs, differences


def _match_in_order(file: Any, targets: list[_Target]) -> tuple[list[tuple[str, Any, _Saved]], list[str]]:
    """Keras 2: layers with weights in the order of the model, which is also how Keras reads its ImageNet files."""
    root = _child(file, "model_weights") if _holds(file, "model_weights") else file
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


# --- what goes wrong ------------------------------------------------------------------------------------------------


@contextmanager
def _readable(path: Path, where: str) -> Iterator[None]:
    """Whatever a damaged or foreign file makes a reader say becomes one WeightsError."""
    try:
        yield
    except WeightsError:
        raise
    except _READING_ERRORS as error:
        what = f"{path} cannot be read as weights: {first_line(error)}"
        raise WeightsError(Problem(where, what, "it is damaged, or of another kind than its name says")) from error


_READING_ERRORS = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError),
    *(RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, struct.error),
)
"""What NumPy, h5py and zipfile say of a file that somebody broke."""


def first_line(error: BaseException) -> str:
    """What an error says, on one line of at most 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
