"""GFP flags as trace text prints them, of every kernel since 2.6.31, as one integer with the bits of Linux 6.1."""

from __future__ import annotations

from collections.abc import Mapping

SINGLE: Mapping[str, int] = {
    "DMA": 0x1, "HIGHMEM": 0x2, "DMA32": 0x4, "MOVABLE": 0x8, "RECLAIMABLE": 0x10, "HIGH": 0x20, "IO": 0x40, "FS": 0x80, "ZERO": 0x100, "ATOMIC": 0x200,
    "DIRECT_RECLAIM": 0x400, "KSWAPD_RECLAIM": 0x800, "RECLAIM": 0xC00, "WRITE": 0x1000, "NOWARN": 0x2000, "RETRY_MAYFAIL": 0x4000, "NOFAIL": 0x8000,
    "NORETRY": 0x10000, "MEMALLOC": 0x20000, "COMP": 0x40000, "NOMEMALLOC": 0x80000, "HARDWALL": 0x100000, "THISNODE": 0x200000, "ACCOUNT": 0x400000,
    "ZEROTAGS": 0x800000,
    # gone since: WAIT became RECLAIM in 4.4, REPEAT became RETRY_MAYFAIL in 4.13; the others have no counterpart and no effect on what is asked for
    "WAIT": 0xC00, "REPEAT": 0x4000, "COLD": 0, "NOTRACK": 0, "NO_KSWAPD": 0, "OTHER_NODE": 0, "NOLOCKDEP": 0, "SKIP_ZERO": 0, "SKIP_KASAN": 0,
    "SKIP_KASAN_UNPOISON": 0, "SKIP_KASAN_POISON": 0, "NO_OBJ_EXT": 0, "NOACCOUNT": 0, "NOMEMPOLICY": 0,
}  # fmt: skip
COMPOSITE: Mapping[str, int] = {
    "GFP_ATOMIC": 0xA20, "GFP_KERNEL": 0xCC0, "GFP_KERNEL_ACCOUNT": 0x400CC0, "GFP_NOWAIT": 0x800, "GFP_NOIO": 0xC00, "GFP_NOFS": 0xC40, "GFP_USER": 0x100CC0,
    "GFP_HIGHUSER": 0x100CC2, "GFP_HIGHUSER_MOVABLE": 0x100CCA, "GFP_TRANSHUGE_LIGHT": 0x1C20CA, "GFP_TRANSHUGE": 0x1C24CA, "GFP_TEMPORARY": 0xCD0,
    "GFP_IOFS": 0xC0,
}  # fmt: skip
"""The same values as in mmtwin.gfp (a test compares them), written here so that importing text does not import numba."""


def gfp_from_names(text: str) -> int:
    """The flags that `text` names: ``GFP_KERNEL|__GFP_ZERO`` (since 4.6), ``GFP_KERNEL|GFP_ZERO`` (before), ``none``, or numbers among them.

    Names are given the bits of Linux 6.1, whatever kernel printed them. Numbers are what the printing kernel had no name for; they are taken
    over unchanged, although other kernels number the bits above ZEROTAGS differently.

    :raises ValueError: an unknown name.
    """
    value = 0
    for word in text.strip().split("|"):
        name = word.strip()
        if name in COMPOSITE:
            value |= COMPOSITE[name]
        elif name.startswith(("__GFP_", "___GFP_", "GFP_")) and (single := name.partition("GFP_")[2]) in SINGLE:
            value |= SINGLE[single]
        elif name[:2] in ("0x", "0X"):
            value |= int(name, 16)
        elif name.isascii() and name.isdigit():
            value |= int(name)
        elif name not in ("none", "0"):
            raise ValueError(f"{name[:60]!r} is no GFP flag")
    if not 0 <= value < 1 << 32:
        raise ValueError(f"{text[:60]!r} has more than 32 bits")
    return value
