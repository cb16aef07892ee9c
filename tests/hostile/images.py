"""Makes hostile image files, each with what must come of it: read, or refused with these words."""

from __future__ import annotations

import io
import os
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

READ = None
"""The file is harmless and must be read."""

MAX_PIXELS = 1_000_000

Maker = bytes | Callable[[Path], object]


def saved(format: str, mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    """A picture of noise in a format."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    image = Image.fromarray(noise.squeeze()).convert(mode) if channels < 3 else Image.fromarray(noise, mode)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def patched(content: bytes, mark: bytes, offset: int, new: bytes) -> bytes:
    """The content with some bytes after the first occurrence of a mark replaced."""
    at = content.index(mark) + offset
    return content[:at] + new + content[at + len(new) :]


# --- PNG by hand -----------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *, extra: bytes = b"", data: bytes | None = None, depth: int = 8) -> bytes:
    """A grey PNG; ``data`` is what its pixels are unpacked from."""
    if data is None:
        data = zlib.compress(bytes((width * depth // 8 + 1) * height))
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


ZEROS = zlib.compress(bytes(100_000_000))  # 97 kB

# --- EXIF ------------------------------------------------------------------------------------------------------------


def exif(entries: list[tuple[int, int, int, int]], next_ifd: int = 0) -> bytes:
    """An EXIF block of (tag, type, count, value) entries."""
    rows = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + rows + struct.pack("<I", next_ifd)
    )


def mpo() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(
        file, "MPO", save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")]
    )
    return file.getvalue()


def animated(format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    frames[0].save(file, format, save_all=True, append_images=frames[1:], **options)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(10_000_000))
    return file.getvalue()


def listen(path: Path) -> None:
    """A socket file, left by a server that is gone."""
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket has room for some hundred characters
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


JPEG, PNG, GIF, WEBP, BMP = (saved(format) for format in ("JPEG", "PNG", "GIF", "WEBP", "BMP"))
GREY16 = Image.fromarray(np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40))
HUGE = struct.pack(">HH", 65500, 65500)
BROKEN = "damaged or truncated"
TOO_LARGE = "pixels, more than"
NO_IMAGE = "is not an image in JPEG, PNG, BMP, GIF, WEBP"


def bits16() -> bytes:
    file = io.BytesIO()
    GREY16.save(file, "PNG")
    return file.getvalue()


CASES: dict[str, tuple[Maker, str | None]] = {
    # Decompression bombs: a few bytes that say they are gigabytes.
    "bomb.png": (png(60_000, 60_000, data=ZEROS), TOO_LARGE),
    "bomb_small.png": (png(1_001, 1_000), "1001 x 1000 pixels, more than data.max_pixels"),
    "bomb_idat.png": (png(10, 10, data=ZEROS), READ),
    "bomb_ztxt.png": (png(10, 10, extra=chunk(b"zTXt", b"Comment\0\0" + ZEROS)), BROKEN),
    "bomb_itxt.png": (png(10, 10, extra=chunk(b"iTXt", b"Comment\0\1\0\0\0" + ZEROS)), BROKEN),
    "bomb_iccp.png": (png(10, 10, extra=chunk(b"iCCP", b"sRGB\0\0" + ZEROS)), BROKEN),
    "bomb.jpg": (patched(JPEG, b"\xff\xc0", 5, HUGE), TOO_LARGE),
    "bomb.gif": (patched(GIF, b"GIF8", 6, b"\xff\xff\xff\xff"), TOO_LARGE),
    "bomb_frame.gif": (patched(GIF, b",\0\0\0\0", 5, b"\xff\xff\xff\xff"), TOO_LARGE),
    "bomb.webp": (patched(WEBP, b"\x9d\x01\x2a", 3, struct.pack("<HH", 16383, 16383)), TOO_LARGE),
    "bomb_lossless.webp": (
        patched(saved("WEBP", lossless=True), b"VP8L", 9, struct.pack("<I", 16383 | 16383 << 14)),
        TOO_LARGE,
    ),
    "bomb_animated.webp": (
        patched(animated("WEBP"), b"VP8X", 12, (16383).to_bytes(3, "little") * 2),
        TOO_LARGE,
    ),
    "bomb.bmp": (patched(BMP, b"BM", 18, struct.pack("<ii", 100_000, 100_000)), TOO_LARGE),
    "negative.bmp": (patched(BMP, b"BM", 18, struct.pack("<ii", -40, 30)), TOO_LARGE),
    "terabyte.jpg": (sparse, "bytes, more than"),
    # Shapes.
    "wide.png": (png(100_000, 1), READ),
    "high.png": (png(1, 100_000), READ),
    "one_pixel.png": (png(1, 1), READ),
    "no_pixel.png": (png(0, 0), NO_IMAGE),
    # Cut off.
    **{f"cut_{len(JPEG[:at])}.jpg": (JPEG[:at], says) for at, says in ((1, NO_IMAGE), (100, BROKEN), (-200, BROKEN))},
    **{f"cut_{len(PNG[:at])}.png": (PNG[:at], says) for at, says in ((12, NO_IMAGE), (40, NO_IMAGE), (700, BROKEN))},
    "cut.gif": (GIF[:-100], BROKEN),
    "cut_head.gif": (GIF[:9], NO_IMAGE),
    "cut.webp": (WEBP[:-50], ""),
    "cut.bmp": (BMP[:-100], BROKEN),
    "cut_head.bmp": (BMP[:20], BROKEN),
    "empty.jpg": (b"", "is empty (0 bytes)"),
    "one_byte.png": (b"\x89", NO_IMAGE),
    # Lies.
    "png_named.jpg": (PNG, READ),
    "jpeg_named.gif": (JPEG, READ),
    "html.png": (b"<!doctype html><html><body>404 Not Found</body></html>", NO_IMAGE),
    "text.jpg": ("kein Bild\n".encode("utf-16"), NO_IMAGE),
    "zip.jpg": (zipped(), NO_IMAGE),
    "pdf.jpg": (b"%PDF-1.7\n1 0 obj\n<< /JS (app.alert(1)) >>\nendobj\n", NO_IMAGE),
    "svg.png": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', NO_IMAGE),
    "program.jpg": (b"\x7fELF\x02\x01\x01" + bytes(2000), NO_IMAGE),
    "tiff_named.jpg": (saved("TIFF"), NO_IMAGE),
    "eps_named.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", NO_IMAGE),
    "ico_named.png": (saved("ICO", size=(32, 32)), NO_IMAGE),
    "noise.jpg": (np.random.default_rng(1).bytes(5000), NO_IMAGE),
    "start_of_a_jpeg_only.jpg": (b"\xff\xd8\xff" + np.random.default_rng(2).bytes(5000), BROKEN),
    # EXIF.
    "exif_orientation_huge.jpg": (saved("JPEG", exif=exif([(0x0112, 3, 1, 60_000)])), READ),
    "exif_orientation_many.jpg": (saved("JPEG", exif=exif([(0x0112, 3, 2**31, 8)])), READ),
    "exif_loop.jpg": (saved("JPEG", exif=exif([(0x8769, 4, 1, 8), (0x0112, 3, 1, 6)], next_ifd=8)), READ),
    "exif_far.jpg": (saved("JPEG", exif=exif([(0x010F, 2, 2**30, 2**31)], next_ifd=2**31)), READ),
    "exif_cut.jpg": (saved("JPEG", exif=exif([(0x0112, 3, 1, 6)])[:20]), READ),
    "exif_noise.jpg": (saved("JPEG", exif=b"Exif\0\0II*\0" + np.random.default_rng(3).bytes(3000)), READ),
    "exif.png": (png(40, 30, extra=chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")), READ),
    # Legal, but rare.
    "cmyk.jpg": (saved("JPEG", "CMYK"), READ),
    "progressive.jpg": (saved("JPEG", progressive=True), READ),
    "sixteen_bits.png": (bits16(), READ),
    "palette.png": (saved("PNG", "P"), READ),
    "one_bit.png": (saved("PNG", "1"), READ),
    "alpha.png": (saved("PNG", "RGBA"), READ),
    "grey_alpha.png": (saved("PNG", "LA"), READ),
    "palette_short.png": (patched(saved("PNG", "P"), b"PLTE", -4, b"\0\0\0\3"), NO_IMAGE),
    "animated.gif": (animated("GIF"), READ),
    "animated.png": (animated("PNG"), READ),
    "animated.webp": (animated("WEBP"), READ),
    "two_pictures.jpg": (mpo(), READ),
    "icc_noise.jpg": (saved("JPEG", icc_profile=np.random.default_rng(4).bytes(70_000)), READ),
    "crc_wrong.png": (patched(PNG, b"IHDR", 17, b"\0\0\0\0"), NO_IMAGE),
    "no_chunks.png": (PNG[:8], NO_IMAGE),
    "chunk_too_long.png": (b"\x89PNG\r\n\x1a\n\x7f\xff\xff\xffIHDR" + bytes(40), BROKEN),
    "bytes_after_the_end.png": (PNG + bytes(1000), READ),
    # Not files.
    "pipe.jpg": (os.mkfifo, "no such file"),
    "socket.jpg": (listen, "no such file"),
    "device.jpg": (lambda path: path.symlink_to("/dev/zero"), "no such file"),
    "dangling.jpg": (lambda path: path.symlink_to("nowhere.jpg"), "no such file"),
    "loop.jpg": (lambda path: path.symlink_to(path.name), "no such file"),
    # Names.
    "new\nline.png": (PNG, READ),
    "\x1b]0;owned\x07\x1b[31m.png": (b"", "is empty (0 bytes)"),
    os.fsdecode(b"caf\xe9.png"): (saved("PNG", size=(39, 30)), READ),
    os.fsdecode(b"caf\xe9-cut.png"): (PNG[:500], BROKEN),
    "; rm -rf $HOME; .png": (saved("PNG", size=(38, 30)), READ),
    "-rf.png": (saved("PNG", size=(37, 30)), READ),
    "n" * 251 + ".png": (saved("PNG", size=(36, 30)), READ),
}
"""By file name: how it is made, and what must come of it. An empty text: read or refused, as Pillow's version does."""


def make(folder: Path) -> None:
    """Write every case into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (maker, _) in CASES.items():
        if isinstance(maker, bytes):
            (folder / name).write_bytes(maker)
        else:
            maker(folder / name)
