"""The state of processes: address spaces, their areas, who has which page (include/linux/mm_types.h, rmap.h).

Areas of all processes are rows of one table. Those of one address space hang in a list in address order and in a red-black tree, in which each node knows the largest
gap below an area of its subtree (`va_start` to `va_end` is the gap in front of the area), as kernels before 6.1 kept them; 6.1 has a maple tree, which answers the same.
Row 0 of `VM_AREA`, `ANON_VMA` and `AVC` is none. Addresses of processes are below 2^63 and kept as they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin.gfp import MAX_NR_ZONES
from mmtwin.mm.vmap_tables import NIL, RB_BLACK, ZERO_BYTES

VM_READ, VM_WRITE, VM_EXEC, VM_SHARED = 0x1, 0x2, 0x4, 0x8
VM_MAYREAD, VM_MAYWRITE, VM_MAYEXEC, VM_MAYSHARE = 0x10, 0x20, 0x40, 0x80
VM_GROWSDOWN, VM_PFNMAP, VM_LOCKED, VM_IO = 0x100, 0x400, 0x2000, 0x4000
VM_SEQ_READ, VM_RAND_READ, VM_DONTCOPY, VM_DONTEXPAND = 0x8000, 0x10000, 0x20000, 0x40000
VM_LOCKONFAULT, VM_ACCOUNT, VM_NORESERVE, VM_WIPEONFORK = 0x80000, 0x100000, 0x200000, 0x2000000
VM_DONTDUMP, VM_SOFTDIRTY, VM_MIXEDMAP = 0x4000000, 0x8000000, 0x10000000
VM_HUGEPAGE, VM_NOHUGEPAGE, VM_MERGEABLE = 0x20000000, 0x40000000, 0x80000000
VM_ACCESS_FLAGS = VM_READ | VM_WRITE | VM_EXEC
VM_SPECIAL = VM_IO | VM_DONTEXPAND | VM_PFNMAP | VM_MIXEDMAP
VM_NO_KHUGEPAGED = VM_SPECIAL | 0x400000
"""Bits of ``vm_flags`` (include/linux/mm.h); 0x400000 is VM_HUGETLB."""

VM_AREA = np.dtype(
    [
        ("vm_start", "i8"),
        ("vm_end", "i8"),
        ("vm_flags", "i8"),
        ("vm_pgoff", "i8"),
        ("va_start", "i8"),  # where the area before ends, 0 if there is none
        ("va_end", "i8"),  # vm_start
        ("subtree_max_size", "i8"),  # largest gap of the subtree, biased (mm/rbtree.py)
        ("object", "i8"),  # address of the struct vm_area_struct
        ("ra_addr", "i8"),  # swap_readahead_info: address of the last fault, window, hits (0 and no address: none yet)
        ("ra_win", "i4"),
        ("ra_hits", "i4"),
        ("vm_file", "i4"),  # row in FILE, -1 for none
        ("vm_mm", "i4"),
        ("anon_vma", "i4"),
        ("chain", "i4"),  # first of anon_vma_chain
        ("next", "i4"),  # in address order; of an unused row: the next unused one
        ("prev", "i4"),
        ("rb_left", "i4"),
        ("rb_right", "i4"),
        ("rb_parent", "i4"),
        ("rb_color", "i4"),
    ]
)
MM = np.dtype(
    [
        ("used", "i8"),
        ("rb_root", "i8"),
        ("mmap", "i8"),  # first area
        ("last", "i8"),  # last area
        ("cached", "i8"),  # the area found last
        ("pgd", "i8"),  # row of the PGD in the page tables
        ("map_count", "i8"),
        ("total_vm", "i8"),
        ("data_vm", "i8"),
        ("exec_vm", "i8"),
        ("stack_vm", "i8"),
        ("locked_vm", "i8"),
        ("hiwater_vm", "i8"),
        ("hiwater_rss", "i8"),
        ("rss_file", "i8"),  # MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES
        ("rss_anon", "i8"),
        ("rss_swap", "i8"),
        ("rss_shmem", "i8"),
        ("pgtables", "i8"),  # tables below the PGD
        ("huge_zero", "i8"),  # MMF_HUGE_ZERO_PAGE
        ("start_code", "i8"),
        ("end_code", "i8"),
        ("start_data", "i8"),
        ("end_data", "i8"),
        ("start_brk", "i8"),
        ("brk", "i8"),
        ("start_stack", "i8"),
        ("mmap_base", "i8"),
        ("mmap_legacy_base", "i8"),
        ("task_size", "i8"),
        ("topdown", "i8"),
        ("def_flags", "i8"),
        ("min_flt", "i8"),
        ("maj_flt", "i8"),
        ("next", "i8"),  # of an unused row
    ]
)
ANON_VMA = np.dtype(
    [
        ("root", "i8"),
        ("parent", "i8"),
        ("num_children", "i8"),
        ("num_active_vmas", "i8"),
        ("refcount", "i8"),
        ("nr", "i8"),  # areas in its rb_root
        ("first", "i8"),  # the first of their links
        ("object", "i8"),
        ("next", "i8"),  # of an unused row
    ]
)
AVC = np.dtype(
    [("object", "i8"), ("anon_vma", "i4"), ("vma", "i4"), ("next", "i4"), ("prev", "i4"), ("rb_next", "i4"), ("rb_prev", "i4")]  # the kernel's rb is a tree
)
"""``anon_vma_chain``: one link between an area and an anon_vma, in the area's list (same_vma), newest first, and in the anon_vma's."""

FILE_CACHED, FILE_SHMEM, FILE_SPECIAL = 0, 1, 2
FILE = np.dtype(
    [
        ("kind", "i8"),  # a file with page cache; shared memory (and tmpfs); what the kernel itself maps (vdso)
        ("first", "i8"),  # its first page in `Users.cache`
        ("pages", "i8"),
        ("gfp", "i8"),  # of its page cache (mapping_gfp_mask)
        ("cached", "i8"),  # pages it holds
        ("refcount", "i8"),  # areas that map it; 1 more while it has a name
    ]
)

EXCLUSIVE, ANON, TAIL, SHMEM = 1, 2, 4, 8
REF = 16
"""A frame's word: its reference count times REF, and PageAnonExclusive, PageAnon, "not the head of its compound page", PageSwapBacked of shared memory.
The count of a tail page is its own mappings'."""

FOLIO = np.dtype(
    [
        ("flags", "i4"),  # PG_* below
        ("mapcount", "i4"),  # entries that map it; of a huge page 512 for a huge entry
        ("mapping", "i4"),  # row of its anon_vma, or of its file
        ("swap", "i4"),  # 1 + its slot while it is in the swap cache, else 0
        ("index", "i8"),  # page offset in the file; of anonymous memory as vm_pgoff counts
    ]
)
"""``struct folio``, of pages that processes or files have; a huge page's is its head's."""
PG_REFERENCED, PG_ACTIVE, PG_SWAPBACKED, PG_DIRTY, PG_WRITEBACK, PG_RECLAIM, PG_WORKINGSET, PG_UNEVICTABLE, PG_READAHEAD = (1 << bit for bit in range(9))

LRU_INACTIVE_ANON, LRU_ACTIVE_ANON, LRU_INACTIVE_FILE, LRU_ACTIVE_FILE, LRU_UNEVICTABLE, NR_LRU_LISTS = range(6)
"""The node's lists; the heads behind them are lists that reclaim works on."""
L_HOLD, L_ACTIVE, L_INACTIVE, L_FOLIOS, L_KEEP, L_FREE, L_SKIPPED, L_MIGRATE, L_FREEPAGES = range(NR_LRU_LISTS, NR_LRU_LISTS + 9)

VM_EVENTS = (
    "pgscan_kswapd", "pgscan_direct", "pgsteal_kswapd", "pgsteal_direct", "pgscan_anon", "pgscan_file", "pgsteal_anon", "pgsteal_file", "pgscan_skip", "pgrefill",
    "pgactivate", "pgdeactivate", "pgrotated", "pglazyfreed", "pgmajfault", "pswpin", "pswpout", "swap_ra", "swap_ra_hit", "allocstall", "pageoutrun", "thp_split_page",
    "workingset_refault_anon", "workingset_refault_file", "workingset_activate_anon", "workingset_activate_file", "workingset_restore_anon", "workingset_restore_file",
    "unevictable_pgs_culled", "oom_kill", "compact_stall", "compact_success", "compact_fail", "compact_migrate_scanned", "compact_free_scanned", "compact_isolated",
    "pgmigrate_success", "pgmigrate_fail", "file_written",
)  # fmt: skip
"""Counters of /proc/vmstat (`file_written` is ours: pages of files that the flusher wrote)."""
LRUVEC = np.dtype(
    [
        ("anon_cost", "i8"),
        ("file_cost", "i8"),
        ("nonresident_age", "i8"),
        ("refaults_anon", "i8"),  # workingset_activate_* when reclaim last ended
        ("refaults_file", "i8"),
        ("isolated_anon", "i8"),
        ("isolated_file", "i8"),
        ("swappiness", "i8"),  # vm.swappiness
        ("page_cluster", "i8"),  # vm.page-cluster
        ("total_swap_pages", "i8"),
        ("nr_swap_pages", "i8"),  # free slots, but for those in the CPUs' caches
        ("nr_rotate_swap", "i8"),
        ("slot_cache_active", "i8"),
        ("readahead_hits", "i8"),  # swapin_readahead_hits
        ("readahead_offset", "i8"),  # of the last fault that read a cluster
        ("readahead_pages", "i8"),
        ("contents", "i8"),  # bytes are kept: what goes out and comes back is written to `Users.io`
        ("io", "i8"),  # rows in it
        *((name, "i8") for name in VM_EVENTS),
    ]
)
"""``struct lruvec``, of the one node; with the state of swapping and the events."""
SCAN_CONTROL = np.dtype(
    [(name, "i8") for name in (
        "nr_to_reclaim", "gfp_mask", "order", "reclaim_idx", "priority", "may_writepage", "may_unmap", "may_swap", "may_deactivate", "force_deactivate",
        "skipped_deactivate", "cache_trim_mode", "file_is_tiny", "compaction_ready", "nr_scanned", "nr_reclaimed", "anon_cost", "file_cost", "kswapd", "nr_taken", "nr_pageout", "vm_flags",
    )]
)  # fmt: skip
"""``struct scan_control``: one row, as one reclaims at a time."""

SWAP_HAS_CACHE = 0x4000
"""In the word of a slot: it is in the swap cache, or a CPU keeps it; below it the count of entries. (The kernel's map has bytes, with pages for larger counts.)"""
SWAP_SLOTS_CACHE_SIZE = 64
SWAP_INFO = np.dtype(
    [(name, "i8") for name in (
        "used", "first", "max", "pages", "inuse_pages", "lowest_bit", "highest_bit", "cluster_next", "cluster_nr", "prio", "solidstate", "synchronous", "writeok", "clusters",
        "first_cluster", "free_head", "free_tail", "turn",
    )]
)  # fmt: skip
"""``struct swap_info_struct``: `first` is its first slot in `Users.swap_map`, `turn` orders devices of the same priority; clusters are those of devices without moving parts."""
SWAP_CLUSTER = np.dtype([("count", "i4"), ("next", "i4")])
SLOT_NR, SLOT_CUR, SLOT_N_RET, SLOT_SLOTS, SLOT_RET = 0, 1, 2, 3, 3 + SWAP_SLOTS_CACHE_SIZE
SLOT_CACHE_ROWS = 3 + 2 * SWAP_SLOTS_CACHE_SIZE
"""``struct swap_slots_cache`` of a CPU: nr, cur, n_ret, then slots to hand out and slots that came back."""
SWAP_CPU = np.dtype([("index", "i8"), ("next", "i8")])
"""``percpu_cluster`` of device and CPU: the cluster that it takes slots from (-1: none), and the next slot."""
IO_SWAP_OUT, IO_SWAP_IN, IO_FILE_OUT, IO_FILE_IN, IO_COPY = range(5)
IO_ROWS = 1 << 15
"""What happened to contents: kind, slot or place in the page cache (IO_COPY: page frame), page frame."""

LRU_BATCH_SIZE = 15
LRU_BATCH_ROWS = LRU_BATCH_SIZE + 1
"""A CPU's pages that are on their way to an LRU list (``cpu_fbatches.lru_add``), each held by it, and their number: they follow the gathered ones."""

GATHER_BUNDLE, GATHER_BATCH, GATHER_BATCHES = 8, 510, 19
GATHER_ROWS = GATHER_BUNDLE + GATHER_BATCHES * GATHER_BATCH
GATHER_TABLE = 1 << 60
"""Marks a page table's row among the gathered page frames."""

LOG = np.dtype([("kind", "i8"), ("row", "i8")])
LOG_ROWS = 4096
NEW_VMA, FREE_VMA, NEW_AVC, FREE_AVC, NEW_ANON, FREE_ANON = range(6)
"""What the caller does with the slab allocator: objects to make (their row) and to free (their address)."""

USER_CONFIG = np.dtype(
    [
        ("vmas", "i8"),  # rows in use, or once used; then the first unused one below, 0: none
        ("free_vma", "i8"),
        ("anons", "i8"),
        ("free_anon", "i8"),
        ("avcs", "i8"),
        ("free_avc", "i8"),
        ("mms", "i8"),
        ("free_mm", "i8"),
        ("log", "i8"),
        ("gathered", "i8"),
        ("batches", "i8"),  # pages that hold gathered ones, beyond the first on the stack
        ("active", "i8"),  # the batch being filled
        ("zero_pfn", "i8"),
        ("huge_zero_pfn", "i8"),  # -1: not made yet
        ("huge_zero_refcount", "i8"),  # processes that have used it, and 1 for itself
        ("gfp_table", "i8"),  # GFP_PGTABLE_USER
        ("gfp_pte", "i8"),  # and __GFP_HIGHMEM with CONFIG_HIGHPTE
        ("pgd_order", "i8"),  # 1 with page table isolation built in
        ("thp", "i8"),  # 0 never, 1 madvise, 2 always
        ("thp_zero", "i8"),  # use_zero_page
        ("numa", "i8"),  # CONFIG_NUMA: the first try of a huge page is for the local node only
        ("guard_gap", "i8"),  # stack_guard_gap, bytes
        ("mmap_min_addr", "i8"),
        ("fault_around", "i8"),  # pages
        ("ra_pages", "i8"),
        ("committed", "i8"),  # vm_committed_as
        ("cow", "i8"),  # pages copied
        ("reused", "i8"),  # write faults that needed no copy
        ("thp_faults", "i8"),
        ("thp_fallbacks", "i8"),
        ("thp_splits", "i8"),  # of PMD entries
        ("source", "i8"),  # frame whose contents the fault copied to `target`; -1 none
        ("target", "i8"),  # frame that the fault took; -1 none
        ("taken", "i8"),  # page requests since the caller last looked, of which the first are in `request`
    ]
)
REQUEST_ROWS = 4096


class Users(NamedTuple):
    """Processes' memory.

    :param vma: `VM_AREA`.
    :param mm: `MM`.
    :param anon: `ANON_VMA`.
    :param avc: `AVC`.
    :param file: `FILE`.
    :param cache: page frames of files, -1 for those not in memory.
    :param frame: one word per page frame (`REF`).
    :param gather: page frames and tables on their way back (mm/mmu_gather.c), then each CPU's batch (`LRU_BATCH_ROWS`).
    :param batch_pfn: the pages that hold them.
    :param log: `LOG`.
    :param request: page requests of the last operation: order, gfp, page frame (-1: it failed).
    :param folio: `FOLIO`, one row per page frame.
    :param lru_size: pages on each LRU list: zone * NR_LRU_LISTS + list.
    :param lruvec: `LRUVEC`, one row.
    :param scan: `SCAN_CONTROL`, one row.
    :param swap: `SWAP_INFO`, one row per device.
    :param swap_map: all devices' slots (`SWAP_HAS_CACHE`).
    :param swap_cache: page frame of each slot; -1: none; below: the shadow of the page that was evicted (user/workingset.py).
    :param swap_cluster: `SWAP_CLUSTER`, all devices'.
    :param swap_cpu: `SWAP_CPU`: device * CPUs + CPU.
    :param slots: `SLOT_CACHE_ROWS` numbers of each CPU.
    :param io: `IO_ROWS`.
    :param config: `USER_CONFIG`, one row.
    """

    vma: npt.NDArray[np.void]
    mm: npt.NDArray[np.void]
    anon: npt.NDArray[np.void]
    avc: npt.NDArray[np.void]
    file: npt.NDArray[np.void]
    cache: npt.NDArray[np.int64]
    frame: npt.NDArray[np.int32]
    gather: npt.NDArray[np.int64]
    batch_pfn: npt.NDArray[np.int64]
    log: npt.NDArray[np.void]
    request: npt.NDArray[np.int64]
    folio: npt.NDArray[np.void]
    lru_size: npt.NDArray[np.int64]
    lruvec: npt.NDArray[np.void]
    scan: npt.NDArray[np.void]
    swap: npt.NDArray[np.void]
    swap_map: npt.NDArray[np.int16]
    swap_cache: npt.NDArray[np.int64]
    swap_cluster: npt.NDArray[np.void]
    swap_cpu: npt.NDArray[np.void]
    slots: npt.NDArray[np.int64]
    io: npt.NDArray[np.int64]
    config: npt.NDArray[np.void]


def new_users(nr_frames: int, nr_cpus: int) -> Users:
    """No process yet; room for a few."""
    vma = np.zeros(64, dtype=VM_AREA)
    vma["subtree_max_size"][0], vma["rb_color"][0], vma["vm_file"] = ZERO_BYTES, RB_BLACK, -1
    config = np.zeros(1, dtype=USER_CONFIG)
    config["vmas"] = config["anons"] = config["avcs"] = 1
    config["free_mm"] = config["zero_pfn"] = config["huge_zero_pfn"] = config["source"] = config["target"] = -1
    config["gfp_table"] = config["gfp_pte"] = 0x400DC0
    lruvec = np.zeros(1, dtype=LRUVEC)
    lruvec["swappiness"], lruvec["page_cluster"], lruvec["readahead_offset"] = 60, 3 if nr_frames >= 16 << 8 else 2, 0
    config["guard_gap"], config["mmap_min_addr"], config["fault_around"], config["ra_pages"] = 256 << 12, 65536, 16, 32
    return Users(
        vma=vma,
        mm=np.zeros(8, dtype=MM),
        anon=np.zeros(64, dtype=ANON_VMA),
        avc=np.zeros(64, dtype=AVC),
        file=np.zeros(0, dtype=FILE),
        cache=np.zeros(0, dtype=np.int64),
        frame=np.zeros(nr_frames, dtype=np.int32),
        gather=np.zeros(GATHER_ROWS + nr_cpus * LRU_BATCH_ROWS, dtype=np.int64),
        batch_pfn=np.zeros(GATHER_BATCHES, dtype=np.int64),
        log=np.zeros(LOG_ROWS, dtype=LOG),
        request=np.zeros(3 * REQUEST_ROWS, dtype=np.int64),
        folio=np.zeros(nr_frames, dtype=FOLIO),
        lru_size=np.zeros(MAX_NR_ZONES * NR_LRU_LISTS, dtype=np.int64),
        lruvec=lruvec,
        scan=np.zeros(1, dtype=SCAN_CONTROL),
        swap=np.zeros(0, dtype=SWAP_INFO),
        swap_map=np.zeros(0, dtype=np.int16),
        swap_cache=np.zeros(0, dtype=np.int64),
        swap_cluster=np.zeros(0, dtype=SWAP_CLUSTER),
        swap_cpu=np.zeros(0, dtype=SWAP_CPU),
        slots=np.zeros(nr_cpus * SLOT_CACHE_ROWS, dtype=np.int64),
        io=np.zeros(3 * IO_ROWS, dtype=np.int64),
        config=config,
    )


def copy_users(s: Users) -> Users:
    """An independent copy."""
    return Users._make(table.copy() for table in s)


def reserve_users(s: Users, vmas: int, avcs: int, mms: int = 0) -> Users:
    """`s` with room for so many more rows: itself if it has it, else larger (the old one is then out of date). Anon_vmas never outnumber their links."""
    config = s.config[0]
    need = {"vma": int(config["vmas"]) + vmas, "avc": int(config["avcs"]) + avcs, "anon": int(config["anons"]) + avcs, "mm": int(config["mms"]) + mms}
    grown: dict[str, Any] = {name: _longer(getattr(s, name), rows) for name, rows in need.items() if rows > len(getattr(s, name))}
    return s._replace(**grown) if grown else s


def _longer(table: npt.NDArray[np.void], rows: int) -> npt.NDArray[np.void]:
    made = np.zeros(max(rows, 2 * len(table)), dtype=table.dtype)
    made[: len(table)] = table
    return made


def areas_of(s: Users, mm: int) -> list[int]:
    """Rows of an address space's areas in address order."""
    found, row = list[int](), int(s.mm[mm]["mmap"])
    while row != NIL:
        found.append(row)
        row = int(s.vma[row]["next"])
    return found
