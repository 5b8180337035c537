"""Sizes, orders and page frames."""

from __future__ import annotations

import re
from fractions import Fraction

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
SUFFIXES = {"": 0, "B": 0, "K": 10, "KB": 10, "KIB": 10, "M": 20, "MB": 20, "MIB": 20, "G": 30, "GB": 30, "GIB": 30, "T": 40, "TB": 40, "TIB": 40}


def parse_size(text: str | int) -> int:
    """Bytes of a size such as ``256MiB``, ``4G`` or ``65536``; the suffixes are binary, as the kernel's and QEMU's are.

    :raises ValueError: the text is no size.
    """
    if isinstance(text, int):
        return text
    found = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].upper() not in SUFFIXES:
        raise ValueError(f"{text!r} is not a size; expected a number with K, M, G or T, as in 256M")
    return int(Fraction(found[1]) * (1 << SUFFIXES[found[2].upper()]))


def format_size(size: int) -> str:
    """The largest binary unit that divides `size`: ``268435456`` gives ``256 MiB``."""
    for suffix, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size and size % (1 << shift) == 0:
            return f"{size >> shift} {suffix}"
    return f"{size} B"


def get_order(size: int) -> int:
    """The smallest order whose block holds `size` bytes (include/asm-generic/getorder.h)."""
    return max(0, (max(size, 1) - 1).bit_length() - PAGE_SHIFT)
