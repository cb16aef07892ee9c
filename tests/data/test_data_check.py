"""The check before training: what it finds, at each closeness."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tlearn.config import Check, DataConfig, OnError
from tlearn.data import ArraySource, CheckReport, Data, check_data, check_images, index_data, leave_out, load_data
from tlearn.data.folder import index_folder
from tlearn.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Two classes of six different noisy PNG files."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for index in range(6):
            Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(tmp_path / name / f"{index}.png")
    return tmp_path


def check(folder, mode=Check.decode, on_error=OnError.skip, max_pixels=1000, **options):
    source = index_folder(folder, max_pixels=max_pixels)
    return check_images(source, np.arange(len(source.table)), mode=mode, on_error=on_error, **options)


def bad_rows(report):
    return [entry.row for entry in report.unreadable]


def test_all_is_well(folder):
    report = check(folder, on_error=OnError.stop)
    assert (report.checked, report.unreadable, report.duplicates) == (12, (), ())


def test_what_each_mode_sees(folder):
    truncated, html, large = folder / "a/1.png", folder / "a/2.png", folder / "b/0.png"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    html.write_bytes(b"<html>")
    Image.new("RGB", (40, 40)).save(large)
    assert bad_rows(check(folder, Check.decode)) == [1, 2, 6]
    assert bad_rows(check(folder, Check.header)) == [2, 6]
    assert bad_rows(check(folder, Check.none)) == []
    assert "40 x 40 pixels" in check(folder, Check.header).unreadable[1].reason
    with pytest.raises(DataError, match="3 of 12 images"):
        check(folder, Check.decode, on_error=OnError.stop)


@pytest.mark.parametrize("mode", Check)
def test_files_that_were_not_there_are_found_in_every_mode(folder, mode):
    (folder / "a/gone.png").symlink_to(folder / "nowhere.png")
    report = check(folder, mode)
    assert [entry.path for entry in report.unreadable] == [str(folder / "a/gone.png")]


def test_a_file_that_vanishes_after_indexing(folder):
    source = index_folder(folder, max_pixels=1000)
    (folder / "a/3.png").unlink()
    report = check_images(source, np.arange(12), mode=Check.decode, on_error=OnError.skip)
    assert bad_rows(report) == [3]


@pytest.mark.parametrize("mode", [Check.decode, Check.header])
def test_copies(folder, mode):
    (folder / "a/copy.png").write_bytes((folder / "a/0.png").read_bytes())
    (folder / "b/another.png").write_bytes((folder / "b/1.png").read_bytes())
    (folder / "b/liar.png").write_bytes((folder / "a/5.png").read_bytes())
    source = index_folder(folder, max_pixels=1000)
    report = check_images(source, np.arange(15), mode=mode)
    names = [[source.table.key(row) for row in rows] for rows in report.duplicates]
    assert names == [["a/0.png", "a/copy.png"], ["a/5.png", "b/liar.png"], ["b/1.png", "b/another.png"]]
    assert report.under_two_labels(source.table) == [report.duplicates[1]]


def test_the_bytes_of_every_file_are_known_that_was_decoded(folder):
    """Also of those whose size tells that they are no copies."""
    Image.new("RGB", (3, 3)).save(folder / "a/1.png")
    contents = check(folder).contents
    assert contents.shape == (12, 2)
    assert contents.any(axis=1).all()
    assert check(folder, Check.header).contents is None


def test_equal_size_is_not_equal_content(folder):
    Image.new("RGB", (9, 9), (1, 2, 3)).save(folder / "a/0.bmp")
    content = bytearray((folder / "a/0.bmp").read_bytes())
    content[-1] ^= 1
    (folder / "a/1.bmp").write_bytes(bytes(content))
    assert check(folder, Check.header).duplicates == ()
    assert check(folder, Check.decode).duplicates == ()


def test_copies_in_two_splits_are_named(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("train/a/1", "train/a/2", "train/b/3", "val/a/4", "val/b/5"):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(path)
    (tmp_path / "val/a/leak.png").write_bytes((tmp_path / "train/a/2.png").read_bytes())
    data = load_data(DataConfig(name="folder", path=str(tmp_path)), image_size=8, seed=0)
    assert data.report.in_two_splits(data.table) == list(data.report.duplicates)
    assert data.report.under_two_labels(data.table) == []
    assert data.warnings()[0] == "the same picture in different splits: train/a/2.png, val/a/leak.png"


def test_images_in_memory_are_compared_when_asked():
    images = np.random.default_rng(0).integers(0, 256, (300, 6, 6, 3), np.uint8)
    images[290] = images[7]
    source = ArraySource(images, np.arange(300) % 2, ("a", "b"))
    rows = np.arange(300)
    assert check_images(source, rows, mode=Check.decode).duplicates == ((7, 290),)
    assert check_images(source, rows, mode=Check.auto).mode is Check.none


def test_only_the_given_rows_are_looked_at(folder):
    (folder / "a/2.png").write_bytes(b"")
    source = index_folder(folder, max_pixels=1000)
    assert check_images(source, np.array([0, 1, 7]), mode=Check.decode).checked == 3


def test_files_of_any_source_have_the_limit_of_the_config(folder):
    """A plugin's source reads as it likes, and need not know of ``data.max_pixels``."""
    files = index_folder(folder, max_pixels=1000)
    plugin = SimpleNamespace(name="own", where="", table=files.table, read=files.read, file=files.file)
    data = Data(plugin, files.table, *[np.arange(0)] * 3, CheckReport(Check.none, 0))
    with pytest.raises(DataError, match=r"12 x 12 pixels, more than data\.max_pixels=143"):
        check_data(data, DataConfig(max_pixels=143))
    assert check_data(data, DataConfig(max_pixels=144)).report.checked == 12


def test_auto_looks_closely_only_at_what_is_small(folder, monkeypatch):
    source, rows = index_folder(folder, max_pixels=1000), np.arange(12)
    assert check_images(source, rows, mode=Check.auto).mode is Check.decode
    monkeypatch.setattr("tlearn.data.check.AUTO_DECODES", 11)
    assert check_images(source, rows, mode=Check.auto).mode is Check.header
    # what is left out must be found before training
    assert check_images(source, rows, mode=Check.auto, on_error=OnError.skip).mode is Check.decode


def test_progress_ends_at_all(folder):
    calls = []
    check(folder, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (12, 12)


def test_the_real_flowers_hold_no_surprise(assets):
    source = index_folder(assets / "flowers", max_pixels=10**8)
    report = check_images(source, np.arange(len(source.table)), mode=Check.header)
    assert report.unreadable == ()
    assert report.duplicates == ()


def test_a_division_without_unreadable_files_can_be_had_again(folder):
    """Those who come after a run have only the names of what it left out, and need not open every image."""
    (folder / "a" / "broken.png").write_text("no image")
    config = DataConfig(name="folder", path=str(folder), on_error=OnError.skip, check=Check.decode, val_fraction=0.3)
    checked = load_data(config, image_size=32, seed=1)
    assert len(checked.report.unreadable) == 1
    again = leave_out(
        index_data(config, image_size=32, seed=1), config, {entry.path for entry in checked.report.unreadable}
    )
    assert again.table.manifest_hash() == checked.table.manifest_hash()
    assert index_data(config, image_size=32, seed=1).table.manifest_hash() != checked.table.manifest_hash()
