"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, one: str, several: str | None = None) -> str:
    """A number and what it counts: ``1 image``, ``2,000 images``.

    Args:
        number: how many.
        one: the word for one of them.
        several: for any other number of them; None: with an s.
    """
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def size_text(size: float) -> str:
    """Bytes in the unit that suits their number: ``640 bytes``, ``1.5 kB``, ``28.2 MB``, ``3.1 GB``."""
    if size < 1000:
        return counted(round(size), "byte")
    unit = next((unit for unit in ("kB", "MB") if size < 999.95 * _UNITS[unit]), "GB")
    return f"{size / _UNITS[unit]:,.1f} {unit}"


_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
