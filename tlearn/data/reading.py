"""How an image of any shape becomes the square that a network takes."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from tlearn.config import DataConfig, Decoding, Interpolation, Resize
from tlearn.data.decode import Pixels, resize


@dataclass(frozen=True)
class Reading:
    """Everything that decides the pixels of a square, but for random changes.

    Attributes:
        image_size: side of the square, pixels.
        resize, crop_fraction, interpolation: how a photograph of any shape becomes it, see ``tlearn.data.resize``.
        max_pixels: larger images are refused.
        decode: whether large JPEGs may be decoded at a part of their size.
    """

    image_size: int
    resize: Resize = Resize.crop
    crop_fraction: float = 1.0
    interpolation: Interpolation = Interpolation.bilinear
    max_pixels: int = DataConfig().max_pixels
    decode: Decoding = Decoding.exact

    @classmethod
    def of(cls, config: DataConfig, image_size: int) -> Reading:
        """How a run reads its images."""
        return cls(
            image_size, config.resize, config.crop_fraction, config.interpolation, config.max_pixels, config.decode
        )

    def excess(self, width: int, height: int) -> float:
        """How many times more pixels along its sides than the square needs a picture may be spared of; 1: none.

        The sides may be swapped: photographs are turned upright later.
        """
        if self.decode is Decoding.exact:
            return 1.0
        if self.resize is Resize.pad:
            return max(width, height) / self.image_size
        seen = self.crop_fraction if self.resize is Resize.crop else 1.0
        return min(width, height) * seen / self.image_size

    def square(self, image: Pixels | Image.Image, size: int | None = None) -> Pixels:
        """The square, uint8 (size, size, 3); ``size`` None: ``image_size``."""
        return resize(
            image,
            size or self.image_size,
            mode=self.resize,
            crop_fraction=self.crop_fraction,
            interpolation=self.interpolation,
        )
