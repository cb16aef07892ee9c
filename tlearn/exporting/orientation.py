"""How a photograph was held, from its EXIF block, in TensorFlow operations alone: ``tf.io`` does not read it.

A JPEG has the block in a segment APP1 (EXIF 2.32, 4.7.2), a PNG in a chunk eXIf (PNG 3, 11.3.4.5). It is a small TIFF
file: a byte order, and a list of entries of 12 bytes, of which tag 0x0112 is the orientation (TIFF 6.0, section 2).
Whatever is broken in it counts as upright, as everywhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_TAG, _SHORT, _LONG = 0x0112, 3, 4
_LARGEST_LIST = 1024  # entries looked at
_START_OF_SCAN, _APP1 = 0xDA, 0xE1


def orientation_of(file: Any) -> Any:
    """The orientation in a JPEG or PNG.

    Args:
        file: its bytes, a string scalar.

    Returns:
        int32 scalar, 1 to 8; 1, upright, where the file does not say, or is of another format.
    """
    import tensorflow as tf

    data = tf.io.decode_raw(file, tf.uint8)
    nowhere = tf.constant(0), tf.constant(0)
    is_png = tf.strings.substr(file, 0, 4) == b"\x89PNG"
    start, stop = tf.case(
        [(tf.io.is_jpeg(file), lambda: _block_of_jpeg(data)), (is_png, lambda: _block_of_png(data))], lambda: nowhere
    )
    return tf.cond(start < stop, lambda: _orientation_in(data[start:stop]), lambda: tf.constant(1))


def upright(image: Any, orientation: Any) -> Any:
    """An image (h, w, channels), turned and mirrored as its orientation asks for."""
    import tensorflow as tf

    def if_among(orientations: tuple[int, ...], change: Callable[[Any], Any], image: Any) -> Any:
        asked = tf.reduce_any(orientation == tf.constant(orientations))
        return tf.cond(asked, lambda: change(image), lambda: image)

    image = if_among((5, 6, 7, 8), lambda image: tf.transpose(image, (1, 0, 2)), image)
    image = if_among((2, 3, 6, 7), lambda image: tf.reverse(image, (1,)), image)
    return if_among((3, 4, 7, 8), lambda image: tf.reverse(image, (0,)), image)


# --- where the block is ----------------------------------------------------------------------------------------------


def _block_of_jpeg(data: Any) -> tuple[Any, Any]:
    """Where it starts and stops; both the same where there is none. Segments go before the first scan."""
    import tensorflow as tf

    def step(at: Any) -> tuple[Any, Any, Any, Any]:
        head = bytes_from(data, at, 10)
        is_fill = head[1] == 0xFF
        length = tf.where(is_fill, -1, tf.cast(number_of(head[2:4], big=True), tf.int32))
        ends = (head[0] != 0xFF) | (head[1] == _START_OF_SCAN)
        found = (head[1] == _APP1) & tf.reduce_all(head[4:] == _ascii("Exif\0\0"))
        return found, ends, at + 10, at + 2 + length

    return _walk(data, 2, step)


def _block_of_png(data: Any) -> tuple[Any, Any]:
    """Likewise; chunks go to the end of the file."""
    import tensorflow as tf

    def step(at: Any) -> tuple[Any, Any, Any, Any]:
        head = bytes_from(data, at, 8)
        length = tf.cast(tf.minimum(number_of(head[:4], big=True), tf.size(data, tf.int64)), tf.int32)
        found = tf.reduce_all(head[4:] == _ascii("eXIf"))
        return found, tf.constant(False), at + 8, at + 12 + length

    start, stop = _walk(data, 8, step)
    return start, tf.maximum(start, stop - 4)  # a checksum follows


def _walk(data: Any, first: int, step: Callable[[Any], tuple[Any, Any, Any, Any]]) -> tuple[Any, Any]:
    """From part to part until one is the block: its start, and the start of the part behind it.

    Args:
        data: uint8 (n,).
        first: where the first part starts.
        step: where a part starts to: whether it is the block, whether no other follows, where its content starts, and
            where the next part does, which is at least one byte further on.
    """
    import tensorflow as tf

    size = tf.size(data)
    nowhere = tf.constant(0)

    def body(at: Any, start: Any, stop: Any) -> tuple[Any, Any, Any]:
        found, ends, content, following = step(at)
        following = tf.minimum(tf.maximum(following, at + 1), size)
        return (
            tf.where(found | ends, size, following),
            tf.where(found, content, start),
            tf.where(found, following, stop),
        )

    _, start, stop = tf.while_loop(
        lambda at, start, stop: at < size, body, (tf.constant(first), nowhere, nowhere), parallel_iterations=1
    )
    return start, tf.maximum(start, stop)


# --- what it says ----------------------------------------------------------------------------------------------------


def _orientation_in(block: Any) -> Any:
    """From the bytes of a TIFF file, uint8 (n,)."""
    import tensorflow as tf

    head = bytes_from(block, tf.constant(0), 8)
    big = tf.reduce_all(head[:4] == tf.constant([*b"MM\0*"]))
    little = tf.reduce_all(head[:4] == tf.constant([*b"II*\0"]))
    at = tf.cast(tf.minimum(number_of(head[4:], big), tf.size(block, tf.int64)), tf.int32)
    count = tf.minimum(tf.cast(number_of(bytes_from(block, at, 2), big), tf.int32), _LARGEST_LIST)
    entries = tf.reshape(bytes_from(block, at + 2, 12 * count), (count, 12))
    tag, kind, many = (number_of(entries[:, begin:end], big) for begin, end in ((0, 2), (2, 4), (4, 8)))
    value = tf.where(kind == _SHORT, number_of(entries[:, 8:10], big), number_of(entries[:, 8:12], big))
    is_meant = (tag == _TAG) & ((kind == _SHORT) | (kind == _LONG)) & (many == 1)
    said = tf.concat([[1], tf.cast(tf.boolean_mask(value, is_meant), tf.int32)], 0)[-1]
    return tf.where((big | little) & (said >= 1) & (said <= 8), said, 1)


def bytes_from(data: Any, at: Any, count: Any) -> Any:
    """int32 (count,) from a place on; zeros behind the end."""
    import tensorflow as tf

    places = at + tf.range(count)
    there = places < tf.size(data)
    return tf.where(there, tf.cast(tf.gather(data, tf.where(there, places, 0)), tf.int32), 0)


def number_of(digits: Any, big: Any) -> Any:
    """int64 (...) from bytes (..., digits), the most significant first where ``big``."""
    import tensorflow as tf

    digits = tf.cast(tf.where(big, digits, tf.reverse(digits, (-1,))), tf.int64)
    weights = 256 ** tf.range(digits.shape[-1] - 1, -1, -1, dtype=tf.int64)
    return tf.reduce_sum(digits * weights, -1)


def _ascii(text: str) -> Any:
    import tensorflow as tf

    return tf.constant([*text.encode("ascii")])
