"""Random changes of single training images, by albumentations.

What happens to an image is a function of (seed, epoch, row) alone: not of the number of workers, nor of the order in
which images are read. Two habits of albumentations 2.0.8 shape this file, both tried:

- A ``Compose`` keeps its random state, and is not re-entrant: whoever changes an image takes one that nobody else is
  using, and sets its state anew.
- ``Compose.set_random_seed`` gives each of its transforms a generator with the *same* seed, so that "flip left-right"
  and "flip up-down" always happen together. ``set_random_state`` shares one generator among them; that is used here.
"""

from __future__ import annotations

import math
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from tlearn.config import AugmentConfig, Interpolation
from tlearn.data.decode import Pixels

Generators = tuple[np.random.Generator, random.Random]
"""albumentations draws from both."""

Crop = Callable[[Pixels], Pixels | None]
"""Gives (image_size, image_size, 3) of a whole image, or None: resize it as usual."""


def changes_images(config: AugmentConfig) -> bool:
    """Whether anything random may happen to an image by itself; what is done to whole batches does not count."""
    each = {name: value for name, value in vars(config).items() if name != "rand_augment"}
    return any(getattr(transform, "p", 0) > 0 for transform in each.values())


class Augmenter:
    """The random transforms of a config, ready for any number of threads.

    Args:
        config: probabilities and strengths; a transform with p = 0 does not exist.
        image_size: side of the pictures, pixels.
        interpolation: filter of the random crop where it enlarges; where it shrinks, areas are averaged.
        seed: of everything here.
    """

    def __init__(
        self,
        config: AugmentConfig,
        *,
        image_size: int,
        seed: int,
        interpolation: Interpolation = Interpolation.bilinear,
    ) -> None:
        self._config = config
        self._image_size = image_size
        self._interpolation = interpolation
        self._seed = seed
        # Not ``threading.local``: to Python, each call from a thread of tf.data comes from a new one, and making the
        # transforms takes some milliseconds.
        self._idle: deque[tuple[Any, Any]] = deque()

    @property
    def crops(self) -> bool:
        """Whether ``random_crops`` may do anything, and need whole images."""
        return self._config.random_resized_crop.p > 0

    def excess(self, width: int, height: int) -> float:
        """How many times more pixels along its sides than needed the smallest random crop of a picture has."""
        crop = self._config.random_resized_crop
        shorter = math.sqrt(crop.scale_min * width * height * min(crop.ratio_min, 1 / crop.ratio_max))
        return min(shorter, width, height) / self._image_size

    def random_crops(self, rows: Iterable[int], *, epoch: int) -> list[Crop]:
        """What takes a random rectangle of the whole image of each row.

        It comes before all else, and in place of ``data.resize``, since it needs the pixels that resizing drops. All
        generators are made at once: after an image has been decoded each would take five times as long, because nothing
        of it is left in the processor's caches.
        """
        return [partial(self._crop, self._generators(epoch, row, stream=0)) for row in rows]

    def _crop(self, generators: Generators, image: Pixels) -> Pixels | None:
        _, python = generators
        if python.random() >= self._config.random_resized_crop.p:
            return None
        with self._transforms() as (crop, _):
            crop.set_random_state(*generators)
            cropped: Pixels = crop(image=image)["image"]
        return cropped

    def __call__(self, image: Pixels, *, epoch: int, row: int) -> Pixels:
        """All other transforms of a square image, uint8 (image_size, image_size, 3)."""
        with self._transforms() as (_, compose):
            if compose is None:
                return image
            compose.set_random_state(*self._generators(epoch, row, stream=1))
            changed: Pixels = compose(image=image)["image"]
        return changed

    @contextmanager
    def _transforms(self) -> Iterator[tuple[Any, Any]]:
        """The random crop and the rest of the transforms, for the caller alone; None for what does nothing."""
        try:
            taken = self._idle.pop()
        except IndexError:
            taken = (
                _compose(_random_resized_crop(self._config, self._image_size, self._interpolation)),
                _compose(transforms(self._config)),
            )
        try:
            yield taken
        finally:
            self._idle.append(taken)

    def _generators(self, epoch: int, row: int, stream: int) -> Generators:
        """Of everything random about one image, or about its crop."""
        key = np.random.SeedSequence([self._seed, epoch, row, stream])
        python = random.Random(int(key.generate_state(1, np.uint64)[0]))
        return np.random.Generator(np.random.PCG64(key)), python


def transforms(config: AugmentConfig) -> list[Any]:
    """The albumentations transforms of a config, in their fixed order: shape, colour, then damage."""
    A = _albumentations()
    affine, jitter = config.affine, config.color_jitter
    blur, noise = config.gaussian_blur, config.gaussian_noise
    jpeg, dropout = config.jpeg_compression, config.coarse_dropout
    hole = (dropout.size / 4, dropout.size)
    every: list[tuple[float, Any, dict[str, Any]]] = [
        (config.horizontal_flip.p, A.HorizontalFlip, {}),
        (config.vertical_flip.p, A.VerticalFlip, {}),
        (
            affine.p,
            A.Affine,
            {
                "rotate": _around(0, affine.rotate),
                "scale": _around(1, affine.scale),
                "translate_percent": _around(0, affine.translate),
                "shear": _around(0, affine.shear),
                "keep_ratio": True,
                "border_mode": _REFLECT_101,  # black corners would be a mark that only augmented images bear
            },
        ),
        (
            jitter.p,
            A.ColorJitter,
            {
                "brightness": _around(1, jitter.brightness),
                "contrast": _around(1, jitter.contrast),
                "saturation": _around(1, jitter.saturation),
                "hue": _around(0, jitter.hue),
            },
        ),
        (config.grayscale.p, A.ToGray, {}),
        (blur.p, A.GaussianBlur, {"blur_limit": 0, "sigma_limit": (min(0.1, blur.sigma_max), blur.sigma_max)}),
        (noise.p, A.GaussNoise, {"std_range": (0.0, noise.std_max)}),
        (jpeg.p, A.ImageCompression, {"quality_range": (jpeg.quality_min, 100)}),
        (
            dropout.p,
            A.CoarseDropout,
            {"num_holes_range": (1, dropout.holes), "hole_height_range": hole, "hole_width_range": hole},
        ),
    ]
    return [transform(**options, p=p) for p, transform, options in every if p > 0]


def _around(middle: float, change: float) -> tuple[float, float]:
    return middle - change, middle + change


_REFLECT_101 = 4  # cv2.BORDER_REFLECT_101, and the filters below: numbers, so that OpenCV is imported late
_FILTERS = {
    Interpolation.nearest: 0,
    Interpolation.bilinear: 1,
    Interpolation.bicubic: 2,
    Interpolation.lanczos: 4,
}


def _random_resized_crop(config: AugmentConfig, image_size: int, interpolation: Interpolation) -> list[Any]:
    """The crop, always applied: whether it is comes from ``Augmenter.crop``, which must know."""
    crop = config.random_resized_crop
    if crop.p <= 0:
        return []
    return [
        _albumentations().RandomResizedCrop(
            size=(image_size, image_size),
            scale=(crop.scale_min, crop.scale_max),
            ratio=(crop.ratio_min, crop.ratio_max),
            interpolation=_FILTERS[interpolation],
            area_for_downscale="image",
            p=1.0,
        )
    ]


def _compose(transforms: list[Any]) -> Any:
    # The shapes of several images would be compared: there is but one.
    return _albumentations().Compose(transforms, is_check_shapes=False) if transforms else None


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network for a newer version
    import albumentations
    import cv2

    # Whole batches are made in parallel already: OpenCV's own threads would only queue for the same cores (measured
    # on two cores: 199 images a second with one thread, 124 with its default).
    cv2.setNumThreads(1)
    return albumentations
