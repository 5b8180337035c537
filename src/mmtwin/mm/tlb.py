"""Translation lookaside buffers and their flushes (arch/x86/mm/tlb.c, and what processors do).

A CPU has a first level with separate parts for the page sizes, and a second level for 4 KiB and 2 MiB together and one for 1 GiB; the least recently used entry of a
set gives way. Entries carry no address-space number: a change of CR3 drops all that are not global, as without PCID.
"""

from __future__ import annotations

from typing import Any

from mmtwin._jit import inner, slow
from mmtwin.mm.pgtable_tables import (
    L1_GB_BASE,
    L1_HUGE_BASE,
    L1_HUGE_SETS,
    L1_SETS,
    L1_WAYS,
    L2_BASE,
    L2_GB_BASE,
    L2_GB_SETS,
    L2_GB_WAYS,
    L2_SETS,
    L2_WAYS,
    PAGE_GLOBAL,
    PAGE_SHIFT,
    TLB_ROWS,
)

ADDRESS_BITS = 57
"""Bits of an address that can tell pages apart (5-level tables); those above only repeat the highest."""


@inner
def page_number(m: Any, address: int, level: int) -> int:
    """Number of the page of this level's size."""
    shift = PAGE_SHIFT + (level - 1) * int(m.config[0]["bits"])
    return (address >> shift) & ((1 << (ADDRESS_BITS - shift)) - 1)


@inner
def probe(m: Any, first: int, ways: int, tag: int) -> int:
    """The row of a set that holds this translation, or -1."""
    for row in range(first, first + ways):
        if int(m.tlb[row]["tag"]) == tag:
            return row
    return -1


@inner
def l1_set(cpu: int, number: int, level: int) -> int:
    """First row of the set of the first level in which a page must be."""
    base = cpu * TLB_ROWS
    if level == 1:
        return base + (number & (L1_SETS - 1)) * L1_WAYS
    if level == 2:
        return base + L1_HUGE_BASE + (number & (L1_HUGE_SETS - 1)) * L1_WAYS
    return base + L1_GB_BASE


@inner
def l2_set(cpu: int, number: int, level: int) -> int:
    """First row of the set of the second level."""
    base = cpu * TLB_ROWS
    if level <= 2:
        return base + L2_BASE + (number & (L2_SETS - 1)) * L2_WAYS
    return base + L2_GB_BASE + (number & (L2_GB_SETS - 1)) * L2_GB_WAYS


@inner
def l2_ways(level: int) -> int:
    """Ways of a set of the second level."""
    return L2_WAYS if level <= 2 else L2_GB_WAYS


@inner
def l1_lookup(m: Any, cpu: int, address: int) -> int:
    """The row of the first level that translates an address, or -1."""
    for level in range(1, int(m.config[0]["huge_levels"]) + 1):
        number = page_number(m, address, level)
        row = probe(m, l1_set(cpu, number, level), L1_WAYS, number << 4 | level)
        if row >= 0:
            return row
    return -1


@inner
def l2_lookup(m: Any, cpu: int, address: int) -> int:
    """The row of the second level that translates an address, or -1."""
    for level in range(1, int(m.config[0]["huge_levels"]) + 1):
        number = page_number(m, address, level)
        row = probe(m, l2_set(cpu, number, level), l2_ways(level), number << 4 | level)
        if row >= 0:
            return row
    return -1


@inner
def touch(m: Any, cpu: int, row: int) -> None:
    """The entry is now the most recently used."""
    clock = int(m.cpu[cpu]["clock"]) + 1
    m.cpu[cpu]["clock"] = clock
    m.tlb[row]["stamp"] = clock


@inner
def replace(m: Any, cpu: int, first: int, ways: int, tag: int, entry: int) -> None:
    """Puts a translation into a set: over itself, into an empty place, or over the least recently used."""
    victim = first
    for row in range(first, first + ways):
        have = int(m.tlb[row]["tag"])
        if have == tag or have == 0:
            victim = row
            break
        if int(m.tlb[row]["stamp"]) < int(m.tlb[victim]["stamp"]):
            victim = row
    m.tlb[victim]["tag"] = tag
    m.tlb[victim]["entry"] = entry
    touch(m, cpu, victim)


@inner
def fill_l1(m: Any, cpu: int, tag: int, entry: int) -> None:
    """A translation from the second level comes into the first."""
    replace(m, cpu, l1_set(cpu, tag >> 4, tag & 15), L1_WAYS, tag, entry)


@inner
def fill(m: Any, cpu: int, address: int, level: int, entry: int) -> None:
    """A walk's result goes into both levels."""
    number = page_number(m, address, level)
    tag = number << 4 | level
    replace(m, cpu, l1_set(cpu, number, level), L1_WAYS, tag, entry)
    replace(m, cpu, l2_set(cpu, number, level), l2_ways(level), tag, entry)
    m.cpu[cpu]["tlb_fills"] = int(m.cpu[cpu]["tlb_fills"]) + 1


@inner
def drop(m: Any, cpu: int, address: int) -> None:
    """Forgets the translation of one address, whatever the page's size."""
    for level in range(1, int(m.config[0]["huge_levels"]) + 1):
        number = page_number(m, address, level)
        tag = number << 4 | level
        row = probe(m, l1_set(cpu, number, level), L1_WAYS, tag)
        if row >= 0:
            m.tlb[row]["tag"] = 0
        row = probe(m, l2_set(cpu, number, level), l2_ways(level), tag)
        if row >= 0:
            m.tlb[row]["tag"] = 0


@slow
def flush_tlb_local(m: Any, cpu: int, keep_global: bool) -> None:
    """Empties a CPU's TLB; with `keep_global` only of what a change of CR3 drops."""
    if not int(m.cpu[cpu]["tlb_fills"]):
        return
    for row in range(cpu * TLB_ROWS, (cpu + 1) * TLB_ROWS):
        if not (keep_global and int(m.tlb[row]["entry"]) & PAGE_GLOBAL):
            m.tlb[row]["tag"] = 0
    if not keep_global:
        m.cpu[cpu]["tlb_fills"] = 0


@slow
def flush_tlb_all(m: Any) -> None:
    """``flush_tlb_all``: every CPU forgets everything, global translations too."""
    m.config[0]["tlb_flushes"] = int(m.config[0]["tlb_flushes"]) + 1
    for cpu in range(len(m.cpu)):
        m.cpu[cpu]["flushes"] = int(m.cpu[cpu]["flushes"]) + 1
        flush_tlb_local(m, cpu, False)


@slow
def flush_tlb_kernel_range(m: Any, start: int, end: int) -> None:
    """``flush_tlb_kernel_range``: page by page on every CPU, or everything if that is more than tlb_single_page_flush_ceiling (33) pages."""
    config = m.config[0]
    if end - start > int(config["ceiling"]) << PAGE_SHIFT:
        flush_tlb_all(m)
        return
    config["tlb_range_flushes"] = int(config["tlb_range_flushes"]) + 1
    for cpu in range(len(m.cpu)):
        address = start
        while address < end:
            config["invlpg"] = int(config["invlpg"]) + 1
            m.cpu[cpu]["invlpg"] = int(m.cpu[cpu]["invlpg"]) + 1
            if int(m.cpu[cpu]["tlb_fills"]):
                drop(m, cpu, address)
            address += 1 << PAGE_SHIFT


@slow
def forget_range(m: Any, start: int, end: int) -> None:
    """Drops translations of a range without counting a flush: no kernel does it. It makes use after free visible that a real TLB hides until the purge."""
    for cpu in range(len(m.cpu)):
        if not int(m.cpu[cpu]["tlb_fills"]):
            continue
        if end - start > int(m.config[0]["ceiling"]) << PAGE_SHIFT:
            flush_tlb_local(m, cpu, False)
            continue
        address = start
        while address < end:
            drop(m, cpu, address)
            address += 1 << PAGE_SHIFT


@slow
def switch_mm(m: Any, cpu: int, root: int) -> None:
    """``load_cr3``: the CPU now walks from another PGD; only global translations stay."""
    if int(m.cpu[cpu]["root"]) != root:
        m.cpu[cpu]["root"] = root
        flush_tlb_local(m, cpu, True)
