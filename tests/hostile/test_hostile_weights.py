"""Hostile weights files: refused with a message; nothing is run, no other file opened, no weight changed."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from tlearn.backbones import check_weights, get_spec, load_weights, save_weights_npz
from tlearn.errors import WeightsError

KERNEL, VARIABLES = "layers/dense/vars/0", "layers/dense/vars"


@pytest.fixture(scope="module")
def model() -> Any:
    image = keras.Input((4,))
    return keras.Model(image, keras.layers.Dense(3, name="dense")(image))


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights in each format, and a secret beside them."""
    folder = tmp_path_factory.mktemp("weights")
    model.save(folder / "w.keras")
    model.save_weights(folder / "w.weights.h5")
    save_weights_npz(folder / "w.npz", model.layers)
    return folder


def edited(files: Path, path: Path) -> h5py.File:
    """A copy of the HDF5 file, open for changes."""
    path.write_bytes((files / "w.weights.h5").read_bytes())
    return h5py.File(path, "a")


class Payload:
    """What runs when a pickle is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("unpickled",))


# --- HDF5: each takes the open file, and does to it what a stranger might ---------------------------------------------


def replaced(file: h5py.File, name: str, new: Any) -> None:
    del file[name]
    file[name] = new


def external_storage(file: h5py.File) -> None:
    del file[KERNEL]
    file[VARIABLES].create_dataset("0", (4, 3), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 3), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (4, 3))
    del file[KERNEL]
    file[VARIABLES].create_virtual_dataset("0", layout)


def to_a_pipe(file: h5py.File) -> None:
    """Following this link would wait for ever."""
    pipe = Path(file.filename).with_name("pipe.h5")
    os.mkfifo(pipe)
    replaced(file, "layers/dense", h5py.ExternalLink(str(pipe), "/layers/dense"))


def dataset(**options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[KERNEL]
        file[VARIABLES].create_dataset("0", **options)

    return change


def circle(file: h5py.File) -> None:
    """Every group is a layer of every layer: a tree without end."""
    for index in range(60):
        file["layers"][f"x{index}"] = file["/"]
    del file["layers/dense"]


HDF5: dict[str, Callable[[h5py.File], object]] = {
    "external link": lambda file: replaced(file, "layers/dense", h5py.ExternalLink("other.h5", "/x")),
    "external link to a pipe": to_a_pipe,
    "external link at the top": lambda file: replaced(file, "layers", h5py.ExternalLink("other.h5", "/layers")),
    "soft link": lambda file: replaced(file, KERNEL, h5py.SoftLink("/layers/dense/vars/1")),
    "soft link to itself": lambda file: replaced(file, KERNEL, h5py.SoftLink(f"/{KERNEL}")),
    "external storage": external_storage,
    "virtual": virtual,
    "a declared terabyte": dataset(shape=(2**20, 2**18), dtype="f4", chunks=(1, 1024)),
    "a compressed gigabyte": dataset(shape=(2**14, 2**14), dtype="f4", compression="gzip", fillvalue=1.0),
    "not a number": lambda file: file[KERNEL].__setitem__((0, 0), np.nan),
    "infinite": lambda file: file[KERNEL].__setitem__((0, 0), np.inf),
    "texts": dataset(data=np.full((4, 3), b"x" * 100, dtype="S100")),
    "texts of any length": dataset(shape=(4, 3), dtype=h5py.string_dtype()),
    "references": dataset(shape=(4, 3), dtype=h5py.ref_dtype),
    "records": dataset(shape=(4, 3), dtype=np.dtype([("a", "f4"), ("b", "i8")])),
    "complex numbers": dataset(shape=(4, 3), dtype="c8"),
    "an empty space": dataset(data=h5py.Empty("f4")),
    "one number": dataset(data=1.0),
    "a group for an array": lambda file: (file.__delitem__(KERNEL), file[VARIABLES].create_group("0")),
    "an array for a group": lambda file: replaced(file, VARIABLES, np.zeros(3)),
    "a type for an array": lambda file: replaced(file, KERNEL, np.dtype("f4")),
    "groups in a circle": circle,
    "nothing": lambda file: file.clear(),
}


def unchanged(model: Any, path: Path) -> str:
    """The message of a refusal; no weight has changed."""
    before = [weight.numpy() for weight in model.weights]
    with pytest.raises(WeightsError) as caught:
        load_weights(path, model.layers)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
    return str(caught.value)


@pytest.mark.parametrize("case", HDF5)
def test_hdf5_files_are_refused(case: str, model: Any, files: Path, tmp_path: Path) -> None:
    with edited(files, tmp_path / "w.weights.h5") as file:
        HDF5[case](file)
    said = unchanged(model, tmp_path / "w.weights.h5")
    assert "cannot be read as weights" in said or "does not fit" in said


def test_the_good_ones_are_read(model: Any, files: Path) -> None:
    for name in ("w.keras", "w.weights.h5", "w.npz"):
        load_weights(files / name, model.layers)


# --- zips ------------------------------------------------------------------------------------------------------------


def keras_zip(path: Path, files: Path, **members: bytes) -> None:
    with zipfile.ZipFile(files / "w.keras") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name not in members:
                new.writestr(name, old.read(name))
        for name, content in members.items():
            new.writestr(name, content)


def test_what_else_a_model_file_holds_is_neither_read_nor_unpacked(
    model: Any, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Lambda layer with marshalled code, members that climb out: only the arrays are looked at."""
    monkeypatch.chdir(tmp_path)
    code = {"class_name": "__lambda__", "config": {"value": ["4wAAAAAA", None, None]}}
    layer = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": code}}
    config = {"module": "keras", "class_name": "Sequential", "config": {"layers": [layer]}}
    members = {"config.json": json.dumps(config).encode(), "../climbed": b"x", "/climbed": b"x"}
    keras_zip(tmp_path / "w.keras", files, **members, **{"a/../../climbed": pickle.dumps(Payload())})
    load_weights(tmp_path / "w.keras", model.layers)
    assert os.listdir(tmp_path) == ["w.keras"]
    assert not (tmp_path.parent / "climbed").exists()


def test_a_zip_bomb_for_a_model(model: Any, files: Path, tmp_path: Path) -> None:
    keras_zip(tmp_path / "w.keras", files, **{"model.weights.h5": bytes(100_000_000)})
    assert "holds 100,000,000 bytes of weights" in unchanged(model, tmp_path / "w.keras")


def test_a_model_without_weights(model: Any, files: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.keras", "w") as file:
        file.writestr("config.json", "{}")
    assert "cannot be read as weights" in unchanged(model, tmp_path / "w.keras")


def npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"dense/{name}.npy", content)


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), **options)
    return file.getvalue()


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": shape, "fortran_order": False, "descr": descr})
    return file.getvalue()


NPZ: dict[str, tuple[bytes, str]] = {
    "pickle": (npy(np.full((4, 3), Payload(), object)), "holds no numbers"),
    "bare pickle": (pickle.dumps(Payload()), "cannot be read as weights"),
    "a declared terabyte": (header((2**20, 2**18)) + bytes(1000), "does not fit"),
    "a compressed gigabyte": (header((2**14, 2**12)) + bytes(2**28), "does not fit"),
    "negative": (header((-4, -3)) + bytes(48), "does not fit"),
    "cut off": (npy(np.zeros((4, 3), "f4"))[:-8], "cannot be read as weights"),
    "only a header": (header((4, 3)), "cannot be read as weights"),
    "code for a header": (b"\x93NUMPY\x01\x00\x16\x00__import__('os').abort\n", "cannot be read as weights"),
    "not a number": (npy(np.full((4, 3), np.nan, "f4")), "NaN or infinite"),
    "texts": (npy(np.full((4, 3), "x")), "holds no numbers"),
    "dates": (npy(np.zeros((4, 3), "M8[s]")), "holds no numbers"),
    "complex numbers": (npy(np.zeros((4, 3), "c8")), "holds no numbers"),
    "empty": (b"", "cannot be read as weights"),
}


@pytest.mark.parametrize("case", NPZ)
def test_npz_files_are_refused(case: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, says = NPZ[case]
    npz(tmp_path / "w.npz", kernel=content, bias=npy(np.zeros(3, "f4")))
    assert says in unchanged(model, tmp_path / "w.npz")
    assert os.listdir(tmp_path) == ["w.npz"]


SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe.h5": (os.mkfifo, "is not a regular file"),
    "device.npz": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "folder.keras": (Path.mkdir, "is a folder"),
    "dangling.h5": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "program.so": (lambda path: path.write_bytes(b"\x7fELF"), "unknown kind"),
    "model.pkl": (lambda path: path.write_bytes(pickle.dumps(Payload())), "unknown kind"),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_what_is_no_weights_file_is_found_before_tensorflow(name: str, tmp_path: Path) -> None:
    make, says = SPECIAL[name]
    make(tmp_path / name)
    (problem,) = check_weights(str(tmp_path / name), get_spec("mobilenet"))
    assert says in problem.what


@pytest.mark.parametrize("name", ["w.keras", "w.weights.h5", "w.npz"])
def test_damaged_anywhere(name: str, model: Any, files: Path, tmp_path: Path) -> None:
    """Cut off, or a byte turned, anywhere: read or refused, and never half."""
    good, rng = (files / name).read_bytes(), np.random.default_rng(0)
    for trial in range(60):
        content = bytearray(good)
        if trial % 3:
            for at in rng.integers(0, len(content), trial):
                content[at] = rng.integers(256)
        else:
            del content[rng.integers(0, len(content)) :]
        path = tmp_path / f"{trial}-{name}"
        path.write_bytes(bytes(content))
        before = [weight.numpy() for weight in model.weights]
        try:
            load_weights(path, model.layers)
        except WeightsError:
            for weight, old in zip(model.weights, before, strict=True):
                np.testing.assert_array_equal(weight.numpy(), old)
        assert all(np.isfinite(weight.numpy()).all() for weight in model.weights)
