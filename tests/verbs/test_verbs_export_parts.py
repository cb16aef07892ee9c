"""What exports are made of: image files read in a graph, and weights rounded to integers."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tlearn.config import Decoding, Interpolation, Resize
from tlearn.images import Reading

# --- images read in a graph ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Resize))
@pytest.mark.parametrize("interpolation", list(Interpolation))
def test_a_graph_reads_images_as_pillow_does(mode: Resize, interpolation: Interpolation) -> None:
    import tensorflow as tf

    from tlearn.data import decode
    from tlearn.exporting.graph_reading import graph_reader

    reading = Reading(48, mode, 0.875 if mode is Resize.crop else 1.0, interpolation)
    read = tf.function(graph_reader(reading), [tf.TensorSpec((), tf.string)])
    # Pillow may resample rows before columns, which overshoots elsewhere with kernels that have negative parts
    allowed = {Interpolation.nearest: 0, Interpolation.bilinear: 2}.get(interpolation, 10)
    for number, (kind, colours, size) in enumerate(PICTURES):
        file = encoded(kind, colours, size, number)
        expected = reading.square(decode(file, max_pixels=10**6)).astype(int)
        difference = np.abs(read(file).numpy().astype(int) - expected)
        assert difference.max() <= allowed, (kind, colours, size)
        assert difference.mean() < 0.2, (kind, colours, size)


@pytest.fixture(scope="module")
def nearest() -> list[tuple[Reading, Any]]:
    import tensorflow as tf

    from tlearn.exporting.graph_reading import graph_reader

    kinds = ((96, Resize.crop, 0.37), (96, Resize.stretch, 1.0), (160, Resize.pad, 1.0))
    readings = [Reading(size, mode, fraction, Interpolation.nearest) for size, mode, fraction in kinds]
    return [(reading, tf.function(graph_reader(reading), [tf.TensorSpec((), tf.string)])) for reading in readings]


@settings(max_examples=15, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700))
@example(width=512, height=512)  # middles of pixels fall between two: at 160 px on 1.6, 4.8, 8.0, ...
@example(width=320, height=320)
@example(width=500, height=333)
def test_nearest_takes_the_very_pixels_of_pillow(nearest: list[tuple[Reading, Any]], width: int, height: int) -> None:
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    picture = np.stack([across % 256, down % 256, across // 256 + 16 * (down // 256)], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "BMP")
    for reading, read in nearest:
        np.testing.assert_array_equal(read(buffer.getvalue()).numpy(), reading.square(picture), err_msg=str(reading))


@pytest.mark.parametrize(
    ("mode", "subsampling"), [(Resize.crop, "4:2:0"), (Resize.stretch, "4:2:2"), (Resize.pad, "4:4:4")]
)
def test_a_graph_decodes_jpegs_at_the_part_that_a_run_does(mode: Resize, subsampling: str, tmp_path: Path) -> None:
    """To the pixel: nearest shows each. What is sent as a PNG, since its orientation is elsewhere, is scaled before."""
    import tensorflow as tf

    from tlearn.data import decode
    from tlearn.exporting.graph_reading import graph_reader
    from tlearn.exporting.samples import found_samples

    fraction = 0.7 if mode is Resize.crop else 1.0
    reading = Reading(24, mode, fraction, Interpolation.nearest, decode=Decoding.scaled)
    read = tf.function(graph_reader(reading), [tf.TensorSpec((), tf.string)])
    parts = set()
    for width, height in ((30, 23), (70, 90), (131, 97), (203, 301), (24, 400)):
        noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, "JPEG", subsampling=subsampling)
        for file in (buffer.getvalue(), with_orientation(buffer.getvalue(), 6)):
            expected = decode(file, max_pixels=10**6, excess=reading.excess)
            parts.add(max(width, height) // max(expected.shape[:2]))
            np.testing.assert_array_equal(read(file).numpy(), reading.square(expected), err_msg=f"{width} x {height}")
        (tmp_path / f"{width}.jpg").write_bytes(in_xmp(buffer.getvalue()))
    assert len(parts) > 2, "the picture whole, and at several parts"
    samples = found_samples([str(tmp_path)], 9, reading)
    assert samples.reencoded == 5
    for file, square in zip(samples.files, samples.pixels, strict=True):
        np.testing.assert_array_equal(read(file).numpy(), square)


def test_a_graph_refuses_what_it_would_read_wrongly() -> None:
    import tensorflow as tf

    from tlearn.exporting.graph_reading import graph_reader

    read = tf.function(graph_reader(Reading(48)), [tf.TensorSpec((), tf.string)])
    for file in (encoded("PNG", "1", (80, 60), 1), b"GIF89a", b"", b"\xff\xd8\xff"):
        with pytest.raises((tf.errors.InvalidArgumentError, tf.errors.OutOfRangeError)):
            read(file)


def test_bmp_and_gif_are_read_to_the_pixel_or_refused(tmp_path: Path) -> None:
    """By the graph, and by the check of an export, which sends what is refused as a PNG."""
    import tensorflow as tf

    from tlearn.data import decode
    from tlearn.exporting.graph_reading import graph_reader
    from tlearn.exporting.samples import found_samples

    read = tf.function(graph_reader(Reading(48)), [tf.TensorSpec((), tf.string)])
    for name, file in (SOUND | REFUSED).items():
        (tmp_path / name).write_bytes(file)
        sent = found_samples([str(tmp_path / name)], 1, Reading(48))
        assert sent.files[0].startswith(b"\x89PNG" if name in REFUSED else file), name
        assert sent.reencoded == (name in REFUSED), name
        if name in REFUSED:
            with pytest.raises(tf.errors.InvalidArgumentError):
                read(file)
        else:
            np.testing.assert_array_equal(read(file).numpy(), decode(file, max_pixels=10**6), err_msg=name)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_graph_turns_photographs_upright(kind: str) -> None:
    """As they were held, in either byte order, with other entries around and other segments before."""
    import tensorflow as tf

    from tlearn.data import decode
    from tlearn.exporting.graph_reading import graph_reader

    reading = Reading(48, Resize.pad)
    read = tf.function(graph_reader(reading), [tf.TensorSpec((), tf.string)])
    seen = set()
    for orientation in range(10):
        for order in "<>":
            file = with_exif(kind, exif(order, ("H", 0x010F, 7), ("H", 0x0112, orientation), ("I", 0x0131, 9)))
            expected = reading.square(decode(file, max_pixels=10**6)).astype(int)
            assert np.abs(read(file).numpy().astype(int) - expected).max() <= 2, (orientation, order)
            seen.add(expected.tobytes())
    assert len(seen) == 8, "eight ways to hold it, and two that there are not"
    plain = read(with_exif(kind, None)).numpy()
    turned = exif("<", ("I", 0x0112, 6))
    assert (read(with_exif(kind, turned)).numpy() != plain).any(), "a long integer will do"
    odd = (turned[:9], turned[6:], b"", b"MM" + turned[2:], turned[:4] + b"\xff" * 20, exif("<", ("B", 0x0112, 6)))
    for broken in odd:
        np.testing.assert_array_equal(read(with_exif(kind, broken)), plain)


def test_files_that_a_graph_does_not_read_are_checked_as_png(tmp_path: Path) -> None:
    """Pillow takes the orientation from XMP too."""
    from tlearn.exporting.samples import found_samples

    plain = with_exif("JPEG", None)
    (tmp_path / "0.jpg").write_bytes(with_exif("JPEG", exif(">", ("H", 0x0112, 6))))
    (tmp_path / "1.jpg").write_bytes(in_xmp(plain))
    (tmp_path / "2.jpg").write_bytes(plain)
    samples = found_samples([str(tmp_path)], 3, Reading(48))
    assert [file[1:4] == b"PNG" for file in samples.files] == [False, True, False]
    assert samples.reencoded == 1
    np.testing.assert_array_equal(samples.pixels[0], samples.pixels[1])
    assert (samples.pixels[1] != samples.pixels[2]).any()


def in_xmp(jpeg: bytes) -> bytes:
    """With an orientation that graphs do not see."""
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf tiff:Orientation="6"/></x:xmpmeta>'
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + jpeg[2:]


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    content = b"Exif\0\0" + exif("<", ("H", 0x0112, orientation))
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + jpeg[2:]


def exif(order: str, *entries: tuple[str, int, int]) -> bytes:
    """The TIFF file of an EXIF block: (format, tag, value) each."""
    kinds = {"B": 1, "H": 3, "I": 4}
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8)
    listed = [
        struct.pack(f"{order}HHI", tag, kinds[form], 1) + struct.pack(f"{order}{form}", value).ljust(4, b"\0")
        for form, tag, value in entries
    ]
    return head + struct.pack(f"{order}H", len(entries)) + b"".join(listed) + bytes(4)


def with_exif(kind: str, block: bytes | None) -> bytes:
    """A picture that is of another shape lying than standing, with a block of any bytes."""
    file = encoded(kind, "RGB", (80, 60), 5)
    if block is None:
        return file
    if kind == "JPEG":
        comment = b"\xff\xfe" + struct.pack(">H", 5) + b"hi!"
        content = b"Exif\0\0" + block
        return file[:2] + comment + b"\xff\xff\xe1" + struct.pack(">H", len(content) + 2) + content + file[2:]
    end = len(file) - 12  # behind the pixels
    checksum = struct.pack(">I", zlib.crc32(b"eXIf" + block))
    return file[:end] + struct.pack(">I", len(block)) + b"eXIf" + block + checksum + file[end:]


PICTURES = (
    *(("JPEG", "RGB", size) for size in ((90, 70), (70, 90), (30, 20), (48, 48))),
    *(("PNG", colours, (80, 60)) for colours in ("RGB", "RGBA", "L", "LA", "P")),
    *(("JPEG", "L", (60, 80)), ("BMP", "RGB", (80, 60)), ("BMP", "RGBA", (81, 60)), ("GIF", "P", (80, 60))),
)


def encoded(kind: str, colours: str, size: tuple[int, int], seed: int) -> bytes:
    """A picture of its own as the bytes of a file."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    image = Image.fromarray(small, "RGBA").resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    (image if colours == "RGBA" else image.convert("RGB").convert(colours)).save(buffer, kind)
    return buffer.getvalue()


def square(colours: str, kind: str, **options: Any) -> bytes:
    """A picture of 48 pixels a side, written by Pillow with options."""
    small = np.random.default_rng(3).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    image = Image.fromarray(small, "RGBA").resize((48, 48), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    (image if colours == "RGBA" else image.convert("RGB").convert(colours)).save(buffer, kind, **options)
    return buffer.getvalue()


def changed(file: bytes, at: int, form: str, value: int) -> bytes:
    return file[:at] + struct.pack(form, value) + file[at + struct.calcsize(form) :]


BMP, GIF = square("RGB", "BMP"), square("P", "GIF", interlace=0)
FRAME = GIF.index(b",\0\0\0\0")
CONTROL = b"\x21\xf9\x04%c\0\0\0\0"
COMMENTS = b"\x21\xfe\xff" + b"," * 255 + b"\x03\x21\xf9\x04\0"
LARGER = [Image.new("P", (48, 48), 7)]
SOUND = {
    "24.bmp": BMP,
    "32.bmp": square("RGBA", "BMP"),
    "from the top.bmp": changed(BMP, 22, "<i", -48),
    "longer header.bmp": changed(BMP[:10] + struct.pack("<2I", 14 + 124, 124) + BMP[18:54], 34, "<I", 0)
    + bytes(84)
    + BMP[54:],
    "plain.gif": GIF,
    "grey.gif": square("L", "GIF"),
    "interlaced.gif": square("P", "GIF", interlace=1),
    "animated.gif": square("P", "GIF", save_all=True, append_images=LARGER, duration=40, loop=0, comment=b"x" * 700),
    "comments.gif": GIF[:FRAME] + COMMENTS + CONTROL % 0 + GIF[FRAME:],
}
REFUSED = {
    "palette.bmp": square("P", "BMP"),
    "grey.bmp": square("L", "BMP"),
    "one bit.bmp": square("1", "BMP"),
    "transparent.gif": square("RGBA", "GIF"),
    "after comments.gif": GIF[:FRAME] + COMMENTS + CONTROL % 1 + GIF[FRAME:],
    "frame in a larger picture.gif": changed(GIF, 6, "<H", 60),
    "plain.webp": square("RGB", "WEBP"),
    "animated.webp": square("RGB", "WEBP", save_all=True, append_images=LARGER),
}


# --- weights rounded to integers -------------------------------------------------------------------------------------


def layers_of_every_kind() -> dict[str, list[Any]]:
    layers = keras.layers
    return {
        "convolution": [layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False), layers.BatchNormalization()],
        "grouped": [layers.Conv2D(6, 3, groups=3, activation="relu")],
        "depthwise": [layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)],
        "separable": [layers.SeparableConv2D(8, 3, use_bias=False), layers.BatchNormalization()],
        "dense": [layers.Flatten(), layers.Dense(4)],
    }


def rounded(weight: np.ndarray, channels: tuple[int, ...]) -> np.ndarray:
    """Symmetric integers of 8 bits with a scale for each channel."""
    result = np.empty_like(weight)
    for index in np.ndindex(*(weight.shape[axis] for axis in channels)):
        where = tuple(index[channels.index(axis)] if axis in channels else slice(None) for axis in range(weight.ndim))
        scale = np.abs(weight[where]).max() / 127
        result[where] = np.round(weight[where] / scale) * scale
    return result


@pytest.mark.parametrize("kind", list(layers_of_every_kind()))
def test_rounded_weights_leave_the_mean_of_a_layer_as_it_was(kind: str) -> None:
    from tlearn.exporting.rounding import mean_errors_corrected

    keras.utils.set_random_seed(3)
    chosen = layers_of_every_kind()[kind]
    outputs = inputs = keras.Input((12, 12, 3))
    for each in chosen:
        outputs = each(outputs)
    model = keras.Model(inputs, outputs)
    (layer,) = (layer for layer in chosen if layer.weights and not isinstance(layer, keras.layers.BatchNormalization))
    pixels = np.random.default_rng(1).integers(100, 256, (11, 12, 12, 3)).astype(np.uint8)
    if layer.use_bias and getattr(layer, "activation", None) is keras.activations.relu:
        layer.bias.assign(np.full(layer.bias.shape, 1000.0))  # so that nothing is cut off
    before = model.get_weights()

    def means() -> np.ndarray:
        outputs = model(pixels.astype(np.float32), training=False).numpy()
        return outputs.reshape(-1, outputs.shape[-1]).mean(0, dtype=np.float64)

    def quantised() -> np.ndarray:
        kernels = [weight for weight in layer.weights if "kernel" in weight.name]
        own = [kernel.numpy() for kernel in kernels]
        for kernel, values in zip(kernels, own, strict=True):
            deep = isinstance(layer, keras.layers.DepthwiseConv2D) or "depthwise" in kernel.name
            kernel.assign(rounded(values, (2, 3) if deep else (values.ndim - 1,)))
        found = means()
        for kernel, values in zip(kernels, own, strict=True):
            kernel.assign(values)
        return found

    expected = means()
    error = np.abs(quantised() - expected).max()
    with mean_errors_corrected(model, pixels):
        assert np.abs(quantised() - expected).max() < 0.02 * error
    for weight, value in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_what_two_layers_listen_to_is_left_alone() -> None:
    """Without a bias of its own, a convolution is corrected in the batch norm above it, if nothing else is there."""
    from tlearn.exporting.rounding import mean_errors_corrected

    pixels = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False)(pixels)
    norm = keras.layers.BatchNormalization()
    model = keras.Model(pixels, keras.layers.Add()([norm(x), x]))
    with mean_errors_corrected(model, np.full((2, 8, 8, 3), 200, np.uint8)):
        assert not norm.moving_mean.numpy().any()
