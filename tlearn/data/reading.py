"""How an image of any shape becomes the square that a network takes."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from tlearn.config import DataConfig, Interpolation, Resize
from tlearn.data.decode import Pixels, resize


@dataclass(frozen=True)
class Reading:
    """Everything that decides the pixels of a square, but for random changes.

    Attributes:
        image_size: side of the square, pixels.
        resize, crop_fraction, interpolation: how a photograph of any shape becomes it, see ``tlearn.data.resize``.
        max_pixels: larger images are refused.
    """

    image_size: int
    resize: Resize = Resize.crop
    crop_fraction: float = 1.0
    interpolation: Interpolation = Interpolation.bilinear
    max_pixels: int = DataConfig().max_pixels

    @classmethod
    def of(cls, config: DataConfig, image_size: int) -> Reading:
        """How a run reads its images."""
        return cls(image_size, config.resize, config.crop_fraction, config.interpolation, config.max_pixels)

    def square(self, image: Pixels | Image.Image, size: int | None = None) -> Pixels:
        """The square, uint8 (size, size, 3); ``size`` None: ``image_size``."""
        return resize(
            image,
            size or self.image_size,
            mode=self.resize,
            crop_fraction=self.crop_fraction,
            interpolation=self.interpolation,
        )
