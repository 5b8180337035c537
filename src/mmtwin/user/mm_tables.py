"""The state of processes: address spaces, their areas, who has which page (include/linux/mm_types.h, rmap.h).

Areas of all processes are rows of one table. Those of one address space hang in a list in address order and in a red-black tree, in which each node knows the largest
gap below an area of its subtree (`va_start` to `va_end` is the gap in front of the area), as kernels before 6.1 kept them; 6.1 has a maple tree, which answers the same.
Row 0 of `VM_AREA`, `ANON_VMA` and `AVC` is none. Addresses of processes are below 2^63 and kept as they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

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
        ("object", "i8"),
        ("next", "i8"),  # of an unused row
    ]
)
AVC = np.dtype([("object", "i8"), ("anon_vma", "i4"), ("next", "i4"), ("prev", "i4"), ("unused", "i4")])
"""``anon_vma_chain``: one link between an area and an anon_vma, in the area's list, newest first."""

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

EXCLUSIVE, ANON, TAIL, SHMEM, DIRTY = 1, 2, 4, 8, 16
REF = 32
"""A frame's word: its reference count times REF, and PageAnonExclusive, PageAnon, "not the head of its compound page", PageSwapBacked of shared memory, PageDirty of a file's page.
The count of a tail page is its own mappings'."""

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
        ("huge_zero_refcount", "i8"),  # counts up only: the shrinker that reads it does not run here
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
    config: npt.NDArray[np.void]


def new_users(nr_frames: int, nr_cpus: int) -> Users:
    """No process yet; room for a few."""
    vma = np.zeros(64, dtype=VM_AREA)
    vma["subtree_max_size"][0], vma["rb_color"][0], vma["vm_file"] = ZERO_BYTES, RB_BLACK, -1
    config = np.zeros(1, dtype=USER_CONFIG)
    config["vmas"] = config["anons"] = config["avcs"] = 1
    config["free_mm"] = config["zero_pfn"] = config["huge_zero_pfn"] = config["source"] = config["target"] = -1
    config["gfp_table"] = config["gfp_pte"] = 0x400DC0
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
