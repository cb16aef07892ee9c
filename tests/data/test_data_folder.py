"""Folders of images: what is found in them, and what is said about those that are wrong."""

import os
import shutil
import zlib

import numpy as np
import pytest
from PIL import Image

from tlearn.config import Check, DataConfig, OnError
from tlearn.data import Split, check_data_config, load_data, peek_classes
from tlearn.errors import DataError


def picture(path, value=None):
    """Write a small PNG; without a value, one that no other call writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    value = zlib.crc32(str(path).encode()) % 2**24 if value is None else value
    colour = (value >> 16 & 255, value >> 8 & 255, value & 255)
    Image.new("RGB", (8, 8), colour).save(path, "PNG")


def tree(root, *names):
    for name in names:
        picture(root / name)
    return root


def load(path, **options):
    return load_data(DataConfig(name="folder", path=str(path), **options), image_size=8, seed=0)


def keys(data, split):
    return [data.table.key(row) for row in data.table.rows(split)]


def some(*classes, count=5):
    return [f"{name}/{index}.png" for name in classes for index in range(count)]


def test_class_folders(tmp_path):
    data = load(tree(tmp_path, *some("roses", "daisy")))
    assert data.classes == ("daisy", "roses")
    assert len(data.train) == 8
    assert len(data.val) == 2
    assert data.table.counts(Split.val).tolist() == [1, 1]
    for row in range(10):
        assert data.table.key(row).startswith(data.classes[data.table.labels[row]])
        assert data.source.read(row).shape == (8, 8, 3)


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders(tmp_path, val):
    tree(tmp_path, "train/a/1.png", "train/b/2.png", f"{val}/a/3.png", "test/b/4.png", "test/b/5.png")
    data = load(tmp_path)
    assert keys(data, Split.train) == ["train/a/1.png", "train/b/2.png"]
    assert keys(data, Split.val) == [f"{val}/a/3.png"]
    assert keys(data, Split.test) == ["test/b/4.png", "test/b/5.png"]
    assert data.table.labels.tolist() == [0, 1, 0, 1, 1]


def test_a_class_may_be_called_train(tmp_path):
    assert load(tree(tmp_path, *some("bus", "train"))).classes == ("bus", "train")


def test_what_is_not_an_image_is_passed_over(tmp_path):
    tree(tmp_path, *some("a", "b"), "a/.hidden.png", ".git/x/1.png", "a/deeper/6.PNG")
    (tmp_path / "a/labels.txt").write_text("no image")
    (tmp_path / "LICENSE").write_text("no folder")
    os.mkfifo(tmp_path / "a/pipe.txt")
    names = {load(tmp_path).table.key(row) for row in range(11)}
    assert names == {*some("a", "b"), "a/deeper/6.PNG"}


def test_order_is_that_of_the_names(tmp_path):
    names = some("b", "a", "c")
    for name in reversed(names):
        picture(tmp_path / name)
    table = load(tmp_path).table
    assert [table.key(row) for row in range(len(table))] == sorted(names)


def test_symbolic_links_are_followed_once(tmp_path):
    tree(tmp_path / "data", *some("a", "b"))
    tree(tmp_path, "elsewhere/x.png")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data/a")
    (tmp_path / "data/b/up").symlink_to(tmp_path / "data/b/..")
    (tmp_path / "data/a/linked").symlink_to(tmp_path / "elsewhere")
    table = load(tmp_path / "data").table
    names = [table.key(row) for row in range(len(table))]
    assert "a/linked/x.png" in names
    assert sorted(names) == sorted({*some("a", "b"), "a/linked/x.png"}), "b/up leads to b's neighbours too"
    shutil.move(tmp_path / "data/b", tmp_path / "b")  # by its path it lies in data, by its link elsewhere
    (tmp_path / "data/b").symlink_to(tmp_path / "b")
    (tmp_path / "b/data").symlink_to(tmp_path / "data")
    assert load(tmp_path / "data").table.manifest_hash() == table.manifest_hash()


def test_names_that_differ_in_no_visible_way(tmp_path):
    """As an archive of a system that takes accents apart unpacks them."""
    one, other = "caf\xe9", "cafe\u0301"
    tree(tmp_path / "split", f"train/{one}/1.png", "train/b/2.png", f"val/{other}/3.png", "val/b/4.png")
    tree(tmp_path / "plain", f"{one}/1.png", f"{other}/2.png")
    for folder in ("split", "plain"):
        with pytest.raises(DataError, match="rename one of them") as caught:
            load(tmp_path / folder)
        assert r"caf\xe9" in str(caught.value)
        assert r"cafe\u0301" in str(caught.value)
    assert check_data_config(DataConfig(name="folder", path=str(tmp_path / "split"))), "before the run begins"


def test_classes_of_other_data_are_known_however_their_accents_are_written(tmp_path):
    from tlearn.images import Columns
    from tlearn.labelled import known_only, other_data

    tree(tmp_path, "cafe\u0301/1.png", "b/2.png")
    data = other_data(str(tmp_path), None, Columns(), max_pixels=100)
    assert len(known_only(data, ("b", "caf\xe9"), None, skip_unknown=False)) == 2


def test_names_need_not_be_text(tmp_path):
    tree(tmp_path, *some("a", "b"))
    odd = os.fsencode(tmp_path) + b"/a/caf\xe9\n.png"
    os.rename(tmp_path / "a/0.png", odd)
    table = load(tmp_path).table
    assert os.fsencode(table.key(4)) == b"a/caf\xe9\n.png"
    assert len(table.manifest_hash()) == 64


class TestManifest:
    """The hash changes when anything that feeds a run does."""

    def hash(self, path, **options):
        return load(path, **options).table.manifest_hash()

    def test_it_is_stable(self, tmp_path):
        tree(tmp_path, *some("a", "b"))
        assert self.hash(tmp_path) == self.hash(tmp_path)

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda root: picture(root / "a/0.png", 1), id="a pixel"),
            pytest.param(lambda root: picture(root / "a/9.png"), id="an image more"),
            pytest.param(lambda root: (root / "a/0.png").unlink(), id="an image less"),
            pytest.param(lambda root: (root / "a/0.png").rename(root / "a/00.png"), id="a name"),
            pytest.param(lambda root: (root / "a/0.png").rename(root / "b/9.png"), id="a label"),
            pytest.param(lambda root: (root / "a").rename(root / "A"), id="a class"),
        ],
    )
    def test_it_sees(self, tmp_path, change):
        tree(tmp_path, *some("a", "b"))
        before = self.hash(tmp_path)
        change(tmp_path)
        assert self.hash(tmp_path) != before

    def test_it_sees_the_split(self, tmp_path):
        tree(tmp_path, *some("a", "b"))
        assert self.hash(tmp_path, split_seed=0) != self.hash(tmp_path, split_seed=1)


def wrong(path, *says, **options):
    """Loading fails, and a glance at the config does not claim otherwise by crashing."""
    with pytest.raises(DataError) as caught:
        load(path, **options)
    for text in says:
        assert text in str(caught.value)
    return caught.value


class TestWrongFolders:
    """Each says what is wrong, where, and what to do."""

    def test_missing(self, tmp_path):
        wrong(tmp_path / "gone", "there is no folder", "gone")

    def test_a_file(self, tmp_path):
        (tmp_path / "x.csv").write_text("")
        wrong(tmp_path / "x.csv", "is not a folder", "data=table")

    def test_empty(self, tmp_path):
        wrong(tmp_path, "holds no folders", "FOLDER/CLASS/image.jpg")

    def test_images_without_class_folders(self, tmp_path):
        wrong(tree(tmp_path, "1.png", "2.png"), "holds no folders", "FOLDER/CLASS/image.jpg")

    def test_an_empty_class_folder(self, tmp_path):
        tree(tmp_path, *some("a", "b"))
        (tmp_path / "c").mkdir()
        wrong(tmp_path, str(tmp_path / "c"), "holds no images")

    def test_one_class_only(self, tmp_path):
        wrong(tree(tmp_path, *some("a")), "one class only, 'a'")

    def test_a_class_with_one_image(self, tmp_path):
        wrong(tree(tmp_path, *some("a", "b"), "c/1.png"), "too few images of 'c'")

    def test_val_but_no_train(self, tmp_path):
        wrong(tree(tmp_path, "val/a/1.png", "test/a/1.png"), "no train folder")

    def test_split_folders_beside_others(self, tmp_path):
        wrong(tree(tmp_path, "train/a/1.png", "val/a/2.png", "masks/a/3.png"), "mixes split folders", "'masks'")

    def test_two_folders_for_one_split(self, tmp_path):
        wrong(tree(tmp_path, "train/a/1.png", "val/a/2.png", "valid/a/3.png"), "two folders for one split")

    def test_a_class_that_train_lacks(self, tmp_path):
        wrong(tree(tmp_path, "train/a/1.png", "train/b/1.png", "val/c/2.png"), "val has classes that train lacks: 'c'")

    def test_train_without_class_folders(self, tmp_path):
        tree(tmp_path, "val/a/2.png")
        (tmp_path / "train").mkdir()
        wrong(tmp_path, "holds no class folders")

    def test_permission_denied(self, tmp_path, monkeypatch):
        def denied(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))

        monkeypatch.setattr(os, "scandir", denied)  # the tests may run as root, whom no mode stops
        wrong(tmp_path, "cannot be read: Permission denied")

    @pytest.mark.parametrize("check", [Check.auto, Check.decode])
    def test_unreadable_images_are_listed(self, tmp_path, check):
        tree(tmp_path, *some("a", "b", count=20))
        for index in range(12):
            (tmp_path / f"a/{index}.png").write_bytes(b"<html>")
            (tmp_path / f"b/{index}.png").write_bytes(b"")
        error = wrong(tmp_path, "24 of 40 images cannot be used", "data.on_error=skip", check=check)
        assert len(error.problems) == 21

    def test_what_is_left_after_skipping_must_suffice(self, tmp_path):
        tree(tmp_path, *some("a", "b", count=3))
        for index in range(2):
            (tmp_path / f"b/{index}.png").write_bytes(b"")
        wrong(tmp_path, "too few images of 'b'", on_error=OnError.skip)


def test_unreadable_images_are_skipped_on_demand(tmp_path):
    tree(tmp_path, *some("a", "b"))
    (tmp_path / "a/3.png").write_bytes(b"<html>")
    (tmp_path / "b/1.png").write_bytes((tmp_path / "b/1.png").read_bytes()[:-30])
    data = load(tmp_path, on_error=OnError.skip)
    bad = [entry.path for entry in data.report.unreadable]
    assert bad == [str(tmp_path / "a/3.png"), str(tmp_path / "b/1.png")]
    used = np.concatenate([data.train, data.val])
    assert sorted(used) == [row for row in range(10) if row not in (3, 6)]
    assert [data.table.splits[row] for row in (3, 6)] == [Split.unused] * 2
    assert any("a/3.png" in line for line in data.warnings())


def test_the_glance_agrees_with_the_load(tmp_path):
    tree(tmp_path, "train/b/1.png", "train/a/1.png", "val/a/2.png")
    config = DataConfig(name="folder", path=str(tmp_path))
    assert check_data_config(config) == []
    assert peek_classes(config) == load(tmp_path).classes == ("a", "b")
    config.path = str(tmp_path / "gone")
    assert peek_classes(config) is None
    assert [problem.where for problem in check_data_config(config)] == ["data.path"]


def test_flowers(assets):
    data = load_data(DataConfig(name="folder", path=str(assets / "flowers")), image_size=64, seed=0)
    assert data.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")
    assert data.table.counts(Split.train).tolist() == [150] * 5
    assert data.table.counts(Split.val).tolist() == [30] * 5
    assert data.report.checked == 900
