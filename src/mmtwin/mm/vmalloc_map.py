"""The page tables behind a vmalloc area, for calls from Python: mapping, unmapping and flushing behind handles (mm/vmalloc.c, vmap_pages_range and its family)."""

from __future__ import annotations

from typing import Any

from mmtwin._jit import kernel
from mmtwin.mm.handle import tables_at
from mmtwin.mm.mmu import mmu_at
from mmtwin.mm.pgtable import map_huge, map_pages, map_range, unmap_range, vmalloc_to_pfn
from mmtwin.mm.pgtable_tables import PAGE_SHIFT
from mmtwin.mm.tlb import flush_tlb_kernel_range, forget_range

PMD_LEVEL = 2


@kernel
def map_pages_entry(handle: int, mmu: int, cpu: int, address: int, pfns: Any, prot: int, gfp: int) -> int:
    """`map_pages`: page tables that are missing are asked for with `gfp` (a memalloc scope takes __GFP_IO and __GFP_FS away)."""
    b, _ = tables_at(handle)
    m = mmu_at(mmu)
    usual = int(m.config[0]["gfp"])
    m.config[0]["gfp"] = gfp
    error = map_pages(b, m, cpu, address, pfns, prot)
    m.config[0]["gfp"] = usual
    return error


@kernel
def map_huge_pages_entry(handle: int, mmu: int, cpu: int, address: int, pfns: Any, prot: int, gfp: int) -> int:
    """``vmap_pages_range_noflush`` with PMD_SHIFT: one entry for each 512 pages, whose frames are adjacent."""
    b, _ = tables_at(handle)
    m = mmu_at(mmu)
    usual = int(m.config[0]["gfp"])
    m.config[0]["gfp"] = gfp
    step = 1 << int(m.config[0]["bits"])
    error = 0
    at = 0
    while at < len(pfns) and error == 0:
        done = map_huge(b, m, cpu, address + (at << PAGE_SHIFT), int(pfns[at]), prot, PMD_LEVEL)
        if done < 0:
            error = done
        elif done == 0:
            error = map_pages(b, m, cpu, address + (at << PAGE_SHIFT), pfns[at : at + step], prot)
        at += step
    m.config[0]["gfp"] = usual
    return error


@kernel
def map_range_entry(handle: int, mmu: int, cpu: int, start: int, end: int, physical: int, prot: int, max_level: int) -> int:
    """``ioremap_page_range``: `map_range`."""
    b, _ = tables_at(handle)
    return map_range(b, mmu_at(mmu), cpu, start, end, physical, prot, max_level)


@kernel
def unmap_range_entry(mmu: int, start: int, end: int, forget: bool) -> int:
    """``vunmap_range_noflush``: `unmap_range`; with `forget` TLBs lose the range at once, as if it had been flushed."""
    m = mmu_at(mmu)
    present = unmap_range(m, start, end)
    if forget and present:
        forget_range(m, start, end)
    return present


@kernel
def flush_tlb_kernel_range_entry(mmu: int, start: int, end: int) -> None:
    """`flush_tlb_kernel_range`."""
    flush_tlb_kernel_range(mmu_at(mmu), start, end)


@kernel
def vmalloc_to_pfn_entry(mmu: int, address: int) -> int:
    """`vmalloc_to_pfn`."""
    return vmalloc_to_pfn(mmu_at(mmu), address)
