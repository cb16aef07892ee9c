"""Glyphs: a task that is drawn rather than collected, for pretraining a small network.

A glyph is a digit or a letter, drawn with random shape and random appearance; the task is to name it.
Nothing is downloaded: every picture comes from this file, and is a pure function of ``(seed, index)``, so
the training set is as large as you like and can be drawn again exactly.

There are 36 classes, ten digits and 26 letters. A letter may be drawn as a capital or a small letter; the
class is the same, because after scaling many pairs (c and C, o and O) are the same picture.

A picture is drawn in four steps, which are the four parts of this file:

1. **Outline.** Take the glyph's lines: either pen strokes, as a hand would write it (``PEN_STROKES``), or the
   outline of the glyph in one of the two fonts that come inside Pillow.
2. **Shape.** Move the points: jitter the pen, stretch, slant, rotate, bend.
3. **Ink.** Paint the lines as a grey mask, thick or thin, then lose detail as a scanner or a thumbnail does.
4. **Colour.** Blend ink and paper through the mask, and add noise.

All distortion happens to points, before any pixel exists. That is faster than warping pictures, and leaves
no resampling marks for the network to learn.
"""

import functools
import string

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CLASSES: tuple[str, ...] = (
    *(f"digit_{digit}" for digit in string.digits),
    *(f"letter_{letter}" for letter in string.ascii_lowercase),
)

Points = NDArray[np.float64]  # (n, 2), x to the right and y down
Mask = NDArray[np.float32]  # (height, width), 0 is paper and 1 is ink
Picture = NDArray[np.uint8]  # (height, width, 3), RGB


def draw(seed: int, index: int, image_size: int) -> tuple[Picture, int]:
    """Draw picture number ``index`` of the endless set ``seed``; return it with the index of its class.

    The classes take turns, so any run of ``len(CLASSES)`` consecutive indices holds each of them once.
    """
    label = index % len(CLASSES)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
    scanned = rng.random() < SCANNED_SHARE
    mask = ink(rng, label, scanned)
    mask = lose_detail(rng, mask, scanned, image_size)
    return colour(rng, mask, scanned), label


# About half of the pictures look like scanned handwriting: white ink on black, filling the frame, in very few
# pixels. The others vary in everything, so that the features do not depend on that look.
SCANNED_SHARE = 0.5
# Most glyphs are written with a pen, because handwriting varies more than print.
PEN_SHARE = 0.8


# 1. Outline ---------------------------------------------------------------------------------------------

# How a hand writes each glyph, on a grid 0..6 wide and 0..9 high. "12" is the point x=1, y=2. Points are
# joined by a smooth curve, except that the curve has a corner at a point marked "*". "|" lifts the pen.
# There are several ways of writing most glyphs.
PEN_STROKES: dict[str, tuple[str, ...]] = {
    "0": ("30 11 04 05 18 39 58 65 64 51 30", "41 20 03 06 29 48 65 62 40 20", "50 21 04 07 29 48 64 61 40"),
    "1": (
        "30 39",
        "12 30* 39",
        "13 40* 39",
        "03 40* 49",
        "12 30* 39 | 19 59",
        "22 30* 39 | 09 69",
        "21 30* 38 | 29 49",
    ),
    "2": (
        "02 10 40 52 44 09* 69",
        "02 20 50 53 29 07 17 49 69",
        "01 30 62 55 09* 68",
        "11 40 53 18 08 27 69",
        "01 40 52 34 09* 69",
    ),
    "3": (
        "01 20 50 52 34 | 24 45 67 49 19 07",
        "01 20 50 53 24* 54 67 49 19 08",
        "00 60* 24* 55 67 39 08",
        "01 30 52 34* 56 39 08",
        "01 40 52 24 55 57 39 09",
    ),
    "4": (
        "20 05* 65 | 42 49",
        "50 06* 66 | 50 59",
        "10 05* 65 | 60 59",
        "00 04* 64 | 60 69",
        "40 06* 66 | 43 39",
        "30 04 25 64 | 51 39",
        "50 05* 65 | 42 29",
    ),
    "5": (
        "60 10* 04* 34 66 48 29 08",
        "10 04* 44 66 48 19 | 10 60",
        "60 20 03 24 66 49 09",
        "60 10* 14* 44 57 39 09",
        "60 20* 14 44 56 39 08",
    ),
    "6": (
        "50 22 05 28 49 67 55 25 06",
        "40 03 07 29 58 65 35 06",
        "30 04 07 29 48 56 35 17",
        "60 23 06 29 58 66 45 17",
    ),
    "7": (
        "00 60* 29",
        "00 60* 29 | 14 55",
        "02 00* 60* 39",
        "01 30 60* 34 29",
        "00 60* 34 39 | 24 64",
        "01 50* 19 | 04 55",
    ),
    "8": (
        "50 20 12 34 57 49 19 07 34 52 50",
        "30 12 34 52 30 | 34 06 39 66 34",
        "61 30 02 34 66 39 07 35 61",
        "51 20 12 45 57 39 18 25 51",
    ),
    "9": (
        "51 20 03 25 54 61* 69",
        "62 30 03 25 63* 65 39",
        "61 20 03 25 53 60* 56 39 18",
        "50 20 03 25 52* 55 38 09",
        "51 20 02 24 53 51 56 48 19",
        "50 21 13 34 52 50* 39",
    ),
    "A": ("09 30* 69 | 15 55", "09 05 30 65 69 | 05 65"),
    "B": ("00 09 | 00 40 52 34 04 | 04 44 67 49 09", "09 00* 40 52 24* 66 49 09"),
    "C": ("61 30 03 06 39 68", "50 20 04 28 59"),
    "D": ("00 09 | 00 30 63 66 39 09", "09 00* 40 64 49 09"),
    "E": ("60 00* 09* 69 | 04 44", "61 30 02 24 04 07 39 68"),
    "F": ("60 00* 09 | 04 44", "00 60 | 10 09 | 05 45"),
    "G": ("61 30 03 06 39 67 65* 35", "61 30 04 29 66* 69 | 36 66"),
    "H": ("00 09 | 60 69 | 04 64", "00 09 | 50 59 | 05 54"),
    "I": ("30 39 | 10 50 | 19 59", "30 39"),
    "J": ("60 66 39 07", "20 60* 57 39 08"),
    "K": ("00 09 | 60 04* 69", "00 09 | 60 05 | 24 69"),
    "L": ("00 09* 69", "10 08* 59"),
    "M": ("09 00* 36* 60* 69", "09 10* 37* 50* 69"),
    "N": ("09 00* 69* 60", "09 10* 59* 60"),
    "O": ("30 11 04 05 18 39 58 65 64 51 30", "40 11 05 28 58 64 40"),
    "P": ("00 09 | 00 40 62 44 05", "09 00* 50 53 25 04"),
    "Q": ("30 11 04 05 18 39 58 65 64 51 30 | 46 69", "40 11 05 28 58 64 40 | 37 69"),
    "R": ("00 09 | 00 40 62 44 04* 69", "09 00* 50 53 05* 59"),
    "S": ("61 30 02 34 67 39 08", "50 20 13 46 48 19"),
    "T": ("00 60 | 30 39", "01 60 | 30 29"),
    "U": ("00 06 39 66 60", "00 07 39 66 60* 69"),
    "V": ("00 39* 60", "00 29* 60"),
    "W": ("00 19* 33* 59* 60", "00 07 28 33 48 67 60"),
    "X": ("00 69 | 60 09", "10 59 | 60 09"),
    "Y": ("00 34* 60 | 34 39", "00 34 | 60 29"),
    "Z": ("00 60* 09* 69", "00 60* 09* 69 | 15 55"),
    "a": ("62 30 04 06 39 66 | 60 69", "51 20 04 28 56 60* 58 69"),
    "b": ("00 09 | 05 34 66 39 08", "10 06 29 57 45 06"),
    "c": ("61 30 03 06 39 68",),
    "d": ("60 69 | 64 34 06 39 67", "55 25 07 29 57 60* 59"),
    "e": ("04 64 51 20 04 07 39 68", "15 53 41 20 05 28 68"),
    "f": ("50 31 29 | 04 54", "61 30 24 19 | 05 54"),
    "g": ("61 30 03 25 53 60* 67 39 18", "51 20 02 24 53 60* 56 29 08 27 64"),
    "h": ("00 09 | 05 33 55 59", "10 09* 34 55 59"),
    "i": ("33 39 | 30 31", "34 38 59 | 31 32"),
    "j": ("43 47 29 08 | 40 41", "53 47 19 | 50 51"),
    "k": ("00 09 | 53 06* 69", "00 09 | 06 33 54 05* 69"),
    "l": ("20 28 49", "05 42 30 22 27 49", "30 39"),
    "m": ("09 00 | 03 20 33 39 | 33 50 63 69", "09 00* 08* 20 39* 50 69"),
    "n": ("00 09 | 03 30 63 69", "00 09* 20 53 59"),
    "o": ("30 11 04 05 18 39 58 65 64 51 30",),
    "p": ("00 09 | 01 40 62 34 04", "10 09 | 11 50 53 25"),
    "q": ("61 30 02 25 63 60* 69", "50 20 03 35 53* 60 49* 67"),
    "r": ("00 09 | 04 30 61", "01 09* 13 40 61"),
    "s": ("61 30 02 34 67 39 08",),
    "t": ("30 36 49 67 | 03 63", "30 39 | 03 63"),
    "u": ("00 06 39 66 | 60 69", "00 06 28 56 60* 69"),
    "v": ("00 39* 60",),
    "w": ("00 19* 33* 59* 60",),
    "x": ("00 69 | 60 09", "00 30 36 69 | 60 09"),
    "y": ("00 34 | 60 19", "00 04 45 60* 57 29 08"),
    "z": ("00 60* 09* 69", "01 50* 08* 69"),
}
SEGMENT_SAMPLES = 6  # points computed on the curve between two control points


def curve_basis(count: int, corners: frozenset[int]) -> NDArray[np.float64]:
    """Return the matrix that turns ``count`` control points into the points of a smooth curve through them.

    The curve is a Catmull-Rom spline: between two control points it is the cubic whose slope at each end is
    half the step from the previous control point to the next. That is linear in the control points, hence a
    matrix, computed once. At a corner, and at the ends, the slope looks only to its own side.
    """
    point = np.eye(count)
    time = np.linspace(0, 1, SEGMENT_SAMPLES + 1)[:, None]
    segments = []
    for start in range(count - 1):
        end = start + 1
        step = point[end] - point[start]
        free_start = start == 0 or start in corners
        free_end = end == count - 1 or end in corners
        start_slope = step if free_start else (point[end] - point[start - 1]) / 2
        end_slope = step if free_end else (point[end + 1] - point[start]) / 2
        segments.append(
            (2 * time**3 - 3 * time**2 + 1) * point[start]
            + (time**3 - 2 * time**2 + time) * start_slope
            + (3 * time**2 - 2 * time**3) * point[end]
            + (time**3 - time**2) * end_slope
        )
    return np.concatenate(segments)


@functools.cache
def pen_forms(character: str) -> tuple[tuple[tuple[NDArray[np.float64], Points], ...], ...]:
    """Parse ``PEN_STROKES``: for each way of writing, for each stroke, its basis and control points."""
    forms = []
    for form in PEN_STROKES[character]:
        strokes = []
        for stroke in form.split("|"):
            tokens = stroke.split()
            controls = np.array([(int(token[0]) / 9, int(token[1]) / 9) for token in tokens])
            corners = frozenset(i for i, token in enumerate(tokens) if token.endswith("*"))
            strokes.append((curve_basis(len(tokens), corners), controls))
        forms.append(tuple(strokes))
    return tuple(forms)


def pen_lines(rng: np.random.Generator, character: str) -> list[Points]:
    """Choose a way of writing the character, and miss every control point by a bit, as a hand does."""
    forms = pen_forms(character)
    unsteadiness = rng.uniform(0.01, 0.075)
    return [
        basis @ (controls + rng.normal(0, unsteadiness, controls.shape))
        for basis, controls in forms[rng.integers(len(forms))]
    ]


@functools.cache
def font_lines(character: str, bitmap: bool) -> tuple[Points, ...]:
    """Trace the outline of a character in one of Pillow's own fonts, scaled to height 1."""
    canvas = Image.new("L", (160, 160))
    font = ImageFont.load_default_imagefont() if bitmap else ImageFont.load_default(size=112)
    ImageDraw.Draw(canvas).text((20, 10), character, fill=255, font=font)
    crop = canvas.crop(canvas.getbbox())
    if bitmap:  # a few pixels high: enlarge it, keeping the pixels square
        crop = crop.resize((crop.width * 10, crop.height * 10), Image.Resampling.NEAREST)
    pixels = np.pad(np.asarray(crop), 1)
    contours, _ = cv2.findContours((pixels > 127).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return tuple(contour[::2, 0].astype(np.float64) / crop.height for contour in contours)


# 2. Shape -----------------------------------------------------------------------------------------------


def reshape(rng: np.random.Generator, lines: list[Points], scanned: bool) -> list[Points]:
    """Bend, stretch, slant and turn a glyph, then place it in the unit square."""
    points = np.concatenate(lines)
    points = bend(rng, points)
    points = points @ random_matrix(rng).T
    points = place(rng, points, scanned)
    return np.split(points, np.cumsum([len(line) for line in lines])[:-1])


def bend(rng: np.random.Generator, points: Points) -> Points:
    """Shift the points along both axes by slow waves, as if the paper were stretched unevenly."""
    amplitude = rng.uniform(0, 0.07)
    frequency = rng.uniform(0.5, 1.4, size=(2, 2))  # waves over the height of the glyph
    phase = rng.uniform(0, 2 * np.pi, size=2)
    shift: Points = amplitude * np.sin(2 * np.pi * points @ frequency + phase)
    return points + shift


def random_matrix(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random 2 x 2 matrix: width first, then slant, then rotation."""
    width = np.exp(rng.normal(0, 0.2))
    slant = rng.normal(-0.1, 0.2)  # hands lean to the right more often than to the left
    angle = rng.normal(0, 0.12)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix: NDArray[np.float64] = rotation @ np.array([[1, slant], [0, 1]]) @ np.diag([width, 1.0])
    return matrix


def place(rng: np.random.Generator, points: Points, scanned: bool) -> Points:
    """Scale and move the points into the unit square; scans fill its height and sit in the middle."""
    low, high = points.min(axis=0), points.max(axis=0)
    extent = max(high[1] - low[1], (high[0] - low[0]) * 0.9, 1e-3)
    size = rng.uniform(0.8, 0.98) if scanned else rng.uniform(0.5, 0.95)
    freedom = 0.05 if scanned else max(0.0, 1 - size) / 2
    centre = 0.5 + rng.uniform(-freedom, freedom, size=2) * (1.0, 0.4 if scanned else 1.0)
    placed: Points = (points - (low + high) / 2) * (size / extent) + centre
    return placed


# 3. Ink -------------------------------------------------------------------------------------------------

CANVAS = 64  # the mask is painted at this size
FRACTION_BITS = 4  # OpenCV takes coordinates as integers, in units of 1/16 pixel here


def ink(rng: np.random.Generator, label: int, scanned: bool) -> Mask:
    """Paint the glyph of a class on an empty canvas."""
    character = CLASSES[label][-1]
    if rng.random() < 0.5:
        character = character.upper()
    pen = rng.random() < PEN_SHARE
    lines = pen_lines(rng, character) if pen else list(font_lines(character, rng.random() < 0.25))
    lines = reshape(rng, lines, scanned)
    polygons = [np.round(line * (CANVAS << FRACTION_BITS)).astype(np.int32)[:, None] for line in lines]
    canvas = np.zeros((CANVAS, CANVAS), np.uint8)
    if pen:
        width = rng.uniform(0.06, 0.2) if scanned else np.exp(rng.uniform(np.log(0.03), np.log(0.18)))
    else:
        cv2.fillPoly(canvas, polygons, 255, cv2.LINE_AA, FRACTION_BITS)
        width = rng.uniform(0.0, 0.08)  # print is thickened by drawing along its outline
    thickness = max(1, round(width * CANVAS))
    cv2.polylines(canvas, polygons, not pen, 255, thickness, cv2.LINE_AA, FRACTION_BITS)
    return canvas.astype(np.float32) / np.float32(255)


def lose_detail(rng: np.random.Generator, mask: Mask, scanned: bool, image_size: int) -> Mask:
    """Shrink the mask to a few pixels and enlarge it again, so that edges are not always sharp."""
    if scanned:
        small = int(rng.integers(8, 13)) if rng.random() < 0.4 else 8
    elif rng.random() < 0.5:
        small = int(rng.integers(8, 33))
    else:
        small = CANVAS
    mask = cv2.resize(mask, (small, small), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small == CANVAS and image_size < CANVAS:
        return cv2.resize(mask, (image_size, image_size), interpolation=cv2.INTER_AREA).astype(np.float32)
    smooth = cv2.INTER_CUBIC if not scanned and rng.random() < 0.3 else cv2.INTER_LINEAR
    mask = cv2.resize(mask, (image_size, image_size), interpolation=smooth).astype(np.float32)
    return mask.clip(0, 1)


# 4. Colour ----------------------------------------------------------------------------------------------


def colour(rng: np.random.Generator, mask: Mask, scanned: bool) -> Picture:
    """Blend paper and ink through the mask; scans are white on black and clean, the rest is anything."""
    if scanned:
        grey = np.uint8(255) * np.minimum(mask * rng.uniform(0.85, 1.25), 1)
        return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
    size = len(mask)
    paper, pigment = contrasting_colours(rng)
    across, down = np.meshgrid(np.linspace(-1, 1, size), np.linspace(-1, 1, size))
    light = rng.uniform(-25, 25) * across + rng.uniform(-25, 25) * down
    picture = paper + mask[:, :, None] * (pigment - paper) + light[:, :, None]
    picture += rng.normal(0, rng.uniform(0, 16), size=(size, size, 1))
    return picture.clip(0, 255).astype(np.uint8)


def contrasting_colours(rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Choose two colours, grey or not, that differ enough in brightness to be told apart."""
    dark, bright = rng.uniform(0, 100), rng.uniform(155, 255)
    tint = rng.uniform(-60, 60, size=(2, 3)) if rng.random() < 0.7 else np.zeros((2, 3))
    first, second = dark + tint[0], bright + tint[1]
    return (first, second) if rng.random() < 0.65 else (second, first)
