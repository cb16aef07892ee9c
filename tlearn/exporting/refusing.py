"""What a graph refuses to decode: files of which TensorFlow would make other pixels than Pillow.

TensorFlow 2.21 unpacks greyscale PNGs below 8 bits wrongly, takes numbers of a BMP's palette for shades of grey, and
gives what is transparent in a GIF some colour. Its decoder of WEBP gives Pillow's pixels, but ended the process on an
animation: files come from strangers, and so none reaches it.
"""

from __future__ import annotations

from typing import Any

from tlearn.exporting.orientation import bytes_from, number_of

_BMP_DEPTHS = (24, 32)
_GIF_EXTENSION, _GIF_CONTROL, _GIF_FRAME = 0x21, 0xF9, 0x2C
_GIF_BLOCKS = 4096  # looked at, of at most 255 bytes each


def refuse_packed_grey(file: Any) -> Any:
    """An operation that fails for a PNG of 1, 2 or 4 bits of grey.

    PNG specification, 11.2.1: bytes 24 and 25 of the file are bit depth and colour type, 0 is greyscale.
    """
    import tensorflow as tf

    depth, colours = tf.unstack(tf.io.decode_raw(tf.strings.substr(file, 24, 2), tf.uint8), num=2)
    return tf.debugging.Assert((colours != 0) | (depth >= 8), ["greyscale PNGs must have 8 bits or more, not", depth])


def refuse_indexed_bmp(file: Any) -> Any:
    """An operation that fails for a BMP other than of 24 or 32 bits, uncompressed.

    BITMAPINFOHEADER, which begins at byte 14: its size, at 28 the bits of a pixel, at 30 the compression.
    """
    import tensorflow as tf

    data = tf.io.decode_raw(file, tf.uint8)
    length, depth, compression = (
        number_of(bytes_from(data, tf.constant(at), count), False) for at, count in ((14, 4), (28, 2), (30, 4))
    )
    is_plain = (length >= 40) & tf.reduce_any(depth == _BMP_DEPTHS) & (compression == 0)
    return tf.debugging.Assert(is_plain, ["BMPs must have 24 or 32 bits and no compression, not", depth, compression])


def refuse_partial_gif(file: Any) -> Any:
    """An operation that fails for a GIF whose first frame is transparent somewhere, or smaller than the picture.

    GIF89a: a header of 13 bytes and a palette; then extensions, each of blocks that begin with their length, the last
    of length 0; then a frame's place. An extension of control says whether a colour is transparent.
    """
    import tensorflow as tf

    data = tf.io.decode_raw(file, tf.uint8)
    head = bytes_from(data, tf.constant(6), 7)
    palette = tf.where(head[4] >= 128, 3 * 2 ** (head[4] % 8 + 1), 0)

    def body(at: Any, inside: Any, transparent: Any) -> tuple[Any, Any, Any]:
        part = bytes_from(data, at, 4)
        begins = ~inside & (part[0] == _GIF_EXTENSION)
        is_clear = begins & (part[1] == _GIF_CONTROL) & (part[3] % 2 == 1)
        following = at + tf.where(inside, 1 + part[0], 2)
        return following, begins | (inside & (part[0] > 0)), transparent | is_clear

    def goes_on(at: Any, inside: Any, transparent: Any) -> Any:
        return (at < tf.size(data)) & (inside | (bytes_from(data, at, 1)[0] == _GIF_EXTENSION))

    start, no = 13 + palette, tf.constant(False)
    at, inside, transparent = tf.while_loop(
        goes_on, body, (start, no, no), parallel_iterations=1, maximum_iterations=_GIF_BLOCKS
    )
    frame = bytes_from(data, at, 9)
    whole = tf.concat([tf.zeros(4, tf.int32), head[:4]], 0)
    is_whole = (frame[0] == _GIF_FRAME) & tf.reduce_all(frame[1:] == whole)
    return tf.debugging.Assert(is_whole & ~inside & ~transparent, ["a GIF's first frame must fill it, and be opaque"])
