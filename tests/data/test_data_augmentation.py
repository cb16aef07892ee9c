"""Single-image augmentation: a function of (seed, epoch, row), with each transform drawn independently."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tlearn.config import (
    Affine,
    AugmentConfig,
    CoarseDropout,
    ColorJitter,
    Flip,
    GaussianBlur,
    GaussianNoise,
    Grayscale,
    JpegCompression,
    RandomResizedCrop,
)
from tlearn.data.augment import Augmenter

IMAGE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
EACH = {
    "horizontal_flip": Flip(p=1.0),
    "vertical_flip": Flip(p=1.0),
    "affine": Affine(p=1.0, shear=5.0),
    "color_jitter": ColorJitter(p=1.0),
    "grayscale": Grayscale(p=1.0),
    "gaussian_blur": GaussianBlur(p=1.0),
    "gaussian_noise": GaussianNoise(p=1.0),
    "jpeg_compression": JpegCompression(p=1.0),
    "coarse_dropout": CoarseDropout(p=1.0),
}


def half(transforms):
    return {name: type(one)(**(vars(one) | {"p": 0.5})) for name, one in transforms.items()}


def augmenter(seed=0, size=48, **transforms):
    return Augmenter(AugmentConfig(**transforms), image_size=size, seed=seed)


def cropped(augment, image, *, epoch, row):
    (crop,) = augment.random_crops([row], epoch=epoch)
    return crop(image)


@pytest.mark.parametrize("name", EACH)
def test_each_transform_changes_the_image_and_keeps_its_form(name):
    augment = augmenter(**{name: EACH[name]})
    before = IMAGE.copy()
    changed = augment(IMAGE, epoch=0, row=0)
    assert changed.dtype == np.uint8
    assert changed.shape == IMAGE.shape
    assert not np.array_equal(changed, IMAGE)
    assert np.array_equal(IMAGE, before)  # a cached image must not change under us


def test_nothing_is_done_by_default():
    augment = augmenter()
    assert augment(IMAGE, epoch=0, row=0) is IMAGE
    assert not augment.crops
    assert cropped(augment, IMAGE, epoch=0, row=0) is None


def test_flips_flip():
    assert np.array_equal(augmenter(horizontal_flip=Flip(p=1))(IMAGE, epoch=0, row=0), IMAGE[:, ::-1])
    assert np.array_equal(augmenter(vertical_flip=Flip(p=1))(IMAGE, epoch=0, row=0), IMAGE[::-1])


def test_transforms_are_drawn_independently():
    """albumentations' own seeding draws all of them from equal generators: both flips or none, never one."""
    augment = augmenter(horizontal_flip=Flip(p=0.5), vertical_flip=Flip(p=0.5))
    mark = np.zeros((4, 4, 3), np.uint8)
    mark[0, 0] = 255
    places = Counter(tuple(np.argwhere(augment(mark, epoch=0, row=row)[..., 0])[0].tolist()) for row in range(400))
    assert set(places) == {(0, 0), (0, 3), (3, 0), (3, 3)}
    assert min(places.values()) > 70


def test_the_crop_does_not_decide_the_flip():
    augment = augmenter(random_resized_crop=RandomResizedCrop(p=0.5), horizontal_flip=Flip(p=0.5))
    both = Counter(
        (
            cropped(augment, IMAGE, epoch=0, row=row) is not None,
            not np.array_equal(augment(IMAGE, epoch=0, row=row), IMAGE),
        )
        for row in range(400)
    )
    assert min(both[cropped, flipped] for cropped in (True, False) for flipped in (True, False)) > 60


def test_seed_epoch_and_row_all_count():
    transforms = half(EACH)
    results = {
        augmenter(seed, **transforms)(IMAGE, epoch=epoch, row=row).tobytes()
        for seed in range(4)
        for epoch in range(4)
        for row in range(4)
    }
    assert len(results) == 64


def test_threads_and_order_make_no_difference():
    augment = augmenter(**half(EACH), random_resized_crop=RandomResizedCrop(p=1.0))

    def both(row):
        return cropped(augment, IMAGE, epoch=1, row=row).tobytes(), augment(IMAGE, epoch=1, row=row).tobytes()

    alone = [both(row) for row in range(60)]
    with ThreadPoolExecutor(4) as pool:
        reversed_order = list(pool.map(both, reversed(range(60))))
    assert reversed_order[::-1] == alone


def test_crops_of_many_rows_are_those_of_each():
    augment = augmenter(random_resized_crop=RandomResizedCrop(p=0.7))
    together = [crop(IMAGE) for crop in augment.random_crops(range(20), epoch=3)]
    alone = [cropped(augment, IMAGE, epoch=3, row=row) for row in reversed(range(20))][::-1]
    assert [part is None for part in together] == [part is None for part in alone]
    assert all(np.array_equal(*both) for both in zip(together, alone, strict=True))
    assert len({part.tobytes() for part in together if part is not None}) > 10


def test_the_random_crop_has_the_shares_it_should():
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 100, axis=0).repeat(3, axis=2)
    crop = RandomResizedCrop(p=1.0, scale_min=0.2, scale_max=0.4, ratio_min=1.0, ratio_max=1.0)
    augment = augmenter(size=32, random_resized_crop=crop)
    for row in range(50):
        part = cropped(augment, ramp, epoch=0, row=row)
        assert part.shape == (32, 32, 3)
        side = (int(part[0, -1, 0]) - int(part[0, 0, 0])) / 2 + 100 / 32
        assert 0.18 < (side / 100) ** 2 < 0.44


def test_the_random_crop_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = RandomResizedCrop(p=1.0, scale_min=0.9, scale_max=1.0)
    assert cropped(augmenter(size=16, random_resized_crop=crop), stripes, epoch=0, row=0).std() < 20


def test_p_is_the_share_of_images():
    augment = augmenter(horizontal_flip=Flip(p=0.2))
    flipped = sum(not np.array_equal(augment(IMAGE, epoch=0, row=row), IMAGE) for row in range(500))
    assert 70 < flipped < 130


def test_the_strengths_are_those_of_the_config():
    grey = np.full((64, 64, 3), 128, np.uint8)

    def spread(**transforms):
        augment = augmenter(size=64, **transforms)
        return [augment(grey, epoch=0, row=row).astype(int) for row in range(60)]

    noisy = [image.std() for image in spread(gaussian_noise=GaussianNoise(p=1, std_max=0.04))]
    assert 6 < max(noisy) < 0.04 * 255 * 1.1
    bright = [image.mean() / 128 for image in spread(color_jitter=ColorJitter(1, 0.3, 0, 0, 0))]
    assert 0.69 < min(bright) < 0.8
    assert 1.2 < max(bright) < 1.31
    erased = [(image == 0).all(axis=2).mean() for image in spread(coarse_dropout=CoarseDropout(1, 1, 0.5))]
    assert min(erased) > 0
    assert 0.1 < max(erased) <= 0.25
