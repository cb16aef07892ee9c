"""Every kind of image file that the formats allow, made by Pillow here, decoded to what a person would see."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlearn.config import AugmentConfig, Decoding, Interpolation, RandomResizedCrop, Resize
from tlearn.data import Reading, UnreadableImage, decode, resize
from tlearn.data.augment import Augmenter
from tlearn.data.decode import read_size

MANY = 10_000_000
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def quarters(mode: str = "RGB", size: int = 32) -> Image.Image:
    """Red, green / blue, white: shows which way is up, and which colour is which."""
    half = size // 2
    image = Image.new("RGB", (size, size), (255, 255, 255))
    for colour, corner in ((RED, (0, 0)), (GREEN, (half, 0)), (BLUE, (0, half))):
        image.paste(colour, (*corner, corner[0] + half, corner[1] + half))
    return image.convert(mode)


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """The colours of the four quarters, rounded to what is nearest: 0 or 255."""
    q = len(pixels) // 4
    picked = [pixels[q, q], pixels[q, -q], pixels[-q, q], pixels[-q, -q]]
    return [tuple(int(value > 127) * 255 for value in colour) for colour in picked]


UPRIGHT = [RED, GREEN, BLUE, (255, 255, 255)]


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(encoded(quarters(), "JPEG", quality=95), id="jpeg"),
        pytest.param(encoded(quarters(), "JPEG", quality=95, progressive=True), id="progressive jpeg"),
        pytest.param(encoded(quarters("CMYK"), "JPEG", quality=95), id="cmyk jpeg"),
        pytest.param(encoded(quarters(), "PNG"), id="png"),
        pytest.param(encoded(quarters("P"), "PNG"), id="palette png"),
        pytest.param(encoded(quarters("RGBA"), "PNG"), id="rgba png"),
        pytest.param(encoded(quarters(), "BMP"), id="bmp"),
        pytest.param(encoded(quarters(), "GIF"), id="gif"),
        pytest.param(encoded(quarters(), "WEBP", lossless=True), id="webp"),
    ],
)
def test_colours_and_places_survive_every_format(file):
    pixels = decode(file, max_pixels=MANY)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (32, 32, 3)
    assert corners(pixels) == UPRIGHT


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation):
    # What a camera stores when it was held so that viewers must apply `orientation`: the inverse of the change.
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # numbers of Image.Transpose
    stored = quarters(size=64)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert corners(decode(encoded(stored, "JPEG", quality=95, exif=exif), max_pixels=MANY)) == UPRIGHT


def test_exif_orientation_swaps_the_sides():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    assert decode(file, max_pixels=MANY).shape == (40, 20, 3)


BROKEN_EXIF = b"Exif\x00\x00MM\x00*\xff\xff\xff\xff garbage"


def test_a_broken_exif_block_harms_nothing():
    file = encoded(quarters(), "JPEG", quality=95, exif=BROKEN_EXIF)
    assert corners(decode(file, max_pixels=MANY)) == UPRIGHT


def test_what_pillow_warns_of_is_not_shown(tmp_path):
    """In a process of its own, as pytest has filters of its own; Pillow's limit of pixels, which warns, is set low."""
    files = {
        "exif.jpg": encoded(quarters(), "JPEG", exif=BROKEN_EXIF),
        "large.png": encoded(quarters(size=36), "PNG"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    read = f"import PIL.Image; PIL.Image.MAX_IMAGE_PIXELS = {36 * 36 - 1}\n"
    read += "import sys; from tlearn.data import decode\n"
    read += "print([decode(name, max_pixels=2 * 36 * 36 - 2).shape for name in sys.argv[1:]])"
    done = subprocess.run(
        [sys.executable, "-c", read, *files],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[(32, 32, 3), (36, 36, 3)]\n", "")


def test_the_limit_that_is_given_decides_not_that_of_pillow(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow refuses what is more than twice that
    file = encoded(quarters(size=32), "PNG")
    with pytest.raises(UnreadableImage, match=r"1024 pixels, more than data\.max_pixels=1000"):
        decode(file, max_pixels=1000)
    assert Image.MAX_IMAGE_PIXELS == 500, "whoever asks for no more keeps Pillow's protection"
    assert read_size(file, max_pixels=1024) == (32, 32)
    with pytest.raises(UnreadableImage, match=r"32 x 32 pixels, more than data\.max_pixels=1023"):
        decode(file, max_pixels=1023)
    assert decode(file, max_pixels=1024).shape == (32, 32, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode(file, max_pixels=1024).shape == (32, 32, 3)


def test_sixteen_bits_are_scaled_not_clipped():
    levels = np.array([[0, 257, 32_896, 65_535]], np.uint16)
    file = encoded(Image.fromarray(levels), "PNG")
    assert decode(file, max_pixels=MANY)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_grey_is_repeated_over_the_channels():
    levels = np.array([[0, 100, 255]], np.uint8)
    pixels = decode(encoded(Image.fromarray(levels), "PNG"), max_pixels=MANY)
    assert (pixels == levels[..., None]).all()


def test_one_bit_images_are_black_and_white():
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert decode(encoded(image, "PNG"), max_pixels=MANY)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode):
    clear_to_solid = np.array([[[0, 0], [0, 128], [0, 255]]], np.uint8)
    image = Image.fromarray(clear_to_solid).convert(mode)
    assert decode(encoded(image, "PNG"), max_pixels=MANY)[0, :, 0].tolist() == [255, 127, 0]


def test_a_transparent_palette_colour_is_white():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    pixels = decode(encoded(image, "PNG", transparency=0), max_pixels=MANY)
    assert pixels[0].tolist() == [[255, 255, 255], [0, 0, 200]]


def test_a_transparent_colour_without_palette_is_white():
    image = Image.new("RGB", (2, 1), RED)
    image.putpixel((1, 0), BLUE)
    pixels = decode(encoded(image, "PNG", transparency=RED), max_pixels=MANY)
    assert pixels[0].tolist() == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    file = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    red, *others = decode(file, max_pixels=MANY)[4, 4].tolist()
    assert red > 240
    assert max(others) < 15


def test_the_name_does_not_decide_what_a_file_is(tmp_path):
    path = tmp_path / "really_a_png.jpg"
    path.write_bytes(encoded(quarters(), "PNG"))
    assert corners(decode(path, max_pixels=MANY)) == UPRIGHT


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(encoded(NOISE, "JPEG")[:-900], "truncated", id="truncated jpeg"),
        pytest.param(encoded(NOISE, "PNG")[:-900], "truncated", id="truncated png"),
        pytest.param(encoded(NOISE, "GIF")[:-900], "truncated", id="truncated gif"),
        pytest.param(encoded(NOISE, "WEBP")[:-900], "truncated", id="truncated webp"),
        pytest.param(encoded(NOISE, "BMP")[:-900], "truncated", id="truncated bmp"),
        pytest.param(encoded(NOISE, "JPEG")[:200], "damaged or truncated", id="header only"),
        pytest.param(b"", "empty", id="0 bytes"),
        pytest.param(b"<!doctype html><title>404</title>", "not an image", id="html"),
        pytest.param(encoded(NOISE, "TIFF"), "not an image", id="tiff, a format that is not on the list"),
        pytest.param(encoded(NOISE, "ICO"), "not an image", id="ico"),
        pytest.param(encoded(NOISE, "EPS"), "not an image", id="eps, which would start another program"),
    ],
)
def test_what_cannot_be_read_says_which_file_and_why(content, reason, tmp_path):
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode(path, max_pixels=MANY)
    assert caught.value.path == str(path)
    assert caught.value.problems[0].where == str(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UnreadableImage, match="no such file"):
        decode(tmp_path / "gone.jpg", max_pixels=MANY)


def test_a_folder_named_like_an_image(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(UnreadableImage, match=r"folder\.jpg"):
        decode(tmp_path / "folder.jpg", max_pixels=MANY)


def test_a_bomb_is_refused_before_it_is_decoded():
    # A header that promises 81 megapixels in front of a few bytes: decoding it could only say "truncated".
    bomb = encoded(Image.new("1", (9_000, 9_000)), "PNG")[:100]
    with pytest.raises(UnreadableImage, match=r"too large|more than data\.max_pixels"):
        decode(bomb, max_pixels=MANY)
    line = encoded(Image.new("L", (100_000, 1)), "PNG")
    with pytest.raises(UnreadableImage, match=r"100000 x 1 pixels, more than data\.max_pixels=99999"):
        decode(line, max_pixels=99_999)
    assert decode(line, max_pixels=100_000).shape == (1, 100_000, 3)


class TestResize:
    """Which part of the image goes where."""

    WIDE = np.zeros((10, 30, 3), np.uint8)
    WIDE[:, :10] = RED
    WIDE[:, 10:20] = GREEN
    WIDE[:, 20:] = BLUE

    def test_crop_takes_the_centre(self):
        assert (resize(self.WIDE, 10) == GREEN).all()
        assert (resize(self.WIDE.transpose(1, 0, 2), 10) == GREEN).all()

    def test_crop_fraction_takes_less_of_it(self):
        framed = np.zeros((20, 20, 3), np.uint8)
        framed[5:15, 5:15] = 200
        assert (resize(framed, 8, crop_fraction=0.5, interpolation=Interpolation.nearest) == 200).all()
        assert not resize(framed, 8)[0].any()

    def test_stretch_takes_everything(self):
        columns = resize(self.WIDE, 12, mode=Resize.stretch, interpolation=Interpolation.nearest)[6]
        assert columns[[0, 6, 11]].tolist() == [list(RED), list(GREEN), list(BLUE)]

    def test_pad_keeps_the_shape_on_black(self):
        padded = resize(self.WIDE, 30, mode=Resize.pad)
        assert (padded[10:20] == self.WIDE).all()
        assert not padded[:10].any()
        assert not padded[20:].any()

    def test_shrinking_is_antialiased(self):
        stripes = np.zeros((64, 64, 3), np.uint8)
        stripes[:, ::2] = 255
        assert abs(int(resize(stripes, 8)[4, 4, 0]) - 127) <= 2  # nearest would be 0 or 255

    @pytest.mark.parametrize("mode", Resize)
    @pytest.mark.parametrize("interpolation", Interpolation)
    @pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (7, 5), (32, 32)])
    def test_any_shape_becomes_a_square(self, mode, interpolation, shape):
        square = resize(np.full((*shape, 3), 9, np.uint8), 32, mode=mode, interpolation=interpolation)
        assert square.shape == (32, 32, 3)
        assert square.dtype == np.uint8

    def test_the_right_size_is_left_alone(self):
        image = np.asarray(NOISE)
        assert (resize(image, 64) == image).all()


def test_every_real_photograph_decodes(assets):
    files = [path for path in (assets / "open-photos").iterdir() if path.suffix in {".jpg", ".png"}]
    assert len(files) == 22
    for path in files:
        with Image.open(path) as image:
            width, height = image.size
        pixels = decode(path, max_pixels=MANY)
        assert sorted(pixels.shape) == sorted((height, width, 3)), path
        assert pixels.std() > 10, path


class TestScaled:
    """JPEGs at a part of their size: never fewer pixels than are needed, and otherwise the same picture."""

    @pytest.mark.parametrize(
        ("excess", "size"),
        [(0.3, (300, 200)), (1.99, (300, 200)), (2, (150, 100)), (7.9, (75, 50)), (8, (38, 25)), (99, (38, 25))],
    )
    def test_the_least_of_the_sizes_that_do(self, excess, size):
        file = encoded(Image.new("RGB", (300, 200)), "JPEG")
        assert decode(file, max_pixels=MANY, excess=lambda width, height: excess).shape == (size[1], size[0], 3)

    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    def test_colours_and_places_stay(self, mode):
        file = encoded(quarters(mode, 128), "JPEG", quality=95)
        assert corners(decode(file, max_pixels=MANY, excess=lambda width, height: 4)) == corners(
            decode(file, max_pixels=MANY)
        )

    @pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "WEBP"])
    def test_other_formats_are_not_changed(self, format):
        file = encoded(quarters(size=64), format)
        assert decode(file, max_pixels=MANY, excess=lambda width, height: 8).shape == (64, 64, 3)

    def test_turned_and_shrunk(self):
        exif = Image.Exif()
        exif[0x0112] = 6
        file = encoded(Image.new("RGB", (400, 200)), "JPEG", exif=exif)
        assert decode(file, max_pixels=MANY, excess=lambda width, height: width / 200).shape == (200, 100, 3)

    def test_damage_and_size_are_still_found(self):
        file = encoded(NOISE.resize((512, 512)), "JPEG", quality=95)
        with pytest.raises(UnreadableImage, match="truncated"):
            decode(file[: len(file) // 2], max_pixels=MANY, excess=lambda width, height: 8)
        with pytest.raises(UnreadableImage, match="max_pixels"):
            decode(file, max_pixels=1000, excess=lambda width, height: 8)

    @pytest.mark.parametrize("mode", Resize)
    @pytest.mark.parametrize("size", [(640, 427), (427, 640), (150, 100), (300, 300), (1000, 9), (64, 2000)])
    @pytest.mark.parametrize("crop_fraction", [1.0, 0.6])
    def test_what_resizing_takes_has_pixels_enough(self, mode, size, crop_fraction):
        reading = Reading(32, mode, crop_fraction, decode=Decoding.scaled)
        width, height = Image.fromarray(
            decode(encoded(Image.new("RGB", size), "JPEG"), max_pixels=MANY, excess=reading.excess)
        ).size
        share = crop_fraction if mode is Resize.crop else 1.0
        longest = max(width, height)
        taken = longest if mode is Resize.pad else min(width, height) * share
        before = max(size) if mode is Resize.pad else min(size) * share
        assert taken >= min(32, before)
        assert taken < 64 or longest * 8 <= max(size) + 7, "half of it would have done"

    def test_exact_takes_every_pixel(self):
        assert Reading(32).excess(4000, 3000) == 1

    def test_a_random_crop_has_pixels_enough(self):
        crop = RandomResizedCrop(p=1.0, scale_min=0.25)
        augmenter = Augmenter(AugmentConfig(random_resized_crop=crop), image_size=32, seed=0)
        # a quarter of the area of 640 x 480, 0.75 times as wide as high: 240 pixels wide
        assert augmenter.excess(640, 480) * 32 == pytest.approx(240, rel=0.01)
        assert augmenter.excess(640, 20) * 32 == 20

    def test_on_photographs(self, assets):
        """Figures of docs/speed.md: the mean difference on flowers is below 3 of 255."""
        exact, scaled = Reading(96), Reading(96, decode=Decoding.scaled)
        files = sorted((assets / "flowers" / "val").rglob("*.jpg"))[::10]
        pixels = [
            np.stack([reading.square(decode(path, max_pixels=MANY, excess=reading.excess)) for path in files])
            for reading in (exact, scaled)
        ]
        assert 0.5 < np.abs(pixels[0].astype(int) - pixels[1]).mean() < 3
