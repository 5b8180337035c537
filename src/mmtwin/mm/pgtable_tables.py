"""The state of page tables and TLBs: what `mm.pgtable` and `mm.mmu` work on.

A page-table page is one row of `Mmu.entry`, which holds the processor's own entries, bit by bit; `Mmu.child` says for each entry that points to a
table which row that is, so that a walk needs no search. All kinds of x86 tables fit: they differ in the number of levels and in the index bits of a level.

Virtual addresses in compiled code may be two's complement or biased by 2^63 (as the tables of virtual areas keep them): only the bits that a
table is indexed by matter, and they are the same.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mmtwin.mm.tables import Pgdat

PAGE_SHIFT = 12

PAGE_PRESENT, PAGE_RW, PAGE_USER, PAGE_PWT, PAGE_PCD, PAGE_ACCESSED, PAGE_DIRTY, PAGE_PSE, PAGE_GLOBAL = (1 << bit for bit in range(9))
"""Bits of an entry (arch/x86/include/asm/pgtable_types.h). In a PTE bit 7 is PAT, not PSE, and bit 12 is PAT in huge entries."""
PAGE_PAT = 1 << 7
PAGE_NX = -(1 << 63)
KERNPG_TABLE, PAGE_TABLE = 0x063, 0x067
PAGE_KERNEL = PAGE_NX | 0x163
PAGE_KERNEL_RO = PAGE_NX | 0x161
PAGE_KERNEL_ROX = 0x161
PAGE_KERNEL_EXEC = 0x163
PAGE_KERNEL_NOCACHE = PAGE_NX | 0x173
"""PAGE_KERNEL_*, signed, before what the processor does not support is masked out."""
PFN_BITS = (1 << 52) - (1 << PAGE_SHIFT)
"""Where an entry holds the frame's address."""

NO_ROOM = -1000
"""The machine's tables are full: the caller enlarges them and asks again (as in `mm.slub`)."""

TABLE = np.dtype(
    [
        ("pfn", "i8"),  # the page frame that the table is
        ("level", "i4"),  # 1: PTEs; the highest is the PGD
        ("next", "i4"),  # of a PGD: the next one on pgd_list; of an unused row: the next unused one; -1 ends
        ("boot", "i8"),  # made while booting: its frame does not come from the page allocator, and is never freed
    ]
)
TLB = np.dtype([("tag", "i8"), ("entry", "i8"), ("stamp", "i8")])
"""One translation: tag is page number << 4 | level, 0 if none; the entry has the rights of all levels combined; stamp tells the least recently used."""

MMU_CPU = np.dtype(
    [
        ("root", "i8"),  # CR3: row of the PGD in use
        ("clock", "i8"),
        ("tlb_hits", "i8"),  # found in the first level
        ("tlb_hits_l2", "i8"),
        ("tlb_misses", "i8"),
        ("tlb_fills", "i8"),  # translations in the TLB since it was last emptied, at most
        ("flushes", "i8"),
        ("invlpg", "i8"),
    ]
)
MMU_CONFIG = np.dtype(
    [
        ("levels", "i8"),  # 2 (i386), 3 (i386 with PAE), 4 or 5
        ("bits", "i8"),  # index bits of a level: 9, or 10 with 4-byte entries
        ("root", "i8"),  # row of init_mm's PGD
        ("tables", "i8"),  # rows in use, or once used
        ("free_row", "i8"),  # first unused row below that, -1 if none
        ("pgd_list", "i8"),  # first PGD of a process, -1 if there is none
        ("kernel_index", "i8"),  # first PGD entry of the kernel's half (KERNEL_PGD_BOUNDARY)
        ("supported", "i8"),  # __supported_pte_mask
        ("gfp", "i8"),  # GFP_PGTABLE_KERNEL under the caller's memalloc scope
        ("lazy_sync", "i8"),  # PGD entries reach the processes by vmalloc_fault only (before 5.8)
        ("smap", "i8"),
        ("smep", "i8"),
        ("huge_levels", "i8"),  # highest level that may hold a huge entry: 1 none, 2, 3 with gbpages
        ("ceiling", "i8"),  # tlb_single_page_flush_ceiling
        ("pte_writes", "i8"),  # entries set or cleared that map memory (PTEs and huge entries)
        ("table_writes", "i8"),  # entries set or cleared that point to tables
        ("table_pages", "i8"),  # tables that were allocated
        ("table_frees", "i8"),
        ("sync_calls", "i8"),  # arch_sync_kernel_mappings
        ("sync_writes", "i8"),  # PGD entries it copied
        ("vmalloc_faults", "i8"),
        ("walks", "i8"),
        ("accessed_writes", "i8"),  # accessed and dirty bits that a walk set
        ("tlb_flushes", "i8"),  # of everything, on all CPUs
        ("tlb_range_flushes", "i8"),  # page by page
        ("invlpg", "i8"),
    ]
)
COUNTERS = MMU_CONFIG.names[MMU_CONFIG.names.index("pte_writes") :] if MMU_CONFIG.names else ()

L1_SETS, L1_WAYS = 16, 4
L1_HUGE_SETS = 8
L1_GB_SETS = 1
L2_SETS, L2_WAYS = 128, 12
L2_GB_SETS, L2_GB_WAYS = 4, 4
L1_HUGE_BASE = L1_SETS * L1_WAYS
L1_GB_BASE = L1_HUGE_BASE + L1_HUGE_SETS * L1_WAYS
L2_BASE = L1_GB_BASE + L1_GB_SETS * L1_WAYS
L2_GB_BASE = L2_BASE + L2_SETS * L2_WAYS
TLB_ROWS = L2_GB_BASE + L2_GB_SETS * L2_GB_WAYS
"""A CPU's TLB, as Intel's since Skylake have it: 64 entries for 4 KiB pages, 32 for 2 MiB, 4 for 1 GiB, each 4 ways; behind them 1536 of 12 ways for
4 KiB and 2 MiB, and 16 for 1 GiB."""


class Mmu(NamedTuple):
    """Page tables and TLBs.

    :param entry: the entries; one row per table.
    :param child: row of the table that an entry points to.
    :param table: `TABLE`.
    :param tlb: `TLB`, TLB_ROWS rows per CPU.
    :param cpu: `MMU_CPU`.
    :param config: `MMU_CONFIG`, one row.
    """

    entry: npt.NDArray[np.int64]
    child: npt.NDArray[np.int32]
    table: npt.NDArray[np.void]
    tlb: npt.NDArray[np.void]
    cpu: npt.NDArray[np.void]
    config: npt.NDArray[np.void]


def signed(value: int) -> int:
    """A 64-bit number as two's complement, as the tables keep entries."""
    return (value & (1 << 64) - 1) - (value >> 63 & 1) * (1 << 64)


def empty_mmu(levels: int, nr_cpus: int, tables: int = 256) -> Mmu:
    """No tables at all but room for `tables` of them; `levels` as in `MMU_CONFIG`."""
    bits = 10 if levels == 2 else 9
    config = np.zeros(1, dtype=MMU_CONFIG)
    config["levels"], config["bits"] = levels, bits
    config["free_row"] = config["pgd_list"] = -1
    config["kernel_index"] = {2: 768, 3: 3, 4: 256, 5: 256}[levels]
    config["supported"] = -1 if levels > 2 else (1 << 63) - 1
    config["gfp"], config["ceiling"], config["huge_levels"] = 0xDC0, 33, 3 if levels > 3 else 2
    table = np.zeros(tables, dtype=TABLE)
    return Mmu(
        entry=np.zeros((tables, 1 << bits), dtype=np.int64),
        child=np.zeros((tables, 1 << bits), dtype=np.int32),
        table=table,
        tlb=np.zeros(TLB_ROWS * nr_cpus, dtype=TLB),
        cpu=np.zeros(nr_cpus, dtype=MMU_CPU),
        config=config,
    )


def tables_for(m: Mmu, pages: int) -> int:
    """The most tables that mapping `pages` pages in one range can need."""
    need, bits, span = 0, int(m.config[0]["bits"]), 1
    for _ in range(int(m.config[0]["levels"]) - 1):
        span <<= bits
        need += pages // span + 2
    return need


def has_room(m: Mmu, pages: int) -> bool:
    """Whether `pages` more pages can be mapped without enlarging the tables first (`reserve_tables`)."""
    return int(m.config[0]["tables"]) + tables_for(m, pages) <= len(m.table)


def reserve_tables(m: Mmu, pages: int) -> Mmu:
    """`m` with room for tables that map `pages` more pages: itself if it has it, else larger (the old one is then out of date)."""
    need = int(m.config[0]["tables"]) + tables_for(m, pages)
    if need <= len(m.table):
        return m
    return _resized(m, max(need, 2 * len(m.table)))


def _resized(m: Mmu, rows: int) -> Mmu:
    """Independent tables with `rows` rows; memory is taken only for those in use."""
    used = int(m.config[0]["tables"])
    entry, child = np.zeros((rows, m.entry.shape[1]), dtype=np.int64), np.zeros((rows, m.entry.shape[1]), dtype=np.int32)
    table = np.zeros(rows, dtype=TABLE)
    entry[:used], table[:used] = m.entry[:used], m.table[:used]
    upper = np.flatnonzero(m.table["level"][:used] > 1)
    child[upper] = m.child[upper]
    return m._replace(entry=entry, child=child, table=table)


def copy_mmu(m: Mmu) -> Mmu:
    """An independent copy. TLBs that hold nothing, of a machine with thousands of CPUs, take no memory."""
    tlb = np.zeros_like(m.tlb)
    for cpu in np.flatnonzero(m.cpu["tlb_fills"]):
        tlb[cpu * TLB_ROWS : (cpu + 1) * TLB_ROWS] = m.tlb[cpu * TLB_ROWS : (cpu + 1) * TLB_ROWS]
    return _resized(m, len(m.table))._replace(tlb=tlb, cpu=m.cpu.copy(), config=m.config.copy())


def counters(m: Mmu) -> dict[str, int]:
    """All counters of page tables and TLBs, those of the CPUs added up."""
    sums = {name: int(m.cpu[name].sum()) for name in ("tlb_hits", "tlb_hits_l2", "tlb_misses")}
    return {name: int(m.config[0][name]) for name in COUNTERS} | sums


def table_frames(b: Pgdat, m: Mmu) -> npt.NDArray[np.int64]:
    """Page frames of the tables that came from the page allocator, ascending."""
    used = m.table[: int(m.config[0]["tables"])]
    frames: npt.NDArray[np.int64] = np.sort(used["pfn"][(used["level"] > 0) & (used["boot"] == 0)])
    return frames
