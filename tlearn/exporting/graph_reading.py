"""From the bytes of a JPEG, PNG, BMP or GIF to the square a network takes, in TensorFlow operations alone.

It follows ``tlearn.data.decode`` step by step. JPEGs decode to the same pixels, whole or at a part of their size, since
both ask libjpeg for its accurate transform. With ``nearest`` squares are the same too. Others differ from Pillow's by a
level or two in a few values of a thousand: sums are rounded elsewhere, and Pillow chooses by the image's shape whether
columns or rows are resampled first (with bicubic and lanczos that is up to eight levels for high photographs). What
graphs cannot do: WEBP and the files in ``tlearn.exporting.refusing``, and an orientation that is told elsewhere than in
the EXIF block (in XMP alone, or in a PNG's text).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tlearn.config import Decoding, Interpolation, Resize
from tlearn.data import Reading
from tlearn.data.decode import DRAFTS
from tlearn.exporting.orientation import orientation_of, upright
from tlearn.exporting.refusing import refuse_indexed_bmp, refuse_packed_grey, refuse_partial_gif

_KERNELS = {
    Interpolation.bilinear: "triangle",
    Interpolation.bicubic: "keyscubic",
    Interpolation.lanczos: "lanczos3",
}
_WHITE = 255.0


def graph_reader(reading: Reading) -> Callable[[Any], Any]:
    """How image files are read, as a function of tensors.

    Args:
        reading: as in training.

    Returns:
        A function of the bytes of one file, a string scalar, to its square: float32 (S, S, 3), whole numbers 0..255.
        When it runs, ``InvalidArgumentError`` for bytes of other formats, and of files that TensorFlow would
        read wrongly.
    """
    size = reading.image_size

    def read(file: Any) -> Any:
        import tensorflow as tf

        image = upright(_decode(file, reading), orientation_of(file))
        height, width = (tf.cast(length, tf.float64) for length in tf.unstack(tf.shape(image)[:2]))
        if reading.resize is Resize.pad:
            square = _pad(image, height, width, size, reading.interpolation)
        else:
            crops = reading.resize is Resize.crop
            side = tf.minimum(height, width) * reading.crop_fraction
            rows, columns = (side, side) if crops else (height, width)
            square = _resample(image, (width - columns) / 2, columns, size, 1, reading.interpolation)
            square = _resample(square, (height - rows) / 2, rows, size, 0, reading.interpolation)
        return tf.ensure_shape(square, (size, size, 3))

    return read


def _decode(file: Any, reading: Reading) -> Any:
    """Float32 (h, w, 3): greyscale repeated over the channels, palette resolved, transparency laid over white."""
    import tensorflow as tf

    def jpeg() -> Any:
        return tf.cast(_decode_jpeg(file, reading), tf.float32)

    def png() -> Any:
        with tf.control_dependencies([refuse_packed_grey(file)]):
            decoded = tf.cast(tf.io.decode_png(file, channels=4), tf.float32)
        opacity = decoded[..., 3:] / 255.0
        return tf.floor(decoded[..., :3] * opacity + _WHITE * (1.0 - opacity) + 0.5)

    def bmp() -> Any:
        with tf.control_dependencies([refuse_indexed_bmp(file)]):
            decoded = tf.io.decode_bmp(file)
        return tf.cast(decoded[..., :3], tf.float32)  # what is in the fourth channel of 32 bits is not opacity

    def gif() -> Any:
        with tf.control_dependencies([refuse_partial_gif(file)]):
            decoded = tf.io.decode_image(file, channels=3, expand_animations=False)  # the first frame alone
        return tf.cast(decoded, tf.float32)

    begins = tf.strings.substr(file, 0, 2)
    image = tf.case([(tf.io.is_jpeg(file), jpeg), (begins == b"BM", bmp), (begins == b"GI", gif)], png)
    return tf.ensure_shape(image, (None, None, 3))


def _decode_jpeg(file: Any, reading: Reading) -> Any:
    """Uint8 (h, w, 3), at a part of its size where the run reads it so."""
    import tensorflow as tf

    def at(part: int) -> Callable[[], Any]:
        return lambda: tf.io.decode_jpeg(
            file, channels=3, ratio=part, fancy_upscaling=True, dct_method="INTEGER_ACCURATE"
        )

    if reading.decode is Decoding.exact:
        return at(1)()
    height, width = (tf.cast(length, tf.float64) for length in tf.unstack(tf.io.extract_jpeg_shape(file)[:2]))
    if reading.resize is Resize.pad:
        excess = tf.maximum(width, height) / reading.image_size
    else:
        seen = reading.crop_fraction if reading.resize is Resize.crop else 1.0
        excess = tf.minimum(width, height) * seen / reading.image_size
    return tf.case([(excess >= part, at(part)) for part in DRAFTS], at(1))


def _pad(image: Any, height: Any, width: Any, size: int, interpolation: Interpolation) -> Any:
    """The whole image in its shape, in the middle of a black square."""
    import tensorflow as tf

    scale = size / tf.maximum(height, width)
    rows, columns = (tf.maximum(1, tf.cast(tf.round(length * scale), tf.int32)) for length in (height, width))
    start = tf.zeros((), tf.float64)
    image = _resample(image, start, width, columns, 1, interpolation)
    image = _resample(image, start, height, rows, 0, interpolation)
    return tf.image.pad_to_bounding_box(image, (size - rows) // 2, (size - columns) // 2, size, size)


def _resample(image: Any, start: Any, length: Any, size: Any, axis: int, interpolation: Interpolation) -> Any:
    """Make ``size`` pixels of the stretch ``start`` to ``start + length`` along an axis, rounded to whole levels.

    As in Pillow, a kernel that is as wide as a result's pixel reaches over the ends of the stretch, not of the image.
    """
    import tensorflow as tf

    if interpolation is Interpolation.nearest:
        return tf.gather(image, _nearest(start, length, size), axis=axis)
    scale = tf.cast(size, tf.float64) / length
    this = tf.one_hot(axis, 2, dtype=tf.float32)
    scale = tf.cast(scale, tf.float32)
    resampled = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=tf.where(tf.one_hot(axis, 2, True, False), size, tf.shape(image)[:2]),
        scale=this * scale + (1.0 - this),
        translation=this * -tf.cast(start, tf.float32) * scale,
        kernel_type=_KERNELS[interpolation],
        antialias=True,
    )[0]
    return tf.clip_by_value(tf.floor(resampled + 0.5), 0.0, 255.0)


def _nearest(start: Any, length: Any, size: Any) -> Any:
    """Numbers of the pixels under the middles of ``size`` equal parts of a stretch, int32 (size,).

    Middles often fall between two pixels, so rounding decides. Pillow's arithmetic is repeated: the ends in single
    precision, then one step added after the other in double.
    """
    import tensorflow as tf

    first, end = (tf.cast(edge, tf.float32) for edge in (start, start + length))
    # a division in words: `/` by a constant is optimised to multiplication by its inverse, which rounds elsewhere
    step = tf.math.divide_no_nan(tf.cast(end - first, tf.float64), tf.cast(size, tf.float64))
    middle = tf.cast(first, tf.float64) + step * 0.5
    return tf.cast(tf.cumsum(tf.concat([middle[None], tf.fill([size - 1], step)], axis=0)), tf.int32)
