"""GFP flags, migrate types and allocation flags of Linux 6.1 (include/linux/gfp_types.h, mmzone.h, mm/internal.h)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from mmtwin._jit import inner


class GFP(IntFlag):
    """``gfp_t`` bits. Bit 0x200 (``__GFP_ATOMIC``) is unused since Linux 6.3."""

    DMA = 0x1
    HIGHMEM = 0x2
    DMA32 = 0x4
    MOVABLE = 0x8
    RECLAIMABLE = 0x10
    HIGH = 0x20
    IO = 0x40
    FS = 0x80
    ZERO = 0x100
    ATOMIC = 0x200
    DIRECT_RECLAIM = 0x400
    KSWAPD_RECLAIM = 0x800
    WRITE = 0x1000
    NOWARN = 0x2000
    RETRY_MAYFAIL = 0x4000
    NOFAIL = 0x8000
    NORETRY = 0x10000
    MEMALLOC = 0x20000
    COMP = 0x40000
    NOMEMALLOC = 0x80000
    HARDWALL = 0x100000
    THISNODE = 0x200000
    ACCOUNT = 0x400000
    ZEROTAGS = 0x800000


GFP_ATOMIC = 0xA20
GFP_KERNEL = 0xCC0
GFP_KERNEL_ACCOUNT = 0x400CC0
GFP_NOWAIT = 0x800
GFP_NOIO = 0xC00
GFP_NOFS = 0xC40
GFP_USER = 0x100CC0
GFP_DMA = 0x1
GFP_DMA32 = 0x4
GFP_HIGHUSER = 0x100CC2
GFP_HIGHUSER_MOVABLE = 0x100CCA
GFP_TRANSHUGE_LIGHT = 0x1C20CA
GFP_TRANSHUGE = 0x1C24CA

GFP_NAMES: tuple[tuple[str, int], ...] = (
    ("GFP_TRANSHUGE", GFP_TRANSHUGE), ("GFP_TRANSHUGE_LIGHT", GFP_TRANSHUGE_LIGHT), ("GFP_HIGHUSER_MOVABLE", GFP_HIGHUSER_MOVABLE), ("GFP_HIGHUSER", GFP_HIGHUSER),
    ("GFP_USER", GFP_USER), ("GFP_KERNEL_ACCOUNT", GFP_KERNEL_ACCOUNT), ("GFP_KERNEL", GFP_KERNEL), ("GFP_NOFS", GFP_NOFS), ("GFP_ATOMIC", GFP_ATOMIC),
    ("GFP_NOIO", GFP_NOIO), ("GFP_NOWAIT", GFP_NOWAIT), ("GFP_DMA", GFP_DMA), ("__GFP_HIGHMEM", 0x2), ("GFP_DMA32", GFP_DMA32), ("__GFP_HIGH", 0x20),
    ("__GFP_ATOMIC", 0x200), ("__GFP_IO", 0x40), ("__GFP_FS", 0x80), ("__GFP_NOWARN", 0x2000), ("__GFP_RETRY_MAYFAIL", 0x4000), ("__GFP_NOFAIL", 0x8000),
    ("__GFP_NORETRY", 0x10000), ("__GFP_COMP", 0x40000), ("__GFP_ZERO", 0x100), ("__GFP_NOMEMALLOC", 0x80000), ("__GFP_MEMALLOC", 0x20000), ("__GFP_HARDWALL", 0x100000),
    ("__GFP_THISNODE", 0x200000), ("__GFP_RECLAIMABLE", 0x10), ("__GFP_MOVABLE", 0x8), ("__GFP_ACCOUNT", 0x400000), ("__GFP_WRITE", 0x1000), ("__GFP_RECLAIM", 0xC00),
    ("__GFP_DIRECT_RECLAIM", 0x400), ("__GFP_KSWAPD_RECLAIM", 0x800), ("__GFP_ZEROTAGS", 0x800000),
)  # fmt: skip
"""Names and masks in the order in which 6.1 prints them (include/trace/events/mmflags.h)."""


def gfp_names(gfp: int) -> str:
    """The text the kernel prints for `gfp`: each name of the table that is wholly contained removes its bits, the rest is printed in hex."""
    if not gfp:
        return "none"
    found = []
    for name, mask in GFP_NAMES:
        if gfp & mask == mask:
            found.append(name)
            gfp &= ~mask
    return "|".join(found + ([f"0x{gfp:x}"] if gfp else []))


class Migratetype(IntEnum):
    """``enum migratetype`` of a kernel without CONFIG_CMA; types below PCPTYPES have per-CPU lists."""

    UNMOVABLE = 0
    MOVABLE = 1
    RECLAIMABLE = 2
    HIGHATOMIC = 3
    ISOLATE = 4


UNMOVABLE, MOVABLE, RECLAIMABLE, HIGHATOMIC, ISOLATE = range(5)
PCPTYPES = 3
MIGRATE_TYPES = 5
MIGRATETYPE_NAMES = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate")

ZONE_DMA, ZONE_DMA32, ZONE_NORMAL, ZONE_MOVABLE, ZONE_DEVICE = range(5)
MAX_NR_ZONES = 5
GFP_ZONES = (ZONE_NORMAL, ZONE_DMA, ZONE_NORMAL, -1, ZONE_DMA32, -1, -1, -1, ZONE_NORMAL, ZONE_DMA, ZONE_MOVABLE, -1, ZONE_DMA32, -1, -1, -1)
"""Highest zone index of a request by the low four bits of its flags, on x86-64; -1 is a bug in the caller (GFP_ZONE_BAD)."""

ALLOC_WMARK_MIN, ALLOC_WMARK_LOW, ALLOC_WMARK_HIGH = 0, 1, 2
ALLOC_WMARK_MASK = 3
ALLOC_NO_WATERMARKS = 0x4
ALLOC_OOM = 0x8
ALLOC_NON_BLOCK = 0x10
ALLOC_MIN_RESERVE = 0x20
ALLOC_CPUSET = 0x40
ALLOC_CMA = 0x80
ALLOC_NOFRAGMENT = 0x100
ALLOC_HIGHATOMIC = 0x200
ALLOC_KSWAPD = 0x800
ALLOC_RESERVES = ALLOC_NON_BLOCK | ALLOC_MIN_RESERVE | ALLOC_HIGHATOMIC | ALLOC_OOM


@inner
def gfp_migratetype(gfp: int) -> int:
    """The free list a request is served from: bits MOVABLE and RECLAIMABLE (include/linux/gfp.h)."""
    return (gfp & 0x18) >> 3


@inner
def gfp_to_alloc_flags(gfp: int, order: int) -> int:
    """Allocation flags of the slow path (mm/page_alloc.c, Linux 6.1.y; a real-time task's extra reserve is not known here)."""
    flags = ALLOC_WMARK_MIN | ALLOC_CPUSET | (gfp & 0x820)  # __GFP_HIGH is ALLOC_MIN_RESERVE, __GFP_KSWAPD_RECLAIM is ALLOC_KSWAPD
    if not gfp & 0x400:
        if not gfp & 0x80000:
            flags |= ALLOC_NON_BLOCK
            if order > 0 and flags & ALLOC_MIN_RESERVE:
                flags |= ALLOC_HIGHATOMIC
        if flags & ALLOC_MIN_RESERVE:
            flags &= ~ALLOC_CPUSET
    return flags
