"""Sources by name, users' own among them, and what a glance at the config says."""

import subprocess
import sys

import numpy as np
import pytest

from tlearn.config import (
    Affine,
    AugmentConfig,
    CoarseDropout,
    ColorJitter,
    DataConfig,
    Flip,
    GaussianBlur,
    GaussianNoise,
    JpegCompression,
    RandAugment,
    RandomResizedCrop,
    Resize,
)
from tlearn.data import (
    ArraySource,
    ImageSource,
    Split,
    check_augment_config,
    check_data_config,
    fingerprint,
    load_data,
    peek_classes,
    register_source,
)
from tlearn.data.augment import Augmenter
from tlearn.data.embedded import Glyphs
from tlearn.data.folder import index_folder
from tlearn.errors import ConfigError, DataError


def load(**options):
    return load_data(DataConfig(**options), image_size=32, seed=3)


def test_digits_are_the_real_ones():
    data = load(name="digits")
    assert data.classes == tuple("0123456789") == peek_classes(DataConfig(name="digits"))
    assert len(data.table) == 1797
    assert abs(len(data.val) - 0.2 * 1797) < 10
    first = data.source.read(0)
    assert first.shape == (8, 8, 3)
    assert first[0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16
    assert first.max() <= 255
    assert data.table.labels[:5].tolist() == [0, 1, 2, 3, 4]


def test_glyphs_are_drawn_as_the_table_says():
    pytest.importorskip("tlearn.data.glyphs")
    from tlearn.data.glyphs import draw

    data = load(name="glyphs", count=100, val_fraction=0.5)
    assert data.classes == peek_classes(DataConfig(name="glyphs"))
    assert len(data.train) + len(data.val) == 100
    for row in (0, 1, 41, 99):
        image, label = draw(3, row, 32)
        assert np.array_equal(data.source.read(row), image)
        assert data.table.labels[row] == label
    assert load(name="glyphs", count=72).table.manifest_hash() != (
        load_data(DataConfig(name="glyphs", count=72), image_size=32, seed=4).table.manifest_hash()
    )


def test_both_are_sources():
    assert isinstance(load(name="digits").source, ImageSource)
    assert isinstance(load(name="glyphs", count=72).source, ImageSource)


class TestFingerprint:
    """What keys the feature cache."""

    def test_of_pixels_in_memory(self):
        images = np.zeros((6, 4, 4, 3), np.uint8)
        source = ArraySource(images, np.arange(6) % 2, ("a", "b"))
        rows = np.arange(4)
        before = fingerprint(source, rows)
        assert fingerprint(source, rows) == before
        assert fingerprint(source, rows[::-1]) != before
        images[5] = 1
        assert fingerprint(source, rows) == before  # another row's
        images[3, 0, 0, 0] = 1
        assert fingerprint(source, rows) != before

    def test_of_drawn_pictures(self):
        rows = np.arange(10)

        def of(**options):
            return fingerprint(Glyphs(**({"count": 20, "image_size": 32, "seed": 0} | options)), rows)

        assert of() == of(count=30)
        assert len({of(), of(seed=1), of(image_size=33)}) == 3

    def test_of_files(self, tmp_path):
        for name in ("a/1", "a/2", "b/1", "b/2"):
            (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "one" / f"{name}.png").write_bytes(b"1")

        def of(folder):
            return fingerprint(index_folder(tmp_path / folder, max_pixels=1), np.array([0, 2]))

        before = of("one")
        (tmp_path / "one").rename(tmp_path / "two")
        assert of("two") == before
        (tmp_path / "two/a/2.png").write_bytes(b"22")
        assert of("two") == before
        (tmp_path / "two/b/1.png").write_bytes(b"22")
        assert of("two") != before

    def test_of_a_source_that_cannot_tell(self):
        class Bare:
            table = None

        assert fingerprint(Bare(), np.arange(2)) is None


def test_per_class_limits_training_and_nothing_else():
    all_of_it, few = load(name="digits"), load(name="digits", per_class=10)
    assert few.table.counts(Split.train).tolist() == [10] * 10
    assert np.array_equal(few.val, all_of_it.val)
    assert set(few.train) <= set(all_of_it.train)


def test_the_split_does_not_depend_on_the_seed_of_the_run():
    one = load_data(DataConfig(name="digits"), image_size=8, seed=1)
    two = load_data(DataConfig(name="digits"), image_size=8, seed=2)
    other = load_data(DataConfig(name="digits", split_seed=1), image_size=8, seed=1)
    assert np.array_equal(one.val, two.val)
    assert not np.array_equal(one.val, other.val)


@register_source("test_stripes")
def stripes(config, *, image_size, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (config.options["count"], image_size, image_size, 3), np.uint8)
    return ArraySource(images, np.arange(len(images)) % 2, ("up", "down"), name="test_stripes")


def test_a_users_own_source():
    config = DataConfig(name="test_stripes", options={"count": 20}, path="whatever it means there")
    assert check_data_config(config) == []
    assert peek_classes(config) is None
    data = load_data(config, image_size=16, seed=0)
    assert data.classes == ("up", "down")
    assert data.source.read(3).shape == (16, 16, 3)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered already"):
        register_source("digits")(stripes)


def test_a_source_without_images():
    with pytest.raises(DataError, match="no images in memory"):
        load(name="test_stripes", options={"count": 0})


def test_an_unknown_source():
    with pytest.raises(ConfigError, match="did you mean digits"):
        load(name="digit")
    assert "did you mean digits" in str(check_data_config(DataConfig(name="digit"))[0])


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"name": "folder"}, "data.path"),
        ({"name": "table"}, "data.path"),
        ({"name": "digits", "path": "x"}, "data.path"),
        ({"name": "digits", "count": 5}, "data.count"),
        ({"name": "folder", "path": ".", "count": 5}, "data.count"),
        ({"name": "glyphs", "label_column": "kind"}, "data.label_column"),
        ({"name": "folder", "path": ".", "label_separator": "|"}, "data.label_separator"),
        ({"name": "digits", "options": {"x": 1}}, "data.options"),
        ({"name": "table", "path": "t.csv", "label_separator": ""}, "data.label_separator"),
        ({"name": "folder", "path": "gone"}, "data.path"),
        ({"name": "table", "path": "gone.csv"}, "data.path"),
        ({"name": "table", "path": "gone.xls"}, "data.path"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"val_fraction": 1.0}, "data.val_fraction"),
        ({"val_fraction": -0.1}, "data.val_fraction"),
        ({"test_fraction": float("nan")}, "data.test_fraction"),
        ({"val_fraction": 0.6, "test_fraction": 0.4}, "data.val_fraction"),
        ({"crop_fraction": 0.0}, "data.crop_fraction"),
        ({"crop_fraction": 1.1}, "data.crop_fraction"),
        ({"crop_fraction": 0.5, "resize": Resize.pad}, "data.crop_fraction"),
        ({"per_class": 0}, "data.per_class"),
        ({"name": "glyphs", "count": 0}, "data.count"),
        ({"max_pixels": 0}, "data.max_pixels"),
        ({"workers": 0}, "data.workers"),
        ({"split_seed": -1}, "data.split_seed"),
    ],
)
def test_what_is_wrong_with_a_config(options, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [problem.where for problem in check_data_config(DataConfig(**options))] == [where]


def test_all_that_is_wrong_is_said_at_once():
    problems = check_data_config(DataConfig(name="digits", path="x", count=3, batch_size=0, val_fraction=2))
    assert {problem.where for problem in problems} == {
        "data.path",
        "data.count",
        "data.batch_size",
        "data.val_fraction",
    }


def test_augmentation_in_range():
    assert check_augment_config(AugmentConfig()) == []


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"horizontal_flip": Flip(p=1.5)}, "augment.horizontal_flip.p"),
        ({"rand_augment": RandAugment(p=-0.1)}, "augment.rand_augment.p"),
        ({"rand_augment": RandAugment(operations=0)}, "augment.rand_augment.operations"),
        (
            {"random_resized_crop": RandomResizedCrop(scale_min=0.9, scale_max=0.5)},
            "augment.random_resized_crop.scale_min",
        ),
        ({"random_resized_crop": RandomResizedCrop(ratio_min=1.1)}, "augment.random_resized_crop.ratio_min"),
        ({"random_resized_crop": RandomResizedCrop(scale_max=2.0)}, "augment.random_resized_crop.scale_max"),
        ({"jpeg_compression": JpegCompression(quality_min=0)}, "augment.jpeg_compression.quality_min"),
        ({"mixup": -1.0}, "augment.mixup"),
        ({"cutmix": 1.5}, "augment.cutmix"),
        ({"cutmix": float("nan")}, "augment.cutmix"),
    ],
)
def test_augmentation_out_of_range(options, where):
    assert [problem.where for problem in check_augment_config(AugmentConfig(**options))] == [where]


def test_the_limits_of_every_strength_build():
    """What the check lets through, albumentations takes."""
    for least in (False, True):
        config = AugmentConfig(
            random_resized_crop=RandomResizedCrop(1.0, *((0.001, 0.001, 0.01, 1) if least else (1, 1, 1, 100))),
            affine=Affine(1.0, *((0, 0, 0, 0) if least else (180, 0.99, 1, 89))),
            color_jitter=ColorJitter(1.0, *((0, 0, 0, 0) if least else (1, 1, 1, 0.5))),
            gaussian_blur=GaussianBlur(1.0, 0.01 if least else 100),
            gaussian_noise=GaussianNoise(1.0, 0 if least else 1),
            jpeg_compression=JpegCompression(1.0, 1 if least else 100),
            coarse_dropout=CoarseDropout(1.0, 1 if least else 1000, 0.001 if least else 1),
        )
        assert check_augment_config(config) == []
        augmenter = Augmenter(config, image_size=16, seed=0)
        for shape in ((30, 20), (1, 1), (1, 500), (500, 1)):
            image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
            for row, crop in enumerate(augmenter.random_crops(range(5), epoch=0)):
                square = crop(image)
                assert augmenter(square, epoch=0, row=row).shape == (16, 16, 3)


def test_importing_is_cheap():
    slow = {"tensorflow", "albumentations", "sklearn", "cv2"}
    code = f"import sys, tlearn.data; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
