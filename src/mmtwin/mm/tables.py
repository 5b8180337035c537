"""The state of the page allocator: a few flat tables whose columns are named after the kernel's structs.

Lists are the kernel's circular doubly linked lists: ``next`` and ``prev`` are row numbers of the page table, and the heads are extra
rows behind the page frames, so that adding and deleting needs no special case (include/linux/list.h).
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin.gfp import GFP_ZONES, MAX_NR_ZONES, MIGRATE_TYPES

MAX_ORDER = 10
"""The highest order, inclusive. (Linux 6.1's own MAX_ORDER is 11 and exclusive; the name became inclusive in 6.4.)"""
NR_ORDERS = MAX_ORDER + 1
PAGEBLOCK_ORDER = 9
"""Of x86 where a huge page has 2 MiB: 64 bit and PAE. Where it has 4 MiB (i386 without PAE) it is 10; see ``pageblock_order`` of `CONFIG`."""
PAGE_ALLOC_COSTLY_ORDER = 3
NR_PCP_LISTS = 14
"""Orders 0 to 3 of three types, then two for transparent huge pages: not movable, movable (one in 6.1.0 to 6.1.?, see docs)."""

PG_BUDDY = 1  # head of a free block in the buddy lists; `order` is its order
PG_PCP = 2  # head of a block on a per-CPU list
PG_ALLOCATED = 4  # head of a block that this allocator handed out; `order` is its order
PG_LRU = 8  # on an LRU list: counts as movable when a pageblock is stolen
PG_MOVABLE = 16  # __PageMovable: movable without being on the LRU
PG_FREEING = 32  # between mm_page_free and the moment it reaches a list
PG_SLAB = 64  # every page of a slab; `next` is then the slab's row
PG_TABLE = -128  # a page-table page, besides PG_ALLOCATED; `next` is then its row in the page tables (the sign: the column has 8 bits)

NR_LRU_HEADS = 16
"""Rows behind those of the per-CPU lists: heads of the node's LRU lists and of the lists that reclaim works on (user/lru.py)."""

ZONE_BOOSTED_WATERMARK = 1
ZONE_RECLAIM_ACTIVE = 2
"""``enum zone_flags`` as bits of `ZONE.flags`."""

PAGE = np.dtype(
    [
        ("next", "i4"),  # list_head of the list the block is on
        ("prev", "i4"),
        ("order", "i1"),  # of a free, listed or allocated block, at its head
        ("flags", "i1"),  # PG_* above
        ("migratetype", "i1"),  # cached when freed to a per-CPU list (the kernel keeps it in page->index)
        ("lru", "i1"),  # 1 + the LRU list that a page of processes is on (user/lru.py), 0: none
    ]
)
"""One row per page frame, 12 bytes. (Signed throughout: a compiled function is compiled again for each mixture of signed and unsigned arguments.)"""

ZONE = np.dtype(
    [
        ("start_pfn", "i8"),
        ("end_pfn", "i8"),  # start_pfn + spanned_pages
        ("present_pages", "i8"),
        ("managed_pages", "i8"),
        ("wmark_min", "i8"),
        ("wmark_low", "i8"),
        ("wmark_high", "i8"),
        ("wmark_promo", "i8"),
        ("watermark_boost", "i8"),
        ("nr_reserved_highatomic", "i8"),
        ("flags", "i8"),  # ZONE_* above
        ("nr_free_pages", "i8"),  # vm_stat[NR_FREE_PAGES], without the CPUs' differences
        ("percpu_drift_mark", "i8"),
        ("boost_at_balance", "i8"),  # watermark_boost when kswapd began its round
        ("is_highmem", "i8"),
        ("compact_considered", "i8"),  # attempts since the last failure, shift, order (mm/compaction.c)
        ("compact_defer_shift", "i8"),
        ("compact_order_failed", "i8"),
        ("compact_cached_free_pfn", "i8"),  # where compaction's scanners stand
        ("compact_cached_migrate_pfn", "i8"),
        ("pgalloc", "i8"),  # vm_event PGALLOC_*: pages handed out
        ("pgfree", "i8"),  # this zone's share of vm_event PGFREE
    ]
)
FREE_AREA = np.dtype([("nr_free", "i8")])
"""``struct free_area`` of zone z and order o is row z * NR_ORDERS + o; its lists are heads in the page table."""

PCP = np.dtype(
    [
        ("count", "i4"),  # pages on all lists
        ("high", "i4"),
        ("batch", "i4"),
        ("free_factor", "i4"),
        ("stat_threshold", "i4"),  # struct per_cpu_zonestat
        ("nr_free_pages_diff", "i4"),
    ]
)
"""``struct per_cpu_pages`` and ``per_cpu_zonestat`` of zone z and CPU c: row z * nr_cpus + c."""

CONFIG = np.dtype(
    [
        ("nr_frames", "i8"),
        ("nr_cpus", "i8"),
        ("online_cpus", "i8"),
        ("free_list_base", "i8"),  # first list-head row: ((zone * NR_ORDERS) + order) * MIGRATE_TYPES + migratetype
        ("pcp_list_base", "i8"),  # (zone * nr_cpus + cpu) * NR_PCP_LISTS + list
        ("page_group_by_mobility_disabled", "i8"),
        ("watermark_boost_factor", "i8"),
        ("watermark_scale_factor", "i8"),
        ("min_free_kbytes", "i8"),
        ("percpu_pagelist_high_fraction", "i8"),
        ("pcp_batch_scale_max", "i8"),  # CONFIG_PCP_BATCH_SCALE_MAX
        ("thp", "i8"),  # pageblock-order pages have per-CPU lists
        ("nofragment_zone", "i8"),  # ALLOC_NOFRAGMENT applies when this zone is the preferred one; -1 never
        ("lru_base", "i8"),  # first head of the LRU lists
        ("kswapd_wakeups", "i8"),  # wakeup_kswapd calls
        ("kswapd_order", "i8"),  # what kswapd is woken for: order, and highest zone (-1: nobody has asked)
        ("kswapd_highest_zoneidx", "i8"),
        ("kswapd_failures", "i8"),  # rounds in which it freed nothing
        ("kswapd_pending", "i8"),  # it has been woken and has not run yet
        ("waiting_order", "i8"),  # the request that would now enter direct reclaim: order, gfp
        ("waiting_gfp", "i8"),
        ("totalreserve_pages", "i8"),
        ("pageblock_order", "i8"),  # order of the blocks that have a migrate type: that of a huge page
        ("pageblock_split", "i8"),  # see `pageblock_row`; nr_frames for none
        ("extfrag", "i8"),  # blocks taken from another migrate type (mm_page_alloc_extfrag)
    ]
)
"""One row: sizes and sysctls."""


SPARSE_BYTES = 1 << 30
"""Page tables above this size (machines above about 85 GiB) are mapped without huge pages."""


class Pgdat(NamedTuple):
    """``pg_data_t``: one node's page allocator.

    :param page: `PAGE`, nr_frames rows and the list heads behind them.
    :param pageblock: migrate type per pageblock, see `pageblock_row`.
    :param zone: `ZONE`, one row per zone index (unpopulated ones are zero).
    :param lowmem_reserve: pages of zone i kept from requests whose highest zone is j.
    :param gfp_zone: highest zone index by the low four bits of the GFP flags.
    """

    page: npt.NDArray[np.void]
    pageblock: npt.NDArray[np.int8]
    zone: npt.NDArray[np.void]
    lowmem_reserve: npt.NDArray[np.int64]
    free_area: npt.NDArray[np.void]
    pcp: npt.NDArray[np.void]
    config: npt.NDArray[np.void]
    gfp_zone: npt.NDArray[np.int64]


def _sparse_zeros(rows: int) -> npt.NDArray[np.void]:
    """A page table of zeros whose memory is taken only where it is written.

    numpy asks for huge pages, with which the one row in every 1024 that a large machine writes at boot would touch all of it: 3 GiB for 1 TiB of frames.
    """
    if rows * PAGE.itemsize < SPARSE_BYTES or not hasattr(mmap, "MADV_NOHUGEPAGE"):
        return np.zeros(rows, dtype=PAGE)
    memory = mmap.mmap(-1, rows * PAGE.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype=PAGE)


def new_pgdat(nr_frames: int, nr_cpus: int, gfp_zones: tuple[int, ...] = GFP_ZONES, pageblock_order: int = PAGEBLOCK_ORDER, pageblock_split: int = 0) -> Pgdat:
    """Empty tables: every list empty, no memory free. The page table is zero pages until it is touched.

    :param pageblock_split: first frame of a zone that begins inside a pageblock, on kernels without sparse memory (`pageblock_row`); 0 for none.
    """
    free_lists = MAX_NR_ZONES * NR_ORDERS * MIGRATE_TYPES
    pcp_lists = MAX_NR_ZONES * nr_cpus * NR_PCP_LISTS
    page = _sparse_zeros(nr_frames + free_lists + pcp_lists + NR_LRU_HEADS)
    heads = np.arange(nr_frames, len(page), dtype=np.int32)
    page["next"][nr_frames:] = heads
    page["prev"][nr_frames:] = heads
    config = np.zeros(1, dtype=CONFIG)
    config["nr_frames"], config["nr_cpus"], config["online_cpus"] = nr_frames, nr_cpus, nr_cpus
    config["free_list_base"], config["pcp_list_base"], config["lru_base"] = nr_frames, nr_frames + free_lists, nr_frames + free_lists + pcp_lists
    config["kswapd_highest_zoneidx"] = -1
    config["nofragment_zone"], config["pageblock_order"], config["pageblock_split"] = -1, pageblock_order, pageblock_split or nr_frames
    return Pgdat(
        page=page,
        pageblock=np.ones(nr_pageblocks(nr_frames, pageblock_order, pageblock_split), dtype=np.int8),
        zone=np.zeros(MAX_NR_ZONES, dtype=ZONE),
        lowmem_reserve=np.zeros((MAX_NR_ZONES, MAX_NR_ZONES), dtype=np.int64),
        free_area=np.zeros(MAX_NR_ZONES * NR_ORDERS, dtype=FREE_AREA),
        pcp=np.zeros(MAX_NR_ZONES * nr_cpus, dtype=PCP),
        config=config,
        gfp_zone=np.array(gfp_zones, dtype=np.int64),
    )


def nr_pageblocks(nr_frames: int, pageblock_order: int, pageblock_split: int = 0) -> int:
    """Rows of `Pgdat.pageblock`: one more where two zones share a pageblock."""
    return -(-nr_frames >> pageblock_order) + (0 < pageblock_split < nr_frames)


def pageblock_rows(state: Pgdat, pfns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`pageblock_row` of many page frames."""
    config = state.config[0]
    return (pfns >> int(config["pageblock_order"])) + (pfns >= int(config["pageblock_split"]))


def pageblock_starts(state: Pgdat) -> npt.NDArray[np.int64]:
    """First page frame of each row of `Pgdat.pageblock`."""
    order, split = int(state.config[0]["pageblock_order"]), int(state.config[0]["pageblock_split"])
    rows = np.arange(len(state.pageblock), dtype=np.int64)
    first = rows << order
    later = rows > split >> order
    if split < int(state.config[0]["nr_frames"]):
        first[later] = np.maximum((rows[later] - 1) << order, split)
    return first


def copy_pgdat(state: Pgdat) -> Pgdat:
    """An independent copy, for a what-if."""
    return Pgdat._make(table.copy() for table in state)
